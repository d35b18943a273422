r"""Split Gibbs sampling, the default: in turns the prior, one denoiser call, and the exact linear-Gaussian data step.

With white e1 (in the space of y), e2 and e3 (image), lam_t = noise_std^2 / r_t^2:

    ( A^H A + lam_t I ) x' = A^H ( y + noise_std e1 ) + lam_t ( D(x_t) + r_t e2 ) ,  x_next = x' + sigma_next e3

x' is an exact draw of x0 given y and the belief x0 ~ N(D(x_t), r_t^2): "perturb and solve" gives it for the price of
one linear solve. Nothing is propagated back through the network. With error = "local", r_t is one for each pixel,
learned from e3 as the ladder goes down (:mod:`ambient_mri.sampling.local_error`).

Reference: Wu et al. 2024, arXiv:2405.18782 (PnP-DM); Zhang et al. 2024, arXiv:2407.01521 (DAPS), both for linear A.
Differs: 1. the prior step is one denoiser call with its posterior variance r_t^2, not a reverse diffusion. 2. r_t comes
from the prior's error curve where it has one. 3. the local error.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ambient_mri._checks import check_option
from ambient_mri.sampling.base import Level, Problem
from ambient_mri.sampling.local_error import WithLocalError

__all__ = ["SplitGibbs"]


class SplitGibbs(WithLocalError):
    """Split Gibbs (module docstring).

    Args:
        steps: Number of noise levels.
        final: ``"sample"``: the last step is perturbed like every other, and the result is a sample. ``"mean"``: it is
            not, and the result is the mean of x0 given y and the last state, with less noise and too small a variance.
        options: Of :class:`WithLocalError`.
    """

    name: ClassVar[str] = "split_gibbs"

    def __init__(self, steps: int = 50, *, final: str = "sample", **options: Any) -> None:
        super().__init__(steps, **options)
        check_option("final", final, ("sample", "mean"))
        self.final = final

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        data, guess = problem.backprojection, problem.denoise(x_t, level.sigma)
        r_t, lam = self.belief(problem, level, guess)
        if level.last and self.final == "mean":
            return problem.data_step(data, guess, lam, level.rtol)
        guess = guess + r_t * problem.image_noise()
        x = problem.perturbed_step(data, guess, problem.noise_std, lam, level.rtol, level.slack)
        return x if level.last else self.add_noise(problem, level, x)
