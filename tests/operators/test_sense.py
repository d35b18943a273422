"""SENSE against sigpy and against its dense matrix; every route to A^H A gives one result; clear errors."""

from __future__ import annotations

import pytest
import sigpy.mri
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError
from ambient_mri.operators import CoilSensitivities, Fourier2d, LinearOperator, Mask, ifft, sense
from tests.contracts.operator import SIZES, assert_same, random_tensor

COILS = 4


@pytest.fixture(params=SIZES, ids=str)
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.fixture
def maps(size: tuple[int, int]) -> Tensor:
    maps = random_tensor((2, COILS, *size), "maps")
    return maps / maps.norm(dim=1, keepdim=True)


def masks(size: tuple[int, int]) -> dict[str, Tensor]:
    height, width = size
    draw = random_tensor((2, 1, height, width), "mask", torch.float64) > 0
    return {
        "lines along the columns": draw[:1, :, :1, :],
        "lines along the rows": draw[:1, :, :, :1],
        "lines, another set per slice": draw[:, :, :1, :],
        "two-dimensional": draw,
        "everything": torch.ones(1, 1, 1, 1, dtype=torch.bool),
    }


MASKS = sorted(masks((8, 6)))


def dense_matrix(operator: LinearOperator, shape: tuple[int, ...]) -> Tensor:
    """The matrix of every row of a batch of two: (2, range size, domain size)."""
    count = shape[0] * shape[1] * shape[2]
    columns = []
    for i in range(count):
        unit = torch.zeros(2, count, dtype=torch.complex128)
        unit[:, i] = 1
        columns.append(operator(unit.reshape(2, *shape)).flatten(1))
    return torch.stack(columns, dim=-1)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("backend", ["torch", "sigpy"])
def test_equals_sigpy(size: tuple[int, int], maps: Tensor, kind: str, backend: str) -> None:
    mask = masks(size)[kind]
    operator = sense(maps, mask, backend=backend)
    x, y = random_tensor((2, 1, *size), "x"), random_tensor((2, COILS, *size), "y")
    weights = mask.expand(2, 1, *size)[:, 0].double().numpy()
    linops = [sigpy.mri.linop.Sense(m, weights=w) for m, w in zip(maps.numpy(), weights, strict=True)]
    forward = torch.stack([torch.from_numpy(a * image.numpy()[0]) for a, image in zip(linops, x, strict=True)])
    adjoint = torch.stack([torch.from_numpy(a.H * k.numpy()) for a, k in zip(linops, y, strict=True)])[:, None]
    normal = torch.stack([torch.from_numpy(a.N * image.numpy()[0]) for a, image in zip(linops, x, strict=True)])[
        :, None
    ]
    assert_same(operator(x), forward)
    assert_same(operator.H(y), adjoint)
    assert_same(operator.normal(x), normal)


@pytest.mark.parametrize("kind", MASKS)
def test_adjoint_and_normal_are_those_of_the_dense_matrix(size: tuple[int, int], maps: Tensor, kind: str) -> None:
    operator = sense(maps, masks(size)[kind])
    matrix = dense_matrix(operator, (1, *size))
    x, y = random_tensor((2, 1, *size), "x"), random_tensor((2, COILS, *size), "y")
    assert_same(operator.H(y).flatten(1), (matrix.mH @ y.flatten(1)[..., None])[..., 0])
    assert_same(operator.normal(x).flatten(1), (matrix.mH @ (matrix @ x.flatten(1)[..., None]))[..., 0])


@pytest.mark.parametrize("kind", MASKS)
def test_cancelled_transforms_leave_the_normal_operator_unchanged(
    size: tuple[int, int], maps: Tensor, kind: str
) -> None:
    """A^H A skips the FFT along axes where the mask is constant, and the shifts; the plain chain does neither."""
    mask = masks(size)[kind]
    operator = sense(maps, mask)
    x = random_tensor((2, 1, *size), "x")
    coils, fourier = CoilSensitivities(maps), Fourier2d()
    plain = coils.adjoint(fourier.adjoint(fourier.forward(coils.forward(x)) * mask))
    assert_same(operator.normal(x), plain)


def test_hybrid_space_is_sense_after_the_readout_transform(size: tuple[int, int], maps: Tensor) -> None:
    mask = masks(size)["lines, another set per slice"]
    full, hybrid = sense(maps, mask), sense(maps, mask, axes=(-1,))
    x = random_tensor((2, 1, *size), "x")
    assert_same(hybrid(x), ifft(full(x), (-2,)))
    assert_same(hybrid.normal(x), full.normal(x))


def test_fully_sampled_normal_is_the_identity(size: tuple[int, int], maps: Tensor) -> None:
    x = random_tensor((2, 1, *size), "x")
    assert_same(sense(maps, masks(size)["everything"]).normal(x), x)


def test_maps_receive_gradients() -> None:
    """Joint estimation differentiates y = P F (S x) in the maps as well as in the image."""
    maps = random_tensor((1, 2, 5, 4), "maps").requires_grad_()
    x, y = random_tensor((1, 1, 5, 4), "x"), random_tensor((1, 2, 5, 4), "y")
    mask = masks((5, 4))["lines along the columns"]
    loss = (y.conj() * sense(maps, mask)(x)).real.sum()
    (gradient,) = torch.autograd.grad(loss, maps)
    assert_same(gradient, x.conj() * ifft(mask * y))


def test_a_mask_of_another_size_is_named() -> None:
    maps = torch.ones(1, 2, 6, 5, dtype=torch.complex64)
    wrong = torch.ones(1, 1, 1, 7, dtype=torch.bool)
    with pytest.raises(AmbientMRIError, match=r"mask \(1, 1, 1, 7\) does not broadcast to coil_maps \(1, 2, 6, 5\)"):
        sense(maps, wrong)


def test_unknown_backend_is_answered_with_the_options() -> None:
    maps, mask = torch.ones(1, 2, 6, 5, dtype=torch.complex64), torch.ones(1, 1, 1, 5, dtype=torch.bool)
    with pytest.raises(AmbientMRIError, match="backend must be one of 'torch', 'sigpy'"):
        sense(maps, mask, backend="sigpi")


def test_hybrid_space_needs_our_backend() -> None:
    maps, mask = torch.ones(1, 2, 6, 5, dtype=torch.complex64), torch.ones(1, 1, 1, 5, dtype=torch.bool)
    with pytest.raises(AmbientMRIError, match="use backend='torch' for hybrid space"):
        sense(maps, mask, axes=(-1,), backend="sigpy")


def test_coil_maps_must_be_complex_and_masks_boolean() -> None:
    with pytest.raises(AmbientMRIError, match=r"coil_maps must be complex \(batch, coils, H, W\)"):
        CoilSensitivities(torch.ones(1, 2, 6, 5))
    with pytest.raises(AmbientMRIError, match="mask must be bool"):
        Mask(torch.ones(1, 1, 6, 5))


def test_kspace_of_other_coils_is_refused_with_the_operator_named() -> None:
    operator = sense(torch.ones(1, 2, 6, 5, dtype=torch.complex64), torch.ones(1, 1, 1, 5, dtype=torch.bool))
    with pytest.raises(AmbientMRIError, match="CoilSensitivities"):
        operator.H(torch.ones(1, 3, 6, 5, dtype=torch.complex64))


@pytest.mark.gpu
def test_same_numbers_on_the_gpu(maps: Tensor, size: tuple[int, int]) -> None:
    mask = masks(size)["lines, another set per slice"]
    x = random_tensor((2, 1, *size), "x")
    on_gpu = sense(maps.cuda(), mask.cuda())
    assert_same(on_gpu(x.cuda()).cpu(), sense(maps, mask)(x))
    assert_same(on_gpu.normal(x.cuda()).cpu(), sense(maps, mask).normal(x))


def test_normal_differentiates_by_image_and_maps() -> None:
    size, maps = (8, 6), random_tensor((2, COILS, 8, 6), "maps to differentiate by").requires_grad_()
    mask = masks(size)["lines along the columns"]
    x = random_tensor((2, 1, *size), "x").requires_grad_()
    operator = sense(maps, mask)
    grads = [
        torch.autograd.grad(out.abs().square().sum(), (x, maps))
        for out in (operator.normal(x), operator.adjoint(operator.forward(x)))
    ]
    for ours, expected in zip(*grads, strict=True):
        assert_same(ours, expected)
    fixed = sense(maps.detach(), mask)
    (ours,) = torch.autograd.grad(fixed.normal(x).abs().square().sum(), x)
    assert_same(ours, grads[1][0])
