r"""SENSE on a CPU, a row at a time: what a training step applies, in the cache of one core.

The centred transform of n numbers, c = n // 2, is a plain one between two diagonals,

    F = diag( e^{2 pi i c (j - c) / n} ) DFT diag( e^{2 pi i c w / n} )

so that no array of the size of the k-space is shifted: the right one goes to the image, the left one to the mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ambient_mri.operators.base import Composition, LinearOperator
from ambient_mri.operators.sense import SenseNormal

__all__ = ["SenseRows", "row_by_row"]

# Numbers in a row's k-space from which on its own transforms, and not the calls, are what a row costs.
_LARGE = 2**13


class SenseRows(LinearOperator):
    """A = P F S with the numbers of :func:`~ambient_mri.operators.sense.sense`, for a batch that is a multiple of the
    operator's rows.

    Args:
        normal: A^H A.
        axes: Axes that F transforms.
    """

    def __init__(self, normal: SenseNormal, axes: tuple[int, ...]) -> None:
        self.blocks, self.axes = normal, axes
        coils, height, width = normal.coil_maps.shape[1:]
        self.domain_shape, self.range_shape = (1, height, width), (coils, height, width)
        self._right = torch.ones(1, 1, 1, dtype=normal.coil_maps.dtype)
        self._left = normal.mask.to(self._right.dtype)
        for axis in axes:
            n = normal.coil_maps.shape[axis]
            shape = (n, 1) if axis == -2 else (n,)
            place = torch.arange(n)
            self._right = self._right * _phase(n // 2 * place, n).to(self._right.dtype).reshape(shape)
            self._left = self._left * _phase(n // 2 * (place - n // 2), n).to(self._left.dtype).reshape(shape)
        self._left_conj, self._right_conj = (t.conj().resolve_conj() for t in (self._left, self._right))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._forward(x[i], i * self.blocks.slices // len(x)) for i in range(len(x))])

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([self._adjoint(y[i], i * self.blocks.slices // len(y)) for i in range(len(y))])

    def normal(self, x: Tensor) -> Tensor:
        return self.blocks(x)

    def _forward(self, x: Tensor, row: int) -> Tensor:
        maps = self.blocks.coil_maps[min(row, len(self.blocks.coil_maps) - 1)]
        k = maps * (x * self._right)
        if self.axes:
            k = torch.fft.fftn(k, dim=self.axes, norm="ortho")
        return k.mul_(self._left[min(row, len(self._left) - 1)])[None]

    def _adjoint(self, y: Tensor, row: int) -> Tensor:
        here = min(row, len(self.blocks.coil_maps) - 1)
        coils = self.blocks.coils[here]
        k = y[:coils] * self._left_conj[min(row, len(self._left_conj) - 1)]
        if self.axes:
            k = torch.fft.ifftn(k, dim=self.axes, norm="ortho")
        return (k.mul_(self.blocks.conj_maps[here, :coils]).sum(dim=0, keepdim=True) * self._right_conj)[None]


def row_by_row(operator: LinearOperator, device: torch.device) -> LinearOperator:
    """``operator`` as :class:`SenseRows` where it is SENSE of large rows on a CPU; itself elsewhere."""
    large = math.prod(n or 1 for n in operator.range_shape) >= _LARGE
    normal = SenseNormal.of(operator) if large and device.type == "cpu" else None
    if normal is None or not isinstance(operator, Composition):
        return operator
    return SenseRows(normal, operator.factors[1].axes)  # type: ignore[attr-defined]


def _phase(turns: Tensor, n: int) -> Tensor:
    """e^{2 pi i turns / n} for integer ``turns``."""
    angle = 2 * torch.pi * (turns % n).double() / n
    return torch.polar(torch.ones_like(angle), angle)
