"""Steps chosen from noise level and error curve: the rule, and that the posterior is still sampled with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ambient_mri import reconstruct, solve
from ambient_mri._checks import AmbientMRIError
from ambient_mri.operators import Identity
from ambient_mri.sampling import SplitGibbs, make_sampler
from ambient_mri.sampling.automatic import with_automatic_steps
from ambient_mri.tensors import complex_randn, keyed_generator
from tests.oracles import PosteriorScene, WhiteDenoiser


def test_the_default_number_belongs_to_its_reference_and_noise_makes_it_smaller() -> None:
    prior, sampler = WhiteDenoiser(0.25), SplitGibbs()
    number = lambda noise: with_automatic_steps(sampler, prior, noise).steps  # noqa: E731
    assert number(0.01) == 50 and sampler.steps == 50
    assert number(0.05) < 0.7 * 50 and number(0.0) > 50
    assert number(0.0) <= 100 and number(10.0) == 20
    # A ladder that does not depend on the noise has a length that does not either.
    assert {with_automatic_steps(make_sampler("mmps"), prior, noise).steps for noise in (0.01, 0.1)} == {100}


def test_a_better_prior_gets_more_steps() -> None:
    prior = WhiteDenoiser(0.25)
    sigmas = torch.tensor([0.001, 0.01, 0.1, 1.0, 10.0])
    prior.set_error_curve(sigmas, torch.tensor([0.0003, 0.003, 0.03, 0.15, 0.25]))
    assert 55 < with_automatic_steps(SplitGibbs(), prior, 0.01).steps < 100


@pytest.mark.parametrize("noise_std", [0.005, 0.05, 0.1])
def test_automatic_steps_sample_the_exact_posterior(noise_std: float) -> None:
    """Whatever the noise, the same quality: that is what the number is for."""
    scene = PosteriorScene.make(12, noise_std, lines=(2, 5, 6, 9), truths=6)
    sampler = with_automatic_steps(SplitGibbs(), scene.world.denoiser(), noise_std)
    found = scene.scores(scene.run(sampler, 24)[0])
    assert found["nrmse"] < 1.03 and 0.87 < found["variance"] < 1.13


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_noise_level_that_is_wrong_by_two_costs_what_it_must(factor: float) -> None:
    """The samples are those of the posterior that the wrong level has, and no worse; its mean is a seventh worse."""
    scene = PosteriorScene.make(12, 0.02, lines=(2, 5, 6, 9))
    told = factor * scene.noise_std
    sampled = scene.matrix.abs().sum(dim=1) > 0
    exact = scene.world.posterior(scene.matrix[sampled], scene.y.flatten(1)[:, sampled], told)
    samples, _ = replace(scene, noise_std=told).run(SplitGibbs(50), 24)
    found = replace(scene, exact=exact).scores(samples)
    assert found["nrmse"] < 1.04 and 0.87 < found["variance"] < 1.13
    assert scene.scores(samples)["nrmse"] < 1.15


@pytest.mark.filterwarnings("ignore:.*fully sampled")
def test_reconstruct_and_solve_take_auto_and_record_the_number() -> None:
    prior, y = WhiteDenoiser(0.5), torch.randn(1, 1, 8, 8, generator=keyed_generator("y"))
    solution = solve(y, Identity(), prior, noise_std=0.2, samples=2, steps="auto")
    assert solution.settings["sampler"]["steps"] == with_automatic_steps(SplitGibbs(), prior, 0.2).steps < 50
    kspace = complex_randn((2, 16, 16), generator=keyed_generator("k"))
    kspace[:, 8, 8] = 30
    maps = torch.full((2, 16, 16), 2**-0.5, dtype=torch.complex64)
    options = {"coil_maps": maps, "noise_std": 1.0, "samples": 2, "progress": False}
    found = reconstruct(kspace, prior=prior, steps="auto", **options)  # type: ignore[arg-type]
    assert found.settings["run"]["evaluations"] == found.settings["sampler"]["steps"] != 50
    with pytest.raises(AmbientMRIError, match="steps must be one of"):
        solve(y, Identity(), prior, noise_std=0.2, steps="many")
    with pytest.raises(AmbientMRIError, match="steps must be one of"):
        reconstruct(kspace, prior=prior, steps="many", **options)  # type: ignore[arg-type]
