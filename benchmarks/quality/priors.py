"""Priors learned from corrupted data beside priors learned from clean data: every objective, one network, one budget.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/priors.py --budget cpu --out runs/priors

Simulated multi-coil k-space of magnitude images of heads (subjects are split; phantoms where there is no data folder,
and the records say so). Each objective trains the same network on the same scans, and sees the same number of training
images over its whole chain: EM spends two fifths of them on an ambient run of its own and the rest on its M-steps;
``em_mean`` is EM whose last M-step learns from means of a few posterior samples; ``wavelet_em`` begins with L1-wavelet
images in place of an ambient run, in rounds of equal length. Every training is ``python -m ambient_mri.train`` in a
process of its own. All are scored on held-out subjects at R = 2, 4, 6, 8; A-DPS is tuned on other held-out subjects,
with their references. What is finished is never done again: the same command goes on after an interruption, inside a
training as well. OUT/priors.json alone is enough to go on with the runs that it does not hold yet: a run whose scores
are there is not trained again.

    --budget gpu        128 x 128, a GPU
    --budget cpu        64 x 64, about a night on one core
    --budget rehearsal  32 x 32 phantoms, a few steps of everything at R = 4: whether it runs, not how well
    --only NAME ...     some of the runs of the plan (--plan prints it)

Results: OUT/priors.json (records), OUT/priors.md (tables), OUT/figures/.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from features import DIMENSION, feature_space
from ledger import recorded_command
from prior_evaluation import (
    ADPS_WEIGHTS,
    SHOWN,
    HeldOut,
    Method,
    adps_weight,
    baseline_methods,
    held_out,
    methods_of,
    rows_of,
    unconditional_samples,
)
from priors_plan import BUDGETS, Budget, Run, acs_lines, data_overrides, data_root, first_run, plan
from priors_report import figures, save_pictures, tables
from training_runs import TrainedEvaluation, arguments_of, finished, parser_of, say, train_once

from ambient_mri import metrics
from ambient_mri.data.datasets import ImageDataset
from ambient_mri.prior import Prior, load_prior
from ambient_mri.report.plots import sample_sheet
from ambient_mri.train import compose
from ambient_mri.training.setup import build
from ambient_mri.training.sources import ScanSet

BENCHMARK = "priors"
# Objectives whose run folder holds rounds.
ROUNDS = ("em", "em_mean", "wavelet_em", "wavelet_edm")
# Those that begin with an ambient run of their own chain.
AFTER_AMBIENT = ("em", "em_mean")


def train(run: Run, budget: Budget, out: Path, *, compiled: bool = False) -> bool:
    """Train in a process of its own, where it is not finished, EM after its first run; False if it failed."""
    folder = out / "runs" / run.name
    if finished(folder):
        return True
    em = run.objective in AFTER_AMBIENT
    if em and not train(first_run(run), budget, out, compiled=compiled):
        return False
    overrides = [
        *data_overrides(budget, run.acceleration, run.noise_std, out),
        *run.overrides,
        *(*budget.network_overrides(), f"training.compile={str(compiled).lower()}"),
        *("loader.val_items=32", *budget.optimiser),
        *arguments_of(batch_size=budget.batch_size, trainer=budget.trainer, steps=budget.steps_of(run.objective)),
    ]
    if em:
        overrides.append(f"init={out / 'runs' / first_run(run).name}")
    if run.objective in ROUNDS:
        overrides += [f"em.assess.slices={min(16, budget.slices)}", f"em.assess.samples={min(4, budget.samples)}"]
        overrides += [f"em.assess.val_volumes={min(8, budget.slices)}"]
    if run.objective == "em_mean":
        take_over(out / "runs" / replace(run, objective="em").name, folder, rounds=budget.em_rounds - 1)
    return train_once(folder, overrides)


def take_over(source: Path, target: Path, *, rounds: int) -> None:
    """Copy the first rounds of a finished EM run into a folder that is not there yet: what differs comes after them."""
    if target.exists() or not finished(source):
        return
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for number in range(rounds + 1):
        for path in sorted(source.glob("round_*")):
            if path.stem == f"round_{number}":
                copy = shutil.copytree if path.is_dir() else shutil.copy2
                copy(path, partial / path.name)
    partial.rename(target)


class Evaluation(TrainedEvaluation[Budget]):
    """Scores priors and baselines; arguments as :class:`TrainedEvaluation`."""

    benchmark = BENCHMARK
    compiled = False

    def __init__(self, name: str, budget: Budget, out: Path, command: str) -> None:
        super().__init__(name, budget, out, command)
        self._cases: dict[tuple[int, float], HeldOut] = {}

    def settings(self) -> dict[str, Any]:
        """What was held fixed."""
        root = data_root(self.budget)
        return {
            "data": f"simulated k-space of {'images/brain_*' if root else 'procedural phantoms'}; split by subject",
            "coil_maps": "those of the simulation, the same for every method",
            "images_seen": "of the whole chain, counted in the run folders: of EM its ambient run and every M-step",
            "baselines": "default weights, chosen without references",
            "adps": f"as published; l ('regularisation') of {', '.join(f'{x:g}' for x in ADPS_WEIGHTS)} by PSNR on "
            "other subjects, with references",
            "frechet": f"features of benchmarks/quality/features.py, {DIMENSION} numbers; magnitude images",
        }

    def scans(self, acceleration: int, noise_std: float, *, train_volumes: bool = False) -> ScanSet:
        """Held-out scans (of no training volume, unless asked for)."""
        overrides = data_overrides(self.budget, acceleration, noise_std, self.out)
        cfg = compose(overrides)
        if not train_volumes and "limit" in cfg.data:
            cfg.data.limit = 0
        source = build({k: v for k, v in cfg.data.items() if k != "references"})
        found: ScanSet = source.prepare(build(cfg.corruption.law))
        return found

    def cases(self, acceleration: int, noise_std: float) -> HeldOut:
        """Held-out slices, loaded once."""
        key = (acceleration, noise_std)
        if key not in self._cases:
            scans, budget = self.scans(*key), self.budget
            self._cases[key] = held_out(
                scans.val,
                scans.val_references(),
                slices=budget.slices,
                tuning=budget.tuning,
                acs_lines=acs_lines(budget.size, acceleration),
            )
        return self._cases[key]

    def baselines(self, noise_std: float) -> None:
        """Every baseline at every acceleration."""
        for acceleration in self.budget.accelerations:
            factors = {"case": "held_out", "acceleration": acceleration, "noise_std": noise_std}
            for name, method in baseline_methods().items():
                if not self.done(**factors, method=name):
                    began = time.perf_counter()
                    self._score(name, method, self.cases(acceleration, noise_std), factors)
                    say(f"{name} at R = {acceleration}", began)

    def prior(self, run: Run) -> None:
        """Every method of a prior at every acceleration, and its unconditional samples."""
        folder = self.out / "runs" / run.name / "prior"
        prior = load_prior(folder, device=self.device, compile=self.compiled)
        levels = (0.01, 0.05) if run.objective == "supervised" else (run.noise_std,)
        for noise_std in levels if self.name != "rehearsal" else (run.noise_std,):
            for acceleration in self.budget.accelerations:
                self._reconstructions(run, prior, acceleration, noise_std)
        if prior.kind == "clean":
            self._unconditional(run, prior)
        self._images_seen(run)

    def scored(self, run: Run) -> bool:
        """Whether the records hold all of a run: its number of training images is written last."""
        factors = {"case": "training", "method": run.objective, "metric": "training_images"}
        return self.done(**factors, noise_std=run.noise_std, train_acceleration=run.acceleration)

    def _reconstructions(self, run: Run, prior: Prior, acceleration: int, noise_std: float) -> None:
        factors = {
            "case": "held_out",
            "acceleration": acceleration,
            "noise_std": noise_std,
            "train_acceleration": run.acceleration,
        }
        budget, published = self.budget, run.objective == "ambient_published"
        if published and self.done(**factors, method=f"{run.objective}/adps/sample"):
            return
        cases = self.cases(acceleration, noise_std)
        adps = None
        if published:
            sampler, keep = adps_weight(prior, cases, name="adps", steps=budget.adps_steps)
            adps, factors = {"adps": (sampler, keep)}, {**factors, "regularisation": vars(sampler)["likelihood_weight"]}
        steps, samples = budget.sampler_steps, budget.samples
        for name, method in methods_of(run.objective, prior, samples=samples, steps=steps, adps=adps).items():
            if self.done(**factors, method=name):
                continue
            began = time.perf_counter()
            self._score(name, method, cases, factors)
            say(f"{name} of R = {run.acceleration} at R = {acceleration}, noise {noise_std:g}", began)

    def _score(self, name: str, method: Method, cases: HeldOut, factors: dict[str, Any]) -> None:
        """Rows of a method, and its first images in OUT/pictures, from which figures are made."""
        shown: dict[str, list[torch.Tensor]] = {}
        rows = rows_of(name, method, cases, factors, shown)
        for label, images in shown.items():
            save_pictures(self.out, label, factors, torch.stack(images))
        truths = torch.stack([truth.abs() for _, truth in cases.scored[:SHOWN]])
        save_pictures(self.out, "reference", {**factors, "train_acceleration": None}, truths)
        self.append(rows)

    def _images_seen(self, run: Run) -> None:
        """The number of training images of the chain, from the cards of its priors."""
        folders = [self.out / "runs" / run.name]
        if run.objective in ROUNDS:
            folders = sorted(folders[0].glob("round_*/"))
        if run.objective in AFTER_AMBIENT:
            folders.append(self.out / "runs" / first_run(run).name)
        cards = [json.loads((folder / "prior" / "prior.json").read_text()) for folder in folders]
        factors = {"case": "training", "method": run.objective, "noise_std": run.noise_std}
        row = {**factors, "train_acceleration": run.acceleration, "metric": "training_images", "n": len(cards)}
        self.append([{**row, "value": sum(card["images_seen"] for card in cards), "ci95": None}])

    def _unconditional(self, run: Run, prior: Prior) -> None:
        factors = {
            "case": "unconditional",
            "method": f"{run.objective}/heun/sample",
            "metric": "frechet",
            "noise_std": run.noise_std,
            "train_acceleration": run.acceleration,
        }
        if self.done(**factors):
            return
        began, budget = time.perf_counter(), self.budget
        scans = self.scans(4, 0.01, train_volumes=True)
        training, truth = (_stack(files) for files in (scans.train_references(), scans.val_references()))
        weights = self.out / "features.pt"
        space = feature_space(training, weights, steps=budget.feature_steps, device=self.device)
        drawn = unconditional_samples(prior, budget.unconditional, budget.size, steps=budget.sampler_steps)
        distance = metrics.frechet_distance(space.features(drawn), space.features(truth))
        self.append([{**factors, "value": distance, "n": len(drawn), "ci95": None}])
        folder = self.out / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        sheet = [image[0].abs() for image in drawn[:16]]
        sample_sheet(sheet, folder / f"unconditional_{run.name}.png", title=f"{run.name}: unconditional samples")
        say(f"{run.name}: unconditional samples", began)


def _stack(files: tuple[Path, ...]) -> torch.Tensor:
    """Magnitudes of every image of some files, (n, 1, H, W), scaled."""
    data = ImageDataset(files)
    return torch.cat([data[i].images.abs() for i in range(len(data))])


def main(arguments: list[str] | None = None) -> None:
    """Train and score what is missing, then write the tables."""
    parser = parser_of(__doc__, BUDGETS, BENCHMARK, "names of runs")
    parser.add_argument("--plan", action="store_true", help="print the names of the runs")
    parser.add_argument("--compile", action="store_true", help="compile the networks: minutes, once on a machine")
    options = parser.parse_args(arguments)
    budget = BUDGETS[options.budget]
    if options.steps:
        budget = replace(budget, steps=options.steps)
    known = [r for r in plan(budget) if options.budget != "rehearsal" or (r.acceleration, r.noise_std) == (4, 0.01)]
    if options.plan:
        sys.stdout.write("\n".join(run.name for run in known) + "\n")
        return
    unknown = set(options.only or ()) - {run.name for run in known}
    if unknown:
        parser.error(f"no run {', '.join(sorted(unknown))}; --plan prints them all")
    runs = [run for run in known if options.only is None or run.name in options.only]
    out = (options.out or Path(f"runs/priors_{options.budget}")).resolve()
    command = recorded_command("benchmarks/quality/priors.py", sys.argv[1:] if arguments is None else arguments)
    evaluation = Evaluation(options.budget, budget, out, command)
    evaluation.compiled = options.compile
    failed = 0
    for run in runs:
        if evaluation.scored(run):
            continue
        if not train(run, budget, out, compiled=options.compile):
            failed += 1
            continue
        evaluation.baselines(run.noise_std)
        evaluation.prior(run)
        (out / f"{BENCHMARK}.md").write_text(tables(evaluation.path))
    figures(evaluation.path, [run for run in known if finished(out / "runs" / run.name)], out)
    sys.stdout.write(tables(evaluation.path))
    if failed:
        raise SystemExit(f"{failed} runs failed")


if __name__ == "__main__":
    main()
