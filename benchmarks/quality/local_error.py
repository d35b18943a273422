"""What it is worth to know the denoiser's error in every pixel, on the scans of validation subjects.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/local_error.py --prior brain128

The scans of ``selection.py``: slices of validation volumes with 4 to 8 simulated coils, random lines at R = 4 and 8 and
Poisson discs at R = 8, maps and noise estimated from what was sampled. Samplers with the error that they learn for each
pixel (``error="local"``, the default) and with one for all (``"white"``), at several numbers of steps. Without a data
folder, phantoms. A run that the result file holds is not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # cases and records are shared by the benchmarks

from ambient_mri import metrics  # noqa: E402
from ambient_mri.prior import Prior, load_prior  # noqa: E402
from ambient_mri.reconstruct import ReconstructionWarning, reconstruct  # noqa: E402
from ambient_mri.report.records import ResultFile, Row, read_records  # noqa: E402
from ambient_mri.report.tables import markdown_table  # noqa: E402
from ambient_mri.sampling import make_sampler  # noqa: E402
from benchmarks.quality.cases import FITTED, Case, score, simulated_cases  # noqa: E402
from benchmarks.quality.ledger import Ledger, provenance, recorded_command  # noqa: E402
from benchmarks.quality.methods import reference_noise  # noqa: E402
from benchmarks.quality.reconstruct import RESULTS  # noqa: E402
from benchmarks.quality.selection import cases as validation_cases  # noqa: E402

RUNS = (("split_gibbs", (25, 50, 100)), ("dds", (25, 50)))
ERRORS = ("local", "white")


def rows_of(case: Case, prior: Prior, sampler: str, steps: int, error: str, samples: int) -> list[Row]:
    """PSNR, SSIM, NRMSE and variance ratio of one run, made as a user makes it."""
    start = time.perf_counter()
    with warnings.catch_warnings():  # few calibration lines are part of what is measured
        warnings.simplefilter("ignore", ReconstructionWarning)
        method = make_sampler(sampler, steps, error=error)
        found = reconstruct(case.undersampled, mask=case.mask, prior=prior, sampler=method, samples=samples)
    seconds = time.perf_counter() - start
    mean = np.abs(found.mean[0])
    drawn = metrics.fit_scale(mean, case.reference) * np.abs(found.samples[0])
    ratio = metrics.variance_ratio(drawn, case.reference, reference_noise(case), support=case.support)
    values = {**score(case, mean), "variance_ratio": ratio}
    factors: Row = {**case.factors, "law": case.law, "steps": steps, "error": error}
    shared = {**factors, "method": f"{prior.name}/{sampler}/mean{samples}", "seconds": seconds, "n": 1, "ci95": None}
    return [{**shared, "metric": metric, "value": value} for metric, value in values.items()]


def table(result: ResultFile) -> str:
    """PSNR, SSIM and variance ratio by sampler, steps and error."""
    rows = [
        {**row, "mask": f"{row['law']}, R = {row['acceleration']}"}
        for row in result.rows
        if row["metric"] in ("psnr", "ssim", "variance_ratio")
    ]
    rows = [{k: v for k, v in row.items() if k not in ("law", "acceleration", "mask_index")} for row in rows]
    return markdown_table(
        rows,
        index=("method", "steps", "error"),
        columns="mask",
        metric=("psnr", "ssim", "variance_ratio"),
        average_over=("case",),
        definitions=result.definitions,
    )


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the result file, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="brain128", help="a clean prior (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--num-steps", nargs="+", type=int, help="the same numbers for every sampler")
    parser.add_argument("--every", type=int, default=5, help="take one slice of so many (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    prior, root = load_prior(options.prior), os.environ.get("AMBIENT_MRI_DATA")
    cases = [case for _, case in validation_cases(Path(root))] if root else list(simulated_cases([4]))
    settings = {"samples": options.samples, "data": "validation subjects" if root else "phantoms"}
    command = recorded_command("benchmarks/quality/local_error.py", sys.argv[1:] if arguments is None else arguments)
    named = {"priors": {prior.name: provenance(prior)}}
    book = Ledger(options.out / "local_error.json", command, settings, named, FITTED)
    for case in (case for case in cases if case.mask_index % options.every == 0):
        for sampler, numbers in RUNS:
            for steps in options.num_steps or numbers:
                for error in ERRORS:
                    factors = {**case.factors, "law": case.law, "steps": steps, "error": error}
                    if not book.has(f"{prior.name}/{sampler}/mean{options.samples}", **factors):
                        book.add(rows_of(case, prior, sampler, steps, error, options.samples))
        sys.stderr.write(f"{case.name} R={case.acceleration} {case.law}\n")
    text = table(read_records(book.path))
    book.path.with_suffix(".md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
