"""The ambient objective under every corruption of images, against the optimal denoiser of a Gaussian world.

The model is the optimal denoiser of a covariance C, D = C A~^T (A~ C A~^T + sigma^2)^-1 z, with C free. Trained on
corrupted images alone it must find the true C: then it is optimal for every A_tilde, those never drawn included.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ambient_mri.corruption import (
    AdditiveNoise,
    BlockAveraging,
    ImageCorruption,
    PixelMasking,
    RandomBlur,
    RandomBoxes,
    RandomPatches,
    RandomProjections,
)
from ambient_mri.measurement import Measurement
from ambient_mri.noise import TrainingNoise
from ambient_mri.objectives import AmbientObjective
from ambient_mri.operators import LinearOperator
from ambient_mri.tensors import RowStreams, keyed_generator

SIZE, SIGMA, ROWS = 8, 0.5, 1500


def covariance() -> Tensor:
    index = torch.arange(SIZE, dtype=torch.float32)
    deviation = 0.7 + 0.6 * torch.sin(index) ** 2
    return deviation[:, None] * deviation[None] * 0.8 ** (index[:, None] - index[None]).abs()


class LearnedCovariance(nn.Module):
    """E[x0 | z] for x0 ~ N(0, C), C = L L^T."""

    sd = 1.0

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.root = nn.Parameter(torch.eye(SIZE))

    @property
    def covariance(self) -> Tensor:
        return self.root @ self.root.mT

    def forward(self, z: Tensor, sigma: Tensor, operator: LinearOperator, kept: Tensor) -> Tensor:
        basis = torch.eye(SIZE).reshape(SIZE, 1, *self.shape).expand(SIZE, len(z), *self.shape)
        a = torch.stack([operator.forward(e).flatten(1) for e in basis], dim=-1)  # (b, m, n)
        cross = self.covariance @ a.mT
        gram = a @ cross + sigma.square()[:, None, None] * torch.eye(a.shape[1])
        solution = torch.linalg.solve(gram, z.flatten(1)[..., None])
        return (cross @ solution).reshape(-1, *self.shape)

    def loss_weight(self, sigma: Tensor, rate: Tensor) -> Tensor:
        return torch.ones_like(sigma)


def world(corruption: ImageCorruption, shape: tuple[int, int, int], noise_std: float) -> Measurement:
    root = torch.linalg.cholesky(covariance())
    x0 = (torch.randn(ROWS, SIZE, generator=keyed_generator("x0")) @ root.T).reshape(ROWS, *shape)
    return Measurement.collate(
        [
            corruption.measure(x[None], noise_std=noise_std, key=str(i), generator=keyed_generator("image", i))
            for i, x in enumerate(x0)
        ]
    )


def learn(
    corruption: ImageCorruption, shape: tuple[int, int, int], noise_std: float = 0.1, steps: int = 160
) -> LearnedCovariance:
    m, model = world(corruption, shape, noise_std), LearnedCovariance(shape)
    noise = TrainingNoise(shift=math.log(SIGMA), spread=1e-4, sigma_min=1e-3, sigma_max=100.0)
    objective = AmbientObjective(corruption, noise, one_step_share=0.0, kept_cap=1e6)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05, betas=(0.9, 0.95))
    batches = range(0, ROWS, ROWS // 5)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        first = batches[step % len(batches)]
        batch = m[first : first + ROWS // 5]
        optimiser.zero_grad()
        objective(model, batch, RowStreams("fit", step, rows=range(len(batch)))).value.backward()
        optimiser.step()
    return model


def error_of_covariance(model: LearnedCovariance, where: Tensor | None = None) -> float:
    """Relative error of C, over the entries ``where``."""
    truth = covariance()
    chosen = torch.ones_like(truth, dtype=torch.bool) if where is None else where
    gap = (model.covariance.detach() - truth)[chosen]
    return float(gap.norm() / truth[chosen].norm())


def excess_error(model: LearnedCovariance) -> float:
    """E || D z - D* z ||^2 / E ||x0||^2 as a root, at full sampling, in closed form."""
    truth, learned, noise = covariance(), model.covariance.detach(), SIGMA**2 * torch.eye(SIZE)
    gap = learned @ torch.linalg.inv(learned + noise) - truth @ torch.linalg.inv(truth + noise)
    return float((gap @ (truth + noise) @ gap.mT).trace() / truth.trace()) ** 0.5


CASES: dict[str, tuple[ImageCorruption, tuple[int, int, int]]] = {
    "pixels": (PixelMasking(0.6, keep=(0.4, 0.8)), (1, 2, 4)),
    "colours": (PixelMasking(0.6, keep=(0.4, 0.8), per="colour"), (2, 1, 4)),
    "boxes": (RandomBoxes((1, 2)), (1, 1, 8)),
    "averaging": (BlockAveraging(2, 0.6, keep=(0.3, 0.7)), (1, 2, 4)),
    "projections": (RandomProjections(5, keep=(0.4, 0.8)), (1, 2, 4)),
    "blur": (RandomBlur((0.2, 0.6)), (1, 2, 4)),
    "noise": (AdditiveNoise(), (1, 2, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_optimal_denoiser_is_learned_from_corrupted_images_alone(case: str) -> None:
    corruption, shape = CASES[case]
    assert excess_error(LearnedCovariance(shape)) > 0.24, "where it starts"
    noise_std = 0.25 if case == "noise" else 0.1
    assert excess_error(learn(corruption, shape, noise_std)) < 0.06


def test_patches_teach_what_fits_in_a_patch() -> None:
    model = learn(RandomPatches((1, 4), inner=(0.4, 0.8)), (1, 1, 8))
    distance = torch.arange(SIZE)[:, None] - torch.arange(SIZE)[None]
    assert error_of_covariance(model, distance.abs() < 4) < 0.15


def test_a_fixed_box_hides_its_covariance_for_ever() -> None:
    model = learn(RandomBoxes((1, 2), rows=(0, 0), columns=(3, 3)), (1, 1, 8))
    hidden = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    hidden[3:5, 5:] = True
    assert error_of_covariance(model, hidden) > 0.5
    hidden[:] = False
    hidden[5:, 5:] = True
    assert error_of_covariance(model, hidden) < 0.15


def test_ignoring_the_noise_learns_it_as_if_it_were_image() -> None:
    corruption, shape = CASES["noise"]
    m = world(corruption, shape, 0.8)
    aware, blind = LearnedCovariance(shape), LearnedCovariance(shape)
    noise = TrainingNoise(shift=math.log(1.2), spread=1e-4, sigma_min=1e-3, sigma_max=100.0)
    for model, batch in ((aware, m), (blind, replace(m, noise_std=torch.zeros(ROWS)))):
        objective = AmbientObjective(corruption, noise, one_step_share=0.0, kept_cap=1e6)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        for step in range(120):
            optimiser.zero_grad()
            objective(model, batch, RowStreams("fit", step, rows=range(ROWS))).value.backward()
            optimiser.step()
    assert error_of_covariance(aware) < 0.2 < 0.25 < error_of_covariance(blind)
