r"""DiffPIR: plug-and-play restoration with a diffusion denoiser; half-quadratic splitting along the noise ladder.

    ( A^H A + rho_t I ) x' = A^H y + rho_t D(x_t) ,      rho_t = lambda noise_std^2 / sigma^2
    x_next = x' + sigma_next ( sqrt(1 - zeta) (x_t - x') / sigma + sqrt(zeta) e )

It is the lam_t of DDS with r_t = sigma / sqrt(lambda). x' minimises || y - A x ||^2 + rho_t || x - D ||^2, the paper's
data subproblem, with sigma and noise_std in one unit; a program that halves the misfit alone, or whose sigma belongs to
images in [-1, 1] and whose noise_std to [0, 1], means a multiple of this lambda. No back-propagation; the samples are
under-dispersed.

Reference: Zhu et al. 2023, arXiv:2305.08995, algorithm 1. Differs: 1. variance-exploding noise. 2. rho_t is at least
1e-4, so that noiseless data are a regular system.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from ambient_mri._checks import check_positive, require
from ambient_mri.denoiser import Denoiser
from ambient_mri.sampling.base import LAM_FLOOR, Sampler
from ambient_mri.sampling.data_step import relative_tolerance
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row

__all__ = ["DiffPIR"]


class DiffPIR(Sampler):
    """DiffPIR (module docstring).

    Args:
        steps: Number of noise levels.
        lam: lambda, trust in the denoiser; the paper's values lie between 1 and 25.
        zeta: Share of fresh noise, 0 to 1.
        options: Of :class:`Sampler`; ``sigma_min`` is sd / 100 when not given, whatever the noise of the data.
    """

    name: ClassVar[str] = "diffpir"

    def __init__(self, steps: int = 100, *, lam: float = 2.0, zeta: float = 0.3, **options: Any) -> None:
        super().__init__(steps, **options)
        check_positive("lam", lam)
        require(0 <= zeta <= 1, f"zeta must lie between 0 and 1; got {zeta}.")
        self.lam, self.zeta = lam, zeta

    def sigma_range(self, denoiser: Denoiser, noise_std: float) -> tuple[float, float]:
        """(sigma_max, sigma_min); the lower end does not depend on the data's noise."""
        return super().sigma_range(denoiser, 0.0)

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        denoised = problem.denoise(x_t, level.sigma)
        rho = (self.lam * (problem.noise_std / level.sigma).square()).clamp_min(LAM_FLOOR)
        believed = level.sigma / math.sqrt(self.lam)
        rtol = relative_tolerance(problem.backprojection, rho, believed)
        x = problem.data_step(problem.backprojection, denoised, rho, rtol)
        if level.last:
            return x
        direction = (x_t - x) / per_row(level.sigma, x)
        noise = math.sqrt(1 - self.zeta) * direction + math.sqrt(self.zeta) * problem.image_noise()
        return x + per_row(level.sigma_next, x) * noise
