"""The solver that stops at an error that noise will hide, against dense algebra."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ambient_mri.operators.hidden_error import ErrorModel, SpectralMeasure, solve_to_hidden_error, spectral_measure
from ambient_mri.tensors import complex_randn, keyed_generator
from tests.contracts.operator import assert_same, random_tensor

SIZE, DOUBLE = 12, torch.float64
NOISE, ADDED = torch.tensor([0.1], dtype=DOUBLE), torch.tensor([0.3], dtype=DOUBLE)


def positive_matrix(key: str) -> Tensor:
    a = random_tensor((SIZE, SIZE), key)
    return a @ a.mH / SIZE + 0.05 * torch.eye(SIZE)


def measure() -> SpectralMeasure:
    nodes = torch.logspace(-2, 0, 9, dtype=DOUBLE)[None]
    return SpectralMeasure(nodes, torch.linspace(2, 1, 9, dtype=DOUBLE)[None] / 13.5)


def identity(x: Tensor) -> Tensor:
    return x


def solve(t: Tensor, first: Tensor, *, accuracy: float, limit: int = 40) -> tuple[Tensor, int]:
    """What is left of an error ``first`` (1, n), in a diagonal system of eigenvalues ``t`` and the model measure()."""
    model = ErrorModel(measure(), NOISE, ADDED)
    # A residual that leaves no larger error, even if all of it lies in the weakest direction.
    floor = accuracy * (len(t) * t.min() * (NOISE**2 + ADDED**2 * t.min())).sqrt()
    return solve_to_hidden_error(
        lambda p: t * p, identity, first, -t * first, model, accuracy=accuracy, floor=floor, max_iterations=limit
    )


def over_noise(t: Tensor, error: Tensor) -> float:
    """Rms of an error over the noise that hides it."""
    return float((error.square() / (NOISE**2 / t + ADDED**2)).mean().sqrt())


@pytest.mark.parametrize("function", [torch.square, torch.reciprocal, torch.log])
def test_the_measure_gives_the_quadratic_form_of_any_function_of_the_operator(function: object) -> None:
    matrices = torch.stack([positive_matrix("first"), positive_matrix("second")])
    like = torch.empty(2, SIZE, dtype=torch.complex128)
    found = spectral_measure(lambda x: (matrices @ x[..., None])[..., 0], like, steps=SIZE)
    probe = complex_randn((1, SIZE), generator=keyed_generator("spectral measure"), dtype=torch.complex128)[0]
    for row in range(2):
        values, vectors = torch.linalg.eigh(matrices[row])
        share = (vectors.mH @ probe).abs().square() / probe.norm() ** 2
        assert_same(found.mean(function)[row], (share * function(values)).sum(), 1e-6)  # type: ignore[operator, arg-type]


def test_a_krylov_space_that_ends_early_adds_no_nodes_of_its_own() -> None:
    like = torch.empty(1, 1, 4, 4, dtype=torch.complex64)
    found = spectral_measure(lambda x: 0.25 * x, like, steps=6)
    assert_same(found.mean(torch.sqrt), torch.tensor([0.5], dtype=DOUBLE), 1e-5)


def test_rules_between_two_neighbours_hold_both_ends() -> None:
    low, high = measure(), SpectralMeasure(4 * measure().nodes, measure().weights.flip(1))
    share = torch.tensor([0.0, 1.0, 0.5], dtype=DOUBLE)
    ends = [SpectralMeasure.stack([m.row(0)] * 3) for m in (low, high)]
    found = ends[0].towards(ends[1], share)
    assert_same(found.nodes, torch.cat([low.nodes, high.nodes, 2.5 * low.nodes]), 1e-12)
    assert_same(found.weights.sum(dim=1), torch.ones(3, dtype=DOUBLE), 1e-12)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_the_error_is_the_one_announced_where_the_model_is_true(steps: int) -> None:
    rule = measure().spread()
    t, weights = rule.nodes[0], rule.weights[0]
    first = weights.sqrt()[None]  # of variance one, with as many directions at a node as its weight says
    model, x, r = ErrorModel(measure(), NOISE, ADDED), first, -t * first
    p, rho = r, r.square().sum(dim=1)
    announced = model.error(rho)
    for _ in range(steps):
        alpha = rho / (t * p.square()).sum(dim=1)
        x, r = x + alpha * p, r - alpha * t * p
        beta = r.square().sum(dim=1) / rho
        p, rho = r + beta * p, beta * rho
        model.step(alpha, beta)
        announced = model.error(rho)
    assert_same(announced, (x.square() / (NOISE**2 / t + ADDED**2)).sum(dim=1), 1e-8)


def test_a_row_stops_where_the_noise_hides_its_error() -> None:
    t = torch.logspace(-2, 0, 270, dtype=DOUBLE)
    first = torch.randn(1, len(t), generator=keyed_generator("white"), dtype=DOUBLE)
    iterations = []
    for accuracy in (1.0, 0.3, 0.1):
        error, steps = solve(t, first, accuracy=accuracy)
        assert over_noise(t, error) < 1.2 * accuracy  # the first error is one draw
        iterations.append(steps)
    assert iterations == sorted(iterations) and iterations[0] < iterations[-1] < 20


def test_an_eigenvalue_that_the_model_misses_does_not_let_the_error_grow() -> None:
    """A few eigenvalues eight times the model's largest: a polynomial of the model grows there beyond all bounds."""
    t = torch.cat([torch.logspace(-2, 0, 270, dtype=DOUBLE), torch.tensor([8.0, 7.0], dtype=DOUBLE)])
    first = torch.randn(1, len(t), generator=keyed_generator("outlier"), dtype=DOUBLE)
    before = float((t * first.square()).sum())
    for limit in range(1, 8):
        error, _ = solve(t, first, accuracy=0.0, limit=limit)
        energy = float((t * error.square()).sum())
        assert energy < before
        before = energy
    error, steps = solve(t, first, accuracy=0.1)
    assert over_noise(t, error) < 0.1
    assert steps < 30


@pytest.mark.parametrize("power", [-0.5, -0.25])
def test_a_first_error_in_the_weak_directions_is_found_by_its_residual(power: float) -> None:
    t = torch.logspace(-2, 0, 270, dtype=DOUBLE)
    first = t**power * torch.randn(1, len(t), generator=keyed_generator("weak"), dtype=DOUBLE)
    error, _ = solve(t, first, accuracy=0.1)
    assert over_noise(t, error) < 0.2


def test_every_row_reaches_its_own_solution_or_its_floor() -> None:
    matrices = torch.stack([positive_matrix("first"), positive_matrix("second")])
    scale = torch.linspace(0.5, 2, SIZE, dtype=DOUBLE)
    b, start = random_tensor((2, SIZE), "b"), random_tensor((2, SIZE), "start")

    def apply(x: Tensor) -> Tensor:
        return (matrices @ x[..., None])[..., 0]

    root = scale.rsqrt()
    nodes = torch.linalg.eigvalsh(root[:, None] * matrices * root)
    model = ErrorModel(SpectralMeasure(nodes, torch.full_like(nodes, 1 / SIZE)), NOISE.expand(2), ADDED.expand(2))
    residual = b - apply(start)
    floor = torch.stack([torch.zeros((), dtype=DOUBLE), 2 * residual[1].norm()])
    x, _ = solve_to_hidden_error(
        apply, lambda r: r / scale, start, residual, model, accuracy=1e-6, floor=floor, max_iterations=60
    )
    assert_same(x[0], torch.linalg.solve(matrices[0], b[0]), 1e-5)
    assert torch.equal(x[1], start[1])
