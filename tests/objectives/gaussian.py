"""A Gaussian world small enough that the best denoiser of every further mask is known, and models to fit in it.

x0 ~ N(0, C) on four pixels, masked there or seen in (hybrid) k-space by one coil or three. A LinearTable has one free
linear map for every further mask: the minimiser of an objective is then known for every mask separately. L-BFGS finds
the empirical one, with the random draws of the loss made once and replayed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ambient_mri import tensors
from ambient_mri.corruption import Corruption, PixelMasking, Undersampling
from ambient_mri.masks import IndependentLines
from ambient_mri.measurement import Measurement
from ambient_mri.noise import TrainingNoise
from ambient_mri.objectives import AmbientObjective, Objective
from ambient_mri.operators.base import LinearOperator
from ambient_mri.tensors import RowStreams, complex_randn, keyed_generator

WIDTH, SIGMA, ROWS = 4, 0.3, 6000


class LinearTable(nn.Module):
    """x_hat = Theta[kept] z, with one complex matrix for each of the 2^W further masks."""

    sd = 1.0

    def __init__(self, coils: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2**WIDTH, WIDTH, coils * WIDTH, 2))

    def forward(self, z: Tensor, sigma: Tensor, operator: LinearOperator, kept: Tensor) -> Tensor:
        matrix = torch.view_as_complex(self.theta)[code_of(kept)]
        return (matrix @ z.flatten(1)[:, :, None])[:, :, 0].reshape(-1, 1, 1, WIDTH)

    def loss_weight(self, sigma: Tensor, rate: Tensor) -> Tensor:
        return torch.ones_like(sigma)


def covariance() -> Tensor:
    index = torch.arange(WIDTH, dtype=torch.float64)
    decay = 0.75 ** (index[:, None] - index[None]).abs()
    return (decay * torch.exp(0.4j * (index[:, None] - index[None]))).to(torch.complex64)


def world(corruption: Corruption, coils: int, noise_std: float) -> tuple[Measurement, Tensor]:
    generator = keyed_generator("gaussian world", coils)
    root = torch.linalg.cholesky(covariance())
    x0 = complex_randn((ROWS, WIDTH), generator=generator) @ root.T
    maps = complex_randn((1, coils, 1, WIDTH), generator=generator)
    maps = (maps / maps.abs().square().sum(1, keepdim=True).sqrt()).expand(ROWS, -1, -1, -1)
    mask = torch.cat([corruption.law.draw((1, WIDTH), generator) for _ in range(ROWS)])
    pixels = isinstance(corruption, PixelMasking)
    m = Measurement(
        y=torch.zeros(ROWS, coils, 1, WIDTH, dtype=torch.complex64),
        mask=mask,
        coil_maps=None if pixels else maps,
        noise_std=torch.full((ROWS,), noise_std),
        scale=torch.ones(ROWS),
        key=tuple(str(i) for i in range(ROWS)),
        axes=() if pixels else (-1,),
    )
    clean = corruption.forward_operator(m).forward(x0.reshape(ROWS, 1, 1, WIDTH))
    noise = complex_randn(clean.shape, generator=generator) * noise_std * mask
    return Measurement(**{**vars(m), "y": clean + noise}), x0


class MemoisedDraws:
    """The random draws of a loss, made once and replayed: the loss becomes a fixed quadratic function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: list[Tensor] = []
        self.position = 0
        for module in ("corruption.thinning", "noise", "objectives.ambient"):
            for name in ("rand_rows", "randn_like_rows"):
                path = f"ambient_mri.{module}.{name}"
                if hasattr(sys.modules[f"ambient_mri.{module}"], name):
                    monkeypatch.setattr(path, self._replay(getattr(tensors, name)))

    def _replay(self, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def replayed(*args: object, **kwargs: object) -> Tensor:
            if self.position == len(self.values):
                self.values.append(draw(*args, **kwargs))
            self.position += 1
            return self.values[self.position - 1]

        return replayed


def fit(
    objective: Objective, m: Measurement, model: nn.Module, draws: MemoisedDraws, repeats: int = 2, iterations: int = 80
) -> nn.Module:
    """``model`` at the empirical minimum over ``repeats`` independent sets of further masks and diffusion noise."""
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
    )
    streams = [RowStreams("draw", repeat, rows=range(len(m))) for repeat in range(repeats)]
    draws.values.clear()

    def closure() -> Tensor:
        optimiser.zero_grad()
        draws.position = 0
        loss = sum((objective(model, m, s).value for s in streams), torch.zeros(()))
        loss.backward()
        return loss

    optimiser.step(closure)
    draws.position, draws.values = 0, []
    return model


def code_of(kept: Tensor) -> Tensor:
    """The number of each mask (b, 1, 1, W) in the table."""
    return (kept[:, 0, 0].long() * 2 ** torch.arange(WIDTH)).sum(1)


def dense(corruption: Corruption, m: Measurement, kept: Tensor) -> Tensor:
    """A_tilde of the coils of ``m`` for one mask (1, 1, 1, W), as a matrix (coils * W, W), complex128."""
    single, eye = m[0], torch.eye(WIDTH, dtype=torch.complex64).reshape(WIDTH, 1, 1, WIDTH)
    maps = None if single.coil_maps is None else single.coil_maps.expand(WIDTH, -1, -1, -1)
    rows = replace(single, y=single.y.expand(WIDTH, -1, -1, -1), mask=kept.expand(WIDTH, -1, -1, -1), coil_maps=maps)
    return corruption.forward_operator(rows).forward(eye).flatten(1).T.to(torch.complex128)


def best_map(a: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """E[x0 | z] = Theta* z for z = a x0 + noise: Theta*, E[z z^H] / 2, and which numbers of z are measured."""
    c = covariance().to(torch.complex128)
    live = a.abs().sum(1) > 0
    gram = a[live] @ c @ a[live].mH + sigma**2 * torch.eye(int(live.sum()))
    return c @ a[live].mH @ torch.linalg.inv(gram), gram, live


def excess_error(model: LinearTable, corruption: Corruption, m: Measurement, sigma: float = SIGMA) -> float:
    """Mean over further masks of E||(Theta - Theta*) z||^2 / E||x0||^2, in closed form, as a root."""
    theta = torch.view_as_complex(model.theta.detach()).to(torch.complex128)
    kept = corruption.further(m[:400], RowStreams("evaluate", rows=range(400))).kept
    codes, first = code_of(kept).tolist(), {}
    for row, code in enumerate(codes):
        first.setdefault(code, kept[row : row + 1])
    errors = {0: 0.0}  # where nothing was kept there is nothing to map
    for code in set(codes) - {0}:
        best, gram, live = best_map(dense(corruption, m, first[code]), sigma)
        gap = theta[code][:, live] - best
        energy = covariance().diagonal().real.sum()
        errors[code] = float((gap @ gram @ gap.mH).diagonal().real.sum() / energy)
    seen = [errors[code] for code in codes if code]
    return math.sqrt(sum(seen) / len(seen))


def objective_of(corruption: Corruption, sigma: float = SIGMA, **settings: object) -> AmbientObjective:
    noise = TrainingNoise(shift=math.log(sigma), spread=1e-4, sigma_min=1e-3, sigma_max=100.0)
    return AmbientObjective(corruption, noise, one_step_share=0.0, **settings)  # type: ignore[arg-type]


CASES = {
    "masked pixels": (PixelMasking(0.6, keep=(0.6, 0.6)), 1),
    "one coil": (Undersampling(IndependentLines(1.6, 0), core=0, keep=(0.6, 0.6)), 1),
    "three coils": (Undersampling(IndependentLines(1.6, 0), core=0, keep=(0.6, 0.6)), 3),
}
