r"""Self-supervised reconstruction by data undersampling (SSDU), plain and weighted: feed-forward, no diffusion.

    J = E || W^(1/2) ( A D(B y, noise_std, B A) - y ) ||^2      over the sampled locations that B removed

The sampled locations are split, afresh at every step, into the network's input and its target. Plain SSDU counts each
target location once; weighted SSDU by the inverse of its probability to be sampled, which makes the loss an unbiased
estimate of the supervised one (up to the noise of y, which is independent of the input).

Reference: Yaman et al. 2020, arXiv:1912.07669; weights: Millard & Chiew 2023, arXiv:2205.10278. Differs: 1. a
squared error in place of the sum of normalised l1 and l2 errors; 2. a fresh split at every step; 3. our U-Net behind a
regularised SENSE solution in place of an unrolled network, so that methods are compared under one network.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.corruption import Corruption, Further, Undersampling
from ambient_mri.denoiser import ConditionalDenoiser
from ambient_mri.measurement import Measurement
from ambient_mri.noise import TrainingNoise
from ambient_mri.objectives.base import Loss
from ambient_mri.tensors import RowGenerators

__all__ = ["SSDUObjective", "WeightedSSDUObjective"]


class SSDUObjective:
    """Plain SSDU (module docstring).

    Args:
        corruption: Gives A and draws the split: what B keeps is the input, what it removes the target.
        noise: Its sigma_min is the lowest noise level that the network is told; it draws nothing here.
    """

    kind: ClassVar[str] = "feedforward"

    def __init__(self, corruption: Corruption, noise: TrainingNoise | None = None) -> None:
        require(
            isinstance(corruption, Undersampling),
            f"SSDU reconstructs undersampled k-space; {type(corruption).__name__} is no such corruption. For images, "
            "choose objective=ambient.",
        )
        self.corruption, self.noise = corruption, TrainingNoise() if noise is None else noise

    def __call__(self, model: ConditionalDenoiser, batch: Measurement, generators: RowGenerators) -> Loss:
        batch = self.corruption.simplified(batch)
        further = self.corruption.further(batch, generators)
        sigma = batch.noise_std.clamp_min(model.sigma_min)
        x_hat = model(batch.y * further.kept, sigma, further.operator, further.kept)
        predicted = self.corruption.forward_operator(batch).forward(x_hat)
        squared = self._weights(further, batch) * (predicted - batch.y).abs().square()
        parts = x_hat[0].numel() * (2 if x_hat.is_complex() else 1)
        energy = squared.sum(dim=(1, 2, 3)) / parts
        return Loss(energy.mean() / model.sd**2, {"residual": energy.mean().sqrt()})

    def _weights(self, further: Further, batch: Measurement) -> Tensor:
        """What each location counts, zero where it is no target; broadcastable to y."""
        return (batch.mask & ~further.kept).float()


class WeightedSSDUObjective(SSDUObjective):
    """SSDU with inverse-probability weights (module docstring); arguments of :class:`SSDUObjective`."""

    def _weights(self, further: Further, batch: Measurement) -> Tensor:
        return further.weights * ~further.kept
