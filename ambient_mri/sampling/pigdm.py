r"""Pseudoinverse-guided diffusion (PiGDM): the likelihood of x_t with a scalar covariance for the denoiser.

With p(x0 | x_t) ~ N(D, r_t^2 I) and J the Jacobian of D:

    D_y = D + sigma^2 J^T A^H ( r_t^2 A A^H + noise_std^2 I )^-1 ( y - A D )
        = D + (sigma^2 / r_t^2) J^T ( x' - D ) ,      ( A^H A + lam_t I ) x' = A^H y + lam_t D

the second form with lam_t = noise_std^2 / r_t^2, so that the data step of all samplers serves here too: one solve and
one vector-Jacobian product a level.

Reference: Song et al. 2023, ICLR, "Pseudoinverse-guided diffusion models for inverse problems", equation 7 and
algorithm 1. Differs: 1. variance-exploding state. 2. r_t from the prior's error curve instead of unit-variance images.
3. the guidance has its own weight sigma^2 (Tweedie), not the adaptive one of the paper's experiments.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ambient_mri.sampling.base import Level, Problem
from ambient_mri.sampling.guidance import AncestralSampler, value_and_vjp
from ambient_mri.tensors import per_row

__all__ = ["PiGDM"]


class PiGDM(AncestralSampler):
    """Pseudoinverse-guided diffusion (module docstring); arguments of :class:`AncestralSampler`."""

    name: ClassVar[str] = "pigdm"

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        denoised, vjp = value_and_vjp(problem, lambda x: problem.denoise(x, level.sigma), x_t)
        pulled = problem.data_step(problem.backprojection, denoised, level.lam, level.rtol)
        ratio = per_row((level.sigma / level.r_t).square(), x_t)
        return self.move(problem, level, x_t, denoised + ratio * vjp(pulled - denoised))
