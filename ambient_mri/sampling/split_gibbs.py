r"""Split Gibbs sampling, the default: in turns the prior, one denoiser call, and the exact linear-Gaussian data step.

With white e1 (in the space of y), e2 and e3 (image), lam_t = noise_std^2 / r_t^2, and a share eta of fresh noise,

    ( A^H A + lam_t I ) x' = A^H ( y + noise_std e1 ) + lam_t ( D(x_t) + (1 - 0.8 k) r_t e2 )
    x_next = x' + k ( x_t - D(x_t) ) + sigma_next sqrt( 1 - kappa^2 ) e3 ,   k = kappa sigma_next / sigma
    kappa = sqrt( 1 - eta^2 ) / ( 1 + ( 3 noise_std / sigma_next )^2 )

eta = 1 is the Gibbs sampler: x' is an exact draw of x0 given y and the belief x0 ~ N(D(x_t), r_t^2), "perturb and
solve", and all noise is new. The belief is white; what a network errs is not, and the structure in it is lost at every
level: samples come out too smooth. With eta < 1 the state keeps some of its noise and what that says of x0, and draws
the less. Without data, for Gaussian x0 and g = dD/dx_t, x_next has its law for every eta if it draws (1 - k) r_t e2:
D + (1 - k) r_t e2 lacks g sigma^2 (1 - (1 - k)^2) of the variance of x0, the kept noise g k^2 sigma^2 of its own, and
what they share, 2 g k sigma^2, makes up for both. Data take a part of what they share, and the kept noise leans towards
them: 0.8 gives samples the variance of the exact posterior in the closed form (benchmarks/quality/oracle.py), and below
the noise of the data, where Gibbs steps redraw what these determine, nothing is kept. Nothing is propagated back
through the network. With error = "local", r_t is one for each pixel, learned from e3 as the ladder goes down
(:mod:`ambient_mri.sampling.local_error`).

Where A is the identity, y is itself a state of the diffusion at sigma = noise_std, and p(x0 | y) is what the reverse
diffusion makes of it. The chain starts at y, and with q = (sigma_next / sigma)^2 the next state is a draw given the
belief x0 ~ N(D(x_t), r_t^2):

    x_next = D(x_t) + q ( x_t - D(x_t) ) + sqrt( sigma_next^2 (1 - q) + (1 - q)^2 r_t^2 ) e

Reference: Wu et al. 2024, arXiv:2405.18782 (PnP-DM); Zhang et al. 2024, arXiv:2407.01521 (DAPS), both for linear A.
For A = 1: Bao et al. 2022, arXiv:2201.06503 (Analytic-DPM), the reverse variance with the denoiser's own.
Differs: 1. the prior step is one denoiser call with its posterior variance r_t^2, not a reverse diffusion. 2. r_t comes
from the prior's error curve where it has one. 3. the local error. 4. eta; kept noise as in DDIM (Song et al.
2021, arXiv:2010.02502, equation 12) and DDS (arXiv:2303.05754), which have no draw.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import check_option, require
from ambient_mri.denoiser import AmbientDenoiser
from ambient_mri.noise import karras_ladder
from ambient_mri.operators.base import Identity
from ambient_mri.sampling.base import Callback, SamplerResult
from ambient_mri.sampling.conjugate_gradient_step import ConjugateGradientStep
from ambient_mri.sampling.data_step import Slack
from ambient_mri.sampling.local_error import WithLocalError
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row

__all__ = ["SplitGibbs"]

# Of k, what the draw leaves out, and sigma in units of noise_std where kept noise fades (module docstring).
_SHARED, _FADE = 0.8, 3.0
# In a problem's memory: whether its chains are reverse diffusions.
_REVERSE = "reverse diffusion"


class SplitGibbs(WithLocalError):
    """Split Gibbs (module docstring).

    Args:
        steps: Number of noise levels.
        eta: Share of fresh noise, above 0; 1 is the Gibbs sampler. Kept noise makes means better and samples wider, and
            leans towards the data, also where A, noise_std or the prior are wrong.
        final: ``"sample"``: the last step is perturbed like every other, and the result is a sample. ``"mean"``: it is
            not, and the result is the mean of x0 given y and the last state, with less noise and too small a variance.
        options: Of :class:`WithLocalError`.

    A start image is not read where A is the identity.
    """

    name: ClassVar[str] = "split_gibbs"

    def __init__(self, steps: int = 50, *, eta: float = 0.9, final: str = "sample", **options: Any) -> None:
        super().__init__(steps, **options)
        require(0 < eta <= 1, f"eta must lie between 0 and 1, 1 included; got {eta}.")
        check_option("final", final, ("sample", "mean"))
        self.eta, self.final = eta, final

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        data, guess = problem.backprojection, problem.denoise(x_t, level.sigma)
        if problem.memory.get(_REVERSE):
            return self._reverse_step(problem, level, x_t, guess)
        r_t, lam = self.belief(problem, level, guess)
        if level.last and self.final == "mean":
            return problem.data_step(data, guess, lam, level.rtol)
        if self.eta == 1:
            guess = guess + r_t * problem.image_noise()
            x = problem.perturbed_step(data, guess, problem.noise_std, lam, level.rtol, level.slack)
            return x if level.last else self.add_noise(problem, level, x)
        return self._keeping_step(problem, level, x_t, guess, r_t, lam)

    def _keeping_step(
        self, problem: Problem, level: Level, x_t: Tensor, guess: Tensor, r_t: Tensor, lam: Tensor
    ) -> Tensor:
        """A step that keeps a part of the noise of x_t."""
        kappa = self._kept(level)
        kept = kappa * level.sigma_next / level.sigma
        drawn, fresh = 1 - _SHARED * kept, (1 - kappa.square()).sqrt()
        noisy = guess + per_row(drawn, guess) * r_t * problem.image_noise()
        slack = None if level.slack is None else Slack(drawn * level.slack.noise_std, fresh * level.slack.added)
        x = problem.perturbed_step(problem.backprojection, noisy, problem.noise_std, lam, level.rtol, slack)
        if level.last:
            return x
        return self.add_noise(problem, level, x + per_row(kept, x) * (x_t - guess), fresh)

    def _kept(self, level: Level) -> Tensor:
        """kappa, (b,); zero at the last level."""
        noise = level.lam.sqrt() * level.r_t  # that of the data, floored
        square = level.sigma_next.square()
        return math.sqrt(1 - self.eta**2) * square / (square + (_FADE * noise).square())

    def _reverse_step(self, problem: Problem, level: Level, x_t: Tensor, denoised: Tensor) -> Tensor:
        """A draw of the next state without a data step, for A = 1."""
        if level.last and self.final == "mean":
            return denoised
        q = (level.sigma_next / level.sigma).square()
        spread = (level.sigma_next.square() * (1 - q) + (1 - q).square() * level.r_t.square()).sqrt()
        return denoised + per_row(q, x_t) * (x_t - denoised) + per_row(spread, x_t) * problem.image_noise()

    def _walk(
        self, problem: Problem, x_init: Tensor | None, callback: Callback | None, if_not_finite: str
    ) -> SamplerResult:
        """By the reverse diffusion the rows whose data are a state that the denoiser knows, as ever the others."""
        reverse = _states(problem)
        if reverse.all() or not reverse.any():
            problem.memory[_REVERSE] = bool(reverse.all())
            return super()._walk(problem, x_init, callback, if_not_finite)
        x, status = torch.empty_like(problem.backprojection), dict[str, Any]()
        for rows in (torch.nonzero(reverse)[:, 0], torch.nonzero(~reverse)[:, 0]):
            part = replace(
                problem,
                data=problem.y[rows],
                noise_std=problem.noise_std[rows],
                generators=[problem.generators[row] for row in rows.tolist()],
                backprojection=problem.backprojection[rows],
                data_step=ConjugateGradientStep(problem.operator, slices=1, max_iterations=self.cg_iterations),
                memory={},
            )
            found = self._walk(part, None if x_init is None else x_init[rows], callback, if_not_finite)
            x[rows], status = found.x, found.status
        return SamplerResult(x, status)

    def _sigmas(self, problem: Problem) -> Tensor:
        if not problem.memory.get(_REVERSE):
            return super()._sigmas(problem)
        denoiser, ladders = problem.denoiser, []
        for noise_std in problem.noise_std.tolist():
            low = denoiser.sd / 100 if self.sigma_min is None else self.sigma_min
            low = min(max(low, denoiser.sigma_min), 0.5 * noise_std)
            ladders.append(karras_ladder(self.steps, noise_std, low, self.rho))
        return torch.stack(ladders, dim=1).to(problem.noise_std)

    def _start(self, problem: Problem, sigma: Tensor, x_init: Tensor | None) -> Tensor:
        return problem.y.clone() if problem.memory.get(_REVERSE) else super()._start(problem, sigma, x_init)


def _states(problem: Problem) -> Tensor:
    """Rows, (b,) bool, whose y is a state that the denoiser knows: A = 1, and a noise that it was made for."""
    if not isinstance(problem.operator, Identity) or isinstance(problem.denoiser, AmbientDenoiser):
        return torch.zeros(len(problem.noise_std), dtype=torch.bool)
    low, high = 2 * problem.denoiser.sigma_min, problem.denoiser.sigma_max
    return ((problem.noise_std > low) & (problem.noise_std <= high)).cpu()
