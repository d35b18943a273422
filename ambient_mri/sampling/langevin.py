r"""Annealed Langevin dynamics with the likelihood of a noisy state: the first posterior sampler for MRI of its kind.

    x <- x + a_l ( (D(x) - x) / sigma_l^2 + A^H (y - A x) / (noise_std^2 + sigma_l^2) ) + sqrt(2 a_l) e
    a_l = step_size / ( 1 / sigma_l^2 + ||A||^2 / (noise_std^2 + sigma_l^2) ) ,      proportional to sigma_l^2

``inner_steps`` times a level. The likelihood is wide while the state is noisy and the data's own at the end. With
``gamma`` the likelihood's gradient g has gamma times the norm of the score instead, as in the published experiments:

    x <- x + a_l ( score + gamma ( ||score|| / ||g|| ) g ) + sqrt(2 a_l) e

which no longer aims at the posterior: gamma stands for the unknown noise and has to be tuned.

Reference: Jalal et al. 2021, arXiv:2108.01368, section 3; annealing as in Song & Ermon 2020, arXiv:2006.09011.
Differs: 1. EDM's ladder, fewer levels than the paper's 2311 with 3 steps each. 2. a_l is relative to the curvature of
the target, ||A|| found by power iteration, so that step_size has no unit.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import check_positive, require
from ambient_mri.denoiser import Denoiser
from ambient_mri.operators.base import LinearOperator
from ambient_mri.sampling.guidance import WithoutDataStep, row_norm
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.sampling.pula import SCORE_REFUSAL
from ambient_mri.tensors import complex_randn, keyed_generator, per_row

__all__ = ["Langevin", "squared_norm"]

# Power iteration finds the norm from below; the margin is what so many iterations can miss.
_POWER_ITERATIONS, _MARGIN = 15, 1.1


class Langevin(WithoutDataStep):
    """Annealed Langevin dynamics (module docstring).

    Args:
        steps: Number of noise levels.
        inner_steps: Langevin steps a level, the paper's.
        step_size: Share of the longest step that the target's curvature allows is twice this; at most 1.
        gamma: Norm of the likelihood's gradient relative to the score; None for the likelihood itself.
        options: ``sigma_max``, ``sigma_min`` and ``rho`` of :class:`Sampler`; ``sigma_min`` is sd / 100 when not given,
            whatever the noise of the data.
    """

    name: ClassVar[str] = "langevin"
    accepts: ClassVar[tuple[str, ...]] = ("clean",)
    refusal: ClassVar[str] = SCORE_REFUSAL

    def __init__(
        self,
        steps: int = 300,
        *,
        inner_steps: int = 3,
        step_size: float = 0.5,
        gamma: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(steps, **options)
        require(inner_steps >= 1, f"inner_steps must be at least 1; got {inner_steps}.")
        require(0 < step_size <= 1, f"step_size must lie between 0 and 1; got {step_size}.")
        if gamma is not None:
            check_positive("gamma", gamma)
        self.inner_steps, self.step_size, self.gamma = inner_steps, step_size, gamma

    def sigma_range(self, denoiser: Denoiser, noise_std: float) -> tuple[float, float]:
        """(sigma_max, sigma_min); the lower end does not depend on the data's noise."""
        return super().sigma_range(denoiser, 0.0)

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        if "squared_norm" not in problem.memory:
            problem.memory["squared_norm"] = squared_norm(problem.operator, x_t)
        width = problem.noise_std.square() + level.sigma.square()
        length = self.step_size / (level.sigma.square().reciprocal() + problem.memory["squared_norm"] / width)
        x = x_t
        for _ in range(self.inner_steps):
            score = (problem.denoise(x, level.sigma) - x) / per_row(level.sigma.square(), x)
            pull = problem.backprojection - problem.operator.normal(x)
            drift = score + per_row(self._weight(score, pull, width), x) * pull
            x = x + per_row(length, x) * drift + per_row((2 * length).sqrt(), x) * problem.image_noise()
        return x

    def _weight(self, score: Tensor, pull: Tensor, width: Tensor) -> Tensor:
        """Factor of A^H (y - A x), (b,)."""
        if self.gamma is None:
            return width.reciprocal()
        return self.gamma * row_norm(score) / row_norm(pull).clamp_min(torch.finfo(width.dtype).tiny)


def squared_norm(operator: LinearOperator, like: Tensor) -> Tensor:
    """||A||^2 of every row, (b,), by power iteration, with a margin; the start does not depend on the batch."""
    generator, shape = keyed_generator("power iteration"), tuple(like.shape[1:])
    if like.is_complex():
        start = complex_randn(shape, generator=generator, dtype=like.dtype)
    else:
        start = torch.randn(shape, generator=generator, dtype=like.dtype)
    x = start.to(like.device).expand_as(like)
    norm = row_norm(x)
    for _ in range(_POWER_ITERATIONS):
        x = x / per_row(norm.clamp_min(torch.finfo(norm.dtype).tiny), x)
        x = operator.normal(x)
        norm = row_norm(x)
    return _MARGIN * norm
