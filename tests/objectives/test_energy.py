"""The energy of a residual: the sum that it stands for, and the gradient that autograd would have found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ambient_mri.corruption import Corruption, PixelMasking, Undersampling
from ambient_mri.masks import RandomLines
from ambient_mri.measurement import Measurement
from ambient_mri.objectives import energy
from ambient_mri.objectives.energy import data_energy
from ambient_mri.operators import Composition, sense_rows
from ambient_mri.tensors import per_row
from tests.contracts.operator import random_tensor

ROWS, COILS, HEIGHT, WIDTH = 3, 2, 4, 5
LINES = Undersampling(RandomLines(2, 1))
# name: corruption, axes of y, shape of the mask, whether there is a gain
CASES: dict[str, tuple[Corruption, tuple[int, ...], tuple[int, ...], bool]] = {
    "coils, lines": (LINES, (-1,), (ROWS, 1, 1, WIDTH), True),
    "coils, both axes, no gain": (LINES, (-2, -1), (ROWS, 1, HEIGHT, WIDTH), False),
    "coils, one mask": (LINES, (-2, -1), (1, 1, 1, WIDTH), True),
    "real pixels": (PixelMasking(0.6), (), (ROWS, 1, HEIGHT, WIDTH), True),
}


def posed(case: str) -> tuple[Tensor, Measurement, dict[str, Tensor]]:
    """x, the scans, and t, W and g."""
    corruption, axes, shape, gained = CASES[case]
    coils, dtype = (COILS, torch.complex128) if isinstance(corruption, Undersampling) else (3, torch.float64)
    y = random_tensor((ROWS, coils, HEIGHT, WIDTH), "y", dtype)
    mask = random_tensor(shape, "mask", torch.float64) > -0.5
    maps = random_tensor((ROWS, coils, HEIGHT, WIDTH), "maps") if y.is_complex() else None
    ones = torch.ones(ROWS, dtype=torch.float64)
    m = Measurement(y * mask, mask, maps, ones, ones, ("a", "b", "c"), axes=axes)
    full = (ROWS, *shape[1:])
    found = {"target": random_tensor(y.shape, "t", dtype), "weights": random_tensor(full, "W", torch.float64).abs()}
    if gained:
        found["gain"] = random_tensor(full, "g", torch.float64)
    return random_tensor((ROWS, coils if maps is None else 1, HEIGHT, WIDTH), "x", dtype), m, found


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 100])
@pytest.mark.parametrize("case", sorted(CASES))
def test_it_is_the_weighted_sum_and_its_gradient(
    case: str, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, m, given = posed(case)
    corruption = CASES[case][0]
    monkeypatch.setattr(energy, "_BLOCK", rows_at_a_time * m.y[0].numel())
    monkeypatch.setattr(sense_rows, "_LARGE", 1)
    leaf, by_autograd = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = data_energy(leaf, m, corruption, **given)
    residual = given.get("gain", 1.0) * corruption.forward_operator(m).forward(by_autograd) - given["target"]
    expected = (given["weights"] * residual.abs().square()).sum(dim=(1, 2, 3))
    assert torch.allclose(found, expected, rtol=1e-12)
    cotangent = random_tensor((ROWS,), "cotangent", torch.float64)
    found.backward(cotangent)
    expected.backward(cotangent)
    assert leaf.grad is not None and by_autograd.grad is not None
    assert float(by_autograd.grad.abs().amax(dim=(1, 2, 3)).min()) > 0
    assert torch.allclose(leaf.grad, by_autograd.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", sorted(CASES))
def test_its_gradient_is_that_of_finite_differences(case: str) -> None:
    x, m, given = posed(case)
    assert torch.autograd.gradcheck(lambda v: data_energy(v, m, CASES[case][0], **given), x.requires_grad_())


def test_a_second_derivative_is_refused() -> None:
    x, m, given = posed("coils, lines")
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(data_energy(x, m, LINES, **given).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.abs().sum().backward()


def test_without_a_gradient_the_adjoint_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    x, m, given = posed("coils, lines")
    monkeypatch.setattr(Composition, "adjoint", None)
    value = data_energy(x, m, LINES, **given)
    assert not value.requires_grad and value.shape == (ROWS,)
    assert torch.equal(per_row(value, x)[:, 0, 0, 0], value)
