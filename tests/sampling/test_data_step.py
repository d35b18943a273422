"""Both data steps against a dense solve; the choice between them; the noise that a sampler adds to the data."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from ambient_mri._checks import AmbientMRIError
from ambient_mri.operators import Identity, LinearOperator, Mask, sense
from ambient_mri.sampling import data_step as module
from ambient_mri.sampling.data_step import ConjugateGradientStep, ExactStep, MeasurementNoise, make_data_step
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


def test_auto_takes_the_exact_step_where_it_exists_and_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = smooth_coils(4, 64, 64).to(torch.complex64)
    lines, points = sense(maps, line_mask(64, (0, 31, 32))), sense(maps, torch.rand(1, 1, 64, 64) < 0.3)

    def choice(operator: LinearOperator, runs: int = 400, device: str = "cpu") -> str:
        return make_data_step(operator, slices=1, samples=runs // 50 or 1, steps=min(runs, 50), device=device).name

    assert choice(lines) == "exact"
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
    found = ExactStep(operator).perturbed(data, guess, lam, white)
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
