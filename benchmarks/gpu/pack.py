"""Pack what a GPU machine needs: training images, real evaluation scans and masks, and the packages that it lacks.

    python benchmarks/gpu/pack.py --source ../shared/data            # into .gpu_data/ and .whl/, which git ignores

Images stay what they are (uint8, lossless) in stronger compression that ``numpy.load`` reads. Where they exceed
``--budget`` MiB, or what the tree and the rest leave of the 64 MiB that travel, whole training subjects are left out,
evenly spaced, until they fit; held-out subjects all stay.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from ambient_mri.training.provenance import git_revision  # noqa: E402

IMAGES = ("brain_flair_128.npz", "brain_t1pre_128.npz")
#: Packages that the machine lacks; antlr4 comes as source only and is built here.
WHEELS = ("hydra-core", "omegaconf")
#: For sigpy's SENSE beside ours on the real heads; PyWavelets weighs as much as a tenth of the images.
BASELINE_WHEELS = ("sigpy", "PyWavelets")
SOURCES = ("antlr4-python3-runtime==4.9.3",)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MIB = 2**20
#: What travels to the machine in one call, the tree included, and what is kept free of it.
LIMIT, SPARE = 64 * MIB, 1 * MIB


def main(arguments: list[str] | None = None) -> None:
    """Pack, and print what it weighs."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.no_wheels:
        fetch_wheels(options.wheels, WHEELS + (BASELINE_WHEELS if options.with_sigpy else ()))
    pack_scans(options.source, options.out)
    # The tree travels without its history: priors that are trained there shall name the commit.
    (options.out / "revision.txt").write_text(git_revision(ROOT))
    others = {
        "the tree": tree_bytes(),
        "wheels": folder_bytes(options.wheels),
        "earlier": folder_bytes(options.earlier),
    }
    others["scans"] = sum(p.stat().st_size for p in options.out.rglob("*") if p.is_file() and p.name not in IMAGES)
    room = LIMIT - SPARE - sum(others.values())
    budget = min(options.budget * MIB, room)
    if budget < 1 * MIB:
        said = ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in others.items())
        raise SystemExit(f"no room for images: {said} of {LIMIT / MIB:.0f} MiB that travel")
    images = pack_images(options.source, options.out, budget)
    parts = ", ".join(f"{name} {size / MIB:.1f}" for name, size in {"images": images, **others}.items())
    print(f"MiB to carry: {parts}; {(images + sum(others.values())) / MIB:.1f} of {LIMIT / MIB:.0f}")


def pack_images(source: Path, out: Path, budget: float) -> int:
    """The image files within the budget; what was packed from the same files and fits stays. Returns their bytes."""
    made_from = {name: find(source, name).stat().st_size for name in IMAGES}
    record = out / "packed.json"
    known = json.loads(record.read_text()) if record.is_file() else {}
    packed = [out / name for name in IMAGES]
    left_out = 0.0
    if known.get("bytes") == made_from and all(p.is_file() for p in packed):
        left_out, size = float(known["left_out"]), sum(p.stat().st_size for p in packed)
        # Room for a few subjects more is not worth minutes of compression.
        if size <= budget and (left_out == 0 or size > 0.95 * budget):
            print(f"images: packed already, {left_out:.0%} of the training subjects left out")
            return size
        left_out = shrunk(left_out, size, budget)
    files = {name: np.load(find(source, name), allow_pickle=False) for name in IMAGES}
    while True:
        kept = {name: keep_subjects(archive, left_out) for name, archive in files.items()}
        size = sum(write_npz(out / name, files[name], kept[name]) for name in IMAGES)
        record.write_text(json.dumps({"bytes": made_from, "left_out": left_out}))
        if size <= budget:
            break
        left_out = shrunk(left_out, size, budget)
    for name in IMAGES:
        print(f"{name}: {int(kept[name].sum())} of {len(kept[name])} slices")
    return size


def shrunk(left_out: float, size: float, budget: float) -> float:
    """The share of training subjects to leave out, when leaving out ``left_out`` of them gave ``size`` bytes."""
    return max(1 - (1 - left_out) * budget / size + 0.01, 0.0)


def keep_subjects(archive: np.lib.npyio.NpzFile, left_out: float) -> np.ndarray:
    """(n,) bool: all subjects but a share of the training subjects, evenly spaced."""
    subjects = archive["subject"]
    train = sorted(set(subjects[archive["split"] == "train"].tolist()))
    count = math.ceil(left_out * len(train))
    return ~np.isin(subjects, [train[int((i + 0.5) * len(train) / count)] for i in range(count)])


def tree_bytes() -> int:
    """Bytes of the files that travel in any case: tracked ones, and untracked ones that git does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "-coz", "--exclude-standard"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\0")
    return sum((ROOT / name).stat().st_size for name in found if name and (ROOT / name).is_file())


def write_npz(path: Path, archive: np.lib.npyio.NpzFile, kept: np.ndarray) -> int:
    """The kept rows of every array, LZMA-compressed; returns the bytes written."""
    temporary = path.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as target:
        for name in archive.files:
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(archive[name][kept]), allow_pickle=False)
            target.writestr(f"{name}.npy", buffer.getvalue())
    temporary.replace(path)
    return path.stat().st_size


def pack_scans(source: Path, out: Path) -> None:
    """The real evaluation scans at 128 x 128 and their masks, in the layout of the data folder."""
    folder = out / "multicoil_val_128"
    folder.mkdir(exist_ok=True)
    for path in sorted((source / "multicoil_val_128").glob("*.h5")):
        if not (folder / path.name).is_file():
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(source / "masks_128.npz", out / "masks_128.npz")


def fetch_wheels(folder: Path, names: Sequence[str]) -> None:
    """Wheels for Python 3.12 on x86-64 Linux, at the versions installed here."""
    from importlib.metadata import version

    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    for name in names:
        stem = name.replace("-", "_").lower()
        if any(p.name.lower().startswith(f"{stem}-") for p in folder.glob("*.whl")):
            continue
        platforms = [f"--platform={p}" for p in PLATFORMS]
        target = ["--python-version=3.12", "--implementation=cp", *platforms, "--only-binary=:all:", "--no-deps"]
        subprocess.run([*pip, "download", "-q", *target, "-d", str(folder), f"{name}=={version(name)}"], check=True)
    for name in SOURCES:
        stem = name.split("==")[0].replace("-", "_")
        if not any(folder.glob(f"{stem}-*.whl")):
            with tempfile.TemporaryDirectory() as work:
                subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", work, name], check=True)
                for wheel in Path(work).glob("*.whl"):
                    shutil.copyfile(wheel, folder / wheel.name)


def find(source: Path, name: str) -> Path:
    """An image file, directly in the folder or in ``images/``."""
    found = next((p for p in (source / name, source / "images" / name) if p.is_file()), None)
    if found is None:
        raise SystemExit(f"{name} is neither in {source} nor in {source / 'images'}: pass --source")
    return found


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=ROOT.parent / "shared" / "data", help="the data folder")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu_data")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl")
    parser.add_argument("--earlier", type=Path, default=ROOT / ".gpu_back", help="what an earlier lease brought back")
    parser.add_argument("--budget", type=float, default=40.0, help="MiB for the images, at most")
    parser.add_argument("--with-sigpy", action="store_true", help="carry sigpy, for its SENSE on the real heads")
    parser.add_argument("--no-wheels", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
