"""A^H A of SENSE in blocks: equal to the composition, its noise in its place, its preconditioner the true diagonal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError
from ambient_mri.operators import Identity, Mask, fft, ifft, sense
from ambient_mri.operators.sense import SenseNormal
from ambient_mri.sampling.measurement_noise import MeasurementNoise
from ambient_mri.tensors import keyed_generator
from tests.contracts.operator import assert_same, random_tensor

COILS, HEIGHT, WIDTH = 3, 5, 6
# name: shape of the mask, axes that F transforms
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "points": ((1, 1, HEIGHT, WIDTH), (-2, -1)),
    "points, another set a slice": ((2, 1, HEIGHT, WIDTH), (-2, -1)),
    "lines, both axes": ((2, 1, 1, WIDTH), (-2, -1)),
    "lines, hybrid space": ((2, 1, 1, WIDTH), (-1,)),
    "lines along the rows, hybrid space": ((1, 1, HEIGHT, 1), (-2,)),
}


def posed(case: str) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    shape, axes = CASES[case]
    maps = random_tensor((2, COILS, HEIGHT, WIDTH), "maps")
    return maps / maps.norm(dim=1, keepdim=True), random_tensor(shape, "mask", torch.float64) > 0, axes


@pytest.mark.parametrize("coils_at_a_time", [1, 2, 100])
@pytest.mark.parametrize("case", sorted(CASES))
def test_it_is_the_normal_operator(case: str, coils_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SenseNormal.__init__.__globals__, "_BLOCK", coils_at_a_time * HEIGHT * WIDTH)
    maps, mask, axes = posed(case)
    operator, x = sense(maps, mask, axes=axes), random_tensor((6, 1, HEIGHT, WIDTH), "x")
    blocks = SenseNormal.of(operator)
    assert blocks is not None
    expected = operator.repeat_interleave(3)
    assert_same(blocks(x), expected.adjoint(expected.forward(x)))


@pytest.mark.parametrize("case", sorted(set(CASES) - {"lines, both axes"}))
def test_noise_goes_where_it_was_measured(case: str) -> None:
    maps, mask, axes = posed(case)
    operator, x = sense(maps, mask, axes=axes).repeat_interleave(3), random_tensor((6, 1, HEIGHT, WIDTH), "x")
    noise = MeasurementNoise(operator, torch.empty(6, COILS, HEIGHT, WIDTH, dtype=torch.complex128))
    blocks = SenseNormal.of(sense(maps, mask, axes=axes))
    assert blocks is not None
    found = blocks.residual(x, lambda i: noise.draw_row(i, keyed_generator(i)))
    e = noise.draw([keyed_generator(i) for i in range(6)])
    assert_same(found, operator.adjoint(e - operator.forward(x)))


def test_noise_has_no_place_where_a_transform_cancels() -> None:
    maps, mask, axes = posed("lines, both axes")
    with pytest.raises(AmbientMRIError, match="transform fewer axes"):
        SenseNormal(maps, mask, axes).residual(random_tensor((2, 1, HEIGHT, WIDTH), "x"), lambda i: torch.zeros(0))


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_preconditioner_has_the_diagonal_of_the_operator_in_kspace(case: str) -> None:
    maps, mask, axes = posed(case)
    blocks = SenseNormal(maps, mask, axes)
    kept = blocks.axes
    count = HEIGHT * WIDTH
    unit = torch.eye(count, dtype=torch.complex128).reshape(count, 1, HEIGHT, WIDTH)
    lam = torch.tensor([0.2, 0.7], dtype=torch.float64)
    for row in range(2):
        one = sense(maps[row : row + 1], mask[min(row, len(mask) - 1)][None], axes=axes)
        diagonal = fft(one.normal(ifft(unit, kept)), kept).flatten(1).diagonal().real.reshape(HEIGHT, WIDTH)
        x = random_tensor((2, 1, HEIGHT, WIDTH), "x")
        expected = ifft(fft(x[row : row + 1], kept) / (diagonal + lam[row]), kept)
        assert_same(blocks.precondition(x, blocks.diagonal(lam).reciprocal())[row], expected[0])


def test_only_sense_has_blocks() -> None:
    maps, mask, _ = posed("points")
    assert SenseNormal.of(Identity()) is None
    assert SenseNormal.of(Mask(mask)) is None
    each = mask.expand(-1, COILS, -1, -1)
    assert SenseNormal.of(sense(maps, each)) is None
