"""The error that a sampler learns for each pixel: its law, the step that uses it, and what it is good for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError
from ambient_mri.operators import Identity, Mask
from ambient_mri.sampling import DDS, MSM, SplitGibbs, make_sampler
from ambient_mri.sampling.conjugate_gradient_step import ConjugateGradientStep
from ambient_mri.sampling.local_error import LocalError
from ambient_mri.sampling.measurement_noise import MeasurementNoise
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import complex_randn, keyed_generator, randn_like_rows
from tests.oracles import GaussianWorld, PosteriorScene, WhiteDenoiser, dense_matrix, small_sense

SIZE = 16


def level(sigma: Tensor, r_t: Tensor) -> Level:
    lam = (0.01 / r_t).square()
    return Level(1, sigma, 0.7 * sigma, r_t, lam, torch.full_like(sigma, 1e-10), False)


@pytest.mark.parametrize("fresh", [1.0, 0.85])
def test_what_is_learned_is_the_diagonal_of_the_posterior_covariance(fresh: float) -> None:
    """The average over many rows, each with one probe, against C - C (C + sigma^2)^-1 C, blurred likewise."""
    world, rows, sigma = GaussianWorld.object_in_an_empty_field(SIZE), 4000, 0.2
    denoiser, generator = world.denoiser(), keyed_generator("stein")
    truth = world.draw(rows, generator)
    noise, rest = (complex_randn(truth.shape, generator=generator, dtype=truth.dtype) for _ in range(2))
    kept = (1 - fresh**2) ** 0.5
    sigmas = torch.full((rows,), sigma, dtype=torch.float64)
    before = denoiser(truth + 0.4 * complex_randn(truth.shape, generator=generator, dtype=truth.dtype), 2 * sigmas)
    x_t = truth + sigma * (fresh * noise + kept * rest)
    local, r_t = LocalError(steps=5), denoiser.posterior_std(sigmas)
    assert torch.equal(local.share(before, level(2 * sigmas, r_t)), torch.ones(rows, 1, SIZE, SIZE))
    local.remember(noise, fresh)
    local.share(denoiser(x_t, sigmas), level(sigmas, r_t))
    # Five steps: half of what is new counts. What is clamped is not in the average.
    found = (local._rho.mean(dim=0)[0] - 0.5) / 0.5
    total = world.covariance + sigma**2 * torch.eye(SIZE**2)
    variance = sigma**2 * (world.covariance @ torch.linalg.inv(total)).diagonal().real.reshape(SIZE, SIZE)
    assert torch.allclose(variance.mean().sqrt(), r_t[0], rtol=0.05)
    place = torch.arange(SIZE, dtype=torch.float64)
    blur = torch.exp(-0.5 * ((place[:, None] - place) / 2).square())
    blur = blur / blur.sum(dim=1, keepdim=True)
    expected = blur @ (variance / r_t[0] ** 2) @ blur.T
    assert expected.max() > 2.5 and expected.min() < 0.2
    assert torch.allclose(found, expected, atol=0.12)


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_share_one_error_and_real_images_have_one_part(channels: int) -> None:
    """D = x_t / 2: sigma^2 J is sigma^2 / 2 in every pixel, half of what r_t^2 = sigma^2 says."""
    local, sigma = LocalError(steps=5), torch.full((500,), 0.3)
    clean, noise = (torch.randn(500, channels, 8, 8, generator=keyed_generator(name)) for name in ("x", "n"))
    local.share(clean / 2, level(sigma, sigma))
    local.remember(noise, 1.0)
    share = local.share((clean + 0.3 * noise) / 2, level(sigma, sigma))
    assert share.shape == (500, 1, 8, 8) and not share.is_complex()
    assert local._rho.mean() == pytest.approx(0.5 + 0.5 * 0.5, abs=0.01)
    assert local._rho.std() < (0.15 if channels == 1 else 0.1)


def test_a_step_with_an_error_for_each_pixel_is_its_equation() -> None:
    """(A^H A + lam / rho) x' = A^H (y + noise_std e1) + (lam / rho) (D + (1 - 0.8 k) r_t sqrt(rho) e2)"""
    world, rows = GaussianWorld.object_in_an_empty_field(SIZE), 2
    operator, generator = small_sense(), keyed_generator("scene")
    y = operator.forward(world.draw(rows, generator))
    sigma = torch.tensor([0.1, 0.3], dtype=torch.float64)
    denoiser = world.denoiser()
    r_t = denoiser.posterior_std(sigma)
    streams = [keyed_generator("step", i) for i in range(rows)]
    noise_std, solver = torch.full((rows,), 0.01, dtype=torch.float64), ConjugateGradientStep(operator, slices=rows)
    problem = Problem(denoiser, operator, y, noise_std, streams, operator.adjoint(y), solver)
    sampler, now = SplitGibbs(5, eta=0.6), level(sigma, r_t)
    states = [world.draw(rows, generator) + complex_randn((rows, 1, SIZE, SIZE), generator=generator) for _ in range(2)]
    sampler.step(problem, now, states[0])
    assert solver.iterations > 0
    streams[:] = [keyed_generator("again", i) for i in range(rows)]
    found = sampler.step(problem, now, states[1])

    share = problem.memory["local error"]._rho.clamp_min(0.1)
    share = share / share.mean(dim=(1, 2, 3), keepdim=True)
    assert share.max() > 1.5 * share.min()
    streams = [keyed_generator("again", i) for i in range(rows)]
    e2 = randn_like_rows(y[:, :1], streams)
    weights = now.lam.reshape(-1, 1, 1, 1) / share
    kappa = 0.8 / (1 + (0.03 / (0.7 * sigma)) ** 2)  # sqrt(1 - 0.6^2), fading where sigma_next is 3 noise_std
    k, fresh = 0.7 * kappa, 0.7 * sigma * (1 - kappa**2).sqrt()
    denoised = denoiser(states[1], sigma)
    guess = denoised + ((1 - 0.8 * k) * r_t).reshape(-1, 1, 1, 1) * share.sqrt() * e2
    data = operator.adjoint(y + 0.01 * MeasurementNoise(operator, y).draw(streams))
    matrix = dense_matrix(operator, (1, SIZE, SIZE))
    for row in range(rows):
        system = matrix.mH @ matrix + torch.diag(weights[row].flatten()).to(matrix.dtype)
        right = (data[row] + weights[row] * guess[row]).flatten()
        expected = torch.linalg.solve(system, right).reshape(1, SIZE, SIZE)
        expected = expected + k[row] * (states[1][row] - denoised[row])
        expected = expected + fresh[row] * randn_like_rows(y[row : row + 1, :1], streams[row : row + 1])[0]
        assert torch.allclose(found[row], expected, atol=1e-7)


@pytest.mark.parametrize("name", ["split_gibbs", "dds"])
def test_an_object_in_an_empty_field(name: str) -> None:
    """Where every pixel is as uncertain as the average, the background takes what belongs to the object."""
    scene = PosteriorScene.make(
        24, 0.02, lines=(2, 6, 10, 11, 12, 13, 18, 21), world=GaussianWorld.object_in_an_empty_field(24)
    )
    scores = {e: scene.scores(scene.run(make_sampler(name, steps=40, error=e), 24)[0]) for e in ("local", "white")}
    assert scores["local"]["nrmse"] < 1.1 and scores["white"]["nrmse"] > 1.2
    assert abs(scores["local"]["variance"] - 1) < 0.5 * abs(scores["white"]["variance"] - 1)


def test_inpainting_and_denoising_have_no_worse_a_posterior() -> None:
    """White pixels: the learned error is the white one but for the noise of learning it."""
    seen = torch.rand(1, 1, 12, 12, generator=keyed_generator("seen")) < 0.5
    y, streams = 0.4 * seen, [keyed_generator("white", i) for i in range(60)]
    x = SplitGibbs(40).sample(WhiteDenoiser(0.5), Mask(seen), y, 0.1, generators=streams).x
    inside, hidden = x[seen.expand_as(x)], x[~seen.expand_as(x)]
    assert inside.mean() == pytest.approx(0.4 * 0.25 / 0.26, abs=0.01)
    assert inside.var() == pytest.approx(0.0025 / 0.26, rel=0.1) and hidden.var() == pytest.approx(0.25, rel=0.1)
    assert hidden.mean() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SplitGibbs(error="pink"), "error must be one of"),
        (lambda: DDS(eta=0.0, error="local"), "eta must be positive"),
        (lambda: SplitGibbs(eta=0.0), "eta must lie between 0 and 1, 1 included; got 0"),
    ],
)
def test_bad_options_are_named(make: Any, message: str) -> None:
    with pytest.raises(AmbientMRIError, match=message):
        make()


def test_without_fresh_noise_and_for_ambient_samplers_the_error_is_white() -> None:
    assert DDS(eta=0.0).error == "white" and MSM().error == "white"
    assert DDS().error == "local" and SplitGibbs().describe()["error"] == "local"
    operator = small_sense()
    assert SplitGibbs(error="white", data_step="exact").make_data_step(operator, slices=1, samples=1).name == "exact"
    assert SplitGibbs(data_step="exact").make_data_step(operator, slices=1, samples=1).name == "exact"
    # An ambient network's error is white, and the exact step for lines is open to it.
    assert SplitGibbs(data_step="auto").make_data_step(operator, slices=1, samples=1, ambient=True).name == "exact"


def test_one_pixel_and_one_step_are_images_and_ladders_too() -> None:
    for steps in (1, 2):
        x = SplitGibbs(steps).sample(
            WhiteDenoiser(0.5), Identity(), torch.ones(1, 1, 1, 1), 0.1, generators=[keyed_generator(0)]
        )
        assert bool(torch.isfinite(x.x).all())
