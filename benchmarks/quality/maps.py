"""What coil maps cost: ESPIRiT's, joint ones and maps from full data, over the number of ACS lines.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/maps.py --prior PRIOR

The fully sampled heads of ``multicoil_val_128``, 1-D random masks at R = 4 and 8 with 0 to 24 central lines, two draws
each; the same prior, sampler and samples for all. "full" are maps from 24 x 24 calibration samples of the *full* data,
which no user has: the bound. Without the data folder the cases are simulated phantoms, and the table says so. What is
in the result file is not computed again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from reconstruct import RESULTS, Case, real_cases, rows_of, simulated_cases

from ambient_mri.coil_maps import estimate_coil_maps
from ambient_mri.masks import RandomLines
from ambient_mri.prior import load_prior
from ambient_mri.reconstruct import reconstruct
from ambient_mri.report.records import append_records, read_records
from ambient_mri.report.tables import markdown_table
from ambient_mri.tensors import keyed_generator

METHODS = ("espirit", "joint", "full")


def cases(lines: list[int], draws: int) -> Iterator[tuple[Case, int]]:
    """Every scan with every mask, and the mask's number of ACS lines."""
    root = os.environ.get("AMBIENT_MRI_DATA")
    found = list(real_cases(Path(root), [8])) if root else list(simulated_cases([8]))
    for case in (c for c in found if c.mask_index == 0 and not c.name.startswith("phantom_4ch")):
        height, width = case.kspace.shape[-2:]
        for acceleration in (4, 8):
            for acs in (n for n in lines if n <= width // acceleration - 2):
                for draw in range(draws):
                    generator = keyed_generator("maps benchmark", acceleration, acs, draw)
                    mask = RandomLines(acceleration, acs).draw((height, width), generator)[0, 0, 0].numpy()
                    yield replace(case, acceleration=acceleration, mask_index=draw, mask=mask), acs


def full_maps(kspace: np.ndarray, lines: int = 24) -> np.ndarray:
    """Maps from the central samples of fully sampled data, (coils, H, W)."""
    y = torch.from_numpy(kspace)
    centre = torch.zeros(1, 1, *y.shape[-2:], dtype=torch.bool)
    rows, columns = (slice(n // 2 - lines // 2, n // 2 + lines // 2) for n in y.shape[-2:])
    centre[..., rows, columns] = True
    return estimate_coil_maps(y * centre, centre, absorb=False).maps[0].numpy()


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the result file, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", type=Path, required=True, help="clean prior folder")
    parser.add_argument("--lines", type=int, nargs="+", default=[0, 2, 4, 6, 8, 12, 24])
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    prior, path = load_prior(options.prior), options.out / "maps.json"
    name = f"em/split_gibbs/mean{options.samples}"
    settings = {"prior": prior.name, "samples": options.samples, "steps": options.steps, "sampler": "split_gibbs"}
    command = "python benchmarks/quality/maps.py " + " ".join(sys.argv[1:] if arguments is None else arguments)
    done = (
        {(r["case"], r["acceleration"], r["mask"], r["acs_lines"]) for r in read_records(path).rows}
        if path.is_file()
        else set()
    )
    for case, acs in cases(options.lines, options.draws):
        if (case.name, case.acceleration, case.mask_index, acs) in done:
            continue
        rows: list[dict[str, object]] = []
        for method in METHODS:
            maps = full_maps(case.kspace) if method == "full" else method
            start = time.perf_counter()
            rec = reconstruct(
                case.undersampled,
                mask=case.mask,
                prior=prior,
                coil_maps=maps,
                samples=options.samples,
                steps=options.steps,
                progress=False,
            )
            seconds = time.perf_counter() - start
            rows += rows_of(case, name, np.abs(rec.mean[0]), seconds, acs_lines=acs, coil_maps=method)
        append_records(path, "maps", command, settings, rows=rows)
        sys.stderr.write(f"{case.name} R={case.acceleration} ACS {acs} mask {case.mask_index}\n")
    result = read_records(path)
    table = markdown_table(
        result.rows,
        index=("case", "acceleration", "acs_lines", "coil_maps"),
        metric=("psnr", "ssim"),
        average_over=("mask",),
        definitions=result.definitions,
    )
    path.with_suffix(".md").write_text(table + "\n")
    sys.stdout.write(table + "\n")


if __name__ == "__main__":
    main()
