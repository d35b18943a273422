r"""Decomposed diffusion sampling (DDS): the fast point estimate.

With lam_t = noise_std^2 / r_t^2 and white e:

    ( A^H A + lam_t I ) x' = A^H y + lam_t D(x_t)
    x_next = x' + sigma_next ( sqrt(1 - eta^2) (x_t - D(x_t)) / sigma + eta e )

Good means after 20-50 evaluations; the samples are under-dispersed, because x' is a mean and not a draw.

Reference: Chung et al. 2023, arXiv:2303.05754, algorithm 1. Differs: 1. lam_t follows from the noise and the prior's
error instead of a constant. 2. the solve is to tolerance, not a fixed handful of iterations. 3. variance-exploding
noise.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.sampling.local_error import WithLocalError
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row

__all__ = ["DDS"]


class DDS(WithLocalError):
    """Decomposed diffusion sampling (module docstring).

    Args:
        steps: Number of noise levels.
        eta: Share of fresh noise, 0 (deterministic after the start) to 1.
        options: Of :class:`WithLocalError`; ``error`` is white without fresh noise.
    """

    name: ClassVar[str] = "dds"

    def __init__(self, steps: int = 50, *, eta: float = 0.85, **options: Any) -> None:
        require(0 <= eta <= 1, f"eta must lie between 0 and 1; got {eta}.")
        options.setdefault("error", "local" if eta > 0 else "white")
        super().__init__(steps, **options)
        require(eta > 0 or self.error == "white", "a local error is learned from fresh noise: eta must be positive.")
        self.eta = eta

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        denoised = self._denoised(problem, level, x_t)
        _, lam = self.belief(problem, level, denoised)
        # Without slack: x' is a mean, and an error of it is not hidden, it adds up from level to level.
        x = problem.data_step(problem.backprojection, denoised, lam, level.rtol)
        if level.last:
            return x
        kept = math.sqrt(1 - self.eta**2) * level.sigma_next / level.sigma
        return self.add_noise(problem, level, x + per_row(kept, x) * (x_t - denoised), self.eta)

    def _denoised(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        """D(x_t)."""
        return problem.denoise(x_t, level.sigma)
