r"""Gaussian blur of random bandwidth, with a circular boundary.

In the Hartley basis T, real and orthonormal, the blur is a gain on every coefficient:

    A = G_s T ,    g_s(k) = exp( -(1/2) s^2 |2 pi k / N|^2 ) ,   s uniform in ``bandwidth``, known for each image.

y holds the Hartley coefficients of the blurred image: the same data, T being orthonormal, in the form in which B is a
mask. B is a random frequency mask, each coefficient kept with probability q, q uniform in ``keep``. The weights are
W = 1 / g^2, so that A^H W A = I; a cap bounds what they make of noise where g is small, and moves no minimiser.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.corruption.base import Further, ImageCorruption, Learnability
from ambient_mri.corruption.thinning import check_keep, check_weight_cap
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.masking import Mask
from ambient_mri.operators.transforms import Diagonal, Hartley
from ambient_mri.tensors import RowGenerators, per_row, rand_rows, randn_like_rows

__all__ = ["RandomBlur", "gaussian_gain"]

# Squared gain below which a frequency counts as gone.
_GONE = 1e-3


class RandomBlur(ImageCorruption):
    """Gaussian blur of random bandwidth (module docstring).

    Args:
        bandwidth: Range of s, the blur's standard deviation in pixels.
        keep: Range of q.
        weight_cap: Upper bound on W.
    """

    aligned: ClassVar[bool] = False

    def __init__(
        self,
        bandwidth: tuple[float, float] = (0.3, 1.0),
        *,
        keep: tuple[float, float] = (0.3, 0.9),
        weight_cap: float | None = 20.0,
    ) -> None:
        low, high = bandwidth
        require(0 <= low <= high, f"bandwidth must satisfy 0 <= low <= high; got {tuple(bandwidth)}.")
        self.bandwidth = (float(low), float(high))
        self.keep, self.weight_cap = check_keep(keep), check_weight_cap(weight_cap)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """All coefficients are measured; the parameter is the bandwidth."""
        low, high = self.bandwidth
        drawn = low + (high - low) * torch.rand(1, 1, generator=generator, dtype=torch.float64)
        return torch.ones(1, 1, *shape[1:], dtype=torch.bool), drawn

    def forward_operator(self, m: Measurement) -> LinearOperator:
        return Diagonal(self._gain(m)) @ Hartley()

    def inclusion(self, m: Measurement) -> Tensor:
        """1: the energy that the blur takes is little where the images' energy is, and is neglected."""
        return torch.ones(1, 1, 1, 1)

    def further(self, m: Measurement, generators: RowGenerators) -> Further:
        mask = m.mask.expand(len(m), *m.mask.shape[1:])
        uniform = rand_rows(generators, mask[0].numel() + 1, device=mask.device)
        q = (self.keep[0] + (self.keep[1] - self.keep[0]) * uniform[:, 0]).reshape(-1, 1, 1, 1)
        kept = mask & (uniform[:, 1:].reshape(mask.shape) < q)
        gain = self._gain(m)
        weights = gain.square().clamp_min(torch.finfo(gain.dtype).tiny).reciprocal()
        weights = weights if self.weight_cap is None else weights.clamp_max(self.weight_cap)
        operator = Mask(kept) @ Diagonal(gain) @ Hartley()
        return Further(operator, kept, weights * mask, self.rate(m, kept))

    def rate(self, m: Measurement, kept: Tensor) -> Tensor:
        """What is kept, by the share of its energy that the blur leaves."""
        return (kept * self._gain(m).square()).float().mean(dim=(1, 2, 3))

    def lift(
        self, m: Measurement, x_t: Tensor, sigma: Tensor, operator: LinearOperator, generators: RowGenerators
    ) -> Tensor:
        """The blurred noise has variance g^2 sigma^2 a coefficient; (1 - g^2) sigma^2 is added."""
        white = randn_like_rows(m.y.expand(len(x_t), *m.y.shape[1:]), generators)
        missing = (1 - self._gain(m).square()).clamp_min(0).sqrt()
        return operator.forward(x_t) + per_row(sigma, x_t) * missing * white

    def learnability(self, image_shape: tuple[int, int]) -> Learnability:
        """Some images must be sharp enough to hold every frequency."""
        low, high = (float(gaussian_gain(torch.tensor([[s]]), image_shape).min()) ** 2 for s in self.bandwidth)
        require(
            low >= _GONE,
            f"even the sharpest images of the law (a blur of {self.bandwidth[0]:g} pixels) pass only {low:.1e} of the "
            "energy at the highest frequency: a pure low-pass, and what it removes cannot be learned. Lower the "
            "smallest bandwidth to 0.5 pixels, or make the images smaller by the same factor.",
        )
        note = (
            f"at the largest bandwidth {high:.1e} of the energy at the highest frequency is left: there, what is "
            "learned comes from the sharper images"
        )
        return Learnability(min(low, high), notes=(note,) if high < _GONE else ())

    def _gain(self, m: Measurement) -> Tensor:
        require(m.parameters is not None, "a random blur needs its bandwidth in Measurement.parameters.")
        dtype = m.y.real.dtype if m.y.is_complex() else m.y.dtype
        return gaussian_gain(m.parameters[:, :1], m.image_shape).to(m.y.device, dtype)  # type: ignore[index]


def gaussian_gain(bandwidth: Tensor, image_shape: tuple[int, int]) -> Tensor:
    """g_s at every Hartley (or Fourier) coefficient, zero frequency at index 0: (b, 1) -> (b, 1, H, W)."""
    squares = []
    for size in image_shape:
        index = torch.arange(size, dtype=bandwidth.dtype, device=bandwidth.device)
        squares.append((2 * math.pi * torch.minimum(index, size - index) / size).square())
    radius = squares[0][:, None] + squares[1][None]
    return torch.exp(-0.5 * bandwidth[:, :, None, None].square() * radius)
