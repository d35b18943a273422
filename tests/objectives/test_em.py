"""Expectation-maximisation where everything is known: Gaussian images, exact and sampled E-steps.

Statistics are those of infinitely many scans, in closed form: with S* = E[y y^H] / 2 for a mask, the exact round is

    C_next = mean over masks of  G S* G^H + V ,     G = C A^H ( A C A^H + noise_std^2 )^-1 ,   V = C - G A C
"""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from ambient_mri.operators import sense
from ambient_mri.sampling import SplitGibbs
from ambient_mri.tensors import complex_randn, keyed_generator
from ambient_mri.training.em import mean_of
from tests.oracles import GaussianWorld, dense_fourier, dense_matrix, line_mask, smooth_coils

WIDTH, NOISE_STD = 8, 0.1


def truth() -> Tensor:
    """A correlated covariance per real part, (8, 8), neither stationary nor real."""
    index = torch.arange(WIDTH, dtype=torch.float64)
    decay = 0.8 ** (index[:, None] - index[None]).abs()
    window = (1 + 0.5 * torch.cos(index)) * torch.exp(0.4j * index)
    return window[:, None] * decay * window.conj()[None]


def one_round(covariance: Tensor, *, keep_variance: bool = True) -> tuple[Tensor, float]:
    """The next covariance, and the mean log-likelihood of the data under the present one (up to a constant).

    The scans' masks are any four of the eight Fourier coefficients, all equally often: batch axis of A.
    """
    a = torch.stack([dense_fourier(1, WIDTH)[list(lines)] for lines in combinations(range(WIDTH), 4)])
    noise = NOISE_STD**2 * torch.eye(4, dtype=a.dtype)
    statistic, model = a @ truth() @ a.mH + noise, a @ covariance @ a.mH + noise
    misfit = torch.linalg.solve(model, statistic).diagonal(dim1=-2, dim2=-1).sum(-1).real
    likelihood = -float((torch.linalg.slogdet(model).logabsdet + misfit).mean())
    gain = torch.linalg.solve(model, a @ covariance).mH
    following = gain @ statistic @ gain.mH
    if keep_variance:
        following = following + covariance - gain @ a @ covariance
    return following.mean(dim=0), likelihood


def iterate(rounds: int, *, keep_variance: bool = True) -> tuple[Tensor, list[float]]:
    covariance, likelihoods = torch.eye(WIDTH, dtype=torch.complex128), []
    for _ in range(rounds):
        covariance, value = one_round(covariance, keep_variance=keep_variance)
        likelihoods.append(value)
    return covariance, likelihoods


def test_a_round_is_a_step_along_the_gradient_of_the_likelihood() -> None:
    """Fisher's identity, which knows nothing of posteriors: C_next - C = C (d log-likelihood / dC) C."""
    covariance = (iterate(3)[0] + 0.1 * torch.eye(WIDTH)).requires_grad_()
    a = torch.stack([dense_fourier(1, WIDTH)[list(lines)] for lines in combinations(range(WIDTH), 4)])
    noise = NOISE_STD**2 * torch.eye(4, dtype=a.dtype)
    statistic, model = a @ truth() @ a.mH + noise, a @ covariance @ a.mH + noise
    misfit = torch.linalg.solve(model, statistic).diagonal(dim1=-2, dim2=-1).sum(-1).real
    likelihood = -(torch.linalg.slogdet(model).logabsdet + misfit).mean()
    (gradient,) = torch.autograd.grad(likelihood, covariance)
    current = covariance.detach()
    assert torch.allclose(one_round(current)[0] - current, current @ gradient @ current, atol=1e-10)


def test_a_round_is_what_scans_average_to_one_by_one() -> None:
    """Posterior mean and covariance of each of many drawn scans, by the oracle that samplers are tested with."""
    world, count = GaussianWorld(truth(), torch.zeros(1, WIDTH, dtype=torch.complex128)), 4000
    current, generator = iterate(2)[0], keyed_generator("em scans")
    believed = GaussianWorld(current, world.mean)
    total = torch.zeros_like(current)
    masks = list(combinations(range(WIDTH), 4))
    for lines in masks:
        a = dense_fourier(1, WIDTH)[list(lines)]
        images = world.draw(count, generator).flatten(1)
        y = images @ a.T + NOISE_STD * complex_randn((count, 4), generator=generator, dtype=a.dtype)
        posterior = believed.posterior(a, y, NOISE_STD)
        mean = posterior.mean.flatten(1)
        total += mean.T @ mean.conj() / (2 * count) + posterior.covariance
    exact = one_round(current)[0]
    assert float((total / len(masks) - exact).norm() / exact.norm()) < 0.01
    assert float((current - exact).norm() / exact.norm()) > 0.05


def test_exact_em_never_lowers_the_likelihood_and_finds_the_covariance() -> None:
    covariance, likelihoods = iterate(300)
    assert all(after >= before - 1e-10 for before, after in pairwise(likelihoods))
    assert likelihoods[5] > likelihoods[0] + 1
    assert float((covariance - truth()).norm() / truth().norm()) < 1e-3


def test_the_truth_is_a_fixed_point() -> None:
    assert torch.allclose(one_round(truth())[0], truth(), atol=1e-10)


def test_the_error_contracts_by_a_share_of_the_missing_information() -> None:
    """A better first guess saves rounds: near the truth the error falls by a nearly constant factor a round."""
    errors = [float((iterate(k)[0] - truth()).norm()) for k in (100, 120, 140)]
    assert errors[1] / errors[0] == pytest.approx(errors[2] / errors[1], rel=0.15) and errors[2] < errors[0]


def test_iterating_with_means_instead_of_samples_collapses_the_variance() -> None:
    """Theory says it must fail: every round loses the posterior variance, and directions die out."""
    covariance, likelihoods = iterate(150, keep_variance=False)
    smallest = float(torch.linalg.eigvalsh(covariance)[0] / torch.linalg.eigvalsh(truth())[0])
    assert smallest < 0.05 and float((covariance - truth()).norm() / truth().norm()) > 0.2
    assert any(after < before for before, after in pairwise(likelihoods))


@pytest.mark.parametrize(("final", "low", "high"), [("sample", 0.9, 1.1), ("collapsed", 0.0, 0.8)])
def test_posterior_samples_of_scans_are_distributed_as_the_prior_and_means_are_not(
    final: str, low: float, high: float
) -> None:
    """The E-step as the package does it: split Gibbs under the true prior leaves the prior as it was."""
    world = GaussianWorld.with_decaying_spectrum(8, 8)
    generator = keyed_generator("scans")
    operator = sense(smooth_coils(2, 8, 8), line_mask(8, (3, 4)))
    images = world.draw(500, generator)
    noise_std = 0.15
    clean = operator.forward(images)
    y = clean + noise_std * complex_randn(clean.shape, generator=generator, dtype=clean.dtype) * line_mask(8, (3, 4))
    if final == "sample":
        streams = [keyed_generator("e-step", i) for i in range(len(y))]
        found = SplitGibbs(60).sample(world.denoiser(), operator, y, noise_std, generators=streams).x
    else:
        sampled = line_mask(8, (3, 4)).expand(1, 2, 8, 8).flatten()
        found = world.posterior(dense_matrix(operator, (1, 8, 8))[sampled], y.flatten(1)[:, sampled], noise_std).mean
    assert low < share_of_the_variance(world, found) < high


def share_of_the_variance(world: GaussianWorld, images: Tensor) -> float:
    """Of images, in that of the world they should come from."""
    return float((images - world.mean).abs().square().mean() / 2 / world.covariance.diagonal().real.mean())


def test_means_of_three_samples_keep_a_third_of_the_posterior_variance() -> None:
    world = GaussianWorld.with_decaying_spectrum(8, 8)
    mask = line_mask(8, (3, 4))
    operator = sense(smooth_coils(2, 8, 8), mask)
    clean = operator.forward(world.draw(400, keyed_generator("scans")))
    noise_std = 0.15
    y = clean + noise_std * complex_randn(clean.shape, generator=keyed_generator("noise"), dtype=clean.dtype) * mask
    sampled = mask.expand(1, 2, 8, 8).flatten()
    exact = world.posterior(dense_matrix(operator, (1, 8, 8))[sampled], y.flatten(1)[:, sampled], noise_std).mean
    streams = [keyed_generator("e-step", i) for i in range(len(y))]
    draws: list[Tensor] = []

    def draw() -> Tensor:
        draws.append(SplitGibbs(60).sample(world.denoiser(), operator, y, noise_std, generators=streams).x)
        return draws[-1]

    found = mean_of(draw, 3)
    single, of_means = share_of_the_variance(world, draws[0]), share_of_the_variance(world, exact)
    assert 0.9 < single < 1.1 and of_means < 0.5
    # Of the sampler's own mean a little less is there than of the exact one.
    assert share_of_the_variance(world, found) == pytest.approx(of_means + (single - of_means) / 3, abs=0.04)
