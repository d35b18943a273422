"""Throughput of preparation, beside the bounds that no program passes: reading and writing the bytes, and the FFTs.

    python benchmarks/speed/prepare.py [--out benchmarks/results/prepare.json] [--volumes 1]

Generated volumes in fastMRI's layout and knee size, readout oversampling included. ``prepare`` is everything, from a
raw file to a prepared one on disk: reading, checks, SHA-256, mask, ESPIRiT maps, noise, scale, writing. ``disk`` copies
the same bytes (read a raw file, write and flush as many as a prepared one has); ``fft`` is one FFT of all coils of each
slice. The bounds are measured in the same turn, on one process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ambient_mri._files import atomic_path
from ambient_mri.masks import RandomLines
from ambient_mri.operators import ifft
from ambient_mri.prepare import prepare_file
from ambient_mri.report.records import write_records
from ambient_mri.report.tables import markdown_table

RESULTS = Path(__file__).resolve().parents[1] / "results" / "prepare.json"
#: slices, coils, rows, columns
SHAPE = (2, 15, 640, 372)


def write_volume(path: Path, seed: int) -> None:
    """A raw volume: an object with edges, smooth coils and noise."""
    slices, coils, rows, columns = SHAPE
    y, x = np.linspace(-2, 2, rows)[:, None], np.linspace(-1, 1, columns)[None]
    image = ((y / 0.8) ** 2 + (x / 0.7) ** 2 < 1) * (1 + 0.3 * np.cos(9 * x) * np.sin(7 * y))
    angle = 2 * np.pi * np.arange(coils) / coils
    maps = np.stack([np.exp(1j * a - (y - np.sin(a)) ** 2 - (x - np.cos(a)) ** 2) for a in angle])
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as handle:
        data = handle.create_dataset("kspace", (slices, coils, rows, columns), np.complex64)
        for i in range(slices):
            noise = rng.standard_normal((coils, rows, columns, 2), dtype=np.float32) @ np.array([1, 1j], np.complex64)
            kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(maps * image, axes=(-2, -1)), norm="ortho"), (-2, -1))
            data[i] = kspace + 0.02 * noise
        handle.attrs["acquisition"] = "CORPD_FBK"
        handle["ismrmrd_header"] = (
            "<ismrmrdHeader><encoding><encodedSpace><matrixSize><x>640</x><y>372</y><z>1</z></matrixSize></encodedSpace>"
            "<reconSpace><matrixSize><x>320</x><y>320</y><z>1</z></matrixSize></reconSpace></encoding></ismrmrdHeader>"
        )


def copy_bytes(source: Path, target: Path, size: int) -> None:
    """Read ``source``, write ``size`` bytes as preparation writes them: flushed to disk."""
    content = source.read_bytes()
    with atomic_path(target) as temporary:
        temporary.write_bytes((content * (size // len(content) + 1))[:size])


def transform(kspace: torch.Tensor) -> None:
    """One FFT of all coils of every slice."""
    for part in kspace:
        ifft(part)


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(volumes: int) -> list[dict[str, Any]]:
    """Seconds a slice of every method, median over the volumes after one that is not counted."""
    found: dict[str, list[float]] = {"prepare": [], "disk": [], "fft": []}
    law = RandomLines(4.0, 26)
    kspace = torch.zeros(SHAPE, dtype=torch.complex64)
    with tempfile.TemporaryDirectory(prefix="ambient_mri_prepare_") as name:
        folder = Path(name)
        for i in range(volumes + 1):
            source, target = folder / f"file{i}.h5", folder / f"prepared{i}.h5"
            write_volume(source, i)
            took = seconds(lambda s=source, t=target: prepare_file(s, t, law=law, device="cpu"))
            size = target.stat().st_size
            target.unlink()
            copied = seconds(lambda s=source, t=target, n=size: copy_bytes(s, t, n))
            target.unlink()
            transformed = seconds(lambda: transform(kspace))
            source.unlink()
            if i > 0:
                for method, value in (("prepare", took), ("disk", copied), ("fft", transformed)):
                    found[method].append(value)
    rows = []
    for method, values in found.items():
        base = {"case": "knee_640x372x15", "method": method, "n": len(values), "device": "cpu"}
        middle = statistics.median(values)
        rows.append({**base, "metric": "seconds", "value": middle / SHAPE[0], "ci95": None})
        share = statistics.median(a / b for a, b in zip(values, found["prepare"], strict=True))
        rows.append({**base, "metric": "ratio", "value": share, "ci95": None})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the records and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--volumes", type=int, default=1)
    options = parser.parse_args(arguments)
    rows = measure(options.volumes)
    definitions = {
        "seconds": "Wall-clock seconds a slice of one process, median over volumes; files in the page cache.",
        "ratio": "Time of the method over that of the whole preparation in the same turn, median.",
    }
    write_records(
        options.out,
        benchmark="prepare",
        command="python benchmarks/speed/prepare.py",
        settings={"volumes": options.volumes, "shape": list(SHAPE), "threads": torch.get_num_threads()},
        definitions=definitions,
        rows=rows,
    )
    table = markdown_table(
        rows, index=("case", "method"), columns="metric", metric=("seconds", "ratio"), definitions=definitions
    )
    options.out.with_suffix(".md").write_text(table + "\n")
    print(table)
    print(f"prepared slices a minute: {60 / rows[0]['value']:.0f}")
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
