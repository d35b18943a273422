"""Noise alone: A = I, B = I, and a known level for each image.

Above the noise of the data the ambient objective is then Tweedie's for two noise levels (Daras et al. 2024,
arXiv:2404.10177, eq. 5), with W = 1, and there is nothing to supervise at the level itself: set ``one_step_share: 0``.
Below it, the consistency objective (:mod:`ambient_mri.objectives.consistency`) takes over. With B removing pixels
instead, see :class:`~ambient_mri.corruption.PixelMasking` at probability 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.corruption.base import Further, ImageCorruption, Learnability
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import Identity, LinearOperator
from ambient_mri.operators.masking import Mask
from ambient_mri.tensors import RowGenerators

__all__ = ["AdditiveNoise"]


class AdditiveNoise(ImageCorruption):
    """White Gaussian noise; its level is the measurement's ``noise_std``."""

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Everything is measured."""
        return torch.ones(1, 1, *shape[1:], dtype=torch.bool), None

    def forward_operator(self, m: Measurement) -> LinearOperator:
        """The identity, by which samplers know y for a state of the diffusion."""
        return Identity()

    def inclusion(self, m: Measurement) -> Tensor:
        """1 everywhere."""
        return torch.ones(1, 1, 1, 1)

    def check_masks(self, masks: Tensor) -> None:
        """Nothing is missing."""
        require(
            bool(masks.all()),
            f"{1 - float(masks.float().mean()):.0%} of the pixels are missing, and corruption=noise is noise alone: "
            "choose corruption=observed_pixels, which goes with noise as well.",
        )

    def further(self, m: Measurement, generators: RowGenerators) -> Further:
        """Nothing is removed."""
        mask = m.mask.expand(len(m), *m.mask.shape[1:])
        ones = torch.ones(mask.shape, device=mask.device)
        return Further(Mask(mask), mask, ones * mask, mask.float().mean(dim=(1, 2, 3)))

    def learnability(self, image_shape: tuple[int, int]) -> Learnability:
        """Always: the characteristic function of Gaussian noise has no zero."""
        return Learnability(1.0)
