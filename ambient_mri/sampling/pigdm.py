r"""Pseudoinverse-guided diffusion (PiGDM): the likelihood of x_t with a scalar covariance for the denoiser.

With p(x0 | x_t) ~ N(D, r^2 I), r^2 = sigma^2 sd^2 / (sigma^2 + sd^2), and J the Jacobian of D:

    D_y = D + sigma^2 J^T A^H ( r^2 A A^H + noise_std^2 I )^-1 ( y - A D )
        = D + (sigma^2 / r^2) J^T ( x' - D ) ,      ( A^H A + lam I ) x' = A^H y + lam D ,      lam = noise_std^2 / r^2

the second form so that the data step of all samplers serves here too: one solve and one vector-Jacobian product a
level.

r is the paper's, that of white images, and not the prior's error curve, which other samplers use. Guidance multiplies
the error of D along a direction that A sees by 1 - (sigma^2 / r^2) j, j the denoiser's gain there. The error of a good
prior is far below sigma on average, and close to sigma (j = 1) along its few directions of high variance: with that
average for r, the factor is far below -1 there, and the path diverges. With the paper's r, sigma^2 / r^2 falls to one.

Reference: Song et al. 2023, ICLR, "Pseudoinverse-guided diffusion models for inverse problems", equation 7. Differs:
1. variance-exploding state. 2. images of variance sd^2 instead of one. 3. the guidance keeps the weight of a score,
sigma^2 (Tweedie); algorithm 1 gives it the weight r^2 and adds it to x_next itself, which leaves too small a spread.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ambient_mri.sampling.base import LAM_FLOOR
from ambient_mri.sampling.data_step import relative_tolerance
from ambient_mri.sampling.guidance import AncestralSampler, value_and_vjp
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row

__all__ = ["PiGDM"]


class PiGDM(AncestralSampler):
    """Pseudoinverse-guided diffusion (module docstring); arguments of :class:`AncestralSampler`."""

    name: ClassVar[str] = "pigdm"

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        denoised, vjp = value_and_vjp(problem, lambda x: problem.denoise(x, level.sigma), x_t)
        sd, square = problem.denoiser.sd, level.sigma.square()
        believed = level.sigma * sd / (square + sd**2).sqrt()
        lam = (problem.noise_std / believed).square().clamp_min(LAM_FLOOR)
        rtol = relative_tolerance(problem.backprojection, lam, believed)
        pulled = problem.data_step(problem.backprojection, denoised, lam, rtol)
        ratio = per_row((level.sigma / believed).square(), x_t)
        return self.move(problem, level, x_t, denoised + ratio * vjp(pulled - denoised))
