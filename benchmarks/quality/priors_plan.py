"""Sizes and trainings of ``priors.py``, and the scans that they learn from."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["ACCELERATIONS", "BUDGETS", "Budget", "Run", "acs_lines", "data_overrides", "data_root", "first_run", "plan"]

ACCELERATIONS = (2, 4, 6, 8)
# Posterior samples whose mean ``em_mean`` learns from in its last round.
EM_AVERAGE = 3


@dataclass(frozen=True)
class Budget:
    """How large everything is.

    Attributes:
        size: Rows and columns.
        channels: Width of the network in real feature maps (a complex one counts for two), multipliers 1, 2, 4, 4 (or
            fewer levels where images are small).
        steps: Training steps of every chain.
        em_rounds: Rounds of EM.
        e_steps: Noise levels of an E-step.
        batch_size: Items a step.
        lr: Learning rate; of the CPU's budget by ``learning_rate.py``, as beta_2 and the network.
        limit: Training volumes; None for all.
        slices: Held-out slices that are scored.
        tuning: Slices of other held-out subjects, on which A-DPS is tuned.
        samples: Posterior samples of each slice.
        sampler_steps: Noise levels of the samplers.
        adps_steps: Of A-DPS; 500 as published.
        unconditional: Unconditional samples for the Frechet distance.
        feature_steps: Training steps of its feature space.
        trainer: Hydra's name.
        accelerations: R at which priors are scored.
        source: ``"images"`` where AMBIENT_MRI_DATA is set, or ``"phantoms"`` in any case.
        beta_2: Of Adam.
        network: Hydra's name.
    """

    size: int
    channels: int
    steps: int
    em_rounds: int
    e_steps: int
    batch_size: int
    lr: float
    limit: int | None
    slices: int
    tuning: int
    samples: int
    sampler_steps: int
    adps_steps: int
    unconditional: int
    feature_steps: int
    trainer: str
    accelerations: tuple[int, ...] = ACCELERATIONS
    source: str = "images"
    beta_2: float = 0.99
    network: str = "unet_mp"

    @property
    def multipliers(self) -> list[int]:
        return [1, 2] if self.size < 64 else [1, 2, 4, 4]

    def network_overrides(self, network: str | None = None) -> list[str]:
        """Overrides of a network of this width, the budget's own by default."""
        name = network or self.network
        channels = self.channels // 2 if "complex" in name else self.channels
        return [f"network={name}", f"network.channels={channels}", f"network.multipliers={self.multipliers}"]

    @property
    def optimiser(self) -> list[str]:
        """Overrides of the learning rate and of Adam."""
        return [f"training.lr={self.lr}", f"training.betas=[0.9,{self.beta_2}]"]

    @property
    def em_steps(self) -> int:
        """Steps of each M-step: three fifths of the chain, shared among the rounds."""
        return max(1, 3 * self.steps // (5 * self.em_rounds))

    @property
    def em_first_steps(self) -> int:
        """Steps of the ambient run that EM begins with: what the M-steps leave."""
        return max(1, self.steps - self.em_rounds * self.em_steps)

    def steps_of(self, objective: str) -> int:
        """Steps of one training: the whole chain, or its share where a chain has several."""
        equal = self.steps // (self.em_rounds + 1)
        shares = {"em": self.em_steps, "em_mean": self.em_steps, "em_first": self.em_first_steps, "wavelet_em": equal}
        return shares.get(objective, self.steps)


BUDGETS = {
    "rehearsal": Budget(32, 8, 10, 2, 2, 2, 1e-3, 2, 2, 1, 2, 2, 3, 4, 3, "cpu", (4,), "phantoms"),
    "cpu": Budget(64, 16, 6000, 3, 15, 8, 4e-2, None, 12, 2, 32, 25, 500, 256, 1500, "cpu", beta_2=0.95),
    "gpu": Budget(128, 64, 60000, 3, 25, 32, 1e-2, None, 48, 8, 32, 50, 500, 1024, 4000, "gpu"),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        objective: Name in the records.
        acceleration: R of the training scans.
        noise_std: Of the training scans, in scaled units.
        overrides: What makes the objective.
    """

    objective: str
    acceleration: int
    noise_std: float
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.objective}_R{self.acceleration}_n{self.noise_std:g}"


def plan(budget: Budget) -> list[Run]:
    """Every training, in an order in which each finds what it begins with."""
    # All rounds are run, whatever the stop rule says: the chains are to be equally long.
    rounds = ("objective=em", f"em.steps={budget.e_steps}", "em.min_improvement=null")
    em = (*rounds, f"em.rounds={budget.em_rounds}")
    wavelet = ("objective=wavelet_edm",)
    # The round of L1-wavelet images in place of the ambient run.
    wavelet_em = (*rounds, f"em.rounds={budget.em_rounds + 1}", "em.first=l1_wavelet")
    simple = {
        name: (f"objective={name}",) for name in ("ambient", "ambient_published", "ssdu", "ssdu_weighted", "supervised")
    }
    em_mean = (*em, f"em.average={EM_AVERAGE}")
    runs = [Run("ambient", 4, 0.01, simple["ambient"]), Run("em", 4, 0.01, em), Run("em_mean", 4, 0.01, em_mean)]
    runs += [Run(n, 4, 0.01, simple[n]) for n in ("supervised", "ambient_published", "ssdu_weighted", "ssdu")]
    runs += [Run("wavelet_edm", 4, 0.01, wavelet), Run("wavelet_em", 4, 0.01, wavelet_em)]
    for acceleration in (2, 6, 8):
        runs += [Run("ambient", acceleration, 0.01, simple["ambient"]), Run("em", acceleration, 0.01, em)]
        runs += [Run(n, acceleration, 0.01, simple[n]) for n in ("ambient_published", "ssdu_weighted")]
    blind = ("objective=ambient", "objective.noise_aware=false")
    return [
        *runs,
        Run("ambient", 4, 0.05, simple["ambient"]),
        Run("em", 4, 0.05, em),
        Run("ambient_noise_blind", 4, 0.05, blind),
    ]


def acs_lines(size: int, acceleration: int) -> int:
    """About half of the sampled lines, an even number, at most 12."""
    return min(12, 2 * (round(size / acceleration) // 4))


def data_overrides(budget: Budget, acceleration: int, noise_std: float, out: Path) -> list[str]:
    """The simulated scans of one acceleration and noise level."""
    acs, root = acs_lines(budget.size, acceleration), data_root(budget)
    source = [f"data.root={root}", "data=brain_images", f"data.reduce={128 // budget.size}"]
    phantom = ["data=phantom", f"data.size={budget.size}", f"data.train_volumes={budget.limit or 200}"]
    phantom += [f"data.val_volumes={budget.slices + budget.tuning}", "data.slices=1"] if budget.limit else []
    source = [*source, f"data.limit={budget.limit or 'null'}"] if root else phantom
    return [
        *source,
        f"data.cache={out / 'cache'}",
        f"data.scanner.noise_std=[{noise_std},{noise_std}]",
        "corruption=random_lines",
        f"corruption.law.acceleration={acceleration}",
        f"corruption.law.acs_lines={acs}",
        f"corruption.core={min(6, acs)}",
    ]


def data_root(budget: Budget) -> str | None:
    """The data folder, where there is one and it is wanted."""
    return os.environ.get("AMBIENT_MRI_DATA") if budget.source == "images" else None


def first_run(run: Run) -> Run:
    """The ambient run that an EM run begins with: a part of its chain."""
    return replace(run, objective="em_first", overrides=("objective=ambient",))
