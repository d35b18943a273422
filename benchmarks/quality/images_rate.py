"""Samples of natural images, learned from clean and from noisy ones: do they lack data, or training?

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/images_rate.py --rates 4e-3 --steps 1500 --noise 0.2

The images, feature space and sampler of ``images.py --budget cpu``, whose networks all learned at 5e-4 with beta_2 =
0.99; here beta_2 follows the rate (:func:`beta_2`). ``--steps`` are those of the ambient training; EM's rounds take
half of it each, and clean training takes all of them together, as there. Training images in the place of samples are
the floor, there and here.

``--shift`` moves the noise levels of clean training up: at 0, 73 % of its rows lie above 0.2; at -1, the default, 48
%; in the chain of EM from images of noise 0.2, 61 %, because its ambient half has none below, consistency (a quarter)
apart. ``--chain 0.2`` takes clean images through a chain of that kind: half of the steps above 0.2 alone, then the
M-steps, each with its own warm-up and cosine. ``--network unet_mp`` has EDM2's magnitude-preserving layers at the same
widths. Distances are also taken after blurring samples and held-out images alike, which leaves their coarse structure.

Results: OUT/images_rate.json (records), OUT/images_rate.md (table).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from images import Evaluation
from images_plan import BUDGETS, Budget, Case
from images_report import DEFINITIONS
from ledger import recorded_command

from ambient_mri import metrics
from ambient_mri.operators import gaussian_blur
from ambient_mri.prior import Prior
from ambient_mri.report.records import read_records
from ambient_mri.report.tables import markdown_table

# Standard deviations in pixels.
BLURS = (1.0, 2.0)
# Of the training's law of noise levels.
SHIFT = -1.0
# rms of a channel of the images, in whose units the law has its limits.
CIFAR_SD = 0.5022
WORDS = {
    **DEFINITIONS,
    "ratio": "Coarse power of samples over that of held-out images: variance of the Fourier coefficients below "
    "two cycles an image.",
}


def beta_2(rate: float) -> float:
    """Adam's second moment: that of ``images.py`` at its rate, and a shorter memory at the higher ones."""
    return 0.95 if rate > 5e-4 else 0.99


class RateEvaluation(Evaluation):
    """Trains at one rate; arguments as :class:`Evaluation`.

    Args:
        rate: Learning rate.
        seed: Of the training.
        network: Hydra's name.
        shift: Mean of ln(sigma / sd) in clean training.
    """

    benchmark = "images_rate"
    definitions = WORDS

    def __init__(
        self,
        name: str,
        budget: Budget,
        out: Path,
        command: str,
        *,
        rate: float,
        seed: int,
        network: str,
        shift: float,
    ) -> None:
        super().__init__(name, budget, out, command)
        self.rate, self.seed, self.network, self.shift = rate, seed, network, shift

    def settings(self) -> dict[str, Any]:
        """The lengths of training are factors of the records here, and no part of the budget."""
        sizes = {k: v for k, v in asdict(self.budget).items() if k not in ("steps", "em_steps")}
        blur = "samples and held-out images alike, Gaussian, standard deviation in pixels, periodic"
        return super().settings() | {"budget": {"name": self.name, **sizes}, "blur": blur}

    def run_name(self, run: str) -> str:
        total = self.budget.steps + self.budget.em_rounds * self.budget.em_steps
        network = "" if self.network == "unet_light" else f"_{self.network}"
        network += "" if self.shift == SHIFT else f"_shift{self.shift:g}"
        return f"{run}{network}_lr{self.rate:g}_{total}" + (f"_seed{self.seed}" if self.seed else "")

    def train(self, run: str, overrides: list[str], steps: int) -> Prior:
        optimiser = [f"training.lr={self.rate:g}", f"training.betas=[0.9,{beta_2(self.rate)}]", f"seed={self.seed}"]
        # Runs that an M-step starts from are named among its overrides.
        renamed = [
            f"init={self.out / 'runs' / self.run_name(Path(o[5:]).name)}" if o.startswith("init=") else o
            for o in overrides
        ]
        return super().train(self.run_name(run), [*renamed, *optimiser, f"network={self.network}"], steps)

    def distances(
        self,
        case: str,
        method: str,
        draw: Callable[[], Tensor],
        factors: dict[str, Any],
        *,
        training: Callable[[], Tensor] | None = None,
    ) -> None:
        """As there, of samples that are kept, and after blurring."""
        trained = not method.startswith("training_images")
        label = self.run_name(f"{case}-{method.replace('/', '_')}") if trained else f"{case}-floor"

        def kept() -> Tensor:
            path = self.out / "samples" / f"{label}.pt"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(draw().half(), path)
            return torch.load(path, weights_only=True).float()

        super().distances(case, method, kept, factors, training=training)
        held_out, space = self.stack(self.images.val), self.classifier()
        base = {"case": case, "method": method, **factors}
        if not self.done(**base, metric="ratio"):
            share = coarse_power(kept()) / coarse_power(held_out)
            self.append([{**base, "metric": "ratio", "value": share, "n": len(kept()), "ci95": None}])
        for blur in BLURS:
            base = {"case": case, "method": method, **factors, "blur": blur}
            if self.done(**base, metric="frechet"):
                continue
            operator = gaussian_blur(blur)
            pair = (space.features(operator(kept())), space.features(operator(held_out)))
            values = {"frechet": metrics.frechet_distance(*pair), "kernel": metrics.kernel_distance(*pair)}
            self.append([{**base, "metric": k, "value": v, "n": len(kept()), "ci95": None} for k, v in values.items()])

    def supervised(self) -> Prior:
        """As there, at other noise levels where they are asked for."""
        budget, more = self.budget, [] if self.shift == SHIFT else [f"objective.noise.shift={self.shift:g}"]
        steps = budget.steps + budget.em_rounds * budget.em_steps
        return self.train("supervised", ["experiment=cifar10_supervised", *more], steps)

    def clean(self, factors: dict[str, Any]) -> None:
        """Clean training."""
        prior = self.supervised()
        factors = {**factors, "shift": self.shift}
        self.distances("clean", "supervised/heun/sample", lambda: self.generated(prior), {"missing": 0.0, **factors})

    def chained(self, noise_std: float, factors: dict[str, Any]) -> None:
        """Clean images through the chain of EM from noisy ones: its lengths, restarts and noise levels."""
        budget = self.budget
        lowest = f"objective.noise.sigma_min={noise_std / CIFAR_SD:g}"
        prior = self.train("chain_0", ["experiment=cifar10_supervised", lowest], budget.steps)
        for i in range(budget.em_rounds):
            before = f"init={self.out / 'runs' / f'chain_{i}'}"
            prior = self.train(f"chain_{i + 1}", ["experiment=cifar10_supervised", before], budget.em_steps)
        base = {"missing": 0.0, "shift": SHIFT, **factors}
        self.distances("clean", "supervised_chain/heun/sample", lambda: self.generated(prior), base)

    def noisy(self, noise_std: float, factors: dict[str, Any]) -> None:
        """Ambient training on noisy images, then EM."""
        case = Case(0.0, noise_std)
        factors = {"missing": 0.0, "noise_std": noise_std, **factors}
        ambient = self.ambient(case)
        self.distances(case.name, "ambient/heun/sample", lambda: self.generated(ambient), factors)
        em = self.em(case)
        self.distances(case.name, "em/heun/sample", lambda: self.generated(em), factors)


def coarse_power(images: Tensor) -> float:
    """Variance over images of their Fourier coefficients below two cycles an image, mean over these: (n, c, H, W)."""
    spectrum = torch.fft.fft2(images.double())
    rows, columns = (torch.fft.fftfreq(n, 1 / n) for n in images.shape[-2:])
    coarse = (rows[:, None].square() + columns.square()).sqrt() < 2
    return float((spectrum - spectrum.mean(0)).abs().square().mean((0, 1))[coarse].mean())


def table(path: Path) -> str:
    """The records in Markdown."""
    rows = [{**r, "blur": r.get("blur", 0.0)} for r in read_records(path).rows]
    index, parts = ("case", "method", "network", "learning_rate", "steps", "shift", "seed"), []
    for metric in ("frechet", "kernel", "noise_level", "ratio"):
        chosen = [r for r in rows if r["metric"] == metric]
        parts.append(markdown_table(chosen, index=index, columns="blur", metric=metric, definitions=WORDS))
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="cpu")
    parser.add_argument("--rates", nargs="+", type=float, default=[4e-3])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--noise", nargs="*", type=float, default=[], help="levels of noisy training images")
    parser.add_argument("--network", choices=["unet_light", "unet_mp"], default="unet_light")
    parser.add_argument("--chain", type=float, default=None, metavar="NOISE", help="clean images through EM's chain")
    parser.add_argument("--shift", type=float, default=SHIFT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/images_rate"))
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    command = recorded_command("benchmarks/quality/images_rate.py", sys.argv[1:] if arguments is None else arguments)
    budget = replace(BUDGETS[options.budget], steps=options.steps, em_steps=max(1, options.steps // 2))
    total = budget.steps + budget.em_rounds * budget.em_steps
    for rate in options.rates:
        evaluation = RateEvaluation(
            options.budget,
            budget,
            out,
            command,
            rate=rate,
            seed=options.seed,
            network=options.network,
            shift=options.shift,
        )
        evaluation.floor()
        factors = {"network": options.network, "learning_rate": rate, "steps": total, "seed": options.seed}
        if options.chain is None:
            evaluation.clean(factors)
        else:
            evaluation.chained(options.chain, factors)
        for noise_std in options.noise:
            evaluation.noisy(noise_std, factors)
    text = table(evaluation.path)
    (out / "images_rate.md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
