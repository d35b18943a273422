"""The learned uncertainty is the denoiser's true error at every sigma, and goes with the prior."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ambient_mri.denoiser import CleanDenoiser, output_scale
from ambient_mri.noise import TrainingNoise
from ambient_mri.objectives import SupervisedObjective, UncertaintyObjective
from ambient_mri.prior import Prior, build_model, load_prior
from ambient_mri.tensors import RowStreams
from tests.oracles import GaussianWorld

WORLD = GaussianWorld.with_decaying_spectrum(8, 8)
NOISE = TrainingNoise(shift=-0.5, spread=1.2, sigma_min=0.05, sigma_max=20.0)
SIGMAS = torch.logspace(-0.8, 0.6, 7) * 0.25


class Analytic(CleanDenoiser):
    """The best denoiser of the Gaussian world times a factor, with a head that learns its error."""

    def __init__(self, factor: float) -> None:
        exact = WORLD.denoiser(torch.complex64)
        super().__init__(nn.Identity(), sd=exact.sd, precision="fp32", error_frequencies=4)
        self.exact, self.factor = exact, factor

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self.factor * self.exact(x_t, sigma)

    def true_error(self, sigma: Tensor) -> Tensor:
        """rms of factor D - x0 per real part: the posterior's variance and what the factor takes from D's power."""
        posterior = self.exact.posterior_std(sigma).square()
        energy = WORLD.mean.abs().square().mean() / 2 + WORLD.covariance.diagonal().real.mean()
        return (posterior + (1 - self.factor) ** 2 * (energy - posterior)).sqrt().float()


def learn(model: Analytic, steps: int = 400) -> Analytic:
    objective, optimiser = UncertaintyObjective(NOISE), torch.optim.Adam(model.error_head.parameters(), lr=0.02)  # type: ignore[union-attr]
    images = WORLD.draw(512, torch.Generator().manual_seed(0)).to(torch.complex64)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        loss = objective(model, images, RowStreams("uncertainty", step, rows=range(len(images)))).value
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_it_learns_the_error_of_the_denoiser_that_it_belongs_to(factor: float) -> None:
    """Of the optimal denoiser the posterior's standard deviation; of a worse one its own, larger error."""
    model = learn(Analytic(factor))
    true = model.true_error(SIGMAS)
    assert torch.allclose(model.learned_error(SIGMAS).detach(), true, rtol=0.04)
    naive = output_scale(SIGMAS, model.sd, 1.0, 0.0)
    assert float((naive / true - 1).abs().max()) > 0.1, "a white image model would not do"


def test_at_the_true_error_the_gradient_of_the_network_is_that_of_the_normalised_loss() -> None:
    """With u^2 fixed at c, the gradient is that of the supervised objective over c: same minimiser."""
    architecture = {"kind": "clean", "network": {"channels": 8, "multipliers": [1, 2]}, "sd": 0.3, "precision": "fp32"}
    model = build_model({**architecture, "error_frequencies": 4})
    for p in model.network.parameters():  # type: ignore[union-attr]
        nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    nn.init.constant_(model.error_head.layer.bias, 0.3)  # type: ignore[union-attr]
    images = torch.randn(4, 1, 16, 16, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    found = []
    for objective in (SupervisedObjective(NOISE), UncertaintyObjective(NOISE)):
        model.zero_grad()
        objective(model, images, RowStreams("same", rows=range(4))).value.backward()  # type: ignore[arg-type]
        found.append(model.network.head.weight.grad.clone())  # type: ignore[union-attr]
    assert torch.allclose(found[1], found[0] * torch.exp(torch.tensor(-4 * 0.3)), rtol=1e-4)


def test_the_head_is_stored_with_the_prior(tmp_path: Path) -> None:
    architecture = {"kind": "clean", "network": {"channels": 8, "multipliers": [1, 2]}, "sd": 0.3}
    architecture |= UncertaintyObjective.architecture
    model = build_model(architecture)
    nn.init.normal_(model.error_head.layer.weight)  # type: ignore[union-attr]
    again = load_prior(Prior(model, "clean", architecture).save(tmp_path / "p")).model
    assert torch.equal(again.learned_error(SIGMAS), model.learned_error(SIGMAS).detach())  # type: ignore[union-attr]
    without = build_model({k: v for k, v in architecture.items() if k != "error_frequencies"})
    with pytest.raises(ValueError, match="Train it with objective=supervised_uncertainty"):
        without.learned_error(SIGMAS)  # type: ignore[union-attr]
