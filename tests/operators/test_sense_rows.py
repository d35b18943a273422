"""SENSE row by row: the operator that ``sense`` gives, with its gradients, for padded coils too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ambient_mri.operators import Identity, LinearOperator, Mask, sense, sense_rows
from ambient_mri.operators.sense_rows import SenseRows, row_by_row
from tests.contracts.operator import assert_same, random_tensor

CPU, COILS = torch.device("cpu"), 3
# name: matrix, shape of the mask, axes that F transforms
CASES: dict[str, tuple[tuple[int, int], tuple[int, ...], tuple[int, ...]]] = {
    "points": ((5, 6), (1, 1, 5, 6), (-2, -1)),
    "points, odd and even the other way": ((6, 5), (2, 1, 6, 5), (-2, -1)),
    "lines, both axes": ((5, 6), (2, 1, 1, 6), (-2, -1)),
    "lines, hybrid space": ((5, 6), (2, 1, 1, 6), (-1,)),
    "odd lines, hybrid space": ((4, 7), (2, 1, 1, 7), (-1,)),
    "lines along the rows, hybrid space": ((5, 6), (1, 1, 5, 1), (-2,)),
}


@pytest.fixture(autouse=True)
def _small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sense_rows, "_LARGE", COILS * 4 * 7)


def posed(case: str) -> tuple[LinearOperator, tuple[int, int]]:
    matrix, shape, axes = CASES[case]
    maps = random_tensor((2, COILS, *matrix), "maps")
    maps[1, -1] = 0  # a scan of two coils in a batch of three
    return sense(maps, random_tensor(shape, "mask", torch.float64) > 0, axes=axes), matrix


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("case", sorted(CASES))
def test_it_is_the_composition(case: str, samples: int) -> None:
    operator, matrix = posed(case)
    rows, expected = row_by_row(operator, CPU), operator.repeat_interleave(samples)
    assert isinstance(rows, SenseRows)
    x, y = random_tensor((2 * samples, 1, *matrix), "x"), random_tensor((2 * samples, COILS, *matrix), "y")
    for name, argument in (("forward", x), ("adjoint", y), ("normal", x)):
        kept = argument.clone()
        assert_same(getattr(rows, name)(argument), getattr(expected, name)(argument))
        assert torch.equal(argument, kept)
    assert rows(x).shape[1:] == rows.range_shape and rows.H(y).shape[1:] == rows.domain_shape


@pytest.mark.parametrize("name", ["forward", "adjoint", "normal"])
def test_its_gradients_are_those_of_a_linear_map(name: str) -> None:
    operator, matrix = posed("lines, hybrid space")
    rows = row_by_row(operator, CPU)

    def apply(x: Tensor) -> Tensor:
        result: Tensor = getattr(rows, name)(x)
        return result

    argument = random_tensor((2, COILS if name == "adjoint" else 1, *matrix), "argument").requires_grad_()
    assert torch.autograd.gradcheck(apply, argument)


def test_other_operators_and_other_devices_keep_theirs() -> None:
    operator, _ = posed("points")
    each = Mask(torch.ones(1, COILS, 5, 6, dtype=torch.bool))
    for other in (Identity(), each, each @ operator):
        assert row_by_row(other, CPU) is other
    assert row_by_row(operator, torch.device("meta")) is operator
    small = sense(random_tensor((1, 1, 5, 6), "one coil"), torch.ones(1, 1, 1, 6, dtype=torch.bool))
    assert row_by_row(small, CPU) is small
