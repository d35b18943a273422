"""Speed of the SENSE normal operator and of ESPIRiT, side by side with sigpy, bare FFTs and BART.

    python benchmarks/speed/operators.py [--out benchmarks/results/operators.json] [--repeats 25]

A^H A is what every iteration of every reconstruction computes. Its floor is one FFT and one inverse FFT of all coils
(``bare_fft``: torch's, no coil maps, no mask, no shifts); ours may be below it where the mask is constant along the
readout, because that axis' transform cancels. Methods take turns within one process, so that a ratio compares like with
like on a busy machine; a ratio is the median over turns. ``bart`` appears where its program is installed; its time
includes the start of the program and its files.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ambient_mri.coil_maps import estimate_coil_maps
from ambient_mri.operators import fft, sense
from ambient_mri.report.records import write_records
from ambient_mri.tensors import complex_randn, keyed_generator

RESULTS = Path(__file__).resolve().parents[1] / "results" / "operators.json"
OURS = "torch"

#: name: (slices, coils, rows, columns), mask along both axes or along the columns alone
SENSE_CASES = {
    "sense_normal_lines_128": ((8, 8, 128, 128), False),
    "sense_normal_lines_320": ((1, 15, 320, 320), False),
    "sense_normal_2d_320": ((1, 15, 320, 320), True),
    "sense_normal_2d_odd": ((1, 15, 321, 255), True),
}
ESPIRIT_SHAPE = (1, 16, 384, 320)


def main() -> None:
    """Time everything, print a table, write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=25, help="turns for the operators; ESPIRiT takes one")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case, (shape, two_dimensional) in SENSE_CASES.items():
        methods = sense_methods(shape, two_dimensional)
        rows += compare(case, methods, arguments.repeats, shape)
    rows += compare("espirit_384x320x16", espirit_methods(), 1, ESPIRIT_SHAPE)
    print_table(rows)
    write_records(
        arguments.out,
        benchmark="operators",
        command="python benchmarks/speed/operators.py",
        settings={"repeats": arguments.repeats, "statistic": "median", "espirit": {"calib": 24, "kernel": 6}},
        definitions={
            "seconds": "Wall-clock seconds for the whole batch, median over the turns.",
            "ratio": "Time of the method over that of ours (torch) in the same turn, median: above 1, ours is faster.",
        },
        rows=rows,
    )
    print(f"\nwrote {arguments.out}")


def sense_methods(shape: tuple[int, ...], two_dimensional: bool) -> dict[str, Callable[[], object]]:
    """A^H A by each method, on the same maps, mask and image."""
    maps = random_maps(shape)
    image = complex_randn((shape[0], 1, *shape[2:]), generator=keyed_generator("image"))
    mask = torch.rand(1, 1, shape[2] if two_dimensional else 1, shape[3], generator=keyed_generator("mask")) < 0.25
    ours, theirs = sense(maps, mask), sense(maps, mask, backend="sigpy")
    linops, images = theirs.linops, image[:, 0].numpy()
    linops = linops * shape[0] if len(linops) == 1 else linops
    coil_images = maps * image
    return {
        OURS: lambda: ours.normal(image),
        # Without the adapter: what a user of sigpy alone would measure.
        "sigpy": lambda: [linop.N * row for linop, row in zip(linops, images, strict=True)],
        "bare_fft": lambda: torch.fft.ifftn(torch.fft.fftn(coil_images, dim=(-2, -1)), dim=(-2, -1)),
    }


def espirit_methods() -> dict[str, Callable[[], object]]:
    """ESPIRiT by each backend from the same 24 x 24 calibration region."""
    row, col = (torch.linspace(-1, 1, n) for n in ESPIRIT_SHAPE[2:])
    image = ((row[:, None] / 0.8) ** 2 + (col / 0.65) ** 2 < 1) * (
        1 + 0.4 * torch.sin(9 * row)[:, None] * torch.cos(7 * col)
    )
    noise = complex_randn(ESPIRIT_SHAPE, generator=keyed_generator("noise"))
    kspace = fft(random_maps(ESPIRIT_SHAPE) * image) + 0.01 * noise
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    backends = (OURS, "sigpy", "bart") if shutil.which("bart") else (OURS, "sigpy")
    return {name: lambda b=name: estimate_coil_maps(kspace, mask, backend=b, absorb=False) for name in backends}


def random_maps(shape: tuple[int, ...]) -> Tensor:
    """Smooth random maps of unit norm: a few low spatial frequencies a coil."""
    low = torch.zeros(shape, dtype=torch.complex64)
    rows, cols = (slice(n // 2 - 1, n // 2 + 2) for n in shape[2:])
    low[..., rows, cols] = complex_randn((*shape[:2], 3, 3), generator=keyed_generator("maps"))
    maps = fft(low)
    return maps / maps.norm(dim=1, keepdim=True)


def compare(
    case: str, methods: dict[str, Callable[[], object]], repeats: int, shape: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Rows of seconds and of ratios to ours; the methods take turns, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    rounds = repeats + 1 if repeats > 1 else 1
    for turn in range(rounds):
        for name, method in methods.items():
            if repeats == 1 and name == OURS:
                method()
            start = time.perf_counter()
            method()
            if turn >= rounds - repeats:
                times[name].append(time.perf_counter() - start)
    rows = []
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times[OURS], strict=True)]
        for metric, values in (("seconds", seconds), ("ratio", ratios)):
            rows.append(
                {
                    "case": case,
                    "method": name,
                    "metric": metric,
                    "value": statistics.median(values),
                    "n": len(values),
                    "ci95": None,
                    "device": "cpu",
                    "shape": "x".join(map(str, shape)),
                }
            )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line a case and method: milliseconds, and how many times ours."""
    value = {(row["case"], row["method"], row["metric"]): row["value"] for row in rows}
    print(f"{'case':26}{'method':12}{'ms':>10}{'x ours':>9}")
    for case, method in dict.fromkeys((row["case"], row["method"]) for row in rows):
        milliseconds, ratio = 1e3 * value[case, method, "seconds"], value[case, method, "ratio"]
        print(f"{case:26}{method:12}{milliseconds:10.2f}{ratio:9.2f}")


if __name__ == "__main__":
    main()
