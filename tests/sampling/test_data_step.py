"""Both data steps against a dense solve; the choice between them; the noise that a sampler adds to the data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from ambient_mri._checks import AmbientMRIError
from ambient_mri.masks import PoissonDisc
from ambient_mri.operators import Identity, LinearOperator, Mask, sense
from ambient_mri.sampling import data_step_choice as module
from ambient_mri.sampling.conjugate_gradient_step import ConjugateGradientStep
from ambient_mri.sampling.data_step import Slack, relative_tolerance
from ambient_mri.sampling.data_step_choice import make_data_step
from ambient_mri.sampling.exact_step import ExactStep
from ambient_mri.sampling.measurement_noise import MeasurementNoise
from ambient_mri.tensors import complex_randn, keyed_generator
from tests.oracles import dense_matrix, line_mask, smooth_coils

DOUBLE = torch.complex128


def two_slices(
    height: int, width: int, axis: int, axes: tuple[int, ...]
) -> tuple[LinearOperator, list[LinearOperator]]:
    """SENSE of two slices with different maps and masks (along ``axis``), and each slice by itself."""
    size = width if axis == -1 else height
    maps = torch.cat([smooth_coils(3, height, width), smooth_coils(3, height, width).roll(1, 1).conj()])
    masks = torch.cat([line_mask(size, (0, size // 2, size - 2)), line_mask(size, (1, 2, size // 2))])
    masks = masks if axis == -1 else masks.mT
    return sense(maps, masks, axes=axes), [sense(maps[i : i + 1], masks[i : i + 1], axes=axes) for i in range(2)]


def dense_solution(operators: list[LinearOperator], data: Tensor, guess: Tensor, lam: Tensor) -> Tensor:
    shape = tuple(guess.shape[1:])
    rows = []
    for row, weight in enumerate(lam.tolist()):
        matrix = dense_matrix(operators[row * len(operators) // len(lam)], shape)
        system = matrix.mH @ matrix + weight * torch.eye(matrix.shape[1], dtype=DOUBLE)
        rows.append(torch.linalg.solve(system, (data[row] + weight * guess[row]).flatten()).reshape(shape))
    return torch.stack(rows)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 9)])
@pytest.mark.parametrize(("axis", "axes"), [(-1, (-2, -1)), (-1, (-1,)), (-2, (-2, -1)), (-2, (-2,))])
def test_both_steps_solve_the_normal_equations(height: int, width: int, axis: int, axes: tuple[int, ...]) -> None:
    operator, each = two_slices(height, width, axis, axes)
    generator = keyed_generator("data step", height)
    samples, lam = 3, torch.tensor([1e-3, 1e-2, 0.1, 1.0, 10.0, 3e-3], dtype=torch.float64)
    guess = complex_randn((2 * samples, 1, height, width), generator=generator, dtype=DOUBLE)
    noisy = complex_randn((2 * samples, 3, height, width), generator=generator, dtype=DOUBLE)
    data = operator.repeat_interleave(samples).adjoint(noisy)
    expected = dense_solution(each, data, guess, lam)
    exact = ExactStep(operator)(data, guess, lam, lam)
    assert torch.allclose(exact, expected, atol=1e-10)
    iterative = ConjugateGradientStep(operator, slices=2)
    assert torch.allclose(iterative(data, guess, lam, torch.tensor([1e-9])), expected, atol=1e-5)
    assert iterative.iterations > 0 and iterative.residual is not None


@pytest.mark.parametrize(("axis", "axes"), [(-1, (-2, -1)), (-1, (-1,)), (-2, (-2,))])
def test_lam_may_be_one_for_each_pixel(axis: int, axes: tuple[int, ...]) -> None:
    operator, each = two_slices(7, 9, axis, axes)
    generator, rows = keyed_generator("local"), 6
    lam = 10 ** (2 * torch.rand(rows, 1, 7, 9, generator=generator, dtype=torch.float64) - 2)
    guess, white = complex_randn((2, rows, 1, 7, 9), generator=generator, dtype=DOUBLE)
    data = operator.repeat_interleave(3).adjoint(complex_randn((rows, 3, 7, 9), generator=generator, dtype=DOUBLE))
    expected, noisy = [], []
    for row in range(rows):
        matrix = dense_matrix(each[row // 3], (1, 7, 9))
        normal = matrix.mH @ matrix
        system = normal + torch.diag(lam[row].flatten()).to(DOUBLE)
        right = (data[row] + lam[row] * guess[row]).flatten()
        values, vectors = torch.linalg.eigh(normal)
        root = vectors @ torch.diag(values.clamp_min(0).sqrt()).to(DOUBLE) @ vectors.mH
        expected.append(torch.linalg.solve(system, right).reshape(1, 7, 9))
        noisy.append(torch.linalg.solve(system, right + root @ white[row].flatten()).reshape(1, 7, 9))
    rtol, exact = torch.full((rows,), 1e-11, dtype=torch.float64), ExactStep(operator)
    for step in (exact, ConjugateGradientStep(operator, slices=2, max_iterations=300)):
        assert torch.allclose(step(data, guess, lam, rtol), torch.stack(expected), atol=1e-8)
    assert exact.iterations > 0 and exact.residual is not None and exact.residual.max() < 1e-11
    assert torch.allclose(exact.perturbed(data, guess, lam, white, rtol), torch.stack(noisy), atol=1e-6)


def test_with_the_table_of_the_exact_step_a_lam_for_each_pixel_takes_fewer_iterations() -> None:
    """And what it leaves is no more than what the other one does, by the energy of the error."""
    operator = sense(smooth_coils(4, 32, 32), line_mask(32, (1, 6, 10, 14, 15, 16, 17, 21, 26, 30)))
    generator, noise_std, sigma_next = keyed_generator("fewer"), 0.01, 0.02
    r = 0.1 * 10 ** (torch.rand(2, 1, 32, 32, generator=generator, dtype=torch.float64) - 0.5)
    lam, truth = noise_std**2 / r.square(), complex_randn((2, 1, 32, 32), generator=generator, dtype=DOUBLE)
    guess = truth + r * complex_randn(truth.shape, generator=generator, dtype=DOUBLE)
    data = operator.normal(truth)
    std = torch.full((2,), noise_std, dtype=torch.float64)
    rtol = relative_tolerance(data, lam.mean(dim=(1, 2, 3)), torch.full_like(std, 0.1))
    slack = Slack(std, torch.full_like(std, sigma_next))
    left, iterations = {}, {}
    for step in (ExactStep(operator), ConjugateGradientStep(operator, slices=1)):
        tight = step(data, guess, lam, torch.full_like(rtol, 1e-9))
        before = step.iterations
        error = step(data, guess, lam, rtol, slack) - tight
        iterations[step.name] = step.iterations - before
        energy = (error.conj() * (operator.normal(error) + lam * error)).real.mean(dim=(1, 2, 3)) / 2
        left[step.name] = float(energy.sqrt().max()) / noise_std
    assert 2 * iterations["exact"] < iterations["conjugate_gradient"]
    assert left["exact"] < 0.1 and left["exact"] < 1.5 * left["conjugate_gradient"]


class Hidden(LinearOperator):
    """An operator that is not known for what it is."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator, self.domain_shape, self.range_shape = operator, operator.domain_shape, operator.range_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(y)


def test_a_known_mask_in_the_plane_saves_iterations_where_lam_is_one_for_each_pixel() -> None:
    """Against the diagonal in the image alone; and what is left hides in the noise as well."""
    mask = PoissonDisc(4, 8).draw((32, 32), keyed_generator("plane"))
    operator = sense(smooth_coils(4, 32, 32), mask)
    generator, noise_std, sigma_next = keyed_generator("fewer"), 0.01, 0.05
    r = 0.05 * 10 ** (torch.rand(2, 1, 32, 32, generator=generator, dtype=torch.float64) - 0.5)
    lam, truth = noise_std**2 / r.square(), complex_randn((2, 1, 32, 32), generator=generator, dtype=DOUBLE)
    guess = truth + r * complex_randn(truth.shape, generator=generator, dtype=DOUBLE)
    data, std = operator.normal(truth), torch.full((2,), noise_std, dtype=torch.float64)
    rtol = relative_tolerance(data, lam.mean(dim=(1, 2, 3)), torch.full_like(std, 0.05))
    slack = Slack(std, torch.full_like(std, sigma_next))
    steps = {
        "known": ConjugateGradientStep(operator, slices=1),
        "unknown": ConjugateGradientStep(Hidden(operator), slices=1),
    }
    iterations: dict[str, list[int]] = {}
    for name, step in steps.items():
        tight = step(data, guess, lam, torch.full_like(rtol, 1e-9))
        for some in (slack, None):
            before = step.iterations
            error = step(data, guess, lam, rtol, some) - tight
            iterations.setdefault(name, []).append(step.iterations - before)
            energy = (error.conj() * (operator.normal(error) + lam * error)).real.mean(dim=(1, 2, 3)) / 2
            assert float(energy.sqrt().max()) < 0.1 * noise_std
    assert all(1.3 * known < unknown for known, unknown in zip(*iterations.values(), strict=True)), iterations


def test_shared_maps_serve_every_row() -> None:
    operator = sense(smooth_coils(4, 8, 8), line_mask(8, (3, 4, 6)))
    guess = complex_randn((5, 1, 8, 8), generator=keyed_generator("shared"), dtype=DOUBLE)
    lam = torch.full((5,), 0.05, dtype=torch.float64)
    data = operator.normal(guess.flip(0))
    expected = dense_solution([operator], data, guess, lam)
    assert torch.allclose(ExactStep(operator)(data, guess, lam, lam), expected, atol=1e-10)


def test_what_is_not_seen_keeps_the_guess() -> None:
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    mask[..., :3] = True
    step = ConjugateGradientStep(Mask(mask), slices=1, max_iterations=1)
    guess, lam = torch.full((1, 1, 6, 6), 2.0), torch.tensor([1e-4])
    x = step(torch.ones(1, 1, 6, 6) * mask, guess, lam, torch.tensor([1e-3]))
    assert torch.equal(x[..., 3:], guess[..., 3:])
    assert torch.allclose(x[..., :3], torch.ones(6, 3), atol=1e-3)


def two_dimensional() -> tuple[LinearOperator, list[LinearOperator]]:
    """SENSE of two slices at random points of k-space, and each slice by itself."""
    maps = torch.cat([smooth_coils(4, 8, 9), smooth_coils(4, 8, 9).roll(1, 1).conj()])
    masks = torch.rand(2, 1, 8, 9, generator=keyed_generator("points")) < 0.4
    return sense(maps, masks), [sense(maps[i : i + 1], masks[i : i + 1]) for i in range(2)]


def slack_problem() -> tuple[Tensor, Tensor]:
    """A guess whose error is white and of unit variance where the image is zero, and lam = noise_std^2, of six rows."""
    guess = complex_randn((6, 1, 8, 9), generator=keyed_generator("slack"), dtype=DOUBLE)
    return guess, torch.tensor([0.1, 0.2, 0.5, 0.1, 0.7, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("masks", ["points", "lines"])
@pytest.mark.parametrize("added", [0.0, 0.3])
def test_an_error_stays_a_tenth_of_the_noise_that_hides_it(masks: str, added: float) -> None:
    operator, each = two_dimensional() if masks == "points" else two_slices(8, 9, -1, (-1,))
    coils = operator.range_shape[0] or 1
    guess, lam = slack_problem()
    noise_std = lam.sqrt()  # r = 1
    generator = keyed_generator("slack noise")
    expanded = operator.repeat_interleave(3)
    noise = complex_randn((6, coils, 8, 9), generator=generator, dtype=DOUBLE)
    data = expanded.adjoint(noise_std.reshape(-1, 1, 1, 1) * noise)
    step = ConjugateGradientStep(operator, slices=2)
    slack = Slack(noise_std, torch.full_like(lam, added))
    error = step(data, guess, lam, torch.full_like(lam, 1e-8), slack) - dense_solution(each, data, guess, lam)
    for row in range(6):
        matrix = dense_matrix(each[row // 3], (1, 8, 9))
        system = matrix.mH @ matrix + lam[row] * torch.eye(72)
        hidden = noise_std[row] ** 2 * torch.linalg.inv(system) + added**2 * torch.eye(72)
        e = error[row].flatten()
        square = (e.conj() @ torch.linalg.solve(hidden, e)).real / (2 * 72)
        assert square.sqrt() < 0.1  # 72 directions are few for a spectrum seen by one random vector
    assert 1 <= step.iterations <= 12  # to tolerance it is many more


def test_without_noise_to_hide_it_the_step_solves_to_tolerance() -> None:
    operator, each = two_dimensional()
    guess, lam = slack_problem()
    data = operator.repeat_interleave(3).normal(guess.flip(0))
    tight = Slack(torch.full_like(lam, 1e-7), torch.zeros_like(lam))
    found = ConjugateGradientStep(operator, slices=2)(data, guess, lam, torch.full_like(lam, 1e-10), tight)
    assert torch.allclose(found, dense_solution(each, data, guess, lam), atol=1e-7)


@pytest.mark.parametrize("tight", [False, True])
def test_the_perturbed_step_has_the_noise_of_the_measurement(tight: bool) -> None:
    """The draw of each row enters as A^H e, whether e is added in k-space or drawn before."""
    operator, each = two_dimensional()
    guess, lam = slack_problem()
    expanded, level = operator.repeat_interleave(3), torch.linspace(0.5, 1, 6, dtype=torch.float64)
    noise = MeasurementNoise(expanded, torch.empty(6, 4, 8, 9, dtype=DOUBLE))
    data = expanded.normal(guess.flip(0))
    streams = [keyed_generator("e", i) for i in range(6)]
    slack = Slack(torch.full_like(lam, 1e-9), torch.zeros_like(lam)) if tight else None
    step, rtol = ConjugateGradientStep(operator, slices=2), torch.full_like(lam, 1e-10)
    found = step.perturbed(data, guess, level, lam, rtol, noise, streams, slack)
    e = noise.draw([keyed_generator("e", i) for i in range(6)])
    noisy = data + level.reshape(-1, 1, 1, 1) * expanded.adjoint(e)
    assert torch.allclose(found, dense_solution(each, noisy, guess, lam), atol=1e-7)


def test_a_rows_solution_does_not_depend_on_its_batch() -> None:
    operator, each = two_dimensional()
    guess, lam = slack_problem()
    data = operator.repeat_interleave(3).normal(guess.flip(0))
    slack = Slack(lam.sqrt(), torch.full_like(lam, 0.2))
    rtol = torch.full_like(lam, 1e-6)
    together = ConjugateGradientStep(operator, slices=2)(data, guess, lam, rtol, slack)
    alone = ConjugateGradientStep(each[1], slices=1)
    row = slice(4, 5)
    part = Slack(slack.noise_std[row], slack.added[row])
    found = alone(data[row], guess[row], lam[row], rtol[row], part)
    assert torch.allclose(found, together[row], atol=1e-12)


def test_auto_takes_the_exact_step_where_it_exists_and_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = smooth_coils(4, 64, 64).to(torch.complex64)
    lines, points = sense(maps, line_mask(64, (0, 31, 32))), sense(maps, torch.rand(1, 1, 64, 64) < 0.3)

    def choice(operator: LinearOperator, runs: int = 400, **options: Any) -> str:
        return make_data_step(operator, slices=1, samples=runs // 50 or 1, steps=min(runs, 50), **options).name

    assert choice(lines) == "exact"
    eight = sense(smooth_coils(8, 64, 64).to(torch.complex64), line_mask(64, (0, 31, 32)))
    assert choice(eight, local=True) == "exact"
    assert choice(eight, runs=20, local=True) == "conjugate_gradient"  # nor do the steps of a single sample
    assert choice(lines, runs=1) == "conjugate_gradient"  # one step does not pay for the decomposition
    assert choice(points) == choice(Identity()) == "conjugate_gradient"
    assert choice(lines, device="cuda") == "conjugate_gradient"
    monkeypatch.setattr(module, "EXACT_MEMORY", 1000)
    assert choice(lines) == "conjugate_gradient"


def test_the_exact_step_refuses_what_it_cannot_do() -> None:
    points = sense(smooth_coils(2, 8, 8), torch.rand(1, 1, 8, 8) < 0.5)
    with pytest.raises(AmbientMRIError, match="mask that is constant along one axis"):
        make_data_step(points, slices=1, samples=1, steps=1, method="exact")
    with pytest.raises(AmbientMRIError, match="data_step must be one of"):
        make_data_step(points, slices=1, samples=1, steps=1, method="cg")


@pytest.mark.parametrize("mask", [line_mask(6, (1, 4)), torch.eye(6, dtype=torch.bool)[None, None]])
def test_measurement_noise_is_white_where_the_mask_is_and_zero_elsewhere(mask: Tensor) -> None:
    rows = 4000
    operator = sense(smooth_coils(2, 6, 6), mask)
    noise = MeasurementNoise(operator, torch.empty(rows, 2, 6, 6, dtype=DOUBLE))
    drawn = noise.draw([keyed_generator(i) for i in range(rows)])
    seen = mask.expand(1, 2, 6, 6)[0]
    assert not drawn[:, ~seen].any()
    values = drawn[:, seen]
    covariance = values.T @ values.conj() / (2 * rows)
    assert torch.allclose(covariance, torch.eye(values.shape[1], dtype=DOUBLE), atol=0.08)
    assert noise.real_numbers() == [2 * int(seen.sum())]


@pytest.mark.parametrize("transposed", [False, True])
def test_the_exact_steps_own_noise_is_the_square_root_of_the_normal_operator(transposed: bool) -> None:
    """(A^H A)^(1/2) w has the covariance of A^H e, and is the same whatever eigenvectors the table holds."""
    lam, mask, maps = torch.tensor([0.3, 2.0], dtype=torch.float64), line_mask(5, (1, 2, 4)), smooth_coils(2, 4, 5)
    operator = sense(maps.mT if transposed else maps, mask.mT if transposed else mask)
    shape = (2, 1, 5, 4) if transposed else (2, 1, 4, 5)
    data, guess, white = complex_randn((3, *shape), generator=keyed_generator("draw"), dtype=DOUBLE)
    found = ExactStep(operator).perturbed(data, guess, lam, white, lam)
    matrix = dense_matrix(operator, shape[1:])
    root = torch.from_numpy(sqrtm((matrix.mH @ matrix + 1e-14 * torch.eye(20)).numpy()))
    noisy = data + (white.flatten(1) @ root.T).reshape(shape)
    assert torch.allclose(found, dense_solution([operator], noisy, guess, lam), atol=1e-5)


def test_measurement_noise_of_a_row_is_its_own() -> None:
    masks = torch.cat([line_mask(6, (1, 4)), line_mask(6, (0, 2, 3))])
    operator = sense(smooth_coils(2, 6, 6).expand(2, -1, -1, -1), masks)
    streams = [keyed_generator(0), keyed_generator(1)]
    both = MeasurementNoise(operator, torch.empty(2, 2, 6, 6, dtype=DOUBLE)).draw(streams)
    alone = MeasurementNoise(sense(smooth_coils(2, 6, 6), masks[1:]), torch.empty(1, 2, 6, 6, dtype=DOUBLE))
    assert torch.equal(both[1:], alone.draw([keyed_generator(1)]))
