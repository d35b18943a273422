"""Samplers that are made for ambient networks: the update against its equation, what is mended, determinism."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from ambient_mri._checks import PriorError
from ambient_mri.corruption import Undersampling
from ambient_mri.denoiser import AmbientDenoiser, ConditionalDenoiser
from ambient_mri.masks import RandomLines
from ambient_mri.measurement import Measurement
from ambient_mri.sampling import ADPS, Level, Problem, Sampler, SamplerResult, ambient_denoiser, make_sampler
from ambient_mri.sampling.ambient import ambient_of
from ambient_mri.sampling.guidance import NoDataStep, value_and_vjp
from ambient_mri.sampling.msm import MSM, random_masks
from ambient_mri.tensors import complex_randn, keyed_generator, real_inner
from tests.oracles import OptimalAmbient, PosteriorScene, WhiteDenoiser

SIZE, NOISE = 8, 0.03


@cache
def scene() -> PosteriorScene:
    return PosteriorScene.make(SIZE, NOISE, lines=(1, 3, 4, 6), truths=2)


def measurement() -> Measurement:
    s = scene()
    masking, _, coils = s.operator.factors  # type: ignore[attr-defined]
    maps = coils.coil_maps.expand(2, -1, -1, -1)
    ones = torch.ones(2, dtype=torch.float64)
    return Measurement(s.y, masking.mask, maps, NOISE * ones, ones, ("0", "1"))


def streams(rows: range = range(2)) -> list[torch.Generator]:
    return [keyed_generator("ambient", i) for i in rows]


def bound(rows: slice = slice(0, 2)) -> AmbientDenoiser:
    """The best ambient network of this world, bound to the scan."""
    generators = streams(range(2)[rows])
    return ambient_denoiser(OptimalAmbient(scene().world), measurement()[rows], generators)


def run(sampler: Sampler, rows: slice = slice(0, 2)) -> SamplerResult:
    s, denoiser = scene(), bound(rows)
    return sampler.sample(denoiser, s.operator, s.y[rows], NOISE, generators=denoiser.generators)


class Silent(nn.Module):
    """A network that adds nothing."""

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :2])


def test_the_skip_of_an_ambient_denoiser_is_differentiated() -> None:
    """With a silent network h(x_t) is affine in x_t: <J u, v> from differences is <u, J^T v> from the product."""
    m = measurement()
    model = ConditionalDenoiser(Silent(), sd=0.25, cg_iterations=40, precision="fp32")
    sigma = torch.full((2,), 0.1, dtype=torch.float64)
    corruption = Undersampling(RandomLines(2.0, 2), core=2)
    further = corruption.further(m, streams())
    x, u, v = (complex_randn((2, 1, SIZE, SIZE), generator=keyed_generator(n), dtype=torch.complex128) for n in "xuv")

    def estimate(state: Tensor) -> Tensor:
        # The same random streams every time: what completes the noise does not depend on the state.
        return AmbientDenoiser(model, corruption, m, streams()).denoise_partial(
            state, sigma, further.operator, further.kept
        )

    problem = Problem(WhiteDenoiser(1.0), scene().operator, m.y, sigma, streams(), x, NoDataStep())
    with torch.no_grad():
        value, vjp = value_and_vjp(problem, estimate, x)
        tangent = estimate(x + u) - estimate(x)
        product = vjp(v)
    assert torch.equal(value, estimate(x))
    assert torch.allclose(real_inner(tangent, v), real_inner(u, product), atol=1e-8)
    assert product.abs().max() > 0.1


def update(sampler: ADPS, denoiser: AmbientDenoiser) -> tuple[Tensor, Tensor]:
    """(the sampler's first step, the published equation with the gradient taken of ||y - A h||^2 itself)."""
    s, reference = scene(), bound()
    levels, states = list[Level](), list[Tensor]()
    sampler.steps = 6

    def keep(level: Level, x: Tensor) -> None:
        levels.append(level)
        states.append(x)

    sampler.sample(denoiser, s.operator, s.y, NOISE, generators=denoiser.generators, callback=keep)
    level = levels[0]
    x_t = level.sigma[:, None, None, None] * torch.cat(
        [complex_randn((1, 1, SIZE, SIZE), generator=g, dtype=s.y.dtype) for g in reference.generators]
    )
    further = reference.corruption.further(reference.measurement, reference.generators)
    state = x_t.clone().requires_grad_()
    h = reference.denoise_partial(state, level.sigma, further.operator, further.kept)
    energy = (s.y - s.operator.forward(h)).abs().square().sum(dim=(1, 2, 3))
    (gradient,) = torch.autograd.grad(energy.sum(), state)
    drift = ((level.sigma_next - level.sigma) / level.sigma)[:, None, None, None] * (x_t - h.detach())
    weight = sampler.likelihood_weight / energy.detach().sqrt()
    return states[0], x_t + drift - weight[:, None, None, None] * gradient


@pytest.mark.parametrize("name", ["adps", "adps_fixed"])
def test_an_adps_step_is_its_equation(name: str) -> None:
    sampler = make_sampler(name, likelihood_weight=0.3)
    assert isinstance(sampler, ADPS)
    found, expected = update(sampler, bound())
    assert torch.allclose(found, expected, atol=1e-8)


def test_published_adps_keeps_the_noise_of_its_last_level_and_the_mended_one_does_not() -> None:
    states: dict[str, list[Tensor]] = {"adps": [], "adps_fixed": []}

    def keeper(name: str) -> Callable[[Level, Tensor], None]:
        return lambda level, x: states[name].append(x)

    for name in states:
        sampler, denoiser = make_sampler(name, steps=6, likelihood_weight=0.3), bound()
        sampler.sample(
            denoiser, scene().operator, scene().y, NOISE, generators=denoiser.generators, callback=keeper(name)
        )
    assert torch.equal(states["adps"][-1], states["adps"][-2])
    assert not torch.equal(states["adps_fixed"][-1], states["adps_fixed"][-2])
    assert run(make_sampler("adps", steps=6)).status["evaluations"] == 5
    assert run(make_sampler("adps_fixed", steps=6)).status["evaluations"] == 6


def test_the_mended_one_stops_at_the_noise() -> None:
    sampler = make_sampler("adps_fixed")
    problem = Problem(
        bound(), scene().operator, scene().y, torch.full((2,), NOISE, dtype=torch.float64), streams(),
        scene().operator.adjoint(scene().y), NoDataStep(),
    )  # fmt: skip
    # 4 lines of 8 samples, 4 coils, two parts.
    limit = (4 * 8 * 4 * 2) ** 0.5 * NOISE
    length = sampler._length(problem, torch.tensor([0.99 * limit, 1.01 * limit]))  # type: ignore[attr-defined]
    assert length.tolist() == [0.0, 1.0]


def test_adps_is_reported_for_what_it_is() -> None:
    """With the best network there is, its samples are closer to the truth than zero-filling, and no posterior."""
    s = scene()
    result = run(make_sampler("adps_fixed", steps=60, likelihood_weight=0.1, sigma_max=3.0))
    zero_filled = s.operator.adjoint(s.y)
    assert (result.x - s.truth).norm() < 0.9 * (zero_filled - s.truth).norm()
    assert result.status["gradients"] == 60 and result.status["data_step"] == "none"


def test_random_masks_keep_the_centre_and_the_density() -> None:
    mask = torch.zeros(1, 1, 1, 32, dtype=torch.bool)
    mask[..., 12:20] = True
    mask[..., [1, 5, 30]] = True
    m = Measurement(
        torch.zeros(1, 2, 16, 32, dtype=torch.complex64), mask, torch.ones(1, 2, 16, 32, dtype=torch.complex64),
        torch.ones(1), torch.ones(1), ("a",),
    )  # fmt: skip
    drawn = random_masks(m, [keyed_generator(i) for i in range(500)])
    assert drawn.shape == (500, 1, 1, 32) and bool(drawn[..., 12:20].all())
    assert bool((drawn.sum(dim=(1, 2, 3)) == 11).all())
    share = drawn.float().mean(dim=0).flatten()
    outer = torch.cat([share[:12], share[20:]])
    assert outer.min() > 0.06 and outer.max() < 0.19  # 3 of 24


def test_msm_covers_what_the_scan_never_sampled() -> None:
    s = scene()
    result = run(MSM(12, masks=3))
    assert result.status["evaluations"] == 36
    zero_filled = s.operator.adjoint(s.y)
    assert (result.x - s.truth).norm() < 0.9 * (zero_filled - s.truth).norm()
    assert (s.operator.forward(result.x) - s.y).norm() < 0.2 * s.y.norm()


@pytest.mark.parametrize("name", ["adps", "adps_fixed", "msm", "diffpir"])
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    options = {"likelihood_weight": 0.3} if "adps" in name else {}
    sampler = make_sampler(name, steps=5, **options)
    apart = torch.cat([run(sampler, slice(0, 1)).x, run(sampler, slice(1, 2)).x])
    assert torch.allclose(run(sampler).x, apart, atol=1e-8)


def test_a_clean_denoiser_in_their_place_is_refused() -> None:
    problem = Problem(
        WhiteDenoiser(1.0), scene().operator, scene().y, torch.ones(2), streams(), scene().truth, NoDataStep()
    )
    with pytest.raises(PriorError, match="msm needs an ambient network: it averages"):
        ambient_of(MSM(), problem)
