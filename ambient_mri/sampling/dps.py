r"""Diffusion posterior sampling (DPS): a step of the reverse diffusion, then a step along the gradient of the misfit.

    x_next = ancestral(x_t, D) - zeta_t grad_x || y - A D(x_t) ||^2 / || y - A D(x_t) ||

The paper's zeta belongs to variance-preserving states of 3 x 256 x 256 images in [-1, 1] and 1000 steps. Its meaning is
carried over: u = x / c with c(sigma)^2 = 1 + (sigma / 2 sd)^2 is that state, 2 sd is the unit of those images, and a
path of 1000 steps crosses the norm of such an image, sqrt(n / n0) times as large for n real numbers:

    zeta_t = zeta c(sigma) c(sigma_next) 2 sd sqrt(n / 196608) 1000 / steps

A constant step length, whatever the noise of the data: simple, slow, and never quite at rest. Programs that
differentiate || y - A D || instead of its square over itself mean twice this zeta.

Reference: Chung et al. 2023, arXiv:2209.14687, algorithm 1. Differs: 1. variance-exploding state and zeta as above.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import check_positive
from ambient_mri.sampling.guidance import AncestralSampler, WithoutDataStep, row_norm, value_and_vjp
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row

__all__ = ["DPS"]

# Real numbers of an image, and steps, in the experiments that the paper's zeta belongs to.
_PAPER_NUMBERS, _PAPER_STEPS = 3 * 256 * 256, 1000


class DPS(AncestralSampler, WithoutDataStep):
    """Diffusion posterior sampling (module docstring).

    Args:
        steps: Number of noise levels.
        zeta: Step length of the likelihood, the paper's; it uses 0.3 to 1.
        options: ``eta`` of :class:`AncestralSampler`, and those of :class:`Sampler`.
    """

    name: ClassVar[str] = "dps"

    def __init__(self, steps: int = 1000, *, zeta: float = 1.0, **options: Any) -> None:
        super().__init__(steps, **options)
        check_positive("zeta", zeta)
        self.zeta = zeta

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        denoised, vjp = value_and_vjp(problem, lambda x: problem.denoise(x, level.sigma), x_t)
        misfit = problem.y - problem.operator.forward(denoised)
        norm = row_norm(misfit).clamp_min(torch.finfo(level.sigma.dtype).tiny)
        uphill = -2 * vjp(problem.operator.adjoint(misfit)) / per_row(norm, x_t)
        length = per_row(self._length(problem, level, x_t), x_t)
        return self.move(problem, level, x_t, denoised) - length * uphill

    def _length(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        """zeta_t, (b,)."""
        unit = 2 * problem.denoiser.sd
        numbers = x_t[0].numel() * (2 if x_t.is_complex() else 1)
        state = (1 + (level.sigma / unit).square()).sqrt() * (1 + (level.sigma_next / unit).square()).sqrt()
        scale = unit * math.sqrt(numbers / _PAPER_NUMBERS) * _PAPER_STEPS / self.steps
        return self.zeta * scale * state
