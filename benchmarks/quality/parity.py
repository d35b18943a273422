"""The same answers as the programs that this field compares itself with: coil maps, masks, metrics.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/parity.py

Coil maps: against sigpy's ESPIRiT at equal settings (24 calibration lines, kernels of 6), mean |<m, m'>| over the
object; against BART's, the part of fully sampled data that the maps do not explain, || x_c - S_c S^H x || / || x ||,
ours over theirs, maps from 8, 12 and 24 lines; and what they keep of the signal, |S^H x| / ||x||, in all but one of a
hundred pixels of the object (holes would show). The real heads, or simulated ones without a data folder, and simulated
scans of odd size with 2 to 32 coils.

Masks: for every kind that fastMRI draws, the share of masks that equal those of its own functions under the same seed.
Metrics: the largest difference from fastMRI's, relative. What is not installed (bart, fastmri) is left out, and said.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # cases and records are shared by the benchmarks

from ambient_mri import metrics  # noqa: E402
from ambient_mri.coil_maps import estimate_coil_maps  # noqa: E402
from ambient_mri.data.fastmri_masks import KINDS, FastMRIMask  # noqa: E402
from ambient_mri.data.phantom import BrainPhantom  # noqa: E402
from ambient_mri.data.simulate import Simulation  # noqa: E402
from ambient_mri.masks.base import centre_mask  # noqa: E402
from ambient_mri.operators.fourier import ifft  # noqa: E402
from ambient_mri.report.records import Row, write_records  # noqa: E402
from ambient_mri.report.tables import markdown_table  # noqa: E402
from benchmarks.quality.cases import native_scans, phantom_scans, real_scans, simulated  # noqa: E402
from benchmarks.quality.ledger import recorded_command  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
FASTMRI_MASKS = {
    "random": "RandomMaskFunc",
    "equispaced": "EquiSpacedMaskFunc",
    "equispaced_fraction": "EquispacedMaskFractionFunc",
    "magic": "MagicMaskFunc",
    "magic_fraction": "MagicMaskFractionFunc",
}
MASK_SETTINGS = ((4, 0.08), (8, 0.04), (5, 0.1), (2, 0.0625))
WIDTHS = (320, 323, 368, 372, 396, 37)
ODD = ((2, (96, 81)), (4, (101, 128)), (12, (127, 90)), (32, (64, 77)))  # coils, matrix size


def scans(root: Path | None) -> Iterator[tuple[str, Tensor]]:
    """Name and fully sampled k-space (1, coils, H, W): heads, then simulated scans of other sizes and coils."""
    for name, kspace, _ in phantom_scans() if root is None else real_scans(root):
        yield name, torch.from_numpy(kspace)
    for coils, (height, width) in ODD:
        size = min(height, width) // 2 * 2
        image = BrainPhantom(size, seed=99).volume(0, 3)[1:2]
        above, left = (height - size) // 2, (width - size) // 2
        image = np.pad(image, ((0, 0), (above, height - size - above), (left, width - size - left)))
        settings = Simulation(coils=(coils, coils), noise_std=(0.01, 0.01), turn=False)
        name = f"simulated_{coils}ch_{height}x{width}"
        yield name, torch.from_numpy(simulated(name, image, settings, f"parity {coils}")[1])


def lines(width: int, count: int) -> Tensor:
    """Mask of calibration lines alone."""
    return centre_mask(width, count)[None, None, None]


def unexplained(maps: Tensor, images: Tensor) -> float:
    """|| x_c - S_c S^H x || / || x ||."""
    return float((images - maps * (maps.conj() * images).sum(dim=1, keepdim=True)).norm() / images.norm())


def map_rows(name: str, kspace: Tensor, *, sigpy: bool = True) -> Iterator[Row]:
    """Coil maps of one scan beside sigpy's and BART's."""
    images, full = ifft(kspace), torch.ones(1, 1, 1, 1, dtype=torch.bool)
    magnitude = images.norm(dim=1)
    inside = magnitude > 0.1 * magnitude.max()
    base = {"case": name, "coils": kspace.shape[1], "n": 1, "ci95": None}
    if sigpy:
        found = [estimate_coil_maps(kspace, full, backend=b, absorb=False).maps for b in ("torch", "sigpy")]
        value = float((found[0].conj() * found[1]).sum(dim=1).abs()[inside].mean())
        yield {**base, "method": "sigpy", "metric": "agreement", "value": value}
    for acs in (8, 12, 24):
        mask = lines(kspace.shape[-1], acs)
        maps = estimate_coil_maps(kspace * mask, mask).maps
        kept = float(((maps.conj() * images).sum(dim=1).abs() / magnitude)[inside].quantile(0.01))
        row = {**base, "acs_lines": acs}
        yield {**row, "method": "torch", "metric": "kept", "value": kept}
        if shutil.which("bart"):
            theirs = unexplained(estimate_coil_maps(kspace * mask, mask, backend="bart").maps, images)
            yield {**row, "method": "bart", "metric": "ratio", "value": unexplained(maps, images) / theirs}


def mask_rows(fastmri: ModuleType) -> Iterator[Row]:
    """Share of masks that are fastMRI's, for every kind."""
    seeds = (0, 7, 123456, tuple(map(ord, "file1000831.h5")))
    for kind in KINDS:
        equal = []
        for acceleration, fraction in MASK_SETTINGS:
            function = getattr(fastmri, FASTMRI_MASKS[kind])([fraction], [acceleration])
            law = FastMRIMask(kind, acceleration, fraction)
            for width in WIDTHS:
                for seed in seeds:
                    theirs, _ = function((1, 640, width, 2), seed=seed)
                    ours = law.draw_seeded((640, width), seed)[0, 0, 0].numpy()
                    equal.append(np.array_equal(ours, theirs[0, 0, :, 0].numpy() == 1))
        base = {"case": f"masks_{kind}", "method": "fastmri", "metric": "agreement", "ci95": None}
        yield {**base, "value": float(np.mean(equal)), "n": len(equal)}


def metric_rows(evaluate: ModuleType) -> Iterator[Row]:
    """PSNR, SSIM and NMSE of noisy volumes beside fastMRI's."""
    generator = np.random.default_rng(7)
    differences: dict[str, list[float]] = {}
    for shape in ((3, 40, 51), (1, 128, 128), (16, 320, 320)):
        reference = np.abs(generator.normal(size=shape)) * 1e-3
        image = reference + 3e-5 * generator.normal(size=shape)
        for name in ("psnr", "ssim", "nmse"):
            theirs = float(np.squeeze(getattr(evaluate, name)(reference, image)))
            differences.setdefault(name, []).append(abs(getattr(metrics, name)(reference, image) / theirs - 1))
    for name, found in differences.items():
        base = {"case": f"metric_{name}", "method": "fastmri", "metric": "difference", "ci95": None}
        yield {**base, "value": max(found), "n": len(found)}


def installed(name: str) -> ModuleType | None:
    """The module, or None with a word on standard error."""
    try:
        return importlib.import_module(name)
    except ImportError:
        sys.stderr.write(f"{name} is not installed: its rows are left out\n")
        return None


def measure(root: Path | None) -> list[Row]:
    """Everything."""
    if not shutil.which("bart"):
        sys.stderr.write("bart is not installed: its rows are left out\n")
    rows = [row for name, kspace in scans(root) for row in map_rows(name, kspace)]
    if root is not None:
        for name, array, _ in native_scans(root):
            # sigpy takes minutes for one of them.
            rows += map_rows(name, torch.from_numpy(array), sigpy=False)
    masks, evaluate = installed("fastmri.data.subsample"), installed("fastmri.evaluate")
    rows += mask_rows(masks) if masks else []
    return rows + list(metric_rows(evaluate) if evaluate else [])


def tables(rows: list[Row], definitions: dict[str, str]) -> str:
    """Coil maps, then masks and metrics."""
    maps = [row for row in rows if "coils" in row]
    parts = []
    for metric in ("agreement", "ratio", "kept"):
        found = [row for row in maps if row["metric"] == metric]
        columns = "method" if metric == "agreement" else "acs_lines"
        index = ("case", "coils") if metric == "agreement" else ("case", "coils", "method")
        if found:
            parts.append(markdown_table(found, index=index, columns=columns, metric=metric, definitions=definitions))
    for metric in ("agreement", "difference"):
        found = [row for row in rows if row["metric"] == metric and "coils" not in row]
        if found:
            named = markdown_table(found, index=("case",), columns="method", metric=metric, definitions=definitions)
            parts.append(named)
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the records and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    root = os.environ.get("AMBIENT_MRI_DATA")
    rows = measure(Path(root) if root else None)
    path = options.out / "parity.json"
    result = write_records(
        path,
        benchmark="parity",
        command=recorded_command("benchmarks/quality/parity.py", sys.argv[1:] if arguments is None else arguments),
        settings={"data": "real heads and simulated scans" if root else "simulated scans", "espirit": {"calib": 24}},
        definitions={"ratio": "Part of fully sampled data that our maps do not explain over that of BART's ecalib."},
        rows=rows,
    )
    text = tables(rows, result.definitions)
    path.with_suffix(".md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
