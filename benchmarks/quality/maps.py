"""What coil maps cost: ESPIRiT's, joint ones and maps from full data, over the number of ACS lines.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/maps.py --prior PRIOR

The fully sampled heads of ``multicoil_val_128``, masks at R = 4 and 8 with 0 to 24 central lines (a square of so many
samples for ``--laws poisson``), two draws each; the same prior, sampler and samples for all. "full" are maps from 24 x
24 calibration samples of the *full* data, which no user has: the bound; their phase is found in the undersampled scan
like that of any maps that are given. Without calibration lines "joint" starts from no maps at all, and a random mask is
described by which of the lines -2 to 2 around the zero frequency it holds (``centre``), because much hangs on that.
Without the data folder the cases are simulated phantoms, and the table says so. What is in the result file is not
computed again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # cases and records are shared by the benchmarks

from ambient_mri.coil_maps import estimate_coil_maps
from ambient_mri.prior import load_prior
from ambient_mri.reconstruct import reconstruct
from ambient_mri.report.records import ResultFile, read_records
from ambient_mri.report.tables import markdown_table
from ambient_mri.tensors import keyed_generator
from benchmarks.quality.cases import FITTED, LAWS, Case, real_cases, simulated_cases
from benchmarks.quality.ledger import Ledger, provenance, recorded_command
from benchmarks.quality.reconstruct import RESULTS, rows_of

METHODS = ("espirit", "joint", "full")


def cases(options: argparse.Namespace) -> Iterator[tuple[Case, int, str]]:
    """Every scan with every mask, the mask's number of ACS lines, and the law it was drawn from."""
    root = os.environ.get("AMBIENT_MRI_DATA")
    found = list(real_cases(Path(root), [8])) if root else list(simulated_cases([8]))
    for case in (c for c in found if c.mask_index == 0 and not c.name.startswith("phantom_4ch")):
        height, width = case.kspace.shape[-2:]
        for law, acceleration in itertools.product(options.laws, options.accelerations):
            for acs in (n for n in options.lines if n <= width // acceleration - 2):
                for draw in range(options.draws if options.scans is None or case.name in options.scans else 0):
                    # The key of random lines is that of the first records.
                    key = (acceleration, acs, draw) if law == "random" else (law, acceleration, acs, draw)
                    generator = keyed_generator("maps benchmark", *key)
                    mask = LAWS[law](acceleration, acs).draw((height, width), generator)[0, 0].numpy()  # type: ignore[call-arg]
                    mask = mask[0] if len(mask) == 1 else mask
                    yield replace(case, acceleration=acceleration, mask_index=draw, mask=mask), acs, law


def centre(mask: np.ndarray) -> str:
    """Which of the lines -2 to 2 are sampled, ``"01000"``; of a 2-D mask, the share of the central 8 x 8 samples."""
    if mask.ndim == 2:
        row, column = (n // 2 for n in mask.shape)
        return f"{mask[row - 4 : row + 4, column - 4 : column + 4].mean():.0%}"
    middle = len(mask) // 2
    return "".join(str(int(line)) for line in mask[middle - 2 : middle + 3])


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
    parser.add_argument("--laws", nargs="+", choices=tuple(LAWS), default=["random"])
    parser.add_argument("--accelerations", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--scans", nargs="+", default=None, help="names; all heads when left out")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--compile", action="store_true", help="compile the networks; the times are of them")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    prior, path = load_prior(options.prior, compile=options.compile), options.out / "maps.json"
    name = f"em/split_gibbs/mean{options.samples}"
    settings = {"prior": prior.name, "samples": options.samples, "steps": options.steps, "sampler": "split_gibbs"}
    settings |= {"networks": "compiled"} if options.compile else {}
    command = recorded_command("benchmarks/quality/maps.py", sys.argv[1:] if arguments is None else arguments)
    book = Ledger(path, command, settings, {"priors": {"em": provenance(prior)}}, FITTED)
    done = {(r["case"], r["acceleration"], r["mask"], r["acs_lines"], r.get("law", "random")) for r in book.rows}
    for case, acs, law in cases(options):
        if (case.name, case.acceleration, case.mask_index, acs, law) in done:
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
            factors = {"acs_lines": acs, "law": law, "centre": centre(case.mask) if acs == 0 else ""}
            rows += rows_of(case, name, np.abs(rec.mean[0]), seconds, coil_maps=method, **factors)
        book.add(rows)
        sys.stderr.write(f"{case.name} R={case.acceleration} {law} ACS {acs} mask {case.mask_index}\n")
    text = table(read_records(path))
    path.with_suffix(".md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


def table(result: ResultFile) -> str:
    """PSNR and SSIM for every number of calibration lines and every kind of coil maps."""
    rows = [{"law": "random", "centre": "", **row} for row in result.rows]
    several = [name for name in ("law", "centre") if len({row[name] for row in rows}) > 1]
    return markdown_table(
        rows,
        index=("case", *several, "acceleration", "acs_lines"),
        columns="coil_maps",
        metric=("psnr", "ssim"),
        average_over=("mask",),
        definitions=result.definitions,
    )


if __name__ == "__main__":
    main()
