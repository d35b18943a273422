"""Measure the factor that makes a prior's standard deviations honest, on validation subjects, and store it in its card.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/priors/recalibrate.py --prior ambient_mri/priors/brain128

The slices of ``benchmarks/quality/selection.py`` at R = 4 and 8, random lines, fully sampled with noise of their own:
people and scans that the prior was not trained on. ``ambient-mri calibrate`` does the same for files of yours.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the slices are those that priors are chosen by

from ambient_mri.prior import Prior, load_prior  # noqa: E402
from ambient_mri.reconstruct import Reconstruction  # noqa: E402
from ambient_mri.reconstruct.recalibration import measure_recalibration, store_recalibration  # noqa: E402
from benchmarks.quality.methods import ours  # noqa: E402
from benchmarks.quality.selection import cases  # noqa: E402

SAMPLER = "split_gibbs"


def results(root: Path, prior: Prior, samples: int, every: int) -> Iterator[tuple[Reconstruction, np.ndarray]]:
    """Reconstructions of every so-many-th slice, and their references."""
    for _, case in cases(root):
        if case.law == "random" and case.mask_index % every == 0:
            found, seconds = ours(case, prior, SAMPLER, samples, None)
            sys.stderr.write(f"{case.name} R={case.acceleration}: {seconds:.0f} s\n")
            yield found, case.reference[None]


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", type=Path, required=True, help="prior folder; its prior.json is written")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--every", type=int, default=2, help="take one slice of so many")
    parser.add_argument("--compile", action="store_true", help="compile the network")
    options = parser.parse_args()
    if not os.environ.get("AMBIENT_MRI_DATA"):
        parser.error("set AMBIENT_MRI_DATA to the data folder: the validation subjects are there")
    root = Path(os.environ["AMBIENT_MRI_DATA"])
    prior = load_prior(options.prior, compile=options.compile)
    found = measure_recalibration(results(root, prior, options.samples, options.every))
    about = {
        "scans": "validation subjects, simulated, R = 4 and 8, random lines",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    store_recalibration(options.prior, SAMPLER, found, **about)
    sys.stdout.write(f"{found.describe()}\n")


if __name__ == "__main__":
    main()
