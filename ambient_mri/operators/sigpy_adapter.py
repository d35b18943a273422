"""sigpy operators as operators of this package: torch in and out, batched, differentiable.

    from_sigpy(linop)            any ``sigpy.linop.Linop``, or one of them per batch row
    sigpy_sense(coil_maps, mask) ``sigpy.mri.linop.Sense``
    espirit_calib(kspace, ...)   ``sigpy.mri.app.EspiritCalib``, slice by slice

The numbers are sigpy's: arrays go to NumPy and back, row by row, on the CPU. The derivative of a linear map is the map
itself (forward mode) or its adjoint (reverse mode), so both modes and ``torch.func`` work, although autograd cannot see
inside sigpy. Tensors that a sigpy operator was built from (the coil maps, say) receive no gradient.

Reference: Ong & Lustig 2019, "SigPy: a Python package for high performance iterative reconstruction", ISMRM 4819.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sigpy.linop import Linop
from sigpy.mri.app import EspiritCalib
from sigpy.mri.linop import Sense
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.external import ExternalOperator

__all__ = ["SigpyOperator", "espirit_calib", "from_sigpy", "sigpy_sense"]


class SigpyOperator(ExternalOperator):
    """One or several sigpy Linops applied to the rows of a batch.

    Args:
        linops: One Linop for every row, or as many as the batch has rows; all of one shape.
        domain_shape: Shape of a row of the input; reshaped to ``linop.ishape``.
        range_shape: Shape of a row of the output; reshaped from ``linop.oshape``.

    Raises:
        AmbientMRIError: If the Linops differ in shape, or a shape holds another number of values than its Linop's.
    """

    def __init__(self, linops: Sequence[Linop], domain_shape: Sequence[int], range_shape: Sequence[int]) -> None:
        require(len(linops) > 0, "from_sigpy needs at least one sigpy Linop; got none.")
        shapes = {(tuple(linop.oshape), tuple(linop.ishape)) for linop in linops}
        require(len(shapes) == 1, f"the sigpy Linops of one operator must have one shape; got {sorted(shapes)}.")
        for what, ours, theirs in (
            ("domain_shape", domain_shape, linops[0].ishape),
            ("range_shape", range_shape, linops[0].oshape),
        ):
            require(
                int(np.prod(ours)) == int(np.prod(theirs)),
                f"{what} {tuple(ours)} does not hold as many values as {linops[0]!r}, which has {tuple(theirs)}.",
            )
        self.linops = tuple(linops)
        self._row_shapes = (tuple(domain_shape), tuple(range_shape))
        self.domain_shape, self.range_shape = self._row_shapes

    def repeat_interleave(self, repeats: int) -> LinearOperator:
        if len(self.linops) == 1:
            return self
        linops = [linop for linop in self.linops for _ in range(repeats)]
        return SigpyOperator(linops, *self._row_shapes)

    @property
    def name(self) -> str:
        return f"sigpy {self.linops[0].repr_str}"

    def apply_rows(self, x: Tensor, adjoint: bool) -> Tensor:
        """Apply every row's Linop (or its adjoint) outside autograd: (b, *shape) -> (b, *other shape)."""
        shape_in, shape_out = reversed(self._row_shapes) if adjoint else self._row_shapes
        self._check(x, shape_in, "input")
        linops = self.linops * x.shape[0] if len(self.linops) == 1 else self.linops
        require(len(linops) == x.shape[0], f"{self.name} has {len(linops)} rows; got a batch of {x.shape[0]}.")
        rows = []
        for linop, row in zip(linops, x.detach().resolve_conj().resolve_neg().cpu(), strict=True):
            operator = linop.H if adjoint else linop
            # A copy: some sigpy operators return or overwrite the array they were given.
            output = operator(row.contiguous().numpy().reshape(operator.ishape).copy())
            rows.append(torch.from_numpy(np.ascontiguousarray(output)).reshape(shape_out))
        result = torch.stack(rows) if rows else x.new_zeros(0, *shape_out)
        return result.to(device=x.device, dtype=_same_precision(result.dtype, x.dtype))


def from_sigpy(
    linop: Linop | Sequence[Linop],
    *,
    domain_shape: Sequence[int] | None = None,
    range_shape: Sequence[int] | None = None,
) -> SigpyOperator:
    """Make a sigpy Linop an operator of this package, with gradients.

    Args:
        linop: One Linop, applied to every row of a batch; or a sequence with one Linop per row.
        domain_shape: Shape of one input row. By default ``linop.ishape``, with a channel axis in front of a 2-D image
            (H, W) -> (1, H, W), so that the operator composes with those of this package.
        range_shape: The same for one output row and ``linop.oshape``.

    Returns:
        Operator (b, *domain_shape) -> (b, *range_shape), in the precision of its input. Complex or real input is handed
        to sigpy as it is.

    Raises:
        AmbientMRIError: If ``linop`` is no sigpy Linop, or shapes do not agree.
    """
    linops = [linop] if isinstance(linop, Linop) else list(linop)
    wrong = [type(item).__name__ for item in linops if not isinstance(item, Linop)]
    require(not wrong, f"from_sigpy expects sigpy.linop.Linop objects; got {', '.join(wrong)}.")
    require(len(linops) > 0, "from_sigpy needs at least one sigpy Linop; got none.")
    domain = _with_channel(linops[0].ishape) if domain_shape is None else domain_shape
    range_ = _with_channel(linops[0].oshape) if range_shape is None else range_shape
    return SigpyOperator(linops, domain, range_)


def sigpy_sense(coil_maps: Tensor, mask: Tensor) -> SigpyOperator:
    """``sigpy.mri.linop.Sense(coil_maps, weights=mask)`` for every row: (b, 1, H, W) -> (b, coils, H, W).

    sigpy multiplies by sqrt(weights), which for a mask of zeros and ones is the mask.

    Args:
        coil_maps: (b or 1, coils, H, W) complex; its precision limits the operator's.
        mask: bool, (b or 1, 1, H or 1, W or 1).

    Raises:
        AmbientMRIError: If the batch sizes or matrix sizes of maps and mask do not agree.
    """
    batch = max(coil_maps.shape[0], mask.shape[0])
    coils, height, width = coil_maps.shape[1:]
    try:
        maps = coil_maps.expand(batch, coils, height, width)
        weights = mask.expand(batch, 1, height, width)
    except RuntimeError as error:
        raise AmbientMRIError(
            f"mask {tuple(mask.shape)} does not broadcast to coil_maps {tuple(coil_maps.shape)}. "
            "Was it made for another matrix size?"
        ) from error
    maps_numpy = maps.detach().resolve_conj().cpu().numpy()
    weights_numpy = weights[:, 0].to(coil_maps.real.dtype).cpu().numpy()
    linops = [Sense(m, weights=w) for m, w in zip(maps_numpy, weights_numpy, strict=True)]
    return SigpyOperator(linops, (1, height, width), (coils, height, width))


def espirit_calib(
    kspace: Tensor, *, calib_width: int, kernel_width: int, thresholds: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """``sigpy.mri.app.EspiritCalib`` for every slice, uncropped.

    Args:
        kspace: (batch, coils, H, W) complex; the central square of ``calib_width`` lines must be fully sampled.
        calib_width: Calibration lines along both axes.
        kernel_width: Kernel size along both axes.
        thresholds: Relative singular value below which a slice's calibration matrix counts as noise, one a slice.

    Returns:
        maps (batch, coils, H, W) and eigenvalue (batch, 1, H, W), on the device of ``kspace``.
    """
    maps, values = [], []
    for coils, threshold in zip(kspace.detach().resolve_conj().cpu().numpy(), thresholds, strict=True):
        settings = {"calib_width": calib_width, "kernel_width": kernel_width, "thresh": threshold, "crop": 0}
        slice_maps, slice_values = EspiritCalib(coils, **settings, output_eigenvalue=True, show_pbar=False).run()
        maps.append(slice_maps)
        values.append(slice_values.real.reshape(1, *coils.shape[1:]))
    return torch.from_numpy(np.stack(maps)).to(kspace), torch.from_numpy(np.stack(values)).to(kspace.real)


def _with_channel(shape: Sequence[int]) -> tuple[int, ...]:
    return (1, *shape) if len(shape) == 2 else tuple(shape)


def _same_precision(found: torch.dtype, reference: torch.dtype) -> torch.dtype:
    """The dtype ``found`` (real or complex) in the precision of ``reference``."""
    if not (found.is_complex or found.is_floating_point):
        return found
    double = reference in (torch.complex128, torch.float64)
    if found.is_complex:
        return torch.complex128 if double else torch.complex64
    return torch.float64 if double else torch.float32
