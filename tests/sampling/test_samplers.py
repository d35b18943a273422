"""Samplers against the closed form: every step against its equation, every posterior against the exact one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, PriorError
from ambient_mri.measurement import Measurement
from ambient_mri.operators import Identity, Mask
from ambient_mri.sampling import (
    DDS,
    SAMPLERS,
    Level,
    OneStep,
    Problem,
    Sampler,
    SplitGibbs,
    ambient_denoiser,
    make_sampler,
)
from ambient_mri.sampling.conjugate_gradient_step import ConjugateGradientStep
from ambient_mri.sampling.exact_step import ExactStep
from ambient_mri.sampling.measurement_noise import MeasurementNoise
from ambient_mri.tensors import complex_randn, keyed_generator, per_row, randn_like_rows
from tests.oracles import (
    GaussianWorld,
    OptimalAmbient,
    Posterior,
    StationaryDenoiser,
    WhiteDenoiser,
    dense_matrix,
    small_sense,
)

SIZE, TRUTHS, SAMPLES = 16, 4, 40


@dataclass(frozen=True)
class Scene:
    """A few truths of a Gaussian world measured by SENSE at R = 4, with the exact posterior."""

    world: GaussianWorld
    matrix: Tensor
    truth: Tensor
    y: Tensor
    noise_std: float
    exact: Posterior

    def run(self, sampler: Sampler) -> Tensor:
        """(truths, samples, 1, H, W), in single precision."""
        generators = [keyed_generator("sample", i) for i in range(TRUTHS * SAMPLES)]
        prior = self.world.denoiser(torch.complex64)
        operator, y = small_sense(dtype=torch.complex64), self.y.to(torch.complex64)
        result = sampler.sample(prior, operator, y, self.noise_std, generators=generators)
        return result.x.reshape(TRUTHS, SAMPLES, 1, SIZE, SIZE).to(torch.complex128)

    def scores(self, samples: Tensor) -> dict[str, float]:
        """Against the exact posterior: expected NRMSE of the mean; variances of the image and of A x."""
        mean, spread = samples.mean(1), samples.var(1)
        variance = 2 * self.exact.variance.sum()
        # The mean of K samples is a K-th of the variance further from the exact mean than the sampler's own mean; that
        # mean's error is the exact mean's, of the posterior's variance, and the distance between the two.
        distance = ((mean - self.exact.mean).abs().square().sum() - spread.sum() / SAMPLES) / TRUTHS
        seen = small_sense().forward((samples - mean[:, None]).flatten(0, 1)).abs().square().sum() / (SAMPLES - 1)
        in_data = (self.matrix @ self.exact.covariance @ self.matrix.mH).diagonal().real.sum()
        return {
            "nrmse": float((1 + distance / variance).sqrt()),
            "variance": float(spread.sum() / (TRUTHS * variance)),
            "data_variance": float(seen / (2 * TRUTHS * in_data)),
        }


@cache
def scene(noise_std: float) -> Scene:
    generator = keyed_generator("scene")
    world, operator = GaussianWorld.with_decaying_spectrum(SIZE, SIZE), small_sense()
    truth = world.draw(TRUTHS, generator)
    clean = operator.forward(truth)
    noise = noise_std * complex_randn(clean.shape, generator=generator, dtype=clean.dtype)
    y = clean + noise * (clean != 0)
    matrix = dense_matrix(operator, (1, SIZE, SIZE))
    return Scene(world, matrix, truth, y, noise_std, world.posterior(matrix, y, noise_std))


@pytest.mark.parametrize("noise_std", [0.01, 0.05])
def test_split_gibbs_samples_the_exact_posterior(noise_std: float) -> None:
    s = scene(noise_std)
    scores = s.scores(s.run(SplitGibbs(50)))
    assert scores["nrmse"] < 1.03
    assert 0.9 < scores["variance"] < 1.1
    # Of the four, the spread of A x is what a wrong noise term or a wrong lam_t moves first.
    assert 0.95 < scores["data_variance"] < 1.08


def test_split_gibbs_by_conjugate_gradients_does_too() -> None:
    s = scene(0.01)
    scores = s.scores(s.run(SplitGibbs(50, data_step="conjugate_gradient")))
    assert scores["nrmse"] < 1.04 and 0.9 < scores["variance"] < 1.1


def test_the_unperturbed_last_step_changes_the_spread_and_not_the_mean() -> None:
    s = scene(0.05)
    perturbed, mean = s.scores(s.run(SplitGibbs(50))), s.scores(s.run(SplitGibbs(50, final="mean")))
    assert mean["nrmse"] == pytest.approx(perturbed["nrmse"], abs=0.01)
    assert mean["variance"] < perturbed["variance"] and mean["data_variance"] < 0.9


@pytest.mark.parametrize("noise_std", [0.01, 0.05])
def test_dds_has_the_right_mean_and_too_little_spread(noise_std: float) -> None:
    s = scene(noise_std)
    scores = s.scores(s.run(DDS(30)))
    assert scores["nrmse"] < 1.08
    assert 0.4 < scores["variance"] < 0.85


def problem_and_level(last: bool) -> tuple[Problem, Level, Tensor, Scene]:
    s, operator = scene(0.05), small_sense()
    generators = [keyed_generator("step", i) for i in range(TRUTHS)]
    backprojection = operator.adjoint(s.y)
    noise_std = torch.full((TRUTHS,), 0.05, dtype=torch.float64)
    problem = Problem(s.world.denoiser(), operator, s.y, noise_std, generators, backprojection, ExactStep(operator))
    sigma = torch.linspace(0.1, 0.6, TRUTHS, dtype=torch.float64)
    following = torch.zeros_like(sigma) if last else 0.7 * sigma
    r_t = problem.denoiser.posterior_std(sigma)
    level = Level(0, sigma, following, r_t, (noise_std / r_t).square(), r_t, last)
    noise = complex_randn(s.truth.shape, generator=keyed_generator("x_t"), dtype=s.y.dtype)
    x_t = s.truth + per_row(sigma, s.truth) * noise
    return problem, level, x_t, s


def dense_data_step(s: Scene, data: Tensor, guess: Tensor, lam: Tensor) -> Tensor:
    """(A^H A + lam) x = A^H data + lam guess, row by row."""
    eye = torch.eye(s.matrix.shape[1], dtype=s.matrix.dtype)
    rows = [
        torch.linalg.solve(s.matrix.mH @ s.matrix + weight * eye, s.matrix.mH @ d.flatten() + weight * g.flatten())
        for d, g, weight in zip(data, guess, lam.tolist(), strict=True)
    ]
    return torch.stack(rows).reshape(guess.shape)


@pytest.mark.parametrize(("last", "eta"), [(False, 1.0), (False, 0.85), (True, 0.85)])
def test_a_split_gibbs_step_is_its_equation(last: bool, eta: float) -> None:
    problem, level, x_t, s = problem_and_level(last)
    problem.data_step = ConjugateGradientStep(problem.operator, slices=TRUTHS)
    level = replace(level, rtol=torch.full_like(level.rtol, 1e-11))
    found = SplitGibbs(eta=eta).step(problem, level, x_t)
    streams = [keyed_generator("step", i) for i in range(TRUTHS)]
    e2 = randn_like_rows(x_t, streams)
    e1 = MeasurementNoise(problem.operator, s.y).draw(streams)
    denoised = problem.denoiser(x_t, level.sigma)
    kappa = torch.zeros_like(level.sigma) if last else math.sqrt(1 - eta**2) / (1 + (0.15 / level.sigma_next) ** 2)
    k = kappa * level.sigma_next / level.sigma
    guess = denoised + per_row((1 - 0.8 * k) * level.r_t, x_t) * e2
    expected = dense_data_step(s, s.y + 0.05 * e1, guess, level.lam)
    if not last:
        fresh = per_row(level.sigma_next * (1 - kappa**2).sqrt(), x_t) * randn_like_rows(x_t, streams)
        expected = expected + per_row(k, x_t) * (x_t - denoised) + fresh
    assert torch.allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.85])
def test_a_dds_step_is_its_equation(eta: float) -> None:
    problem, level, x_t, s = problem_and_level(last=False)
    found = DDS(eta=eta, error="white").step(problem, level, x_t)
    denoised = problem.denoiser(x_t, level.sigma)
    e = randn_like_rows(x_t, [keyed_generator("step", i) for i in range(TRUTHS)])
    noise = math.sqrt(1 - eta**2) * (x_t - denoised) / per_row(level.sigma, x_t) + eta * e
    expected = dense_data_step(s, s.y, denoised, level.lam) + per_row(level.sigma_next, x_t) * noise
    assert torch.allclose(found, expected, atol=1e-8)


def ambient(s: Scene, rows: int = TRUTHS) -> tuple[OptimalAmbient, Measurement]:
    operator = small_sense()
    measurement = Measurement(
        y=s.y[:rows],
        mask=operator.factors[0].mask,
        coil_maps=operator.factors[-1].coil_maps.expand(rows, -1, -1, -1),
        noise_std=torch.full((rows,), s.noise_std),
        scale=torch.ones(rows),
        key=tuple(map(str, range(rows))),
    )
    return OptimalAmbient(s.world), measurement


@pytest.mark.parametrize("noise_std", [0.0005, 0.01])
def test_one_step_with_the_best_network_is_the_posterior_mean(noise_std: float) -> None:
    s = scene(noise_std)
    model, measurement = ambient(s)
    generators = [keyed_generator(i) for i in range(TRUTHS)]
    denoiser = ambient_denoiser(model, measurement, generators)
    result = OneStep().sample(denoiser, small_sense(), s.y, noise_std, generators=generators)
    r = denoiser.posterior_std(torch.full((TRUTHS,), noise_std, dtype=torch.float64))
    lam = (noise_std / r).square().clamp_min(1e-4)
    assert torch.allclose(result.x, dense_data_step(s, s.y, s.exact.mean, lam), atol=5e-3)
    # The data-consistency solve moves the mean by little, and into the data's noise.
    assert (result.x - s.exact.mean).norm() < 0.1 * (s.exact.mean - s.truth).norm()
    assert (result.x - s.truth).norm() < 1.03 * (s.exact.mean - s.truth).norm()
    assert result.status["evaluations"] == 1


def test_split_gibbs_takes_an_ambient_network() -> None:
    s = scene(0.05)
    model, measurement = ambient(s, rows=2)

    def run(rows: slice) -> Tensor:
        generators = [keyed_generator("ambient", i) for i in range(2)[rows]]
        denoiser = ambient_denoiser(model, measurement[rows], generators)
        return SplitGibbs(12).sample(denoiser, small_sense(), s.y[:2][rows], 0.05, generators=generators).x

    both = run(slice(0, 2))
    assert torch.allclose(both, torch.cat([run(slice(0, 1)), run(slice(1, 2))]), atol=1e-8)
    zero_filled = small_sense().adjoint(s.y[:2])
    assert (both - s.truth[:2]).norm() < (zero_filled - s.truth[:2]).norm()


@pytest.mark.parametrize("method", ["exact", "conjugate_gradient"])
@pytest.mark.parametrize("name", ["split_gibbs", "dds"])
def test_a_row_does_not_depend_on_its_batch(name: str, method: str) -> None:
    s, operator = scene(0.05), small_sense()

    def run(slices: range, samples: range) -> Tensor:
        y = s.y[slices.start : slices.stop]
        generators = [keyed_generator("row", i, k) for i in slices for k in samples]
        sampler = make_sampler(name, steps=6, data_step=method, error="white" if method == "exact" else "local")
        result = sampler.sample(s.world.denoiser(), operator, y, 0.05, generators=generators)
        return result.x.reshape(len(y), len(samples), SIZE, SIZE)

    together = run(range(3), range(4))
    parts = torch.cat([torch.cat([run(range(i, i + 1), k) for k in (range(1), range(1, 4))], dim=1) for i in range(3)])
    assert torch.allclose(together, parts, atol=1e-8)
    assert torch.allclose(run(range(1), range(4)), parts[:1], atol=1e-8)


def test_each_row_has_the_ladder_of_its_own_noise() -> None:
    s = scene(0.05)
    levels: list[Level] = []
    generators = [keyed_generator(i) for i in range(2)]
    SplitGibbs(5).sample(
        s.world.denoiser(),
        small_sense(),
        s.y[:2],
        torch.tensor([0.05, 0.2]),
        generators=generators,
        callback=lambda level, x: levels.append(level),
    )
    assert [level.last for level in levels] == [False] * 4 + [True]
    assert torch.allclose(levels[0].sigma, torch.tensor([2.5, 2.5], dtype=torch.float64))  # 10 sd
    assert torch.allclose(levels[-1].sigma, torch.tensor([0.025, 0.1], dtype=torch.float64))  # half the noise
    assert torch.equal(levels[0].sigma_next, levels[1].sigma) and not levels[-1].sigma_next.any()


def test_the_sigma_range_stays_where_the_denoiser_was_trained() -> None:
    denoiser = StationaryDenoiser(sd=0.2)
    denoiser.sigma_min, denoiser.sigma_max = 0.03, 1.5
    assert SplitGibbs().sigma_range(denoiser, 0.01) == (1.5, 0.03)
    assert DDS(sigma_max=1.0, sigma_min=0.1).sigma_range(denoiser, 0.01) == (1.0, 0.1)
    assert SplitGibbs().sigma_range(denoiser, 50.0) == (1.5, 0.75)


@pytest.mark.parametrize("name", ["split_gibbs", "dds"])
def test_noiseless_data_are_met(name: str) -> None:
    s, operator = scene(0.05), small_sense()
    y = operator.forward(s.truth)
    result = make_sampler(name, steps=20).sample(
        s.world.denoiser(), operator, y, 0.0, generators=[keyed_generator(i) for i in range(TRUTHS)]
    )
    assert (operator.forward(result.x) - y).norm() < 1e-3 * y.norm()


def test_a_start_image_and_real_images_are_taken() -> None:
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., ::2] = True
    y = torch.ones(1, 1, 8, 8) * mask
    rows = 200
    result = SplitGibbs(30).sample(
        WhiteDenoiser(0.5),
        Mask(mask),
        y,
        0.1,
        generators=[keyed_generator(i) for i in range(rows)],
        x_init=torch.zeros(rows, 1, 8, 8),
        image_shape=(1, 8, 8),
    )
    assert not result.x.is_complex()
    seen, hidden = result.x[..., ::2], result.x[..., 1::2]
    # White prior N(0, .25), noise .1: exact mean .25/.26 and variance .25 * .01/.26 where seen, 0 and .25 where not.
    assert seen.mean() == pytest.approx(0.25 / 0.26, abs=0.01) and hidden.mean() == pytest.approx(0, abs=0.02)
    assert seen.var() == pytest.approx(0.0025 / 0.26, rel=0.1) and hidden.var() == pytest.approx(0.25, rel=0.1)


def sample(**changes: Any) -> Tensor:
    s = scene(0.05)
    arguments: dict[str, Any] = {
        "denoiser": s.world.denoiser(),
        "operator": small_sense(),
        "y": s.y[:2],
        "noise_std": 0.05,
        "generators": [keyed_generator(i) for i in range(4)],
        **changes,
    }
    return SplitGibbs(2).sample(**arguments).x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generators": [keyed_generator(0)] * 3}, "3 generators do not fit y of 2 slices"),
        ({"noise_std": -1.0}, "finite and not negative"),
        ({"noise_std": torch.ones(3)}, r"noise_std must be a number, \(2,\) or \(4,\)"),
        ({"x_init": torch.zeros(1, 1, 4, 4)}, r"x_init must have shape \(4, 1, 16, 16\)"),
        ({"image_shape": (1, 8, 8)}, r"image_shape is \(1, 8, 8\), but .* images of shape \(1, 16, 16\)"),
        ({"y": torch.full((2, 4, 16, 16), torch.nan, dtype=torch.complex128)}, "y holds 2048 non-finite values"),
        ({"y": torch.zeros(2, 3, 16, 16, dtype=torch.complex128)}, "expects input of shape"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AmbientMRIError, match=message):
        sample(**changes)


def test_a_result_that_is_not_finite_is_an_error() -> None:
    class Broken(StationaryDenoiser):
        def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
            return x_t * torch.nan

    with pytest.raises(AmbientMRIError, match=r"the result of split_gibbs holds .* noise_std and the scale"):
        sample(denoiser=Broken(), operator=Identity(), y=torch.ones(2, 1, 8, 8))


def test_samplers_refuse_the_wrong_kind_of_prior_with_the_reason() -> None:
    s = scene(0.05)
    generators = [keyed_generator(i) for i in range(TRUTHS)]
    with pytest.raises(PriorError, match=r"one_step is not valid for a prior of kind 'clean': .* Use split_gibbs"):
        OneStep().sample(s.world.denoiser(), small_sense(), s.y, 0.05, generators=generators)
    with pytest.raises(PriorError, match=r"wrap it: model\.as_denoiser"):
        sample(denoiser=OptimalAmbient(s.world))


def test_samplers_are_made_by_name() -> None:
    assert isinstance(make_sampler("dds", steps=7), DDS) and make_sampler("dds", steps=7).steps == 7
    assert set(SAMPLERS) >= {"split_gibbs", "dds", "one_step"}
    instance = SplitGibbs(3)
    assert make_sampler(instance) is instance
    with pytest.raises(AmbientMRIError, match="Did you mean 'split_gibbs'"):
        make_sampler("split_gibs")
    with pytest.raises(AmbientMRIError, match="one_step has one step, whatever the prior; got steps=10"):
        make_sampler("one_step", steps=10)
    with pytest.raises(AmbientMRIError, match="'one_step' does not take these options"):
        make_sampler("one_step", churn=1.0)
    with pytest.raises(AmbientMRIError, match="cannot be changed on a Sampler"):
        make_sampler(instance, steps=4)
    with pytest.raises(AmbientMRIError, match="eta must lie between"):
        DDS(eta=2)
    with pytest.raises(AmbientMRIError, match="final must be one of"):
        SplitGibbs(final="median")
    with pytest.raises(AmbientMRIError, match="at least one step"):
        DDS(0)


@pytest.mark.parametrize("noise_std", [0.1, 0.4])
def test_denoising_is_the_reverse_diffusion_from_the_data(noise_std: float) -> None:
    """A = 1: mean, variance and spectrum of the exact posterior; every row has the ladder of its own noise."""
    world = GaussianWorld.with_decaying_spectrum(SIZE, SIZE)
    generator, count = keyed_generator("denoising"), 60
    truth = world.draw(2, generator)
    y = truth + noise_std * complex_randn(truth.shape, generator=generator, dtype=truth.dtype)
    exact = world.posterior(torch.eye(SIZE**2, dtype=torch.complex128), y, noise_std)
    streams = [keyed_generator("denoising", i, k) for i in range(2) for k in range(count)]
    levels: list[Level] = []
    options = {"generators": streams, "callback": lambda level, x: levels.append(level)}
    result = SplitGibbs(40).sample(world.denoiser(), Identity(), y, noise_std, **options)  # type: ignore[arg-type]
    samples = result.x.reshape(2, count, SIZE**2)
    assert torch.allclose(levels[0].sigma, torch.full((2 * count,), noise_std, dtype=torch.float64))
    assert result.status["data_step_iterations"] == 0 and result.status["evaluations"] == 40
    values, axes = torch.linalg.eigh(exact.covariance)
    centred = samples - exact.mean.flatten(1)[:, None]
    along = (centred @ axes.conj()).abs().square().mean(dim=(0, 1)) / 2
    for part in (slice(-16, None), slice(-64, -16)):  # the widest axes hold nearly all of the variance
        assert float(along[part].sum() / values[part].sum()) == pytest.approx(1, abs=0.1)
    distance = centred.mean(dim=1).abs().square().sum() / (2 * 2 * values.sum())
    assert distance < 1.5 / count  # what the mean of so many samples differs by


def test_noise_that_the_denoiser_was_not_made_for_is_sampled_as_any_operator() -> None:
    denoiser, y = WhiteDenoiser(0.5), torch.full((1, 1, 8, 8), 0.4)
    denoiser.sigma_min, denoiser.sigma_max = 0.02, 2.0
    levels: list[Level] = []
    for noise_std in (0.01, 3.0, 0.1):
        SplitGibbs(4).sample(
            denoiser,
            Identity(),
            y,
            noise_std,
            generators=[keyed_generator(0)],
            callback=lambda level, x: levels.append(level),
        )
    assert [float(levels[i].sigma) for i in (0, 4, 8)] == pytest.approx([2.0, 2.0, 0.1])


def test_a_row_of_noisy_images_does_not_depend_on_the_noise_of_its_batch() -> None:
    """One row by the reverse diffusion, one with noise below what the denoiser knows, one above."""
    denoiser, levels = WhiteDenoiser(0.5), torch.tensor([0.1, 0.01, 3.0])
    denoiser.sigma_min, denoiser.sigma_max = 0.02, 2.0
    y = 0.4 + levels.reshape(3, 1, 1, 1) * torch.randn(3, 1, 8, 8, generator=keyed_generator("noisy rows"))

    def run(rows: list[int]) -> Tensor:
        streams = [keyed_generator("noisy", row, k) for row in rows for k in range(2)]
        return SplitGibbs(5).sample(denoiser, Identity(), y[rows], levels[rows], generators=streams).x

    together = run([0, 1, 2]).reshape(3, 2, 1, 8, 8)
    assert torch.allclose(together, torch.stack([run([row]) for row in range(3)]), atol=1e-5)
