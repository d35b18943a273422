"""Masking: keep some locations, set the others to zero. In k-space this is P, on pixels it is inpainting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.fourier import Fourier2d

__all__ = ["Mask"]


class Mask(LinearOperator):
    """P: (b, c, H, W) -> (b, c, H, W), zero where the mask is False; P^H P = P.

    Args:
        mask: bool, (b or 1, c or 1, H or 1, W or 1).

    Raises:
        AmbientMRIError: If the mask is not a 4-D bool tensor.
    """

    def __init__(self, mask: Tensor) -> None:
        require(
            mask.ndim == 4 and mask.dtype == torch.bool,
            f"mask must be bool (batch or 1, 1, H or 1, W or 1); got {mask.dtype} {tuple(mask.shape)}.",
        )
        self.mask = mask
        self.domain_shape = self.range_shape = tuple(n if n > 1 else None for n in mask.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.mask

    def normal(self, x: Tensor) -> Tensor:
        return x * self.mask

    def normal_of_product(self, right: LinearOperator) -> Callable[[Tensor], Tensor] | None:
        """F^H P F, with the transform of every axis along which the mask is constant cancelled (exactly the
        identity).
        """
        if not isinstance(right, Fourier2d):
            return None
        axes = tuple(axis for axis in right.axes if self.mask.shape[axis] > 1)
        if not axes:
            return self.normal
        # The zero frequency of the mask goes to index 0, so that no array the size of the k-space is shifted: a cyclic
        # shift of the image commutes with F^H P F.
        mask = torch.fft.ifftshift(self.mask, dim=axes)

        def apply(x: Tensor) -> Tensor:
            return torch.fft.ifftn(torch.fft.fftn(x, dim=axes).mul_(mask), dim=axes)

        return apply

    def repeat_interleave(self, repeats: int) -> LinearOperator:
        if self.mask.shape[0] == 1:
            return self
        return Mask(self.mask.repeat_interleave(repeats, dim=0))
