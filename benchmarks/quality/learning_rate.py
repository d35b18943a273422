"""The learning rate of short trainings: objectives at equal steps and data, over Adam's rate, beta_2 and the network.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/learning_rate.py --steps 1000 --out runs/learning_rate

``--network`` names another network of the same width (a complex feature map counts for two); ``--average`` is the
half-life of the averaged weights as a share of the run (0.05 everywhere else), "none" the weights of the last step.
Data and batches are those of ``priors.py --budget cpu``; warm-up and cosine as in every run. What is compared is the
objective on scans of held-out subjects, the same noise and further masks for every run, by the averaged weights; a
training that is finished is never done again, and one that was interrupted goes on.

Results: OUT/learning_rate.json (records), OUT/learning_rate.md (table).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ledger import Ledger, recorded_command
from priors_plan import BUDGETS, Budget, data_overrides, data_root
from training_runs import arguments_of, train_once

from ambient_mri.report.records import Row, read_records
from ambient_mri.report.tables import markdown_table
from ambient_mri.training.loggers import read_metrics

# Objective: the column of metrics.csv that is compared.
COLUMNS = {"supervised": "val/clean_objective", "ambient": "val/ambient_objective"}
ACCELERATION, NOISE_STD = 4, 0.01
# So short that the average is the last weights.
HALF_LIVES = {"none": "1e-9"}


def trained(
    objective: str, rate: float, beta: float, steps: int, variant: dict[str, Any], budget: Budget, out: Path
) -> Row:
    """The row of one training.

    Raises:
        SystemExit: If it failed.
    """
    folder = out / "runs" / "_".join([objective, f"lr{rate:g}", f"b{beta:g}", str(steps), *map(str, variant.values())])
    overrides = [
        *data_overrides(budget, ACCELERATION, NOISE_STD, out),
        *budget.network_overrides(variant.get("network", "unet")),
        *([f"ema_half_life={HALF_LIVES.get(variant['average'], variant['average'])}"] if "average" in variant else []),
        *(f"objective={objective}", "loader.val_items=64", f"training.lr={rate:g}", f"training.betas=[0.9,{beta:g}]"),
        *arguments_of(batch_size=budget.batch_size, trainer=budget.trainer, steps=steps),
    ]
    began = time.perf_counter()
    if not train_once(folder, overrides):
        raise SystemExit(f"{folder.name} failed, see {folder / 'log.txt'}")
    column = COLUMNS[objective]
    value = [row[column] for row in read_metrics(folder / "metrics.csv") if column in row][-1]
    seconds = time.perf_counter() - began
    settings = {"learning_rate": rate, "beta_2": beta, "steps": steps, "seconds": seconds, **variant}
    return {"case": "held_out", "method": objective, "metric": "objective", **settings, "value": value, "n": 64}


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="cpu", help="of priors.py")
    parser.add_argument("--objectives", nargs="+", choices=sorted(COLUMNS), default=sorted(COLUMNS))
    parser.add_argument("--rates", nargs="+", type=float, default=[5e-4, 2e-3, 4e-3])
    parser.add_argument("--betas", nargs="+", type=float, default=[0.99, 0.95], help="beta_2")
    parser.add_argument("--steps", nargs="+", type=int, default=[1000])
    parser.add_argument("--network", choices=["unet", "unet_mp", "unet_complex_mp"], default="unet")
    parser.add_argument("--average", default=None, help='half-life, a share of the run; or "none"')
    parser.add_argument("--out", type=Path, default=Path("runs/learning_rate"))
    options = parser.parse_args(arguments)
    budget, out = BUDGETS[options.budget], options.out.resolve()
    command = recorded_command("benchmarks/quality/learning_rate.py", sys.argv[1:] if arguments is None else arguments)
    path = out / "learning_rate.json"
    settings: dict[str, Any] = {
        "budget": options.budget,
        "data": f"simulated k-space of {'images/brain_*' if data_root(budget) else 'procedural phantoms'}, R = 4",
        "network": {"channels": budget.channels, "multipliers": budget.multipliers, "size": budget.size},
        "batch_size": budget.batch_size,
    }
    ledger = Ledger(path, command, settings)
    variant = {} if options.network == "unet" else {"network": options.network}
    variant |= {} if options.average is None else {"average": options.average}
    for steps in options.steps:
        for objective in options.objectives:
            for beta in options.betas:
                for rate in options.rates:
                    factors = {"network": None, "average": None, **variant}
                    if not ledger.has(objective, learning_rate=rate, beta_2=beta, steps=steps, **factors):
                        ledger.add([{**trained(objective, rate, beta, steps, variant, budget, out), "ci95": None}])
    rows = read_records(path).rows
    index = ("method", "steps", "beta_2", *(name for name in ("network", "average") if any(name in r for r in rows)))
    text = markdown_table(rows, index=index, columns="learning_rate", metric="objective")
    (out / "learning_rate.md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
