"""The only FFT of the package: centred, orthonormal, any size.

    F x = fftshift( FFT( ifftshift(x) ) ) / sqrt(n)

The zero frequency is at index n//2 on both sides, for odd sizes too: ``ifftshift`` first, ``fftshift`` last (the
reverse order is right for even sizes only). F is unitary: F^H F = I.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ambient_mri.operators.base import LinearOperator

__all__ = ["Fourier2d", "fft", "ifft"]


def fft(x: Tensor, axes: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Centred orthonormal Fourier transform of a complex tensor over ``axes``."""
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x, dim=axes), dim=axes, norm="ortho"), dim=axes)


def ifft(k: Tensor, axes: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Inverse (= adjoint) of :func:`fft`."""
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(k, dim=axes), dim=axes, norm="ortho"), dim=axes)


class Fourier2d(LinearOperator):
    """Centred orthonormal 2-D Fourier transform of (b, coils, H, W); unitary.

    Args:
        axes: The axes to transform. One axis alone gives the hybrid space of scans whose mask is constant along the
            readout: there, the readout's transform cancels out of A^H A and need never be computed.
    """

    domain_shape = (None, None, None)
    range_shape = (None, None, None)

    def __init__(self, axes: tuple[int, ...] = (-2, -1)) -> None:
        self.axes = tuple(axes)

    def forward(self, x: Tensor) -> Tensor:
        return fft(x, self.axes)

    def adjoint(self, y: Tensor) -> Tensor:
        return ifft(y, self.axes)

    def normal(self, x: Tensor) -> Tensor:
        return x.clone()
