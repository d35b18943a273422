"""Pack what a GPU machine needs: training images, real evaluation scans and masks, and the packages that it lacks.

    python benchmarks/gpu/pack.py --source ../shared/data            # into .gpu_data/ and .whl/, which git ignores

Images stay what they are (uint8, lossless) in stronger compression that ``numpy.load`` reads. Where they exceed
``--budget`` MiB, whole training subjects are left out, evenly spaced, until they fit; held-out subjects all stay.
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
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("brain_flair_128.npz", "brain_t1pre_128.npz")
#: Packages that the machine lacks; antlr4 comes as source only and is built here.
WHEELS = ("hydra-core", "omegaconf", "sigpy", "PyWavelets")
SOURCES = ("antlr4-python3-runtime==4.9.3",)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MIB = 2**20


def main(arguments: list[str] | None = None) -> None:
    """Pack, and print what it weighs."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    pack_images(options.source, options.out, options.budget * MIB)
    pack_scans(options.source, options.out)
    if not options.no_wheels:
        fetch_wheels(options.wheels)
    sizes = {f.name: folder_bytes(f) / MIB for f in (options.out, options.wheels) if f.is_dir()}
    carried = ", ".join(f"{name} {size:.1f} MiB" for name, size in sizes.items())
    print(f"carry: {carried}; the limit is 64 MiB with the tree")


def pack_images(source: Path, out: Path, budget: float) -> None:
    """The image files within the budget; nothing is done where they were packed from the same files already."""
    files = {name: np.load(find(source, name), allow_pickle=False) for name in IMAGES}
    wanted = {"budget": budget, "bytes": {name: find(source, name).stat().st_size for name in IMAGES}}
    record = out / "packed.json"
    if record.is_file() and json.loads(record.read_text()) == wanted and all((out / n).is_file() for n in IMAGES):
        print(f"{', '.join(IMAGES)}: packed already")
        return
    every, size = 0, math.inf
    while size > budget:
        kept = {name: keep_subjects(archive, every) for name, archive in files.items()}
        size = sum(write_npz(out / name, files[name], kept[name]) for name in IMAGES)
        # Should it not fit: as many subjects as are too many and a few more, and more again at every further try.
        share = 1.2 * (1 - budget / size)
        every = max(2, min(every - 1, int(1 / share)) if every else int(1 / share)) if share > 0 else every
    record.write_text(json.dumps(wanted))
    for name in IMAGES:
        packed = (out / name).stat().st_size / MIB
        print(f"{name}: {int(kept[name].sum())} of {len(kept[name])} slices, {packed:.1f} MiB")


def keep_subjects(archive: np.lib.npyio.NpzFile, every: int) -> np.ndarray:
    """(n,) bool: all subjects, or without every ``every``-th training subject."""
    subjects = archive["subject"]
    if not every:
        return np.ones(len(subjects), dtype=bool)
    train = sorted(set(subjects[archive["split"] == "train"].tolist()))
    return ~np.isin(subjects, train[every - 1 :: every])


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


def fetch_wheels(folder: Path) -> None:
    """Wheels for Python 3.12 on x86-64 Linux, at the versions installed here."""
    from importlib.metadata import version

    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    for name in WHEELS:
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
    parser.add_argument("--budget", type=float, default=40.0, help="MiB for the images")
    parser.add_argument("--no-wheels", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
