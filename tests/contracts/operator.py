"""The contract of every linear operator, as an inheritable test class.

A new operator supplies one fixture and gets all these tests::

    class TestMyOperator(LinearOperatorContract):
        @pytest.fixture(params=SIZES)
        def operator(self, request):
            return MyOperator(...)          # built from double-precision tensors, for a batch of ``self.batch`` rows

Axes that the operator leaves free (None in its shapes) are filled from ``free``. Everything runs in double precision,
so that 1e-10 means exact.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError
from ambient_mri.operators.base import LinearOperator
from ambient_mri.tensors import keyed_generator, real_inner

#: Even and odd matrix sizes, in both orders.
SIZES = [(8, 6), (7, 6), (6, 7), (7, 5)]

TOLERANCE = 1e-10


def random_tensor(shape: tuple[int, ...], key: str, dtype: torch.dtype = torch.complex128) -> Tensor:
    """Standard normal values in double precision, complex or real, a function of ``key``."""
    generator = keyed_generator("contract", key)
    return torch.randn(shape, generator=generator, dtype=dtype)


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal shapes, and equal values relative to the norm of what is expected."""
    assert actual.shape == expected.shape
    scale = max(float(expected.norm()), 1e-300)
    assert float((actual - expected).norm()) <= tolerance * scale


class _Misfit(LinearOperator):
    """An operator whose shapes fit nothing."""

    domain_shape = range_shape = (11, 13, 17, 19)

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()

    def adjoint(self, y: Tensor) -> Tensor:
        return y.clone()


class LinearOperatorContract:
    """Tests of one fixture, ``operator``; see the module's docstring."""

    batch = 2
    free: tuple[int, ...] = (3, 7, 6)
    domain_dtype = torch.complex128
    range_dtype = torch.complex128

    @pytest.fixture
    def operator(self) -> LinearOperator:
        raise NotImplementedError("a contract's subclass supplies the fixture `operator`")

    def fill(self, shape: tuple[int | None, ...]) -> tuple[int, ...]:
        """A full shape, with the batch axis, of a domain or range."""
        return (self.batch, *(f if n is None else n for n, f in zip(shape, self.free, strict=False)))

    @pytest.fixture
    def x(self, operator: LinearOperator) -> Tensor:
        """A point of the domain."""
        return random_tensor(self.fill(operator.domain_shape), "x", self.domain_dtype)

    @pytest.fixture
    def y(self, operator: LinearOperator) -> Tensor:
        """A point of the range."""
        return random_tensor(self.fill(operator.range_shape), "y", self.range_dtype)

    def test_adjoint_with_shapes(self, operator: LinearOperator, x: Tensor, y: Tensor) -> None:
        forward, adjoint = operator(x), operator.H(y)
        assert forward.shape == y.shape
        assert adjoint.shape == x.shape
        scale = forward.norm() * y.norm()
        assert float((real_inner(forward, y) - real_inner(x, adjoint)).abs().max()) <= TOLERANCE * scale
        if x.is_complex() and y.is_complex():  # the imaginary part: <A x, i y> = <x, A^H i y>
            difference = real_inner(forward, 1j * y) - real_inner(x, operator.adjoint(1j * y))
            assert float(difference.abs().max()) <= TOLERANCE * scale

    def test_linear(self, operator: LinearOperator, x: Tensor) -> None:
        other = random_tensor(tuple(x.shape), "other", self.domain_dtype)
        factor = 0.7 - 1.3j if x.is_complex() else -1.3
        assert_same(operator(x + factor * other), operator(x) + factor * operator(other))

    def test_normal_is_adjoint_of_forward(self, operator: LinearOperator, x: Tensor) -> None:
        assert_same(operator.normal(x), operator.adjoint(operator.forward(x)))

    def test_gradient_is_adjoint(self, operator: LinearOperator, x: Tensor, y: Tensor) -> None:
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(real_inner(y, operator(x)).sum(), x)
        assert_same(gradient, operator.adjoint(y))

    def test_gradient_of_adjoint_is_forward(self, operator: LinearOperator, x: Tensor, y: Tensor) -> None:
        y.requires_grad_()
        (gradient,) = torch.autograd.grad(real_inner(x, operator.adjoint(y)).sum(), y)
        assert_same(gradient, operator.forward(x))

    def test_gradient_of_normal_is_normal(self, operator: LinearOperator, x: Tensor) -> None:
        z = random_tensor(tuple(x.shape), "z", self.domain_dtype)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(real_inner(z, operator.normal(x)).sum(), x)
        assert_same(gradient, operator.normal(z))

    # The first forward-mode derivative of a process imports a part of torch that still uses torch.jit.script.
    @pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
    def test_functional_vjp_and_jvp(self, operator: LinearOperator, x: Tensor, y: Tensor) -> None:
        value, pull_back = torch.func.vjp(operator, x)
        assert_same(value, operator(x))
        assert_same(pull_back(y)[0], operator.adjoint(y))
        tangent = random_tensor(tuple(x.shape), "tangent", self.domain_dtype)
        value, derivative = torch.func.jvp(operator, (x,), (tangent,))
        assert_same(value, operator(x))
        assert_same(derivative, operator(tangent))

    def test_input_is_neither_changed_nor_returned(self, operator: LinearOperator, x: Tensor, y: Tensor) -> None:
        for function, argument in ((operator.forward, x), (operator.adjoint, y), (operator.normal, x)):
            before = argument.clone()
            result = function(argument)
            assert torch.equal(argument, before)
            result.zero_()
            assert torch.equal(argument, before), "the result shares memory with the input"

    def test_adjoint_of_adjoint(self, operator: LinearOperator, x: Tensor, y: Tensor) -> None:
        assert operator.H.domain_shape == operator.range_shape
        assert operator.H.range_shape == operator.domain_shape
        assert_same(operator.H.H(x), operator(x))
        assert_same(operator.H.normal(y), operator(operator.H(y)))

    def test_composition(self, operator: LinearOperator, x: Tensor, y: Tensor) -> None:
        product = operator.H @ operator
        assert_same(product(x), operator.normal(x))
        assert_same(product.H(x), operator.normal(x))
        assert_same(product.normal(x), operator.normal(operator.normal(x)))
        assert_same((operator @ operator.H)(y), operator(operator.adjoint(y)))

    def test_composition_that_does_not_fit_names_the_operators(self, operator: LinearOperator) -> None:
        with pytest.raises(AmbientMRIError, match=re.escape(f"cannot compose {operator.name} @ _Misfit")):
            _ = operator @ _Misfit()
        with pytest.raises(AmbientMRIError, match=re.escape(f"cannot compose _Misfit @ {operator.name}")):
            _ = _Misfit() @ operator

    def test_wrong_input_names_the_operator(self, operator: LinearOperator, x: Tensor) -> None:
        with pytest.raises(AmbientMRIError, match=re.escape(f"{operator.name} expects input of shape")):
            operator(x[0])

    def test_repr_shows_name_and_shapes(self, operator: LinearOperator) -> None:
        assert repr(operator).startswith(operator.name)
        assert "->" in repr(operator)

    def test_repeat_interleave(self, operator: LinearOperator, x: Tensor, y: Tensor) -> None:
        repeated = operator.repeat_interleave(3)
        assert_same(repeated(x.repeat_interleave(3, dim=0)), operator(x).repeat_interleave(3, dim=0))
        assert_same(repeated.adjoint(y.repeat_interleave(3, dim=0)), operator.adjoint(y).repeat_interleave(3, dim=0))
