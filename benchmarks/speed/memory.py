"""Peak memory of reconstructions of large scans, each in a process of its own, against a budget of 8 GB.

    OMP_NUM_THREADS=1 python benchmarks/speed/memory.py

Random k-space and coil maps of the given size and a small untrained network: memory does not depend on what is in the
images. The peak is the process's largest resident set, Python and its libraries included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ambient_mri.prior import Prior, build_model
from ambient_mri.reconstruct import reconstruct
from ambient_mri.report.records import Row, append_records, read_records
from ambient_mri.report.tables import markdown_table

RESULTS = Path(__file__).resolve().parents[1] / "results"
BUDGET_MB = 8000 / 1.048576  # 8 GB in MiB
# slices, coils, H, W, samples, steps, whether coil maps are estimated
CASES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "one slice": (1, 20, 640, 372, 8, 2, True),
    "volume of 36 slices": (36, 20, 640, 372, 2, 1, False),
}


def reconstruct_case(name: str) -> None:
    """Reconstruct one case and print its peak memory and seconds as JSON."""
    slices, coils, height, width, samples, steps, estimate = CASES[name]
    generator = np.random.default_rng(0)
    mask = np.zeros(width, dtype=bool)
    mask[:: 4 if estimate else 3] = True
    mask[width // 2 - 12 : width // 2 + 12] = True
    kspace = np.zeros((slices, coils, height, width), dtype=np.complex64)
    for part in kspace:
        part.real, part.imag = (generator.standard_normal(part.shape, dtype=np.float32) * mask for _ in range(2))
    kspace[..., height // 2 - 8 : height // 2 + 8, width // 2 - 8 : width // 2 + 8] *= 100
    maps = None if estimate else np.full((coils, height, width), coils**-0.5, dtype=np.complex64)
    network = {"name": "UNet", "channels": 8, "multipliers": [1, 1], "fold": 2}
    architecture = {"kind": "clean", "network": network, "sd": 0.3}
    prior = Prior(build_model(architecture), "clean", architecture)
    start = time.perf_counter()
    options = {"samples": samples, "steps": steps, "coil_maps": maps, "noise_std": 1.0, "progress": False}
    found = reconstruct(kspace, mask=mask, prior=prior, **options)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    content = {"peak": peak, "seconds": seconds, "data_step": found.settings["run"]["data_step"]}
    sys.stdout.write(json.dumps(content) + "\n")


def rows_of(name: str) -> list[Row]:
    """Run a case in a process of its own."""
    command = [sys.executable, __file__, "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    slices, coils, height, width, samples, steps, estimate = CASES[name]
    shared: Row = {"case": name, "shape": f"{slices}x{coils}x{height}x{width}", "samples": samples, "steps": steps}
    shared |= {"method": "split_gibbs", "maps": "estimated" if estimate else "given", "n": 1, "ci95": None}
    shared["data_step"] = found["data_step"]
    return [
        {**shared, "metric": "peak_memory_mb", "value": found["peak"]},
        {**shared, "metric": "seconds", "value": found["seconds"] / slices},
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing in the result file, print the table, and fail where the budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(CASES), help="one case, in this process, without a record")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.only:
        reconstruct_case(options.only)
        return
    path = options.out / "memory.json"
    for name in CASES:
        if not path.is_file() or not read_records(path).has(case=name):
            settings = {"budget_mb": round(BUDGET_MB), "network": "UNet, 8 channels, untrained", "threads": 1}
            append_records(path, "memory", "python benchmarks/speed/memory.py", settings, rows=rows_of(name))
    rows = read_records(path).rows
    table = markdown_table(
        rows, index=("case", "shape", "samples"), columns="metric", metric=("peak_memory_mb", "seconds")
    )
    path.with_suffix(".md").write_text(table)
    sys.stdout.write(table)
    over = [row["case"] for row in rows if row["metric"] == "peak_memory_mb" and row["value"] > BUDGET_MB]
    if over:
        raise SystemExit(f"over the budget of 8 GB: {', '.join(over)}")


if __name__ == "__main__":
    main()
