"""Every sampler against closed forms: its step against its equation, its samples against exact posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, PriorError
from ambient_mri.operators import Identity, Mask, gmres
from ambient_mri.sampling import SAMPLERS, Heun, Level, Problem, make_sampler, unconditional
from ambient_mri.sampling.base import Sampler
from ambient_mri.sampling.exact_step import ExactStep
from ambient_mri.sampling.guidance import NoDataStep, value_and_vjp
from ambient_mri.sampling.langevin import squared_norm
from ambient_mri.tensors import complex_randn, keyed_generator, per_row, randn_like_rows, real_inner
from tests.oracles import MixtureDenoiser, PosteriorScene, WhiteDenoiser, dense_matrix

LINES = (2, 5, 6, 9)
CLEAN = ("mmps", "pigdm", "dps", "diffpir", "daps", "pula", "langevin")


@cache
def scene(noise_std: float) -> PosteriorScene:
    return PosteriorScene.make(12, noise_std, lines=LINES, truths=6)


@cache
def measured(name: str, noise_std: float) -> dict[str, float]:
    """Scores of a short run of the sampler."""
    s = scene(noise_std)
    samples, _ = s.run(make_sampler(name, **SHORT[name]), 12)
    return s.scores(samples)


# Settings that a test can afford.
SHORT: dict[str, dict[str, Any]] = {
    "mmps": {"steps": 40, "iterations": 3},
    "pigdm": {"steps": 50},
    "dps": {"steps": 300},
    "diffpir": {"steps": 50},
    "daps": {"steps": 30, "ode_steps": 4},
    "pula": {"steps": 60},
    "langevin": {"steps": 200},
}

# (largest error of the mean over the exact mean's, smallest and largest variance ratio) at noise_std 0.01 and 0.05.
# The step of constant length (dps) overfits; an ODE's end plus r_t (daps) and slow mixing (langevin) are too wide; what
# differentiates the network loses spread to the coarseness of a short ladder. Errors of dps and langevin at 0.01: 1.34
# and 1.38 with these six truths and with twenty; with two anywhere between 1.27 and 1.43.
EXPECTED: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "mmps": ((1.02, 0.75, 0.95), (1.02, 0.75, 0.95)),
    "pigdm": ((1.03, 0.75, 0.95), (1.03, 0.75, 0.95)),
    "dps": ((1.4, 1.3, 2.2), (1.15, 0.7, 1.0)),
    "diffpir": ((1.05, 0.95, 1.2), (1.06, 0.95, 1.2)),
    "daps": ((1.04, 1.25, 1.6), (1.05, 1.2, 1.6)),
    "pula": ((1.02, 0.97, 1.25), (1.03, 1.0, 1.3)),
    "langevin": ((1.42, 1.8, 2.8), (1.08, 1.1, 1.4)),
}


@pytest.mark.parametrize("noise_std", [0.01, 0.05])
@pytest.mark.parametrize("name", CLEAN)
def test_samples_against_the_exact_posterior(name: str, noise_std: float) -> None:
    worst, low, high = EXPECTED[name][noise_std == 0.05]
    found = measured(name, noise_std)
    assert found["nrmse"] < worst and low < found["variance"] < high


def test_more_steps_bring_the_samplers_that_converge_to_the_posterior() -> None:
    s = scene(0.05)
    for sampler in (make_sampler("mmps", steps=100, iterations=3), make_sampler("pula", steps=100)):
        found = s.scores(s.run(sampler, 12)[0])
        assert found["nrmse"] < 1.02 and 0.92 < found["variance"] < 1.12
        assert 0.88 < found["data_variance"] < 1.08


MEANS, WEIGHTS = torch.tensor([[1.0, -1.0], [0.6, 1.0], [-0.1, 0.0]]), torch.tensor([0.3, 0.5, 0.2])
LONG: dict[str, dict[str, Any]] = {"split_gibbs": {"steps": 200}, "pula": {"steps": 100}, "langevin": {"steps": 200}}


@pytest.mark.parametrize("name", [*LONG, "dds", "mmps", "pigdm", "dps", "diffpir", "daps"])
def test_weights_of_the_modes_of_a_mixture(name: str, record_property: Callable[[str, object], None]) -> None:
    """Pixel pairs from a mixture, the first pixel measured: the error of the modes' weights, half their distance."""
    denoiser = MixtureDenoiser(MEANS, WEIGHTS, 0.15)
    seen = torch.tensor([True, False]).reshape(1, 1, 1, 2)
    y = torch.full((1, 1, 2000, 2), 0.8) * seen
    generators = [keyed_generator("mixture", 0)]
    sampler = make_sampler(name, **{**SHORT, **LONG}.get(name, {}))
    x = sampler.sample(denoiser, Mask(seen), y, 0.3, generators=generators).x
    weights = denoiser.responsibility(x, torch.full((1,), 1e-3)).mean(dim=(0, 1, 2))
    error = 0.5 * float((weights - denoiser.posterior_weights(0.8, 0.3)).abs().sum())
    record_property("mode_weight_error", error)
    # The prior's own weights are 0.19 away.
    assert error < (0.06 if name in LONG else 0.12)


def posed(noise_std: float, last: bool, name: str) -> tuple[Sampler, Problem, Level, Tensor, PosteriorScene]:
    """A sampler, and a step for it in double precision; the rows at different levels."""
    s, sampler = scene(noise_std), make_sampler(name)
    rows = len(s.truth)
    denoiser, sigma = s.world.denoiser(), torch.linspace(0.15, 0.4, rows, dtype=torch.float64)
    r_t, std = denoiser.posterior_std(sigma), torch.full((rows,), noise_std, dtype=torch.float64)
    streams = [keyed_generator("step", i) for i in range(rows)]
    back = s.operator.adjoint(s.y)
    problem = Problem(denoiser, s.operator, s.y, std, streams, back, ExactStep(s.operator))
    following = torch.zeros_like(sigma) if last else 0.7 * sigma
    level = Level(0, sigma, following, r_t, (std / r_t).square(), torch.full_like(sigma, 1e-10), last)
    noise = complex_randn(s.truth.shape, generator=keyed_generator("x_t"), dtype=s.y.dtype)
    return sampler, problem, level, s.truth + per_row(sigma, s.truth) * noise, s


def jacobian(s: PosteriorScene, sigma: float) -> Tensor:
    """dD/dx_t = C (C + sigma^2)^-1, dense."""
    c = s.world.covariance
    return torch.linalg.solve(c + sigma**2 * torch.eye(len(c), dtype=c.dtype), c)


def row_wise(s: PosteriorScene, level: Level, x_t: Tensor, function: Any) -> Tensor:
    """``function(J, D - stacked, y - A D, sigma, lam, r)`` for every row, with dense matrices."""
    rows = []
    for i, sigma in enumerate(level.sigma.tolist()):
        matrix_j = jacobian(s, sigma)
        denoised = s.world.mean.flatten() + matrix_j @ (x_t[i].flatten() - s.world.mean.flatten())
        misfit = s.y[i].flatten() - s.matrix @ denoised
        rows.append(function(matrix_j, denoised, misfit, sigma, float(level.r_t[i])))
    return torch.stack(rows).reshape(x_t.shape)


def test_mmps_with_enough_iterations_is_the_exact_conditional_mean() -> None:
    sampler, problem, level, x_t, s = posed(0.05, True, "mmps")
    sampler.iterations = 150  # type: ignore[attr-defined]

    def exact(j: Tensor, d: Tensor, misfit: Tensor, sigma: float, r: float) -> Tensor:
        cross = sigma**2 * j @ s.matrix.mH
        system = s.matrix @ cross + 0.05**2 * torch.eye(len(s.matrix), dtype=j.dtype)
        return d + cross @ torch.linalg.solve(system, misfit)

    assert torch.allclose(sampler.step(problem, level, x_t), row_wise(s, level, x_t, exact), atol=1e-7)
    assert float(problem.memory["residual"].max()) < 1e-8 and problem.gradients == 151


def test_a_pigdm_step_is_its_equation() -> None:
    sampler, problem, level, x_t, s = posed(0.05, True, "pigdm")

    sd = problem.denoiser.sd

    def exact(j: Tensor, d: Tensor, misfit: Tensor, sigma: float, _: float) -> Tensor:
        square = sigma**2 * sd**2 / (sigma**2 + sd**2)
        eye = torch.eye(len(s.matrix), dtype=j.dtype)
        v = torch.linalg.solve(square * s.matrix @ s.matrix.mH + 0.05**2 * eye, misfit)
        return d + sigma**2 * j.mH @ s.matrix.mH @ v

    assert torch.allclose(sampler.step(problem, level, x_t), row_wise(s, level, x_t, exact), atol=1e-8)


class Confident(WhiteDenoiser):
    """The analytic denoiser of white images in a corner of the image, zero elsewhere: an error far below sigma."""

    def __init__(self, corner: Tensor) -> None:
        super().__init__(0.5)
        self.corner = corner
        sigmas = torch.logspace(-3, 2, 50)
        share = float(corner.double().mean()) ** 0.5
        self.set_error_curve(sigmas, share * sigmas * 0.5 / (sigmas.square() + 0.25).sqrt())

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x_t, sigma) * self.corner


def test_pigdm_does_not_diverge_where_the_average_error_is_far_below_that_of_some_pixels() -> None:
    corner = torch.zeros(1, 1, 16, 16)
    corner[..., :3, :3] = 1
    y = 0.4 * corner
    generators = [keyed_generator("confident", i) for i in range(20)]
    x = make_sampler("pigdm", 20).sample(Confident(corner), Identity(), y, 0.05, generators=generators).x
    inside = x[..., :3, :3]
    # The posterior of these pixels: mean 0.4 (1 - 0.01), standard deviation 0.05.
    assert inside.mean() == pytest.approx(0.396, abs=0.02)
    assert inside.std() < 0.07


def test_a_diffpir_step_is_its_equation() -> None:
    sampler, problem, level, x_t, s = posed(0.05, False, "diffpir")
    sampler.lam, sampler.zeta = 7.0, 0.0  # type: ignore[attr-defined]

    def exact(_: Tensor, d: Tensor, misfit: Tensor, sigma: float, r: float) -> Tensor:
        # argmin || y - A x ||^2 + rho || x - D ||^2
        eye = torch.eye(len(d), dtype=d.dtype)
        return d + torch.linalg.solve(s.matrix.mH @ s.matrix + 7 * (0.05 / sigma) ** 2 * eye, s.matrix.mH @ misfit)

    x = row_wise(s, level, x_t, exact)
    assert torch.allclose(sampler.step(problem, level, x_t), x + 0.7 * (x_t - x), atol=1e-8)


def test_a_dps_step_is_its_equation() -> None:
    sampler, problem, level, x_t, s = posed(0.05, False, "dps")
    unit = 2 * problem.denoiser.sd

    def exact(j: Tensor, d: Tensor, misfit: Tensor, sigma: float, r: float) -> Tensor:
        zeta = unit * math.sqrt(2 * 144 / 196608)  # at 1000 steps
        zeta *= math.sqrt((1 + (sigma / unit) ** 2) * (1 + (0.7 * sigma / unit) ** 2))
        return 2 * zeta * j.mH @ s.matrix.mH @ misfit / misfit.norm()

    found = sampler.step(problem, level, x_t)
    denoised = problem.denoiser(x_t, level.sigma)
    e = randn_like_rows(x_t, [keyed_generator("step", i) for i in range(len(x_t))])
    ancestral = denoised + 0.49 * (x_t - denoised) + per_row(0.7 * math.sqrt(0.51) * level.sigma, x_t) * e
    assert torch.allclose(found, ancestral + row_wise(s, level, x_t, exact), atol=1e-8)


def test_a_pula_chain_is_its_equation() -> None:
    sampler, problem, level, x_t, s = posed(0.05, False, "pula")
    sampler.inner_steps = 1  # type: ignore[attr-defined]
    found = sampler.step(problem, level, x_t)
    # The mean step, from the definition of M: the noise is what is left, and its law has covariance 2 h M.
    h, matrix = 0.2, s.matrix
    rows = []
    for i, sigma in enumerate(level.sigma.tolist()):
        j, x = jacobian(s, sigma), x_t[i].flatten()
        denoised = s.world.mean.flatten() + j @ (x - s.world.mean.flatten())
        precision = matrix.mH @ matrix / 0.05**2 + torch.eye(len(j), dtype=j.dtype) / sigma**2
        drift = (denoised - x) / sigma**2 + matrix.mH @ (s.y[i].flatten() - matrix @ x) / 0.05**2
        noise = found[i].flatten() - x - h * torch.linalg.solve(precision, drift)
        rows.append(real_inner(noise[None], (precision @ noise)[None])[0] / (2 * h * 2 * len(j)))
    # chi^2 of 288 real numbers: 1 +- 0.08.
    assert torch.stack(rows).mean() == pytest.approx(1, abs=0.2)


def test_the_heun_solver_follows_the_flow_to_second_order() -> None:
    s = scene(0.05)
    denoiser = s.world.denoiser()
    streams = lambda: [keyed_generator("heun", i) for i in range(3)]  # noqa: E731

    def error(steps: int) -> float:
        sampler = Heun(steps, sigma_max=5.0, sigma_min=0.005)
        x = sampler.draw(denoiser, (1, 12, 12), streams(), dtype=torch.complex128).x
        start = 5.0 * randn_like_rows(x, streams())
        # Gaussian world: every component shrinks by sqrt(c / (c + sigma^2)).
        centred = (start - s.world.mean).flatten(1) @ denoiser.basis.conj()
        shrunk = centred * (denoiser.variances / (denoiser.variances + 25.0)).sqrt()
        exact = s.world.mean + (shrunk @ denoiser.basis.T).reshape(x.shape)
        return float((x - exact).norm() / exact.norm())

    errors = [error(steps) for steps in (20, 40, 80)]
    assert errors[2] < 2e-3
    assert errors[0] / errors[1] > 2.8 and errors[1] / errors[2] > 2.8


@pytest.mark.parametrize("churn", [0.0, 4.0])
def test_unconditional_samples_have_the_priors_moments(churn: float) -> None:
    world = scene(0.05).world
    denoiser = world.denoiser(torch.complex64)
    streams = [keyed_generator("prior", i) for i in range(200)]
    x = unconditional(denoiser, (1, 12, 12), streams, steps=25, churn=churn).to(torch.complex128)
    variance = world.covariance.diagonal().real.sum() * 2
    assert (x.mean(0) - world.mean).norm() ** 2 < 3 * variance / 200
    assert x.var(0).sum() / variance == pytest.approx(1, abs=0.08)


def test_real_images_are_drawn_too() -> None:
    x = unconditional(WhiteDenoiser(0.5), (3, 8, 8), [keyed_generator(i) for i in range(20)], dtype=torch.float32)
    assert x.shape == (20, 3, 8, 8) and not x.is_complex()
    assert x.std() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("name", CLEAN)
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    s = scene(0.05)
    sampler = make_sampler(name, steps=5)

    def run(slices: range, samples: range) -> Tensor:
        y = s.y[slices.start : slices.stop]
        generators = [keyed_generator("row", i, k) for i in slices for k in samples]
        x = sampler.sample(s.world.denoiser(), s.operator, y, 0.05, generators=generators).x
        return x.reshape(len(y), len(samples), 12, 12)

    together = run(range(2), range(3))
    parts = torch.cat([torch.cat([run(range(i, i + 1), k) for k in (range(1), range(1, 3))], dim=1) for i in range(2)])
    assert torch.allclose(together, parts, atol=1e-7)
    assert not torch.allclose(together[0, 0], together[0, 1], atol=0.01)


@pytest.mark.parametrize("name", CLEAN)
def test_noiseless_inpainting_of_real_images(name: str) -> None:
    """Any operator, real images, noise_std = 0; white pixels have the data where seen and the prior elsewhere."""
    seen = torch.rand(1, 1, 8, 8, generator=keyed_generator("pixels")) < 0.5
    y = 0.4 * seen
    generators = [keyed_generator(i) for i in range(40)]
    sampler = make_sampler(name, **SHORT[name])
    result = sampler.sample(WhiteDenoiser(0.5), Mask(seen), y, 0.0, generators=generators)
    inside, hidden = result.x[seen.expand_as(result.x)], result.x[~seen.expand_as(result.x)]
    # A constant step length keeps dps in motion; daps adds r_t to a spread that is there already.
    assert inside.mean() == pytest.approx(0.4, abs=0.02) and inside.std() < (0.1 if name == "dps" else 0.03)
    assert hidden.mean() == pytest.approx(0, abs=0.06)
    assert hidden.std() == pytest.approx(0.5, rel=0.3 if name == "daps" else 0.15)
    assert result.status["sampler"] == name and result.status["evaluations"] >= sampler.steps


def test_the_published_norm_ratio_weights_the_gradient() -> None:
    sampler, problem, level, x_t, _ = posed(0.05, False, "langevin")
    sampler.gamma = 3.0  # type: ignore[attr-defined]
    score = (problem.denoiser(x_t, level.sigma) - x_t) / per_row(level.sigma, x_t).square()
    pull = problem.backprojection - problem.operator.normal(x_t)
    weight = sampler._weight(score, pull, level.sigma)  # type: ignore[attr-defined]
    assert torch.allclose((per_row(weight, pull) * pull).flatten(1).norm(dim=1), 3 * score.flatten(1).norm(dim=1))
    norm = torch.linalg.matrix_norm(dense_matrix(problem.operator, (1, 12, 12)), 2) ** 2
    assert 0.98 * norm < squared_norm(problem.operator, x_t)[0] <= 1.1 * norm * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gmres_solves_what_is_linear_over_the_reals_alone(dtype: torch.dtype) -> None:
    size, rows = 5, 3
    parts = 2 if dtype.is_complex else 1
    matrices = torch.randn(rows, parts * size, parts * size, generator=keyed_generator("gmres"), dtype=torch.float64)
    matrices = matrices + 4 * torch.eye(parts * size, dtype=torch.float64)

    def operator(x: Tensor) -> Tensor:
        flat = torch.view_as_real(x).flatten(1) if x.is_complex() else x
        image = (matrices @ flat[..., None])[..., 0]
        return torch.view_as_complex(image.reshape(rows, size, 2)) if x.is_complex() else image

    b = torch.randn(rows, size, generator=keyed_generator("b"), dtype=dtype)
    b[1] = 0  # a row without an equation
    x, residual = gmres(operator, b, iterations=parts * size + 3)
    assert torch.allclose(operator(x), b, atol=1e-6) and float(residual.max()) < 1e-6
    assert not x[1].any()
    _, few = gmres(operator, b, iterations=2)
    _, more = gmres(operator, b, iterations=4)
    assert bool((more <= few + 1e-12).all()) and few[0] > 1e-3


def test_vjp_of_a_function_of_both_parts() -> None:
    """x -> conj(x)^2 is not holomorphic: its real Jacobian's transpose is what autograd gives."""
    _, problem, _, x_t, _ = posed(0.05, False, "mmps")
    with torch.no_grad():
        value, vjp = value_and_vjp(problem, lambda x: x.conj() ** 2, x_t)
        u, v = (complex_randn(x_t.shape, generator=keyed_generator(n), dtype=x_t.dtype) for n in "uv")
        tangent = 2 * x_t.conj() * u.conj()
        assert torch.allclose(real_inner(tangent, v), real_inner(u, vjp(v)))
    assert not value.requires_grad and problem.gradients == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mmps", "whose Jacobian is blind .* Use split_gibbs"),
        ("pigdm", "whose Jacobian is blind"),
        ("dps", "whose Jacobian is blind .* adps_fixed"),
        ("daps", "another one for every further mask"),
        ("pula", "which is no score"),
        ("langevin", "which is no score"),
        ("heun", "never looks at data"),
    ],
)
def test_ambient_networks_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(PriorError, match=f"{name} is not valid for a prior of kind 'ambient': .*{reason}"):
        make_sampler(name).check_kind("ambient")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("adps", "given a further mask"),
        ("adps_fixed", "Use dps"),
        ("msm", "takes no mask"),
        ("heun", "ambient-mri sample"),
    ],
)
def test_clean_denoisers_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(PriorError, match=f"{name} is not valid for a prior of kind 'clean': .*{reason}"):
        make_sampler(name).check_kind("clean")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mmps", {"iterations": 0}, "iterations must be at least 1"),
        ("mmps", {"eta": 2}, "eta must lie between"),
        ("dps", {"zeta": 0.0}, "zeta must be a positive"),
        ("diffpir", {"lam": -1.0}, "lam must be a positive"),
        ("diffpir", {"zeta": 2.0}, "zeta must lie"),
        ("daps", {"ode_steps": 0}, "ode_steps must be at least 1"),
        ("pula", {"step_size": 2.0}, "where the chain is stable"),
        ("pula", {"inner_steps": 0}, "inner_steps must be at least 1"),
        ("langevin", {"step_size": 1.5}, "step_size must lie between 0 and 1"),
        ("langevin", {"inner_steps": 0}, "inner_steps must be at least 1"),
        ("langevin", {"gamma": 0.0}, "gamma must be a positive"),
        ("msm", {"masks": 0}, "masks must be at least 1"),
        ("msm", {"eta": -1}, "eta must lie between"),
        ("adps", {"likelihood_weight": 0.0}, "likelihood_weight must be"),
        ("heun", {"churn": -1.0}, "churn must be zero or"),
        ("heun", {"churn_range": (2.0, 1.0)}, "churn_range must be two levels in ascending order"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AmbientMRIError, match=message):
        make_sampler(name, **options)


def test_bad_requests_for_unconditional_samples_are_named() -> None:
    white, streams = WhiteDenoiser(0.5), [keyed_generator(0)]
    with pytest.raises(AmbientMRIError, match=r"shape must be \(channels, height, width\); got \(8, 8\)"):
        unconditional(white, (8, 8), streams)  # type: ignore[arg-type]
    with pytest.raises(AmbientMRIError, match="one generator a row; got none"):
        unconditional(white, (1, 8, 8), [])
    with pytest.raises(AmbientMRIError, match="heun does not take these options"):
        unconditional(white, (1, 8, 8), streams, zeta=1)
    with pytest.raises(AmbientMRIError, match="has no data step"):
        NoDataStep()(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.zeros(1))


def test_every_sampler_is_selected_by_its_name() -> None:
    assert {*CLEAN, "split_gibbs", "dds", "one_step", "msm", "adps", "adps_fixed", "heun"} == set(SAMPLERS)
    for name, cls in SAMPLERS.items():
        sampler = make_sampler(name)
        assert type(sampler) is cls and sampler.describe()["sampler"] == name
        assert sampler.refusal or set(sampler.accepts) >= {"clean", "ambient"}


@pytest.mark.parametrize("noise_std", [0.01, 0.05])
@pytest.mark.parametrize("lines", [(0, 7, 8, 14), (7, 8)], ids=["R = 4", "R = 8"])
@pytest.mark.parametrize(
    ("eta", "error", "steps", "low", "high"),
    [
        (1.0, "local", 50, 0.9, 1.1),
        (1.0, "local", 200, 0.95, 1.05),
        (1.0, "white", 50, 0.9, 1.1),
        (1.0, "white", 200, 0.945, 1.05),
        (0.85, "local", 50, 0.9, 1.1),
        (0.85, "local", 200, 0.95, 1.05),
    ],
)
def test_split_gibbs_has_the_mean_spectrum_and_coverage_of_the_posterior(
    lines: tuple[int, ...], noise_std: float, eta: float, error: str, steps: int, low: float, high: float
) -> None:
    """With one error for all pixels the samples are a percent narrower than with an error for each: .9485 at worst."""
    s = PosteriorScene.make(16, noise_std, lines=lines, truths=4)
    found = s.scores(s.run(make_sampler("split_gibbs", steps=steps, error=error, eta=eta), 48)[0])
    assert found["nrmse"] < 1.03 and low < found["variance"] < high
    # The widest axes, those that nothing measured, are the last to fill.
    along = [found[f"spectrum_{i}"] for i in range(1, 5)]
    assert all((0.86 if steps == 50 else 0.92) < ratio < 1.08 for ratio in along)
    assert 0.88 < found["coverage90"] < 0.91
