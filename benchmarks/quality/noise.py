"""The noise level estimated without a noise scan, against the level that was put into simulated scans.

    python benchmarks/quality/noise.py [--out benchmarks/results/noise.json] [--repeats 6]

Procedural heads under circular receive coils, complex white noise of known level, and then what scanners do to
k-space: lines left out, zero padding, filtered edges (a window over the outer tenth of rows and columns), corners that
were never measured. The level is relative to the brightest pixels. Where the edges are filtered, the truth is the noise
of the lines in the middle, averaged along the readout, which the window dims as well. The bias is the mean of
estimate / truth - 1 over repeats (other heads, other noise); the goal is 5 %.

Where signal reaches the edge of k-space and a Poisson disc hides the margins of the field of view, the estimate is an
upper bound: heads of twice the resolution, their k-space cropped. ``likely_noise_std`` lowers it to what the coils
agree on, with coil maps from the undersampled scan itself, as a reconstruction does.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ambient_mri.coil_maps import estimate_coil_maps, likely_noise_std
from ambient_mri.data.normalize import estimate_noise_std
from ambient_mri.data.phantom import BrainPhantom
from ambient_mri.data.simulate import Simulation, simulate_scan
from ambient_mri.masks import PoissonDisc, RandomLines, SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.operators.fourier import fft, ifft
from ambient_mri.report.records import ci95_of_mean, write_records
from ambient_mri.report.tables import markdown_table
from ambient_mri.tensors import complex_randn, keyed_generator

RESULTS = Path(__file__).resolve().parents[1] / "results" / "noise.json"
COILS = (1, 4, 12)
LEVELS = (0.003, 0.01, 0.03, 0.1)
SIZE, SLICES = 128, 3

Scan = tuple[np.ndarray, np.ndarray]  # k-space (slices, coils, H, W), mask (1, 1, H or 1, W or 1)


def fully_sampled(kspace: np.ndarray) -> Scan:
    """As simulated."""
    return kspace, np.ones((1, 1, 1, 1), dtype=bool)


def undersampled(law: SamplingLaw) -> Callable[[np.ndarray], Scan]:
    """One mask of a law."""

    def apply(kspace: np.ndarray) -> Scan:
        shape = (kspace.shape[-2], kspace.shape[-1])
        mask = law.draw(shape, keyed_generator("noise", round(law.acceleration))).numpy()
        return kspace * mask, mask

    return apply


def zero_padded(kspace: np.ndarray) -> Scan:
    """Outer lines that were never measured, as in fastMRI's brains."""
    mask = np.zeros((1, 1, 1, kspace.shape[-1]), dtype=bool)
    mask[..., 14:-16] = True
    return kspace * mask, mask


def filtered_edges(kspace: np.ndarray) -> Scan:
    """A window that falls to a tenth over the outer tenth of the lines, both axes."""
    window = edge_window(kspace.shape[-1])
    return kspace * window * window[:, None], np.ones((1, 1, 1, 1), dtype=bool)


def edge_window(size: int) -> np.ndarray:
    """One in the middle, down to a tenth over the outer tenths."""
    window, edge = np.ones(size, dtype=np.float32), size // 10
    window[:edge], window[-edge:] = np.linspace(0.1, 1, edge), np.linspace(1, 0.1, edge)
    return window


def empty_corners(kspace: np.ndarray) -> Scan:
    """An elliptical scan."""
    axis = (np.arange(kspace.shape[-1]) - kspace.shape[-1] // 2) / (kspace.shape[-1] / 2)
    mask = (np.hypot(axis[:, None], axis) <= 1)[None, None]
    return kspace * mask, mask


CASES: dict[str, Callable[[np.ndarray], Scan]] = {
    "full": fully_sampled,
    "lines_R4": undersampled(RandomLines(4, 12)),
    "lines_R8": undersampled(RandomLines(8, 8)),
    "zero_padded": zero_padded,
    "filtered_edges": filtered_edges,
    "empty_corners": empty_corners,
}

# Signal up to the edge of k-space.
CROPPED: dict[str, Callable[[np.ndarray], Scan]] = {
    "poisson_R4_cropped": undersampled(PoissonDisc(4, 12)),
    "poisson_R8_cropped": undersampled(PoissonDisc(8, 8)),
}


def head(coils: int, repeat: int, *, crop: int = 1) -> np.ndarray:
    """Fully sampled k-space of a procedural head, (slices, coils, H, W), without noise, of ``crop`` times the
    resolution before its k-space is cropped.
    """
    image = BrainPhantom(crop * SIZE, seed=7).volume(repeat, SLICES)
    if crop > 1:
        middle = slice((crop - 1) * SIZE // 2, (crop + 1) * SIZE // 2)
        image = (ifft(fft(torch.from_numpy(image).to(torch.complex64))[..., middle, middle]).abs() / crop).numpy()
    settings = Simulation(coils=(coils, coils), noise_std=(0.0, 0.0), turn=False)
    name = f"noise {repeat} {coils}"
    return simulate_scan(image, law=RandomLines(1, 0), seed=7, scan_id=name, settings=settings).scan.kspace


def noise(shape: tuple[int, ...], *key: object) -> np.ndarray:
    """Complex noise of unit variance per part."""
    return complex_randn(shape, generator=keyed_generator("noise", *key)).numpy()


def lowered(kspace: np.ndarray, mask: np.ndarray, bound: float) -> float:
    """What the coils of a scan agree on, maps from its own calibration lines; rms over its slices."""
    y, sampled = torch.from_numpy(kspace), torch.from_numpy(mask)
    bounds, names = torch.full((len(y),), bound), tuple(map(str, range(len(y))))
    maps = estimate_coil_maps(y, sampled, noise_std=bounds).maps
    levels = likely_noise_std(Measurement(y, sampled, maps, bounds, torch.ones(len(y)), names), bounds)
    return float(levels.square().mean().sqrt())


def measure(repeats: int) -> list[dict[str, Any]]:
    """One row for each case, number of coils and level: estimate over truth."""
    found: dict[tuple[str, str, int, float], list[float]] = {}
    dimmed = float(np.sqrt(np.mean(edge_window(SIZE) ** 2)))
    for coils, repeat in itertools.product(COILS, range(repeats)):
        clean, full = head(coils, repeat), head(coils, repeat, crop=2)
        for level, (case, change) in itertools.product(LEVELS, CROPPED.items()):
            kspace, mask = change(full + np.float32(level) * noise(full.shape, coils, level, repeat))
            bound, _ = estimate_noise_std(kspace, mask)
            for method, value in {
                "estimate_noise_std": bound,
                "likely_noise_std": lowered(kspace, mask, bound),
            }.items():
                found.setdefault((case, method, coils, level), []).append(value / level)
        for level in LEVELS:
            kspace = clean + np.float32(level) * noise(clean.shape, coils, level, repeat)
            for case, change in CASES.items():
                truth = level * (dimmed if case == "filtered_edges" else 1)
                estimate, _ = estimate_noise_std(*change(kspace))
                found.setdefault((case, "estimate_noise_std", coils, level), []).append(estimate / truth)
    rows = []
    for (case, method, coils, level), errors in sorted(found.items()):
        base = {"case": case, "method": method, "coils": coils, "noise_std": level, "n": len(errors)}
        rows.append({**base, "metric": "ratio", "value": statistics.mean(errors), "ci95": ci95_of_mean(errors)})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the records and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=6)
    options = parser.parse_args(arguments)
    rows = measure(options.repeats)
    definitions = {"ratio": "Estimated over true noise_std, mean over repeats; simulated heads."}
    write_records(
        options.out,
        benchmark="noise",
        command="python benchmarks/quality/noise.py",
        settings={"repeats": options.repeats, "size": SIZE, "slices": SLICES, "data": "simulated heads"},
        definitions=definitions,
        rows=rows,
    )
    table = markdown_table(
        rows, index=("case", "method", "coils"), columns="noise_std", metric="ratio", definitions=definitions
    )
    options.out.with_suffix(".md").write_text(table + "\n")
    print(table)
    worst = max((r for r in rows if r["case"] in CASES), key=lambda row: abs(row["value"] - 1))
    bias = 100 * (worst["value"] - 1)
    print(f"\nlargest bias {bias:.1f} %: {worst['case']}, {worst['coils']} coils, {worst['noise_std']}")


if __name__ == "__main__":
    main()
