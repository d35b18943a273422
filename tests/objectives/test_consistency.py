"""Consistency below the noise of the data, against the optimal denoiser of a Gaussian world: y = x0 + noise.

The model has one gain a pixel and level, piecewise linear in ln sigma; the optimum is v / (v + sigma^2). Where pixels
are missing too, x0 ~ N(0, C) is correlated, and the model has one matrix for every pattern K of kept pixels and level;
the optimum is C K^T (K C K^T + sigma^2)^-1.
"""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from ambient_mri._checks import AmbientMRIError
from ambient_mri.corruption import AdditiveNoise, PixelMasking
from ambient_mri.measurement import Measurement
from ambient_mri.noise import TrainingNoise
from ambient_mri.objectives import AmbientObjective, Objective
from ambient_mri.objectives.consistency import ConsistencyObjective, ConsistentAmbientObjective, reverse_step
from ambient_mri.operators import Identity, LinearOperator
from ambient_mri.tensors import RowStreams, keyed_generator, per_row

VARIANCES = torch.tensor([1.0, 0.6, 0.35, 0.2])
NOISE, ROWS = 0.5, 800
LEVELS = torch.logspace(-1.1, 0.7, 12)


class Gains(nn.Module):
    """x_hat = g(sigma) z."""

    sd = float(VARIANCES.mean().sqrt())
    levels = LEVELS

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.full((len(LEVELS), len(VARIANCES)), start))

    def at(self, sigma: Tensor) -> Tensor:
        grid = self.levels.log()
        position = sigma.log().clamp(grid[0], grid[-1])
        right = torch.searchsorted(grid, position.contiguous()).clamp(1, len(grid) - 1)
        share = (position - grid[right - 1]) / (grid[right] - grid[right - 1])
        share = share.reshape(-1, *(1,) * (self.gains.ndim - 1))
        return (1 - share) * self.gains[right - 1] + share * self.gains[right]

    def forward(self, z: Tensor, sigma: Tensor, operator: LinearOperator, kept: Tensor) -> Tensor:
        return self.at(sigma)[:, None, None] * z

    def loss_weight(self, sigma: Tensor, rate: Tensor) -> Tensor:
        return 1 / sigma.square()


def error(model: Gains, sigma: Tensor) -> Tensor:
    """|g - optimum| at every level and pixel."""
    return (model.at(sigma) - optimum(sigma)).detach().abs()


def optimum(sigma: Tensor) -> Tensor:
    return VARIANCES / (VARIANCES + sigma.square()[:, None])


def noisy_images(noise_std: float = NOISE) -> Measurement:
    x0 = torch.randn(ROWS, 1, 1, 4, generator=keyed_generator("x0")) * VARIANCES.sqrt()
    y = x0 + noise_std * torch.randn(x0.shape, generator=keyed_generator("noise"))
    mask = torch.ones(ROWS, 1, 1, 4, dtype=torch.bool)
    return Measurement(
        y, mask, None, torch.full((ROWS,), noise_std), torch.ones(ROWS), tuple(map(str, range(ROWS))), axes=()
    )


COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.6]])
PATTERNS = torch.tensor([[0, 1], [1, 0], [1, 1]], dtype=torch.bool)


class Matrices(Gains):
    """x_hat = M(sigma, kept) z for two pixels."""

    sd = float(COVARIANCE.diagonal().mean().sqrt())
    # One level is the lowest that measurements supervise, 1.2 times their noise: what is below starts from there.
    levels = 1.2 * NOISE * 1.7 ** torch.arange(-3.0, 5.0)

    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.zeros(len(self.levels), 4, 2, 2))

    def forward(self, z: Tensor, sigma: Tensor, operator: LinearOperator, kept: Tensor) -> Tensor:
        pattern = 2 * kept[:, 0, 0, 0].long() + kept[:, 0, 0, 1].long()
        matrix = self.at(sigma)[torch.arange(len(z)), pattern]
        return (matrix @ z[:, 0, 0, :, None])[:, None, None, :, 0]

    def excess(self, sigma: Tensor) -> Tensor:
        """Mean squared error of a pixel beyond that of the optimum, (levels, patterns)."""
        found = []
        for number, kept in enumerate(PATTERNS, start=1):
            k = torch.diag(kept.float())
            noisy = k @ COVARIANCE @ k + sigma.square()[:, None, None] * torch.eye(2)
            gap = (self.at(sigma)[:, number] - COVARIANCE @ k @ noisy.inverse()) @ k
            found.append((gap @ noisy @ gap.mT).diagonal(dim1=1, dim2=2).mean(1))
        return torch.stack(found, dim=1).detach()


def noisy_images_with_missing_pixels(corruption: PixelMasking, rows: int = 2000) -> Measurement:
    x0 = torch.randn(rows, 1, 1, 2, generator=keyed_generator("pairs")) @ torch.linalg.cholesky(COVARIANCE).mT
    return Measurement.collate(
        [
            corruption.measure(x0[i : i + 1], noise_std=NOISE, key=str(i), generator=keyed_generator("pair", i))
            for i in range(rows)
        ]
    )


Model = TypeVar("Model", bound=Gains)


def fit(objective: Objective, steps: int = 700, *, model: Model, m: Measurement, lr: float = 0.05) -> Model:
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimiser.zero_grad()
        objective(model, m, RowStreams("fit", step, rows=range(len(m)))).value.backward()
        optimiser.step()
    return model


LAW = TrainingNoise(shift=0.0, spread=1.0, sigma_min=0.15, sigma_max=6.0)
BELOW = torch.tensor([0.12, 0.2, 0.35])


def test_consistency_reaches_the_optimal_denoiser_below_the_noise_of_the_data() -> None:
    objective = ConsistentAmbientObjective(AdditiveNoise(), LAW, consistency_rows=1.0, kept_cap=100.0)
    model = fit(objective, model=Gains(), m=noisy_images())
    assert float(error(model, BELOW).max()) < 0.08
    above = torch.tensor([0.7, 1.0, 2.0])
    assert float(error(model, above).max()) < 0.08


def test_without_it_the_denoiser_is_undetermined_there() -> None:
    objective = AmbientObjective(AdditiveNoise(), LAW, one_step_share=0.0, kept_cap=100.0)
    model = fit(objective, model=Gains(), m=noisy_images())
    above = torch.tensor([0.7, 1.0, 2.0])
    assert float(error(model, above).max()) < 0.08
    assert float(error(model, BELOW[:2]).min()) > 0.25


def test_with_missing_pixels_it_reaches_the_optimum_of_every_pattern_below_the_noise() -> None:
    """Images have a variance of 0.8; below the noise a network without consistency is left where it started."""
    corruption = PixelMasking(0.8, keep=(0.4, 0.8))
    m = noisy_images_with_missing_pixels(corruption)
    shares: dict[str, float] = {"one_step_share": 0.0, "kept_cap": 100.0}
    options = {**shares, "consistency_rows": 1.0, "consistency_weight": 0.3}
    both = ConsistentAmbientObjective(corruption, LAW, reverse_steps=2, **options)
    model = fit(both, 400, lr=0.03, model=Matrices(), m=m)
    above = torch.tensor([0.7, 1.0, 2.0])
    assert float(model.excess(BELOW).max()) < 0.02
    assert float(model.excess(above).max()) < 0.02
    alone = fit(AmbientObjective(corruption, LAW, **shares), 200, lr=0.03, model=Matrices(), m=m)
    assert float(alone.excess(above).max()) < 0.05
    assert float(alone.excess(BELOW).min()) > 0.3


def test_the_optimal_denoiser_has_no_consistency_loss_and_another_has() -> None:
    class Optimal(Gains):
        def at(self, sigma: Tensor) -> Tensor:
            return self.scale * optimum(sigma)

    losses = []
    for scale in (1.0, 0.7):
        model = Optimal()
        model.scale = scale
        objective = ConsistencyObjective(AdditiveNoise(), LAW)
        draws = [
            float(objective(model, noisy_images(), RowStreams("loss", i, rows=range(ROWS))).logs["consistency"])
            for i in range(8)
        ]
        losses.append((sum(draws) / 8, torch.tensor(draws).std() / 8**0.5))
    assert abs(losses[0][0]) < 4 * float(losses[0][1])
    assert losses[1][0] > 10 * abs(losses[0][0]) and losses[1][0] > 0


def test_images_without_noise_add_nothing() -> None:
    model = Gains(0.3)
    loss = ConsistencyObjective(AdditiveNoise(), LAW)(model, noisy_images(0.0), RowStreams("n", rows=range(ROWS)))
    assert float(loss.value.detach()) == 0


def test_a_reverse_step_has_the_posterior_mean_and_variance() -> None:
    """Exact x0 = x_hat: z_s - x0 has variance s^2."""
    rows = 4000
    x0 = torch.randn(rows, 1, 1, 4, generator=keyed_generator("x0"))
    t, s = torch.full((rows,), 0.8), torch.full((rows,), 0.3)
    z = x0 + per_row(t, x0) * torch.randn(x0.shape, generator=keyed_generator("n"))
    kept = torch.ones(rows, 1, 1, 4, dtype=torch.bool)
    z_s = reverse_step(z, x0, t, s, Identity(), kept, RowStreams("e", rows=range(rows)))
    assert float((z_s - x0).std()) == pytest.approx(0.3, rel=0.03)
    covariance = float(((z_s - x0) * (z - x0)).mean())
    assert covariance == pytest.approx(0.3**2, rel=0.1)  # the noise of a diffusion: Cov(s n_s, t n_t) = s^2


def test_a_slice_of_the_streams_goes_on_where_they_are() -> None:
    streams = RowStreams("a", rows=range(5))
    streams.uniform(3)
    part, whole = streams[1:3].uniform(2), streams.uniform(2)
    assert torch.equal(part, whole[1:3])


def test_wrong_settings_are_named() -> None:
    corruption = PixelMasking(0.5)
    with pytest.raises(AmbientMRIError, match="reverse_steps must be at least 1"):
        ConsistencyObjective(corruption, reverse_steps=0)
    with pytest.raises(AmbientMRIError, match="ratio must satisfy"):
        ConsistencyObjective(corruption, ratio=(0.5, 1.0))
    with pytest.raises(AmbientMRIError, match=r"consistency_rows must be in \(0, 1\]"):
        ConsistentAmbientObjective(corruption, consistency_rows=0.0)
    with pytest.raises(AmbientMRIError, match="consistency_weight must be a positive"):
        ConsistentAmbientObjective(corruption, consistency_weight=0.0)
