"""Coil sensitivities: one image seen by many coils."""

from __future__ import annotations

from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.operators.base import LinearOperator

__all__ = ["CoilSensitivities"]

# Pixels of coil images (8 bytes each) that A^H A holds at a time, a few times over.
_PIXELS = {"cpu": 2**22, "cuda": 2**26}


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

    def pieces(self, x: Tensor) -> list[LinearOperator]:
        """The coils in groups, where the coil images of all of them together would be large."""
        coils, pixels = self.coil_maps.shape[1], x[0].numel() * max(len(x), len(self.coil_maps))
        size = max(1, _PIXELS.get(x.device.type, _PIXELS["cpu"]) // pixels)
        if size >= coils:
            return []
        return [CoilSensitivities(self.coil_maps[:, first : first + size]) for first in range(0, coils, size)]

    def repeat_interleave(self, repeats: int) -> LinearOperator:
        if self.coil_maps.shape[0] == 1:
            return self
        return CoilSensitivities(self.coil_maps.repeat_interleave(repeats, dim=0))
