r"""Decoupled annealing posterior sampling (DAPS): an ODE from the state to an image, the data step, noise anew.

    x0_hat: Euler's solution of the probability-flow equation from x_t, in ``ode_steps`` steps
    ( A^H A + lam_t I ) x' = A^H ( y + noise_std e1 ) + lam_t ( x0_hat + r_t e2 ) ,     x_next = x' + sigma_next e3

x' is a draw of x0 given y and the belief x0 ~ N(x0_hat, r_t^2), exact where the paper runs Langevin dynamics. With one
ODE step it is split Gibbs. The ODE's end has the spread of p(x0) already, to which r_t is added once more: samples are
wider than the posterior while sigma is high, and the following levels take it back.

Reference: Zhang et al. 2024, arXiv:2407.01521, algorithm 1. Differs: 1. linear A: the exact draw instead of Langevin
dynamics. 2. r_t is the prior's error instead of sigma_t.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.sampling.base import Sampler
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row

__all__ = ["DAPS"]


class DAPS(Sampler):
    """Decoupled annealing posterior sampling (module docstring).

    Args:
        steps: Number of noise levels.
        ode_steps: Euler steps, each one evaluation, from every state to its image.
        options: Of :class:`Sampler`.
    """

    name: ClassVar[str] = "daps"
    accepts: ClassVar[tuple[str, ...]] = ("clean",)
    refusal: ClassVar[str] = (
        "its ODE is the probability flow of E[x0 | x_t]; an ambient network follows another one for every further "
        "mask. Use split_gibbs."
    )

    def __init__(self, steps: int = 200, *, ode_steps: int = 5, **options: Any) -> None:
        super().__init__(steps, **options)
        require(ode_steps >= 1, f"ode_steps must be at least 1; got {ode_steps}.")
        self.ode_steps = ode_steps

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        guess = self._flow(problem, x_t, level.sigma)
        guess = guess + per_row(level.r_t, guess) * problem.image_noise()
        x = problem.perturbed_step(problem.backprojection, guess, problem.noise_std, level.lam, level.rtol, level.slack)
        return x if level.last else x + per_row(level.sigma_next, x) * problem.image_noise()

    def _flow(self, problem: Problem, x_t: Tensor, sigma: Tensor) -> Tensor:
        """x0_hat: down a ladder of the same curvature as the sampler's own, from every row's sigma to zero."""
        end = torch.full_like(sigma, super().sigma_range(problem.denoiser, 0.0)[1]).minimum(sigma)
        high, low = sigma ** (1 / self.rho), end ** (1 / self.rho)
        x, level = x_t, sigma
        for i in range(1, self.ode_steps + 1):
            following = (high + (low - high) * (i / self.ode_steps)) ** self.rho
            if i == self.ode_steps:
                following = torch.zeros_like(sigma)
            denoised = problem.denoise(x, level)
            x = denoised + per_row(following / level, x) * (x - denoised)
            level = following
        return x
