"""The sigpy adapter: shapes, precision, derivatives of any kind, errors, and that sigpy is loaded only on demand."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sigpy
import sigpy.mri
import torch

from ambient_mri._checks import AmbientMRIError
from ambient_mri.operators import from_sigpy
from ambient_mri.operators.sigpy_adapter import sigpy_sense
from tests.contracts.operator import assert_same, random_tensor


def test_two_dimensional_arrays_gain_a_channel_axis() -> None:
    operator = from_sigpy(sigpy.linop.Resize((8, 6), (5, 4)))
    assert operator.domain_shape == (1, 5, 4)
    assert operator.range_shape == (1, 8, 6)
    assert operator(torch.ones(3, 1, 5, 4, dtype=torch.complex64)).shape == (3, 1, 8, 6)


def test_shapes_can_be_chosen() -> None:
    operator = from_sigpy(sigpy.linop.Sum((3, 5, 4), axes=(0,)), domain_shape=(1, 3, 5, 4), range_shape=(1, 1, 5, 4))
    x = random_tensor((2, 1, 3, 5, 4), "x")
    assert_same(operator(x), x.sum(dim=2, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_precision_is_that_of_the_input(dtype: torch.dtype) -> None:
    operator = from_sigpy(sigpy.linop.FFT((5, 4)))
    assert operator(torch.ones(1, 1, 5, 4, dtype=dtype)).dtype == dtype
    assert operator.H(torch.ones(1, 1, 5, 4, dtype=dtype)).dtype == dtype


def test_real_input_of_a_complex_operator_has_a_real_gradient() -> None:
    operator = from_sigpy(sigpy.linop.Multiply((5, 4), 1 + 2j))
    x = random_tensor((2, 1, 5, 4), "x", torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(operator(x).imag.sum(), x)
    assert_same(gradient, torch.full_like(x, 2.0))


# The first forward-mode derivative of a process imports a part of torch that still uses torch.jit.script.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_derivatives_pass_gradcheck_and_gradgradcheck() -> None:
    maps = random_tensor((1, 2, 3, 4), "maps")
    operator = sigpy_sense(maps, torch.tensor([True, False, True, True])[None, None, None])
    x = random_tensor((2, 1, 3, 4), "x").requires_grad_()
    assert torch.autograd.gradcheck(operator, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda t: operator(t).abs().square(), x)


def test_vmap_maps_over_batches() -> None:
    operator = from_sigpy(sigpy.linop.FFT((5, 4)))
    x = random_tensor((3, 2, 1, 5, 4), "x")
    assert_same(torch.func.vmap(operator)(x), torch.stack([operator(item) for item in x]))
    assert_same(torch.func.vmap(operator, in_dims=1)(x), torch.stack([operator(item) for item in x.unbind(1)]))


def test_conjugate_views_and_non_contiguous_input() -> None:
    operator = from_sigpy(sigpy.linop.FFT((5, 4)))
    x = random_tensor((2, 1, 4, 5), "x").mH
    assert_same(operator(x), operator(x.resolve_conj().contiguous()))


def test_an_empty_batch_gives_an_empty_batch() -> None:
    assert from_sigpy(sigpy.linop.Resize((8, 6), (5, 4)))(torch.ones(0, 1, 5, 4)).shape == (0, 1, 8, 6)


def test_what_is_no_linop_is_refused() -> None:
    with pytest.raises(AmbientMRIError, match=r"expects sigpy\.linop\.Linop objects; got ndarray"):
        from_sigpy([torch.ones(3).numpy()])
    with pytest.raises(AmbientMRIError, match="at least one sigpy Linop"):
        from_sigpy([])


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(AmbientMRIError, match="must have one shape"):
        from_sigpy([sigpy.linop.FFT((5, 4)), sigpy.linop.FFT((4, 4))])
    with pytest.raises(AmbientMRIError, match=r"domain_shape \(1, 5, 5\) does not hold as many values"):
        from_sigpy(sigpy.linop.FFT((5, 4)), domain_shape=(1, 5, 5))


def test_a_batch_of_another_length_than_the_linops_is_refused() -> None:
    operator = from_sigpy([sigpy.linop.FFT((5, 4))] * 2)
    with pytest.raises(AmbientMRIError, match="sigpy FFT has 2 rows; got a batch of 3"):
        operator(torch.ones(3, 1, 5, 4, dtype=torch.complex64))


def test_maps_and_mask_of_different_batches_are_refused() -> None:
    maps, mask = torch.ones(2, 2, 6, 5, dtype=torch.complex64), torch.ones(3, 1, 1, 5, dtype=torch.bool)
    with pytest.raises(AmbientMRIError, match=r"mask \(3, 1, 1, 5\) does not broadcast to coil_maps \(2, 2, 6, 5\)"):
        sigpy_sense(maps, mask)


def test_operators_do_not_import_sigpy() -> None:
    code = "import sys, ambient_mri.operators; sys.exit('sigpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
