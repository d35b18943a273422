r"""Consistency: what a denoiser must satisfy below the noise of the data, where no measurement supervises it.

h(z, sigma) = E[x0 | z] is a martingale of the reverse diffusion: E[ h(z_s, s) | z_t ] = h(z_t, t) for s < t. With two
independent reverse samples z_s, z_s' of the same z_t, B fixed,

    J = E  lambda(s) < h(z_s, s) - h(z_t, t),  h(z_s', s) - h(z_t, t) >

is || E[h(z_s) | z_t] - h(z_t) ||^2 on average, without the variance of h(z_s) that a plain square would punish. The
denoiser above the data's noise (:class:`~ambient_mri.objectives.AmbientObjective`) and J together fix it at every
level.

z_t itself is sampled: from z = B(y + noise) at the level 1.2 sigma_y down to t, in a few reverse steps

    z_s = m + (s^2/t^2) (z_t - m) + s sqrt(1 - s^2/t^2) e ,      m = A_tilde h(z_t, t)

with m in place of A_tilde x0 in the exact law of z_s given z_t and x0: its mean is exact for any step.

Reference: Daras et al. 2024, arXiv:2404.10177; Daras et al. 2023, arXiv:2302.09057. Differs: 1. the state
is the noisy kept measurement, so that it holds for any A_tilde. 2. the steps from the data's noise to t are geometric.
3. h(z_t, t) is constant for the optimiser: knowledge goes from high noise to low alone, to the same fixed point, in a
third of the steps (measured in the Gaussian world of the tests).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ambient_mri._checks import check_positive, require
from ambient_mri.corruption import Corruption, Further
from ambient_mri.denoiser import ConditionalDenoiser
from ambient_mri.measurement import Measurement
from ambient_mri.noise import TrainingNoise
from ambient_mri.objectives.ambient import AmbientObjective
from ambient_mri.objectives.base import Loss
from ambient_mri.operators.base import LinearOperator
from ambient_mri.tensors import RowGenerators, per_row, rand_rows, randn_like_rows, real_inner

__all__ = ["ConsistencyObjective", "ConsistentAmbientObjective", "reverse_step"]

# Where the chain starts, in units of the data's noise: the lowest level that the ambient objective supervises.
_START = 1.2


class ConsistencyObjective:
    """The consistency loss below the noise of the data (module docstring); rows without noise add nothing.

    Args:
        corruption: Gives A and draws B.
        noise: Its ``sigma_min`` is the lowest level, in units of sd.
        reverse_steps: Steps from the data's noise to t.
        ratio: Range of s / t.
    """

    kind = "ambient"

    def __init__(
        self,
        corruption: Corruption,
        noise: TrainingNoise | None = None,
        *,
        reverse_steps: int = 4,
        ratio: tuple[float, float] = (0.5, 0.9),
    ) -> None:
        require(reverse_steps >= 1, f"reverse_steps must be at least 1; got {reverse_steps}.")
        low, high = ratio
        require(0 < low <= high < 1, f"ratio must satisfy 0 < low <= high < 1; got {tuple(ratio)}.")
        self.corruption, self.noise = corruption, TrainingNoise() if noise is None else noise
        self.reverse_steps, self.ratio = reverse_steps, (float(low), float(high))

    def __call__(self, model: ConditionalDenoiser, batch: Measurement, generators: RowGenerators) -> Loss:
        batch = self.corruption.simplified(batch)
        further = self.corruption.further(batch, generators)
        noisy = batch.noise_std > 0
        uniform = rand_rows(generators, 2, device=batch.y.device)
        lowest = self.noise.sigma_min * model.sd
        start = torch.where(noisy, _START * batch.noise_std, model.sd).clamp_min(lowest / self.ratio[0])
        t = start * (lowest / self.ratio[0] / start) ** uniform[:, 0]
        s = t * (self.ratio[0] + (self.ratio[1] - self.ratio[0]) * uniform[:, 1])
        with torch.no_grad():
            z_t = self._state(model, batch, further, start, t, generators)
            at_t = model(z_t, t, further.operator, further.kept)
        gaps = []
        for _ in range(2):
            z_s = reverse_step(z_t, at_t, t, s, further.operator, further.kept, generators)
            gaps.append(model(z_s, s, further.operator, further.kept) - at_t)
        parts = at_t[0].numel() * (2 if at_t.is_complex() else 1)
        inner = real_inner(gaps[0], gaps[1]) / parts * noisy
        loss = (model.loss_weight(s, further.rate) * inner).sum() / noisy.sum().clamp_min(1)
        return Loss(loss, {"consistency": inner.detach().sum() / noisy.sum().clamp_min(1)})

    def _state(
        self,
        model: ConditionalDenoiser,
        batch: Measurement,
        further: Further,
        start: Tensor,
        t: Tensor,
        generators: RowGenerators,
    ) -> Tensor:
        """z_t, sampled from the data."""
        added = (start.square() - batch.noise_std.square()).clamp_min(0).sqrt()
        z = (batch.y + per_row(added, batch.y) * randn_like_rows(batch.y, generators)) * further.kept
        level = start
        for step in range(1, self.reverse_steps + 1):
            lower = start * (t / start) ** (step / self.reverse_steps)
            x_hat = model(z, level, further.operator, further.kept)
            z = reverse_step(z, x_hat, level, lower, further.operator, further.kept, generators)
            level = lower
        return z


class ConsistentAmbientObjective:
    """The ambient objective, plus consistency on a share of the rows: one denoiser for every level.

    Args:
        corruption: Gives A and draws B.
        noise: Law of sigma.
        consistency_weight: Factor of the consistency loss.
        consistency_rows: Share of the rows that it is computed on; it costs seven evaluations a row, two of them
            differentiated.
        reverse_steps: As for :class:`ConsistencyObjective`.
        one_step_share: As for :class:`~ambient_mri.objectives.AmbientObjective`, and so are the next two.
        noise_aware: As said.
        kept_cap: As said.
    """

    kind = "ambient"

    def __init__(
        self,
        corruption: Corruption,
        noise: TrainingNoise | None = None,
        *,
        consistency_weight: float = 1.0,
        consistency_rows: float = 0.25,
        reverse_steps: int = 4,
        one_step_share: float = 0.0,
        noise_aware: bool = True,
        kept_cap: float = 10.0,
    ) -> None:
        check_positive("consistency_weight", consistency_weight)
        require(0 < consistency_rows <= 1, f"consistency_rows must be in (0, 1]; got {consistency_rows}.")
        self.ambient = AmbientObjective(
            corruption, noise, one_step_share=one_step_share, noise_aware=noise_aware, kept_cap=kept_cap
        )
        self.consistency = ConsistencyObjective(corruption, noise, reverse_steps=reverse_steps)
        self.corruption, self.noise = corruption, self.ambient.noise
        self.consistency_weight, self.consistency_rows = consistency_weight, consistency_rows

    def __call__(self, model: ConditionalDenoiser, batch: Measurement, generators: RowGenerators) -> Loss:
        ambient = self.ambient(model, batch, generators)
        rows = slice(0, max(1, round(self.consistency_rows * len(batch))))
        below = self.consistency(model, batch[rows], generators[rows])
        return Loss(ambient.value + self.consistency_weight * below.value, {**ambient.logs, **below.logs})


def reverse_step(
    z: Tensor, x_hat: Tensor, t: Tensor, s: Tensor, operator: LinearOperator, kept: Tensor, generators: RowGenerators
) -> Tensor:
    """A sample of z_s given z_t and x0 = x_hat.

    Args:
        z: z_t, noisy kept data.
        x_hat: (b, c, H, W).
        t: Level of ``z``, (b,).
        s: Level to go to, (b,), at most t.
        operator: A_tilde.
        kept: What it keeps.
        generators: One a row.
    """
    mean = operator.forward(x_hat)
    share = (s / t).square()
    spread = s * (1 - share).clamp_min(0).sqrt()
    noise = randn_like_rows(z, generators)
    return (mean + per_row(share, z) * (z - mean) + per_row(spread, z) * noise) * kept
