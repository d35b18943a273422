"""Random projections: every channel of an image seen through a few random directions (compressed sensing)."""

from __future__ import annotations

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.operators.base import LinearOperator

__all__ = ["Projection", "gaussian_rows", "orthonormal_rows", "random_projection"]


class Projection(LinearOperator):
    """A dense matrix on the pixels of every channel: (b, c, H, W) -> (b, c, m, 1).

    Args:
        rows: (b or 1, m, H W), real or complex.
        image_shape: H and W.

    Raises:
        AmbientMRIError: If the rows do not have H W entries.
    """

    def __init__(self, rows: Tensor, image_shape: tuple[int, int]) -> None:
        height, width = image_shape
        require(
            rows.ndim == 3 and rows.shape[-1] == height * width,
            f"rows must be (batch or 1, m, {height * width}) for images of {height} x {width}; got "
            f"{tuple(rows.shape)}.",
        )
        self.rows, self.image_shape = rows, (height, width)
        self.domain_shape = (None, height, width)
        self.range_shape = (None, rows.shape[1], 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(2) @ self.rows.to(x.dtype).mT)[..., None]

    def adjoint(self, y: Tensor) -> Tensor:
        return (y[..., 0] @ self.rows.conj().to(y.dtype)).reshape(*y.shape[:2], *self.image_shape)

    def repeat_interleave(self, repeats: int) -> LinearOperator:
        if self.rows.shape[0] == 1:
            return self
        return Projection(self.rows.repeat_interleave(repeats, dim=0), self.image_shape)


def gaussian_rows(count: int, size: int, generator: torch.Generator, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """(count, size), independent N(0, 1/size): E[a a^T] = I / size, rows of unit length on average."""
    return torch.randn(count, size, generator=generator, device=generator.device, dtype=dtype) / size**0.5


def orthonormal_rows(
    count: int, size: int, generator: torch.Generator, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(count, size): Gaussian rows, orthonormalised, a uniformly random frame; it sees the same subspace.

    Raises:
        AmbientMRIError: If there are more rows than pixels.
    """
    require(0 < count <= size, f"between 1 and {size} orthonormal rows fit {size} pixels; got {count}.")
    columns, upper = torch.linalg.qr(gaussian_rows(count, size, generator, dtype=dtype).mT)
    # With the signs of the diagonal undone the frame is uniform (Mezzadri 2007).
    return (columns * upper.diagonal().sign()).mT.contiguous()


def random_projection(count: int, image_shape: tuple[int, int], generator: torch.Generator) -> Projection:
    """Gaussian random projections of images (b, channels, H, W), ``count`` numbers a channel."""
    return Projection(gaussian_rows(count, image_shape[0] * image_shape[1], generator)[None], image_shape)
