"""Super-resolution: what a coarser detector, or a resized file, keeps of an image; real and complex images."""

from __future__ import annotations

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.operators.base import LinearOperator

__all__ = ["BicubicDownsampling", "BlockAverage"]


class BlockAverage(LinearOperator):
    """Means of the blocks: (b, c, H, W) -> (b, c, H/factor, W/factor).

    Args:
        factor: Rows and columns of a block.
        image_shape: H and W, multiples of ``factor``.

    Raises:
        AmbientMRIError: If the blocks do not tile the image.
    """

    def __init__(self, factor: int, image_shape: tuple[int, int]) -> None:
        height, width = _coarse(factor, image_shape)
        self.factor, self.coarse = factor, (height, width)
        self.domain_shape = (None, *image_shape)
        self.range_shape = (None, height, width)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.coarse
        return x.reshape(*x.shape[:2], height, self.factor, width, self.factor).mean(dim=(3, 5))

    def adjoint(self, y: Tensor) -> Tensor:
        spread = y.repeat_interleave(self.factor, dim=-2).repeat_interleave(self.factor, dim=-1)
        return spread / self.factor**2


class BicubicDownsampling(LinearOperator):
    """Bicubic resizing with antialiasing: (b, c, H, W) -> (b, c, H/factor, W/factor).

    Each output pixel is a weighted mean of the pixels within 2 ``factor``, weights of Keys' cubic with a = -1/2
    stretched by ``factor``, cut at the edge and normalised: what Pillow's ``resize`` does.

    Args:
        factor: How many pixels become one, along both axes.
        image_shape: H and W, multiples of ``factor``.

    Source: Keys 1981, IEEE Trans. Acoust. Speech Signal Process. 29, 1153, eq. 15.
    """

    def __init__(self, factor: int, image_shape: tuple[int, int]) -> None:
        height, width = _coarse(factor, image_shape)
        self.factor = factor
        self.rows, self.columns = (_cubic_weights(n, factor) for n in image_shape)
        self.domain_shape = (None, *image_shape)
        self.range_shape = (None, height, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows.to(x) @ x @ self.columns.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return self.rows.to(y).mT @ y @ self.columns.to(y)


def _coarse(factor: int, image_shape: tuple[int, int]) -> tuple[int, int]:
    height, width = image_shape
    require(factor >= 1, f"factor must be at least 1; got {factor}.")
    require(
        height % factor == 0 and width % factor == 0,
        f"a factor of {factor} does not divide an image of {height} x {width}: crop it to a multiple.",
    )
    return height // factor, width // factor


def _cubic_weights(size: int, factor: int) -> Tensor:
    """(size / factor, size) float64, rows of sum one."""
    centre = (torch.arange(size // factor, dtype=torch.float64) + 0.5) * factor
    distance = ((torch.arange(size, dtype=torch.float64) + 0.5)[None] - centre[:, None]).abs() / factor
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    return weights / weights.sum(dim=1, keepdim=True)
