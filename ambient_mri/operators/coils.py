"""Coil sensitivities: one image seen by many coils."""

from __future__ import annotations

from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.operators.base import LinearOperator

__all__ = ["CoilSensitivities"]


class CoilSensitivities(LinearOperator):
    """S: (b, 1, H, W) -> (b, coils, H, W), x -> S_c x;  S^H y = sum_c conj(S_c) y_c.

    Args:
        coil_maps: (b or 1, coils, H, W) complex.

    Raises:
        AmbientMRIError: If ``coil_maps`` is not a 4-D complex tensor.
    """

    def __init__(self, coil_maps: Tensor) -> None:
        require(
            coil_maps.ndim == 4 and coil_maps.is_complex(),
            f"coil_maps must be complex (batch, coils, H, W); got {coil_maps.dtype} {tuple(coil_maps.shape)}.",
        )
        self.coil_maps = coil_maps
        coils, height, width = coil_maps.shape[1:]
        self.domain_shape = (1, height, width)
        self.range_shape = (coils, height, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.coil_maps * x

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.coil_maps.conj() * y).sum(dim=1, keepdim=True)

    def normal(self, x: Tensor) -> Tensor:
        return x * self.coil_maps.abs().square().sum(dim=1, keepdim=True)

    def repeat_interleave(self, repeats: int) -> LinearOperator:
        if self.coil_maps.shape[0] == 1:
            return self
        return CoilSensitivities(self.coil_maps.repeat_interleave(repeats, dim=0))
