"""Operators of other libraries: torch in and out, batched, differentiable.

    from_scipy(A)        ``scipy.sparse.linalg.LinearOperator`` (or a matrix), on the CPU
    from_deepinv(physics)   anything with ``A(x)`` and ``A_adjoint(y)`` in torch, such as a ``deepinv`` linear physics

Your own operator needs no adapter: subclass :class:`~ambient_mri.operators.base.LinearOperator`, give it ``forward``,
``adjoint`` and two shapes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.operators.base import LinearOperator, Shape

__all__ = ["ApplyRows", "DeepinvOperator", "ExternalOperator", "ScipyOperator", "from_deepinv", "from_scipy"]


class ExternalOperator(LinearOperator):
    """An operator whose numbers are made outside torch; autograd sees that it is linear."""

    @abstractmethod
    def apply_rows(self, x: Tensor, adjoint: bool) -> Tensor:
        """A x, or A^H x, row by row and outside autograd: (b, *shape) -> (b, *other shape)."""

    def forward(self, x: Tensor) -> Tensor:
        return ApplyRows.apply(x, self, False)

    def adjoint(self, y: Tensor) -> Tensor:
        return ApplyRows.apply(y, self, True)


class ApplyRows(torch.autograd.Function):
    """y = A x with dy = A dx and, for a scalar loss, grad_x = A^H grad_y; ``adjoint`` exchanges A and A^H."""

    @staticmethod
    def forward(x: Tensor, operator: ExternalOperator, adjoint: bool) -> Tensor:
        return operator.apply_rows(x, adjoint)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ExternalOperator, bool], output: Tensor) -> None:
        x, ctx.operator, ctx.adjoint = inputs
        ctx.real_input = not x.is_complex()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = ApplyRows.apply(gradients[0], ctx.operator, not ctx.adjoint)
        return gradient.real if ctx.real_input and gradient.is_complex() else gradient, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return ApplyRows.apply(tangent, ctx.operator, ctx.adjoint)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, operator: ExternalOperator, adjoint: bool) -> Any:
        # Only the tensor can be mapped over; without it vmap would not be here.
        stack = x.movedim(in_dims[0] or 0, 0)
        return torch.stack([ApplyRows.apply(item, operator, adjoint) for item in stack]), 0


class ScipyOperator(ExternalOperator):
    """One SciPy linear operator, applied to every row of a batch.

    Args:
        linear: With ``shape``, ``matvec`` and ``rmatvec``.
        domain_shape: Shape of a row of the input.
        range_shape: Shape of a row of the output.
    """

    def __init__(self, linear: Any, domain_shape: Sequence[int], range_shape: Sequence[int]) -> None:
        for what, ours, theirs in (
            ("domain_shape", domain_shape, linear.shape[1]),
            ("range_shape", range_shape, linear.shape[0]),
        ):
            require(
                int(np.prod(ours)) == theirs,
                f"{what} {tuple(ours)} does not hold as many values as the SciPy operator, which has {theirs}.",
            )
        self.linear = linear
        self.domain_shape, self.range_shape = tuple(domain_shape), tuple(range_shape)

    def apply_rows(self, x: Tensor, adjoint: bool) -> Tensor:
        function = self.linear.rmatvec if adjoint else self.linear.matvec
        shape = self.domain_shape if adjoint else self.range_shape
        real_operator = np.dtype(self.linear.dtype or np.float64).kind != "c"
        rows = []
        for row in x.detach().resolve_conj().resolve_neg().cpu().reshape(len(x), -1).numpy():
            if real_operator and np.iscomplexobj(row):  # a real operator may not know complex numbers
                rows.append(function(row.real.copy()) + 1j * function(row.imag.copy()))
            else:
                rows.append(function(row.copy()))
        result = torch.from_numpy(np.stack(rows)) if rows else x.new_zeros(0)
        double = x.dtype in (torch.complex128, torch.float64)
        dtype = (torch.complex128, torch.complex64) if result.is_complex() else (torch.float64, torch.float32)
        return result.to(x.device, dtype[0] if double else dtype[1]).reshape(len(x), *shape)  # type: ignore[arg-type]


class DeepinvOperator(LinearOperator):
    """An object with ``A`` and ``A_adjoint`` in torch; its gradients are its own.

    Args:
        physics: ``A(x)`` and ``A_adjoint(y)`` on batches.
        domain_shape: Shape of a row of the input; None where any length is accepted.
        range_shape: The same for the output.
    """

    def __init__(self, physics: Any, domain_shape: Shape, range_shape: Shape) -> None:
        self.physics, self.domain_shape, self.range_shape = physics, tuple(domain_shape), tuple(range_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.physics.A(x).clone()  # some physics return their input

    def adjoint(self, y: Tensor) -> Tensor:
        return self.physics.A_adjoint(y).clone()

    @property
    def name(self) -> str:
        return f"deepinv {type(self.physics).__name__}"


def from_scipy(linear: Any, *, domain_shape: Sequence[int], range_shape: Sequence[int] | None = None) -> ScipyOperator:
    """Make a SciPy linear operator, or a dense or sparse matrix, an operator of this package, with gradients.

    Args:
        linear: ``scipy.sparse.linalg.LinearOperator``, array or sparse matrix, (m, n); applied to every row alike.
        domain_shape: Shape of one image, such as (1, H, W), n values.
        range_shape: Shape of one measurement, m values; (1, 1, m) when not given.

    Returns:
        Operator (b, *domain_shape) -> (b, *range_shape), in the precision of its input; computed on the CPU.

    Raises:
        AmbientMRIError: If ``linear`` is no linear operator, or the shapes do not hold its numbers of values.
    """
    from scipy.sparse.linalg import aslinearoperator

    try:
        operator = aslinearoperator(linear)
    except TypeError as error:
        raise AmbientMRIError(
            f"from_scipy expects a scipy LinearOperator or a matrix; got {type(linear).__name__}."
        ) from error
    return ScipyOperator(operator, domain_shape, (1, 1, operator.shape[0]) if range_shape is None else range_shape)


def from_deepinv(
    physics: Any, *, domain_shape: Shape = (None, None, None), range_shape: Shape | None = None
) -> DeepinvOperator:
    """Make a linear physics of deepinv, or any object like it, an operator of this package.

    Args:
        physics: Object with ``A(x)`` and ``A_adjoint(y)`` on torch batches (b, c, H, W), linear. Parameters that
            belong to single rows of a batch cannot be repeated for several samples a row: make one physics a slice.
        domain_shape: Shape of one image; None for free axes.
        range_shape: Shape of one measurement; as the domain when not given.

    Raises:
        AmbientMRIError: If ``physics`` lacks one of the two functions: it is then no linear physics.
    """
    missing = [name for name in ("A", "A_adjoint") if not callable(getattr(physics, name, None))]
    require(
        not missing,
        f"from_deepinv expects a linear physics with A and A_adjoint; {type(physics).__name__} lacks "
        f"{' and '.join(missing)}.",
    )
    return DeepinvOperator(physics, domain_shape, domain_shape if range_shape is None else range_shape)
