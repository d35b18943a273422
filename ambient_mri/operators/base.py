"""The operator algebra: ``A(x)``, ``A.H``, ``A.normal(x)``, ``A @ B``.

An operator maps a batch (b, *domain_shape) to (b, *range_shape), is linear over the real or complex numbers,
allocates its result, and never changes its input. Shapes hold no batch axis; ``None`` stands for "any length" (a
Fourier transform works for any matrix size). Composition checks shapes and names both operators when they do not fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, require

__all__ = ["Adjoint", "Composition", "Identity", "LinearOperator", "Shape"]

Shape = tuple[int | None, ...]


class LinearOperator(ABC):
    """A linear operator with its adjoint.

    Attributes:
        domain_shape: Shape of one input without the batch axis; None where any length is accepted.
        range_shape: Shape of one output without the batch axis.
    """

    domain_shape: Shape
    range_shape: Shape

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x: (b, *domain_shape) -> (b, *range_shape)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y: (b, *range_shape) -> (b, *domain_shape)."""

    def normal(self, x: Tensor) -> Tensor:
        """A^H A x: (b, *domain_shape) -> (b, *domain_shape)."""
        return self.adjoint(self.forward(x))

    def normal_of_product(self, right: LinearOperator) -> Callable[[Tensor], Tensor] | None:
        """A faster ``(self @ right)^H (self @ right)`` where one is known, else None."""
        return None

    def pieces(self, x: Tensor) -> Sequence[LinearOperator]:
        """Operators whose outputs, one after the other along axis 1, are that of this one, where it is wise for the
        size of ``x`` to apply them in turns; else none.
        """
        return []

    def repeat_interleave(self, repeats: int) -> LinearOperator:
        """The operator for a batch in which every row is repeated ``repeats`` times (samples of one slice side by
        side).
        """
        return self

    @property
    def H(self) -> LinearOperator:
        """The adjoint operator."""
        return Adjoint(self)

    def __call__(self, x: Tensor) -> Tensor:
        self._check(x, self.domain_shape, "input")
        return self.forward(x)

    def __matmul__(self, right: LinearOperator) -> LinearOperator:
        return Composition(self, right)

    def __repr__(self) -> str:
        return f"{self.name}: {_format(self.domain_shape)} -> {_format(self.range_shape)}"

    @property
    def name(self) -> str:
        """The name that error messages and reprs use."""
        return type(self).__name__

    def _check(self, x: Tensor, shape: Shape, what: str) -> None:
        fits = x.ndim == len(shape) + 1 and _fits(tuple(x.shape[1:]), shape)
        require(fits, f"{self.name} expects {what} of shape (batch, {_format(shape)[1:]}; got {tuple(x.shape)}.")


class Adjoint(LinearOperator):
    """The adjoint of an operator, as an operator."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.domain_shape, self.range_shape = operator.range_shape, operator.domain_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.forward(y)

    def repeat_interleave(self, repeats: int) -> LinearOperator:
        return Adjoint(self.operator.repeat_interleave(repeats))

    @property
    def H(self) -> LinearOperator:
        return self.operator

    @property
    def name(self) -> str:
        return f"{self.operator.name}.H"


class Identity(LinearOperator):
    """The identity on tensors of any shape with three axes after the batch (denoising)."""

    def __init__(self, shape: Shape = (None, None, None)) -> None:
        self.domain_shape = self.range_shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()

    def adjoint(self, y: Tensor) -> Tensor:
        return y.clone()


class Composition(LinearOperator):
    """A product of operators, ``left @ right``: right acts first.

    Raises:
        AmbientMRIError: At composition, naming both operators, when the range of ``right`` is not the domain of
            ``left``.
    """

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        require(
            _fits(right.range_shape, left.domain_shape),
            f"cannot compose {left.name} @ {right.name}: {right.name} gives {_format(right.range_shape)}, "
            f"{left.name} expects {_format(left.domain_shape)}.",
        )
        self.factors: list[LinearOperator] = [
            factor for side in (left, right) for factor in (side.factors if isinstance(side, Composition) else [side])
        ]
        self.domain_shape = _refine(right.domain_shape, right.range_shape, left.domain_shape)
        self.range_shape = _refine(left.range_shape, left.domain_shape, right.range_shape)

    def forward(self, x: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            x = self._apply(factor, factor.forward, x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for factor in self.factors:
            y = self._apply(factor, factor.adjoint, y)
        return y

    def normal(self, x: Tensor) -> Tensor:
        fused = self.factors[0].normal_of_product(self.factors[1])
        split = 1 if fused is None else 2
        middle = self.factors[0].normal if fused is None else fused
        parts = self._stacked(x) if fused is not None and split == len(self.factors) - 1 else []
        if parts:
            return torch.stack([part.adjoint(middle(part.forward(x))) for part in parts]).sum(dim=0)
        for factor in reversed(self.factors[split:]):
            x = self._apply(factor, factor.forward, x)
        x = middle(x)
        for factor in self.factors[split:]:
            x = self._apply(factor, factor.adjoint, x)
        return x

    def _stacked(self, x: Tensor) -> Sequence[LinearOperator]:
        """Pieces of the last factor that may be taken one after the other: the mask is the same for all of them."""
        return self.factors[-1].pieces(x) if self.factors[0].domain_shape[0] is None else []

    def repeat_interleave(self, repeats: int) -> LinearOperator:
        product = self.factors[-1].repeat_interleave(repeats)
        for factor in reversed(self.factors[:-1]):
            product = factor.repeat_interleave(repeats) @ product
        return product

    def _apply(self, factor: LinearOperator, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        try:
            return function(x)
        except (RuntimeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise AmbientMRIError(
                f"{factor.name} (in {self.name}) could not be applied to a tensor of shape {tuple(x.shape)}: {error}"
            ) from error

    @property
    def name(self) -> str:
        return " @ ".join(factor.name for factor in self.factors)


def _fits(found: Shape, expected: Shape) -> bool:
    return len(found) == len(expected) and all(
        f is None or e is None or f == e for f, e in zip(found, expected, strict=True)
    )


def _refine(outer: Shape, inner: Shape, other: Shape) -> Shape:
    """Fill the free axes of ``outer`` from ``other`` where the operator in between leaves those axes free too."""
    if len(outer) != len(inner):
        return outer
    return tuple(
        o if o is not None else (k if i is None else None) for o, i, k in zip(outer, inner, other, strict=True)
    )


def _format(shape: Shape) -> str:
    return "(" + ", ".join("*" if n is None else str(n) for n in shape) + ")"
