r"""Preconditioned unadjusted Langevin (pULA): the exact likelihood at every level, in the metric of the data step.

At level sigma the target is p_sigma(x) p(y | x), with p_sigma the density of x0 + sigma n, score (D(x) - x) / sigma^2
and M = ( A^H A / noise_std^2 + I / sigma^2 )^-1:

    x <- x + h M ( (D(x) - x) / sigma^2 + A^H (y - A x) / noise_std^2 ) + sqrt(2 h) M^(1/2) e
       = (1 - h) x + ( A^H A + lam I )^-1 ( A^H ( h y + sqrt(2 h) noise_std e1 ) + lam ( h D(x) + sqrt(2 h) sigma e2 ) )

with lam = noise_std^2 / sigma^2; M^(1/2) e has the law of M ( A^H e1 / noise_std + e2 / sigma ), so that a step is one
evaluation and one solve. M times the target's precision has no eigenvalue above one: any h below 2 is stable, and the
stationary variance is at most 1 / (1 - h/2) times the target's. The state goes to the next level as it is; the last one
has the noise of sigma_min in what A does not see.

Reference: arXiv:2512.05791. Differs: 1. variance-exploding ladder of EDM. 2. lam is at least 1e-4: where sigma is above
100 noise_std, the data count as data with a noise of sigma / 100, which the following levels take back.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.denoiser import Denoiser
from ambient_mri.sampling.base import LAM_FLOOR, Sampler
from ambient_mri.sampling.data_step import relative_tolerance
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row

__all__ = ["PULA", "SCORE_REFUSAL"]

SCORE_REFUSAL = (
    "it needs the score of the images, (E[x0 | x_t] - x_t) / sigma^2; an ambient network gives E[x0 | A_tilde x_t], "
    "which is no score. Use split_gibbs or dds."
)


class PULA(Sampler):
    """Preconditioned unadjusted Langevin (module docstring).

    Args:
        steps: Number of noise levels.
        inner_steps: Langevin steps a level.
        step_size: h.
        options: Of :class:`Sampler`; ``sigma_min`` is sd / 100 when not given, whatever the noise of the data.
    """

    name: ClassVar[str] = "pula"
    accepts: ClassVar[tuple[str, ...]] = ("clean",)
    refusal: ClassVar[str] = SCORE_REFUSAL

    def __init__(self, steps: int = 100, *, inner_steps: int = 5, step_size: float = 0.2, **options: Any) -> None:
        super().__init__(steps, **options)
        require(inner_steps >= 1, f"inner_steps must be at least 1; got {inner_steps}.")
        require(0 < step_size < 2, f"step_size must lie between 0 and 2, where the chain is stable; got {step_size}.")
        self.inner_steps, self.step_size = inner_steps, step_size

    def sigma_range(self, denoiser: Denoiser, noise_std: float) -> tuple[float, float]:
        """(sigma_max, sigma_min); the lower end does not depend on the data's noise."""
        return super().sigma_range(denoiser, 0.0)

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        h, spread = self.step_size, math.sqrt(2 * self.step_size)
        lam = (problem.noise_std / level.sigma).square().clamp_min(LAM_FLOOR)
        rtol = relative_tolerance(problem.backprojection, lam, level.sigma)
        sigma, noise = per_row(level.sigma, x_t), spread * lam.sqrt() * level.sigma
        x = x_t
        for _ in range(self.inner_steps):
            guess = h * problem.denoise(x, level.sigma) + spread * sigma * problem.image_noise()
            x = (1 - h) * x + problem.perturbed_step(h * problem.backprojection, guess, noise, lam, rtol)
        return x
