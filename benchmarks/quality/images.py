"""Natural images learned from corrupted ones: pixels missing, or noise added; samples and restorations, in one run.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/images.py --budget cpu

Images are colours of 32 x 32 pixels in [-1, 1] (CIFAR-10, `images/cifar10_10k.npz`; patches of pictures that
scikit-image ships where there is no data folder, and in a rehearsal). 20, 40, 60, 80 % of the pixels are missing,
without noise; or none is, and noise of 0.1 or 0.2 is added. For each corruption: an ambient network trained on the
corrupted images alone, then rounds of EM; once, the same network trained on the clean images. Restorations are of
held-out images under the same corruption. Samples are compared with held-out images in the feature space of
`image_features.py`; the floor of these distances, training images in the place of samples, stands beside them. Where
noise was added, what is left of it in the samples (`image_noise.py`) stands beside noisy and clean training images.

Trainings run in processes of their own and go on where they stopped; records that are there are not measured again.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from image_baselines import candidates
from image_features import DIMENSION, Classifier, trained_classifier
from image_noise import noise_levels, noise_rows
from images_plan import BUDGETS, CASES, ETA, Budget, Case, source
from images_report import DEFINITIONS, tables
from ledger import recorded_command
from training_runs import TrainedEvaluation, arguments_of, parser_of, say, train_once

from ambient_mri import metrics
from ambient_mri.data.natural_images import NaturalImages, load_natural_images
from ambient_mri.denoiser import ConditionalDenoiser
from ambient_mri.measurement import Measurement
from ambient_mri.prior import Prior, load_prior
from ambient_mri.report.images import image_rows
from ambient_mri.report.records import ci95_of_mean, read_records
from ambient_mri.sampling import make_sampler
from ambient_mri.sampling.ambient_generation import AmbientGeneration
from ambient_mri.sampling.full_view import FullView
from ambient_mri.sampling.heun import unconditional
from ambient_mri.tensors import keyed_generator
from ambient_mri.training.estimates import evenly_spaced
from ambient_mri.training.natural import CorruptedImages
from ambient_mri.training.natural_em import restore_rows

BENCHMARK = "images"
SHOWN = 8
# `data.seed` of the trainings.
DATA_SEED = 0


class Timed(NamedTuple):
    """Restorations (n, c, H, W) on the CPU, and the seconds that they took."""

    images: Tensor
    seconds: float


class Evaluation(TrainedEvaluation[Budget]):
    """Trains and scores; arguments as :class:`TrainedEvaluation`."""

    benchmark, definitions = BENCHMARK, DEFINITIONS

    def __init__(self, name: str, budget: Budget, out: Path, command: str) -> None:
        super().__init__(name, budget, out, command)
        self.file = source(name, out)
        self.images: NaturalImages = load_natural_images(self.file)
        with np.load(self.file) as stored:
            self.labels = torch.from_numpy(stored["labels"].astype(np.int64))
        self.truth = self.stack(spread(self.images.val, budget.restored))

    def stack(self, numbers: tuple[int, ...]) -> Tensor:
        return torch.cat([self.images.image(n) for n in numbers])

    def settings(self) -> dict[str, Any]:
        """What was held fixed."""
        return {
            "data": f"{len(self.images.train)} training and {len(self.images.val)} held-out images of "
            + ("CIFAR-10" if self.file.parent != self.out else "patches of scikit-image's pictures"),
            "range": "[-1, 1]; noise_std is in these units, without clipping",
            "seconds": "wall-clock per image, all restored side by side; a mean's are those of all its samples, a "
            "sample's those over their number",
            "baselines": "settings: the best of a grid by mean PSNR, references in hand",
            "frechet": f"{DIMENSION} features of a classifier trained on the labels of the clean training images",
        }

    def train(self, run: str, overrides: list[str], steps: int) -> Prior:
        """A run in a process of its own, where it is not finished."""
        folder, budget = self.out / "runs" / run, self.budget
        more = [
            *(f"data.root={self.file}", f"data.seed={DATA_SEED}", f"model.precision={budget.precision}"),
            *(f"network.channels={budget.channels}", f"network.multipliers={budget.multipliers}"),
            *arguments_of(batch_size=budget.batch_size, trainer=budget.trainer, steps=steps),
        ]
        if not train_once(folder, [*overrides, *more]):
            raise SystemExit(f"{run} failed, see {folder / 'log.txt'}")
        return load_prior(folder / "prior", device=self.device)

    def ambient(self, case: Case) -> Prior:
        return self.train(f"ambient_{case.name}", case.overrides, self.budget.steps)

    def em(self, case: Case) -> Prior:
        self.ambient(case)
        budget = self.budget
        more = ["objective=em", f"em.rounds={budget.em_rounds}", f"em.steps={budget.e_steps}", "em.batch_size=64"]
        more += [f"em.assess.slices={min(32, budget.restored)}", f"init={self.out / 'runs' / f'ambient_{case.name}'}"]
        return self.train(f"em_{case.name}", [*case.overrides, *more], budget.em_steps)

    def supervised(self) -> Prior:
        """Trained as long as an ambient network and all its M-steps together."""
        budget = self.budget
        steps = budget.steps + budget.em_rounds * budget.em_steps
        return self.train("supervised", ["experiment=cifar10_supervised"], steps)

    def measurements(self, case: Case) -> Measurement:
        """The held-out images as the world shows them; keyed by the image."""
        rows = [
            case.corruption.measure(
                self.truth[i : i + 1],
                noise_std=case.noise_std,
                key=f"held out/{i}",
                generator=keyed_generator("images", case.name, i),
            )
            for i in range(len(self.truth))
        ]
        return Measurement.collate(rows)

    def training_images(self, case: Case) -> CorruptedImages:
        """What the trainings of this case see, number by number: the draws of their data seed."""
        noise, numbers = (case.noise_std, case.noise_std), self.images.train
        return CorruptedImages(self.images, numbers, case.corruption, noise_std=noise, seed=DATA_SEED)

    def record(self, case: Case, method: str, restore: Callable[[], Timed], **factors: Any) -> None:
        """PSNR of a restoration of every held-out image, and its first images for the figure."""
        base = {"case": case.name, "missing": case.missing, "noise_std": case.noise_std, "method": method, **factors}
        if self.done(**base, metric="psnr"):
            return
        began = time.perf_counter()
        found, seconds = restore()
        values = scores(self.truth, found)
        torch.save(found[evenly_spaced(len(found), SHOWN)].half(), self.shown(case.name, method))
        row = {**base, "metric": "psnr", "value": statistics.fmean(values), "n": len(values)}
        self.append([{**row, "ci95": ci95_of_mean(values), "seconds": seconds / len(found)}])
        say(f"{case.name}: {method} {row['value']:.2f} dB", began)

    def shown(self, *names: str) -> Path:
        folder = self.out / "shown"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / ("-".join(names).replace("/", "_") + ".pt")

    def baselines(self, case: Case) -> None:
        """Every classical method at its best setting."""
        m, best = self.measurements(case), {}
        names = {name for name, _, _ in candidates(case.noise_std, case.missing)}
        if all(self.done(case=case.name, method=name) for name in names):
            return
        for name, setting, restore in candidates(case.noise_std, case.missing):
            found = restore(m.y, m.mask)
            quality = statistics.fmean(scores(self.truth, found))
            if name not in best or quality > best[name][0]:
                best[name] = (quality, setting, restore)
        for name, (_, setting, restore) in best.items():
            self.record(case, name, partial(timed, partial(restore, m.y, m.mask)), setting=setting)

    def restorations(self, case: Case, objective: str, prior: Prior) -> None:
        """One call of the network where it restores by itself; means of posterior samples, and one of them."""
        m, budget = self.measurements(case).to(self.device), self.budget
        if objective == "ambient":
            point = partial(restore_rows, prior, m, case.corruption, make_sampler("one_step"), 0)
            self.record(case, "ambient/one_step/point", partial(timed, point))
            return
        if not case.missing:
            self.record(case, f"{objective}/denoiser/point", partial(timed, lambda: prior.model(m.y, m.noise_std)))
        ways: dict[str, tuple[int, dict[str, float]]] = {"split_gibbs": (budget.sampler_steps, {"eta": ETA})}
        if case.missing:
            ways["mmps"] = (budget.mmps_steps, {})
        for name, (steps, options) in ways.items():
            self.posterior(
                case,
                f"{objective}/{name}",
                partial(restore_rows, prior, m, case.corruption, make_sampler(name, steps=steps, **options)),
                steps,
            )

    def posterior(self, case: Case, method: str, draw: Callable[[int], Tensor], steps: int) -> None:
        """Records of the mean of posterior samples, and of one of them; ``draw`` gives the one of a seed."""
        count = self.budget.samples
        drawn: list[Timed] = []

        def samples() -> tuple[Tensor, float]:
            """(count, n, c, H, W), drawn once for both rows, and the seconds of drawing them all."""
            if not drawn:
                drawn.extend(timed(partial(draw, k)) for k in range(count))
            return torch.stack([part.images for part in drawn]), sum(part.seconds for part in drawn)

        def mean() -> Timed:
            images, seconds = samples()
            return Timed(images.mean(0), seconds)

        def one() -> Timed:
            images, seconds = samples()
            return Timed(images[0], seconds / count)

        self.record(case, f"{method}/mean{count}", mean, levels=steps)
        self.record(case, f"{method}/sample", one, levels=steps)

    def distances(
        self,
        case: str,
        method: str,
        draw: Callable[[], Tensor],
        factors: dict[str, Any],
        *,
        training: Callable[[], Tensor] | None = None,
    ) -> None:
        """Frechet and kernel distance of samples to the held-out images; where no pixel is missing, the noise in them.

        Args:
            case: Name of the corruption, or "clean".
            method: Of the records.
            draw: Gives the samples.
            factors: Of the records.
            training: Noise levels of all noisy training images.
        """
        base = {"case": case, "method": method, **factors}
        wanted = ["frechet"] if factors["missing"] else ["frechet", "noise_level"]
        if all(self.done(**base, metric=metric) for metric in wanted):
            return
        began = time.perf_counter()
        space = self.classifier()
        drawn = draw()
        torch.save(drawn[:SHOWN].half(), self.shown("samples", case, method))
        pair = (space.features(drawn), space.features(self.stack(self.images.val)))
        values = {"frechet": metrics.frechet_distance(*pair), "kernel": metrics.kernel_distance(*pair)}
        rows = [{**base, "metric": k, "value": v, "n": len(drawn), "ci95": None} for k, v in values.items()]
        rows += [] if factors["missing"] else noise_rows(base, drawn, None if training is None else training())
        self.append([row for row in rows if not self.done(**base, metric=row["metric"])])
        say(f"samples of {method} at {case}: Frechet {values['frechet']:.3g}", began)

    def noisy_images(self, case: Case, factors: dict[str, Any]) -> Tensor:
        """Noise levels of all noisy training images, (n,); their mean is recorded."""
        data = self.training_images(case)
        images = torch.cat([data[i].y for i in range(len(data))])
        base = {"case": case.name, "method": "training_images/corrupted/sample", **factors}
        if not self.done(**base, metric="noise_level"):
            self.append(noise_rows(base, images))
        return noise_levels(images)

    def classifier(self) -> Classifier:
        train = list(self.images.train)
        path, steps = self.out / "features.pt", self.budget.feature_steps
        images, labels = self.stack(self.images.train), self.labels[train]
        return trained_classifier(images, labels, path, steps=steps, device=self.device)

    def generated(self, prior: Prior) -> Tensor:
        """Unconditional samples of a clean prior, or of a network of noisy images."""
        model, parts = prior.model, []
        denoiser = FullView(model) if isinstance(model, ConditionalDenoiser) else model
        for start in range(0, self.budget.generated, 64):
            rows = range(start, min(start + 64, self.budget.generated))
            streams = [keyed_generator("generated", i, device=self.device) for i in rows]
            options = {"steps": self.budget.sampler_steps, "dtype": torch.float32}
            parts.append(unconditional(denoiser, self.images.shape, streams, **options).cpu())  # type: ignore[arg-type]
        return torch.cat(parts)

    def generated_by_masks(self, prior: Prior, case: Case) -> Tensor:
        """Samples of an ambient network of masked images by the published sampler with a fixed mask."""
        parts = []
        for start in range(0, self.budget.generated, 64):
            rows = range(start, min(start + 64, self.budget.generated))
            streams = [keyed_generator("generated", i, device=self.device) for i in rows]
            blank = torch.zeros(1, *self.images.shape)
            masks = [
                case.corruption.measure(
                    blank, noise_std=0.0, key=str(i), generator=keyed_generator("generated mask", i)
                )
                for i in rows
            ]
            m = Measurement.collate(masks).to(self.device)
            sampler = AmbientGeneration(self.budget.sampler_steps)
            parts.append(sampler.generate(prior.model, case.corruption, m, streams).cpu())  # type: ignore[arg-type]
        return torch.cat(parts)

    def floor(self) -> None:
        """Distances of training images, as many as samples are drawn."""
        numbers = spread(self.images.train, self.budget.generated)
        self.distances("clean", "training_images/none/sample", lambda: self.stack(numbers), {"missing": 0.0})

    def case(self, case: Case, supervised: Prior) -> None:
        """Everything at one corruption."""
        factors = {"missing": case.missing, "noise_std": case.noise_std}
        self.baselines(case)
        self.restorations(case, "supervised", supervised)
        ambient = self.ambient(case)
        self.restorations(case, "ambient", ambient)
        if case.missing:
            name, draw = "ambient/fixed_mask/sample", lambda: self.generated_by_masks(ambient, case)
        else:
            name, draw = "ambient/heun/sample", lambda: self.generated(ambient)
        training = None if case.missing else cache(partial(self.noisy_images, case, factors))
        self.distances(case.name, name, draw, factors, training=training)
        em = self.em(case)
        self.restorations(case, "em", em)
        self.distances(case.name, "em/heun/sample", lambda: self.generated(em), factors, training=training)

    def figure(self, cases: list[Case]) -> Path | None:
        """Training images, samples and restorations, for the strongest masking and noise that were run."""
        groups: dict[str, dict[str, Tensor]] = {}
        for case in strongest(cases):
            data = self.training_images(case)
            files = {
                "samples (EM)": self.shown("samples", case.name, "em/heun/sample"),
                "one step (ambient)": self.shown(case.name, "ambient/one_step/point"),
                "mean (EM)": self.shown(case.name, f"em/split_gibbs/mean{self.budget.samples}"),
            }
            found = {name: torch.load(f, weights_only=True).float() for name, f in files.items() if f.is_file()}
            rows = {"training images": torch.cat([data[i].y for i in evenly_spaced(len(data), SHOWN)])}
            rows |= {name: found.pop(name) for name in ("samples (EM)",) if name in found}
            held_out = evenly_spaced(len(self.truth), SHOWN)
            rows |= {"held out, as measured": self.measurements(case).y[held_out], **found}
            rows["truth"] = self.truth[held_out]
            groups[f"{case.missing:.0%} of the pixels missing" if case.missing else f"noise {case.noise_std:g}"] = rows
        if not groups:
            return None
        return image_rows(groups, self.out / "figures" / "images.png", title="Trained on corrupted images alone")


def spread(numbers: tuple[int, ...], count: int) -> tuple[int, ...]:
    """``count`` of them, evenly spaced: a file may be sorted by class."""
    return tuple(numbers[i] for i in evenly_spaced(len(numbers), count))


def strongest(cases: list[Case]) -> list[Case]:
    """The case with most pixels missing, and the one with most noise, of those that are there."""
    chosen = [[c for c in cases if bool(c.missing) == masked] for masked in (True, False)]
    return [max(found, key=lambda c: (c.missing, c.noise_std)) for found in chosen if found]


def timed(restore: Callable[[], Tensor]) -> Timed:
    """Restorations, on the CPU, and how long they took."""
    began = time.perf_counter()
    images = restore().cpu()
    return Timed(images, time.perf_counter() - began)


def scores(truth: Tensor, found: Tensor) -> list[float]:
    """PSNR of each image, data range 2."""
    return [float(10 * torch.log10(4 / (a - b).square().mean())) for a, b in zip(truth, found, strict=True)]


def main(arguments: list[str] | None = None) -> None:
    """Train and score what is missing, then write the tables and the figure."""
    names = f"of {', '.join(c.name for c in CASES)}"
    parser = parser_of(__doc__, BUDGETS, BENCHMARK, names)
    options = parser.parse_args(arguments)
    unknown = set(options.only or ()) - {c.name for c in CASES}
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; --only takes some {names}")
    budget = BUDGETS[options.budget]
    if options.steps:
        budget = replace(budget, steps=options.steps, em_steps=max(1, options.steps // 2))
    # A rehearsal walks every path once.
    usual = ["missing_60", "noise_0.2"] if options.budget == "rehearsal" else [c.name for c in CASES]
    cases = [c for c in CASES if c.name in (options.only or usual)]
    out = (options.out or Path(f"runs/images_{options.budget}")).resolve()
    command = recorded_command("benchmarks/quality/images.py", sys.argv[1:] if arguments is None else arguments)
    evaluation = Evaluation(options.budget, budget, out, command)
    evaluation.floor()
    supervised = evaluation.supervised()
    evaluation.distances("clean", "supervised/heun/sample", lambda: evaluation.generated(supervised), {"missing": 0.0})
    for case in cases:
        evaluation.case(case, supervised)
        (out / f"{BENCHMARK}.md").write_text(tables(read_records(evaluation.path)))
    evaluation.figure(cases)
    sys.stdout.write(tables(read_records(evaluation.path)))


if __name__ == "__main__":
    main()
