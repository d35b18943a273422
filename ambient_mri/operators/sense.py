"""The SENSE operator A = P F S, a composition and not a class of its own (Pruessmann et al. 1999)."""

from __future__ import annotations

from torch import Tensor

from ambient_mri._checks import check_option, require
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.coils import CoilSensitivities
from ambient_mri.operators.fourier import Fourier2d
from ambient_mri.operators.masking import Mask

__all__ = ["sense"]


def sense(
    coil_maps: Tensor, mask: Tensor, *, axes: tuple[int, ...] = (-2, -1), backend: str = "torch"
) -> LinearOperator:
    """A = P F S: image (b, 1, H, W) -> k-space (b, coils, H, W).

    Args:
        coil_maps: (b or 1, coils, H, W) complex.
        mask: bool, (b or 1, 1, H or 1, W or 1).
        axes: Axes that F transforms; one axis for data in hybrid space (see :class:`Fourier2d`), torch backend only.
        backend: ``"torch"`` (ours) or ``"sigpy"`` (``sigpy.mri.linop.Sense`` through the adapter: the same numbers,
            slower).

    Raises:
        AmbientMRIError: If mask and maps do not fit, or the backend is unknown.
    """
    check_option("backend", backend, ("torch", "sigpy"))
    fits = mask.ndim == 4 and all(m in (1, n) for m, n in zip(mask.shape[-2:], coil_maps.shape[-2:], strict=True))
    require(
        fits,
        f"mask {tuple(mask.shape)} does not broadcast to coil_maps {tuple(coil_maps.shape)}. "
        "Was it made for another matrix size?",
    )
    if backend == "sigpy":
        from ambient_mri.operators.sigpy_adapter import sigpy_sense

        require(tuple(axes) == (-2, -1), "backend='sigpy' transforms both axes; use backend='torch' for hybrid space.")
        return sigpy_sense(coil_maps, mask)
    return Mask(mask) @ Fourier2d(axes) @ CoilSensitivities(coil_maps)
