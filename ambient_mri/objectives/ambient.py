r"""The ambient objective: learn E[x0 | A_tilde x_t, A_tilde] from measurements alone.

    J = E  lambda(sigma) || W^(1/2) ( A D(z, sigma, A_tilde) - y ) ||^2 ,    z = B ( y + sqrt(sigma^2 - sigma_y^2) eta )

The network is fed through A_tilde = B A and scored under A; B is fresh at every step; W are inverse-probability
weights. Where y is noisy, a location that is both input and target carries the same noise twice. With a = (sigma^2 -
sigma_y^2) / sigma^2 the residual there is

    kept by B:                 min(1/a^2, cap) || a A D + (1 - a) z - y ||^2
    sampled, removed by B:     W || A D - y ||^2             (its noise is independent of the input)

so that the target is E[x0 | .], not the noise. At sigma = sigma_y (a = 0) kept locations carry no supervision and the
removed ones carry it all: that point, where z = B y has no noise added, is what one-step reconstruction uses, and it
has a share of every batch. Elsewhere sigma >= 1.2 sigma_y.

Reference: Daras et al. 2023, arXiv:2305.19256; Aali et al. 2025, arXiv:2403.08728; Daras et al. 2024,
arXiv:2404.10177 (noise); Millard & Chiew 2024, arXiv:2210.01696 (robust SSDU). Differs from the first two: 1. B is
redrawn at every step and its rate is random. 2. inverse-probability weights. 3. the residual is taken in k-space, and
noise-aware. 4. lambda = 1 / c_out^2 knows the sampled fraction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.corruption import Corruption, Further
from ambient_mri.denoiser import ConditionalDenoiser
from ambient_mri.measurement import Measurement
from ambient_mri.noise import TrainingNoise
from ambient_mri.objectives.base import Loss
from ambient_mri.objectives.energy import data_energy
from ambient_mri.tensors import RowGenerators, add_scaled, per_row, rand_rows, randn_like_rows

__all__ = ["AmbientObjective", "noise_aware_residual"]


class AmbientObjective:
    """The ambient objective (module docstring).

    Args:
        corruption: Gives A and draws B.
        noise: Law of sigma.
        one_step_share: Share of the rows trained at sigma = sigma_y, the point that one-step reconstruction uses.
        noise_aware: Correct for the noise of y. False treats y as noise-free.
        kept_cap: Bound on 1/a^2.
    """

    kind = "ambient"

    def __init__(
        self,
        corruption: Corruption,
        noise: TrainingNoise | None = None,
        *,
        one_step_share: float = 0.15,
        noise_aware: bool = True,
        kept_cap: float = 10.0,
    ) -> None:
        require(0 <= one_step_share < 1, f"one_step_share must be in [0, 1); got {one_step_share}.")
        self.corruption, self.noise = corruption, TrainingNoise() if noise is None else noise
        self.one_step_share, self.noise_aware, self.kept_cap = one_step_share, noise_aware, kept_cap

    def __call__(self, model: ConditionalDenoiser, batch: Measurement, generators: RowGenerators) -> Loss:
        batch = self.corruption.simplified(batch)
        sigma, added = self._noise_levels(model, batch, generators)
        further = self.corruption.further(batch, generators)
        z = add_scaled(batch.y, per_row(added, batch.y), randn_like_rows(batch.y, generators)).mul_(further.kept)
        x_hat = model(z, sigma, further.operator, further.kept)
        gain, target, counted = self._residual(z, batch, further, sigma, added)
        parts = x_hat[0].numel() * (2 if x_hat.is_complex() else 1)
        energy = data_energy(x_hat, batch, self.corruption, target=target, weights=counted, gain=gain) / parts
        weight = model.loss_weight(sigma, further.rate)
        weights = further.weights.flatten(1)
        effective = (
            weights.sum(1).square() / weights.square().sum(1).clamp_min(1e-12) / (weights > 0).sum(1).clamp_min(1)
        )
        return Loss(
            (weight * energy).mean(), {"effective_sample_size": effective.mean(), "residual": energy.mean().sqrt()}
        )

    def _noise_levels(
        self, model: ConditionalDenoiser, batch: Measurement, generators: RowGenerators
    ) -> tuple[Tensor, Tensor]:
        """sigma of the input and the standard deviation of the noise to add, both (b,)."""
        sigma_y = batch.noise_std if self.noise_aware else torch.zeros_like(batch.noise_std)
        sigma = self.noise.draw(model.sd, generators, above=1.2 * sigma_y).to(batch.noise_std)
        one_step = (rand_rows(generators, 1, device=sigma.device)[:, 0] < self.one_step_share) & (batch.noise_std > 0)
        sigma = torch.where(one_step, batch.noise_std.clamp_min(1e-6), sigma)
        added = (sigma.square() - sigma_y.square()).clamp_min(0).sqrt()
        return sigma, torch.where(one_step, torch.zeros_like(added), added)

    def _residual(
        self, z: Tensor, batch: Measurement, further: Further, sigma: Tensor, added: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """g, t and the weight of | g A D - t |^2 at every k-space location: see :func:`data_energy`."""
        return noise_aware_residual(z, batch.y, further, added.square() / sigma.square(), self.kept_cap)


def noise_aware_residual(
    z: Tensor, y: Tensor, further: Further, a: Tensor, kept_cap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """g, t and the weight of | g A D - t |^2 at every location of y (module docstring).

    The noise of g A x0 - t has variance g noise_std^2 per real part, and is independent of z.

    Args:
        z: Noisy kept data, in the shape of ``y``, zero where nothing was kept.
        y: Measured data.
        further: B, and its weights W.
        a: (sigma^2 - noise_std^2) / sigma^2, (b,).
        kept_cap: Bound on 1/a^2.

    Returns:
        g, real, broadcastable to y; t, in the shape of y; the weights, real, broadcastable to y.
    """
    a = per_row(a, z)
    one = torch.ones_like(a)
    gain = torch.where(further.kept, a, one)
    counted = torch.where(further.kept, a.square().clamp_min(1e-12).reciprocal().clamp_max(kept_cap), one)
    # z is zero where nothing was kept: there t = y.
    return gain, add_scaled(y, a - 1, z), further.weights * counted
