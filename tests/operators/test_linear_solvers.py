"""Conjugate gradients against SciPy, iterate by iterate, and against dense solves."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from scipy.sparse.linalg import cg
from torch import Tensor

from ambient_mri.operators import CGResult, LinearOperator, conjugate_gradient, linear_solvers, sense, solve_regularized
from tests.contracts.operator import assert_same, random_tensor

ROWS, COILS, HEIGHT, WIDTH = 3, 4, 7, 6
LAMBDA = torch.tensor([0.3, 0.05, 1.0], dtype=torch.float64)


@pytest.fixture
def maps() -> Tensor:
    maps = random_tensor((ROWS, COILS, HEIGHT, WIDTH), "maps")
    return maps / maps.norm(dim=1, keepdim=True)


@pytest.fixture
def mask() -> Tensor:
    return random_tensor((ROWS, 1, 1, WIDTH), "mask", torch.float64) > 0


@pytest.fixture
def rhs() -> Tensor:
    return random_tensor((ROWS, 1, HEIGHT, WIDTH), "rhs")


def hermitian_matrices(count: int, size: int) -> Tensor:
    """Positive-definite matrices of very different condition numbers, one per row."""
    a = random_tensor((count, size, size), "matrix")
    shift = torch.logspace(-2, 1, count, dtype=torch.float64)
    return a @ a.mH / size + shift[:, None, None] * torch.eye(size, dtype=torch.complex128)


def inverse_of_preconditioners() -> Tensor:
    """Positive-definite matrices that are neither diagonal nor near the system, one per row."""
    a = random_tensor((ROWS, 12, 12), "preconditioner")
    return a @ a.mH / 24 + 0.5 * torch.eye(12, dtype=torch.complex128)


def times(matrices: Tensor, x: Tensor) -> Tensor:
    return (matrices @ x[..., None])[..., 0]


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("with_start", [False, True])
def test_every_iterate_equals_scipy(with_start: bool, preconditioned: bool) -> None:
    matrices, b = hermitian_matrices(ROWS, 12), random_tensor((ROWS, 12), "b")
    x0 = random_tensor((ROWS, 12), "x0") if with_start else None
    inverses = inverse_of_preconditioners() if preconditioned else None
    precondition = None if inverses is None else lambda r: times(inverses, r)
    for row in range(ROWS):
        iterates: list[np.ndarray] = []
        keep = lambda x, kept=iterates: kept.append(x.copy())  # noqa: E731
        start = None if x0 is None else x0[row].numpy()
        inverse = None if inverses is None else inverses[row].numpy()
        cg(matrices[row].numpy(), b[row].numpy(), x0=start, rtol=0.0, atol=0.0, maxiter=10, M=inverse, callback=keep)
        assert len(iterates) == 10
        for iteration, expected in enumerate(iterates, start=1):
            result = conjugate_gradient(
                lambda x: times(matrices, x),
                b,
                x0=x0,
                precondition=precondition,
                max_iterations=iteration,
                rtol=0.0,
            )
            assert result.iterations == iteration
            assert_same(result.x[row], torch.from_numpy(expected), 1e-9)


def test_sense_iterates_equal_scipy(maps: Tensor, mask: Tensor, rhs: Tensor) -> None:
    lam = 0.3
    for row in range(ROWS):
        operator = sense(maps[row : row + 1], mask[row : row + 1])

        def matvec(v: np.ndarray, a: LinearOperator = operator) -> np.ndarray:
            x = torch.from_numpy(v).reshape(1, 1, HEIGHT, WIDTH)
            return (a.normal(x) + lam * x).flatten().numpy()

        iterates: list[np.ndarray] = []
        keep = lambda x, kept=iterates: kept.append(x.copy())  # noqa: E731
        scipy_operator = ScipyOperator((HEIGHT * WIDTH,) * 2, matvec=matvec, dtype=np.complex128)
        cg(scipy_operator, rhs[row].flatten().numpy(), rtol=0.0, atol=0.0, maxiter=8, callback=keep)
        for iteration, expected in enumerate(iterates, start=1):
            result = solve_regularized(sense(maps, mask), rhs, lam, max_iterations=iteration, rtol=0.0)
            assert_same(result.x[row].flatten(), torch.from_numpy(expected), 1e-9)


def test_solves_the_regularised_system_of_every_row(maps: Tensor, mask: Tensor, rhs: Tensor) -> None:
    operator = sense(maps, mask)
    result = solve_regularized(operator, rhs, LAMBDA, max_iterations=100, rtol=1e-12)
    assert bool(result.converged.all())
    assert_same(operator.normal(result.x) + LAMBDA[:, None, None, None] * result.x, rhs)


def test_rows_are_independent_systems() -> None:
    """A row's solution does not depend on the batch it is solved in."""
    matrices, b = hermitian_matrices(ROWS, 12), random_tensor((ROWS, 12), "b")
    together = conjugate_gradient(lambda x: times(matrices, x), b, max_iterations=40, rtol=1e-6)
    for row in range(ROWS):
        matrix = matrices[row : row + 1]
        alone = conjugate_gradient(
            partial(times, matrix),
            b[row : row + 1],
            max_iterations=40,
            rtol=1e-6,
        )
        assert_same(together.x[row], alone.x[0])


def test_status_tells_which_rows_did_not_converge() -> None:
    matrices = torch.diag_embed(torch.stack([torch.ones(12), torch.logspace(-6, 0, 12)]).to(torch.complex128))
    b = torch.ones(2, 12, dtype=torch.complex128)
    result = conjugate_gradient(lambda x: times(matrices, x), b, max_iterations=3, rtol=1e-8)
    assert result.converged.tolist() == [True, False]
    assert result.iterations == 3
    residual = (b - times(matrices, result.x)).norm(dim=1) / b.norm(dim=1)
    torch.testing.assert_close(result.residual, residual, rtol=1e-6, atol=1e-12)


def test_a_known_residual_saves_its_application() -> None:
    matrices, b, x0 = hermitian_matrices(ROWS, 12), random_tensor((ROWS, 12), "b"), random_tensor((ROWS, 12), "x0")
    applied = []

    def system(x: Tensor) -> Tensor:
        applied.append(x)
        return times(matrices, x)

    expected = conjugate_gradient(system, b, x0=x0, max_iterations=5, rtol=1e-6)
    assert len(applied) == 6
    found = conjugate_gradient(system, b, x0=x0, residual=b - times(matrices, x0), max_iterations=5, rtol=1e-6)
    assert len(applied) == 11
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.residual, expected.residual)


def test_a_row_stops_at_the_first_iterate_whose_residual_energy_is_enough() -> None:
    """r^H D^-1 r of every iterate, from its definition; another bound for every row."""
    matrices, inverses = hermitian_matrices(ROWS, 12), inverse_of_preconditioners()
    b = random_tensor((ROWS, 12), "b")

    def solve(iterations: int, rtol: float = 0.0, enough: Tensor | None = None) -> CGResult:
        return conjugate_gradient(
            lambda x: times(matrices, x),
            b,
            precondition=lambda r: times(inverses, r),
            max_iterations=iterations,
            rtol=rtol,
            enough=enough,
        )

    iterates = [solve(n).x for n in range(14)]
    residuals = [b - times(matrices, x) for x in iterates]
    energies = torch.stack([(r.conj() * times(inverses, r)).sum(dim=1).real for r in residuals])
    enough = energies[0] * torch.tensor([0.2, 0.1, 2.0], dtype=torch.float64)
    first = [int((energies[:, row] <= enough[row]).nonzero()[0]) for row in range(ROWS)]
    assert first[0] > first[1] > first[2] == 0
    result = solve(50, enough=enough)
    assert result.iterations == max(first)
    assert bool(result.converged.all())
    for row, n in enumerate(first):
        assert_same(result.x[row], iterates[n][row])
    short = solve(first[0] - 1, enough=enough)
    assert short.converged.tolist() == [False, True, True]
    # The tolerance stops a row too, where it is met before.
    loose = solve(50, rtol=0.5, enough=torch.zeros_like(enough))
    assert torch.equal(loose.x, solve(50, rtol=0.5).x)
    assert 0 < loose.iterations < 12


def test_the_exact_inverse_as_preconditioner_needs_one_step_and_its_energy_is_that_of_the_error() -> None:
    matrices, b = hermitian_matrices(ROWS, 12), random_tensor((ROWS, 12), "b")
    inverses, solution = torch.linalg.inv(matrices), torch.linalg.solve(matrices, b)
    energy = (solution.conj() * times(matrices, solution)).sum(dim=1).real
    for share, iterations in ((1.001, 0), (0.999, 1)):
        result = conjugate_gradient(
            lambda x: times(matrices, x),
            b,
            precondition=lambda r: times(inverses, r),
            rtol=1e-9,
            enough=share * energy,
        )
        assert result.iterations == iterations
    assert_same(result.x, solution, 1e-9)


def test_stops_early_and_a_zero_right_hand_side_gives_zero() -> None:
    result = conjugate_gradient(lambda x: 2 * x, torch.zeros(2, 1, 3, 3, dtype=torch.complex64))
    assert result.iterations == 0
    assert bool(result.converged.all())
    assert not bool(result.x.any())
    assert conjugate_gradient(lambda x: 2 * x, torch.ones(2, 1, 3, 3, dtype=torch.complex64)).iterations == 1


def test_solution_is_differentiable_in_the_right_hand_side(maps: Tensor, mask: Tensor, rhs: Tensor) -> None:
    """The inverse is Hermitian: the gradient of Re <z, x(b)> is the solution for z."""
    z = random_tensor(tuple(rhs.shape), "z")
    operator = sense(maps, mask)
    rhs.requires_grad_()
    solution = solve_regularized(operator, rhs, LAMBDA, max_iterations=60, rtol=1e-13).x
    (gradient,) = torch.autograd.grad((z.conj() * solution).real.sum(), rhs)
    expected = solve_regularized(operator, z, LAMBDA, max_iterations=60, rtol=1e-13).x
    assert_same(gradient, expected, 1e-6)


def test_input_is_not_changed(rhs: Tensor) -> None:
    start = random_tensor(tuple(rhs.shape), "start")
    before = rhs.clone(), start.clone()
    conjugate_gradient(lambda x: 3 * x, rhs, x0=start, max_iterations=5)
    assert torch.equal(rhs, before[0])
    assert torch.equal(start, before[1])


def test_looking_less_often_changes_no_row(
    maps: Tensor, mask: Tensor, rhs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where every look waits: rows that have converged keep their values until the next one."""
    operator, rhs = sense(maps, mask), rhs * torch.tensor([1.0, 0.0, 1.0]).reshape(-1, 1, 1, 1)
    often = solve_regularized(operator, rhs, LAMBDA, rtol=1e-3)
    monkeypatch.setitem(linear_solvers._LOOK, "cpu", 8)
    rarely = solve_regularized(operator, rhs, LAMBDA, rtol=1e-3)
    assert torch.equal(rarely.x, often.x) and torch.equal(rarely.residual, often.residual)
    assert bool(rarely.converged.all()) and often.iterations < rarely.iterations <= often.iterations + 7
