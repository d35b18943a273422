"""Blur: convolution with a known kernel, by FFT, for real and complex images.

Two boundaries, both stated because they decide what happens at the edge: ``"circular"``, where the image continues at
the opposite edge and the convolution is diagonal in the Fourier basis; and ``"zero"``, where the image is dark outside
its frame, and the result has the size of the image ("same").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ambient_mri._checks import check_option, check_positive, require
from ambient_mri.operators.base import LinearOperator

__all__ = ["Convolution", "gaussian_blur", "gaussian_kernel", "motion_blur", "motion_kernel"]

BOUNDARIES = ("circular", "zero")


class Convolution(LinearOperator):
    """Convolution of every channel with a kernel: (b, c, H, W) -> (b, c, H, W).

    Args:
        kernel: (b or 1, 1, h, w); its centre is at (h//2, w//2).
        boundary: ``"circular"`` or ``"zero"`` (module docstring).

    Raises:
        AmbientMRIError: If the kernel is not 4-D with one channel, or larger than the image it is applied to.
    """

    domain_shape = (None, None, None)
    range_shape = (None, None, None)

    def __init__(self, kernel: Tensor, *, boundary: str = "circular") -> None:
        check_option("boundary", boundary, BOUNDARIES)
        good = kernel.ndim == 4 and kernel.shape[1] == 1
        require(good, f"kernel must be (batch or 1, 1, h, w); got {tuple(kernel.shape)}.")
        self.kernel, self.boundary = kernel, boundary

    def forward(self, x: Tensor) -> Tensor:
        return self._filter(x, conjugate=False)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, conjugate=True)

    def repeat_interleave(self, repeats: int) -> LinearOperator:
        if self.kernel.shape[0] == 1:
            return self
        return Convolution(self.kernel.repeat_interleave(repeats, dim=0), boundary=self.boundary)

    def _filter(self, x: Tensor, *, conjugate: bool) -> Tensor:
        """Correlation for the adjoint, convolution else; zero padding makes the circular one a linear one."""
        size = [int(n) for n in x.shape[-2:]]
        rows, columns = self.kernel.shape[-2:]
        require(
            rows <= size[0] and columns <= size[1],
            f"a kernel of {rows} x {columns} is larger than the image, {size[0]} x {size[1]}.",
        )
        padded = size if self.boundary == "circular" else [size[0] + rows - 1, size[1] + columns - 1]
        if x.is_complex() or self.kernel.is_complex():
            transfer = self._transfer(padded, x, torch.fft.fft2)
            product = torch.fft.fft2(x, s=padded) * (transfer.conj() if conjugate else transfer)
            return torch.fft.ifft2(product)[..., : size[0], : size[1]]
        transfer = self._transfer(padded, x, torch.fft.rfft2)
        product = torch.fft.rfft2(x, s=padded) * (transfer.conj() if conjugate else transfer)
        return torch.fft.irfft2(product, s=padded)[..., : size[0], : size[1]].clone()

    def _transfer(self, size: Sequence[int], like: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
        """The kernel's transform, its centre moved to index 0."""
        kernel = self.kernel.to(like.device, self.kernel.dtype if self.kernel.is_complex() else like.real.dtype)
        placed = kernel.new_zeros(*kernel.shape[:2], *size)
        placed[..., : kernel.shape[-2], : kernel.shape[-1]] = kernel
        centred = placed.roll((-(kernel.shape[-2] // 2), -(kernel.shape[-1] // 2)), dims=(-2, -1))
        return transform(centred)


def gaussian_kernel(std: float, *, reach: float = 4.0) -> Tensor:
    """(1, 1, n, n) float64, sum one: a Gaussian of ``std`` pixels, cut at ``reach`` standard deviations."""
    check_positive("std", std)
    half = max(1, math.ceil(reach * std))
    position = torch.arange(-half, half + 1, dtype=torch.float64)
    profile = torch.exp(-0.5 * (position / std) ** 2)
    kernel = profile[:, None] * profile[None]
    return (kernel / kernel.sum())[None, None]


def motion_kernel(length: float, angle: float) -> Tensor:
    """(1, 1, n, n) float64, sum one: a straight camera motion, ``length`` pixels at ``angle`` degrees.

    The path is sampled finely, each sample shared by its four nearest pixels. An angle of 0 moves along the columns,
    90 against the rows (upwards in a picture).
    """
    check_positive("length", length)
    half = math.ceil(length / 2) + 1
    along = torch.linspace(-0.5, 0.5, max(3, 8 * math.ceil(length)), dtype=torch.float64) * length
    row = half - along * math.sin(math.radians(angle))
    column = half + along * math.cos(math.radians(angle))
    kernel = torch.zeros(2 * half + 1, 2 * half + 1, dtype=torch.float64)
    top, left = row.floor().long(), column.floor().long()
    for down in (0, 1):
        for right in (0, 1):
            share = (1 - (row - top - down).abs()) * (1 - (column - left - right).abs())
            kernel.index_put_((top + down, left + right), share, accumulate=True)
    return (kernel / kernel.sum())[None, None]


def gaussian_blur(std: float, *, boundary: str = "circular") -> Convolution:
    """Gaussian blur of ``std`` pixels."""
    return Convolution(gaussian_kernel(std), boundary=boundary)


def motion_blur(length: float, angle: float = 0.0, *, boundary: str = "circular") -> Convolution:
    """Straight motion of ``length`` pixels at ``angle`` degrees."""
    return Convolution(motion_kernel(length, angle), boundary=boundary)
