"""Samples of clean training on natural images over the learning rate: is it the data or the training that they lack?

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/images_clean.py --rates 4e-3 --steps 1500

The network, images, feature space and sampler of ``images.py --budget cpu``, whose networks all learned at 5e-4 with
beta_2 = 0.99; here beta_2 is 0.95. Training images in the place of samples are the floor, there and here.

Results: OUT/images_clean.json (records), OUT/images_clean.md (table).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from images import Evaluation
from images_plan import BUDGETS
from ledger import recorded_command

from ambient_mri.report.records import read_records
from ambient_mri.report.tables import markdown_table

BETA_2 = 0.95


class CleanEvaluation(Evaluation):
    """Its records have a name of their own."""

    benchmark = "images_clean"


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="cpu")
    parser.add_argument("--rates", nargs="+", type=float, default=[4e-3])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("runs/images_clean"))
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    command = recorded_command("benchmarks/quality/images_clean.py", sys.argv[1:] if arguments is None else arguments)
    evaluation = CleanEvaluation(options.budget, BUDGETS[options.budget], out, command)
    evaluation.floor()
    for rate in options.rates:
        overrides = ["experiment=cifar10_supervised", f"training.lr={rate:g}", f"training.betas=[0.9,{BETA_2}]"]
        prior = evaluation.train(f"supervised_lr{rate:g}_{options.steps}", overrides, options.steps)
        factors = {"missing": 0.0, "learning_rate": rate, "steps": options.steps}
        evaluation.distances(
            "clean", "supervised/heun/sample", lambda prior=prior: evaluation.generated(prior), factors
        )
    rows = [r for r in read_records(evaluation.path).rows if r["metric"] in ("frechet", "kernel", "noise_level")]
    index = ("method", "learning_rate", "steps")
    text = "\n\n".join(
        markdown_table(rows, index=index, columns="case", metric=name) for name in ("frechet", "kernel", "noise_level")
    )
    (out / "images_clean.md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
