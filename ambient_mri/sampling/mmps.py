r"""Moment matching posterior sampling (MMPS): the likelihood of x_t with the denoiser's own covariance.

With p(x0 | x_t) ~ N(D, V) and V = Cov[x0 | x_t] = sigma^2 J^T (Tweedie's second formula):

    ( noise_std^2 I + A V A^H ) v = y - A D ,     D_y = D + V A^H v

In a Gaussian world D_y is E[x0 | x_t, y] exactly. For w = r_t^2 A^H v, in the image and in units of r_t^2, the system
reads

    ( lam_t I + A^H A V / r_t^2 ) w = A^H ( y - A D ) ,     D_y = D + (V / r_t^2) w ,     lam_t = noise_std^2 / r_t^2

and the data step that all samplers share, ( A^H A + lam_t I )^-1, is its inverse where V = r_t^2 I: as a
preconditioner it leaves to the iterations only how V differs from that; the right-hand side becomes PiGDM's guidance.
Every iteration is one vector-Jacobian product. The Jacobian of a network is symmetric in theory alone, so the solver is
GMRES, which does not need it to be.

Reference: Rozet et al. 2024, arXiv:2405.13712, section 4 and algorithm 3. Differs: 1. preconditioned GMRES in the image
instead of conjugate gradients in the data. 2. lam_t is at least 1e-4, so that noiseless data are a regular system.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.operators.linear_solvers import gmres
from ambient_mri.sampling.guidance import AncestralSampler, value_and_vjp
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row

__all__ = ["MMPS"]

# The preconditioner need not be exact, but it must be nearly the same map every time.
_RTOL = 1e-3


class MMPS(AncestralSampler):
    """Moment matching posterior sampling (module docstring).

    Args:
        steps: Number of noise levels.
        iterations: Of the solver, each one vector-Jacobian product.
        options: ``eta`` of :class:`AncestralSampler`, and those of :class:`Sampler`.
    """

    name: ClassVar[str] = "mmps"

    def __init__(self, steps: int = 100, *, iterations: int = 5, **options: Any) -> None:
        super().__init__(steps, **options)
        require(iterations >= 1, f"iterations must be at least 1; got {iterations}.")
        self.iterations = iterations

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        denoised, vjp = value_and_vjp(problem, lambda x: problem.denoise(x, level.sigma), x_t)
        ratio, lam = per_row((level.sigma / level.r_t).square(), x_t), per_row(level.lam, x_t)
        nothing, rtol = torch.zeros_like(x_t), level.rtol.clamp_max(_RTOL)

        def system(w: Tensor) -> Tensor:
            image = lam * w + problem.operator.normal(ratio * vjp(w))
            return problem.data_step(image, nothing, level.lam, rtol)

        misfit = problem.backprojection - problem.operator.normal(denoised)
        right = problem.data_step(misfit, nothing, level.lam, rtol)
        w, residual = gmres(system, right, iterations=self.iterations)
        problem.memory["residual"] = residual
        return self.move(problem, level, x_t, denoised + ratio * vjp(w))

    def _status(self, problem: Problem, levels: list[Level]) -> dict[str, Any]:
        residual: Tensor = problem.memory.get("residual", torch.zeros(1))
        return {**super()._status(problem, levels), "solver_residual": float(residual.max())}
