r"""Orthonormal transforms and diagonal weights of real or complex images, for corruptions that are masks in another
basis.

    Hartley        T x,  T[k, n] = ( cos(2 pi k n / N) + sin(2 pi k n / N) ) / sqrt(N)  along both axes;  T = T^T = T^-1
    BlockCosine    the orthonormal DCT-II of every k x k block, coefficients where the block's pixels were
    Diagonal       x -> w x

Real images have real coefficients, white noise stays white. A circular blur with an even kernel is diagonal in the
Hartley basis; the mean of a block is the first coefficient of its cosine transform.

Reference: Bracewell 1983, J. Opt. Soc. Am. 73, 1832 (Hartley); Ahmed et al. 1974, IEEE Trans. Comput. C-23, 90 (DCT).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.operators.base import LinearOperator

__all__ = ["BlockCosine", "Diagonal", "Hartley"]


class Diagonal(LinearOperator):
    """Multiplication with weights: (b, c, H, W) -> (b, c, H, W).

    Args:
        weights: (b or 1, c or 1, H or 1, W or 1), real or complex.

    Raises:
        AmbientMRIError: If the weights are not 4-D.
    """

    def __init__(self, weights: Tensor) -> None:
        require(weights.ndim == 4, f"weights must be (batch or 1, c or 1, H or 1, W or 1); got {tuple(weights.shape)}.")
        self.weights = weights
        self.domain_shape = self.range_shape = tuple(n if n > 1 else None for n in weights.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.weights.conj()

    def normal(self, x: Tensor) -> Tensor:
        return x * self.weights.abs().square()

    def repeat_interleave(self, repeats: int) -> LinearOperator:
        if self.weights.shape[0] == 1:
            return self
        return Diagonal(self.weights.repeat_interleave(repeats, dim=0))


class Hartley(LinearOperator):
    """The separable two-dimensional Hartley transform, orthonormal and its own inverse; zero frequency at index 0."""

    domain_shape = (None, None, None)
    range_shape = (None, None, None)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return _hartley_matrix(height, x) @ x @ _hartley_matrix(width, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def normal(self, x: Tensor) -> Tensor:
        return x.clone()


class BlockCosine(LinearOperator):
    """The orthonormal cosine transform of every block; coefficient (0, 0) of a block is its mean times ``block``.

    Args:
        block: Rows and columns of a block; H and W must be multiples of it.
    """

    domain_shape = (None, None, None)
    range_shape = (None, None, None)

    def __init__(self, block: int) -> None:
        require(block >= 1, f"block must be at least 1; got {block}.")
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        matrix = _cosine_matrix(self.block, x)
        return self._per_block(x, matrix, matrix.mT)

    def adjoint(self, y: Tensor) -> Tensor:
        matrix = _cosine_matrix(self.block, y)
        return self._per_block(y, matrix.mT, matrix)

    def normal(self, x: Tensor) -> Tensor:
        return x.clone()

    def _per_block(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        block = self.block
        require(
            height % block == 0 and width % block == 0,
            f"blocks of {block} x {block} do not tile an image of {height} x {width}: crop it to a multiple.",
        )
        tiles = x.reshape(*x.shape[:-2], height // block, block, width // block, block).transpose(-3, -2)
        return (left @ tiles @ right).transpose(-3, -2).reshape(x.shape)


def _hartley_matrix(size: int, like: Tensor) -> Tensor:
    index = torch.arange(size, device=like.device)
    angle = (index[:, None] * index[None] % size).double() * (2 * math.pi / size)
    return ((angle.cos() + angle.sin()) / math.sqrt(size)).to(like.dtype)


def _cosine_matrix(size: int, like: Tensor) -> Tensor:
    index = torch.arange(size, device=like.device, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (index[None] + 0.5) * index[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(like.dtype)
