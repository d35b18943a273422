"""Consistency below the noise of the data, against the optimal denoiser of a Gaussian world: y = x0 + noise.

The model has one gain a pixel and level, piecewise linear in ln sigma; the optimum is v / (v + sigma^2).
"""

from __future__ import annotations

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

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.full((len(LEVELS), len(VARIANCES)), start))

    def at(self, sigma: Tensor) -> Tensor:
        grid, position = LEVELS.log(), sigma.log().clamp(LEVELS[0].log(), LEVELS[-1].log())
        right = torch.searchsorted(grid, position.contiguous()).clamp(1, len(grid) - 1)
        share = ((position - grid[right - 1]) / (grid[right] - grid[right - 1]))[:, None]
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


def fit(objective: Objective, steps: int = 700) -> Gains:
    model, m = Gains(), noisy_images()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05, betas=(0.9, 0.99))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        optimiser.zero_grad()
        objective(model, m, RowStreams("fit", step, rows=range(ROWS))).value.backward()
        optimiser.step()
    return model


LAW = TrainingNoise(shift=0.0, spread=1.0, sigma_min=0.15, sigma_max=6.0)
BELOW = torch.tensor([0.12, 0.2, 0.35])


def test_consistency_reaches_the_optimal_denoiser_below_the_noise_of_the_data() -> None:
    model = fit(ConsistentAmbientObjective(AdditiveNoise(), LAW, consistency_rows=1.0, kept_cap=100.0))
    assert float(error(model, BELOW).max()) < 0.08
    above = torch.tensor([0.7, 1.0, 2.0])
    assert float(error(model, above).max()) < 0.08


def test_without_it_the_denoiser_is_undetermined_there() -> None:
    model = fit(AmbientObjective(AdditiveNoise(), LAW, one_step_share=0.0, kept_cap=100.0))
    above = torch.tensor([0.7, 1.0, 2.0])
    assert float(error(model, above).max()) < 0.08
    assert float(error(model, BELOW[:2]).min()) > 0.25


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
