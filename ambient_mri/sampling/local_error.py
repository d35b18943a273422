r"""How far the denoiser may be off in every pixel, learned from the noise that the sampler adds anyway.

D(x_t) is right up to V = Cov[x0 | x_t] = sigma^2 J, J = dD/dx_t (Tweedie's second formula). Its average is r_t^2; a
data step that takes it for r_t^2 I believes the background too little and edges too much. The diagonal of V costs
nothing: where x_t = x' + sigma e with fresh white e, Stein's identity is, for any c that does not depend on e,

    sigma E_e[ e^* ( D(x_t) - c ) ] = sigma^2 diag J = diag V

One draw of it is as noisy as it is free. With c = D of the step before, which is near, rho = diag V / r_t^2 is followed
by averages over neighbouring pixels (G) and over the steps:

    rho <- (1 - a) rho + a G [ sigma Re( e^* ( D(x_t) - c ) ) / r_t^2 ] ,     rho = 1 at the start

and the data step is given lam_t / rho and noise of r_t sqrt(rho) in place of lam_t and r_t. Only where the error is
comes from rho; how large it is on average stays the prior's measured curve: rho is at least 0.1, and scaled to a mean
of one. Where only a part eta of the state's noise is fresh, the identity's left-hand side is divided by eta.

Source: Stein 1981, Annals of Statistics 9:1135; probes of a denoiser's Jacobian: Ramani et al. 2008, IEEE TIP 17:1540;
Cov[x0 | x_t]: Rozet et al. 2024, arXiv:2405.13712, equation 18. That the sampler's own noise is the probe is ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ambient_mri._checks import check_option
from ambient_mri.denoiser import AmbientDenoiser
from ambient_mri.sampling.base import Sampler
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row

__all__ = ["LocalError", "WithLocalError"]

# Pixels of the Gaussian G, share of the ladder that the average over steps reaches back, and the smallest rho: chosen
# on simulated scans of validation subjects.
_WIDTH, _REACH, _SMALLEST = 2.0, 0.2, 0.1
_NEGLIGIBLE = 1e-12


class LocalError:
    """rho of one run (module docstring), for every row its own.

    Args:
        steps: Of the ladder.
    """

    def __init__(self, steps: int) -> None:
        self._new = min(0.5, 1 / (_REACH * steps))
        self._rho = self._before = self._noise = torch.empty(0)
        self._fresh: float | Tensor = 1.0

    def share(self, denoised: Tensor, level: Level) -> Tensor:
        """rho, (b, 1, H, W) and of mean one, given D(x_t) of this level, (b, C, H, W)."""
        if self._noise.numel():
            probe = _real_product(self._noise, denoised - self._before).mean(dim=1, keepdim=True)
            found = _smooth(probe) * per_row(level.sigma / (self._fresh * level.r_t.square()), probe)
            self._rho = self._rho + self._new * (found - self._rho)
        else:
            self._rho = torch.ones_like(denoised.real[:, :1] if denoised.is_complex() else denoised[:, :1])
        self._before = denoised
        positive = self._rho.clamp_min(_SMALLEST)
        return positive / positive.mean(dim=(1, 2, 3), keepdim=True)

    def remember(self, noise: Tensor, fresh: float | Tensor) -> None:
        """``fresh`` sigma_next ``noise`` was added to the state: white noise of unit variance per real part."""
        self._noise, self._fresh = noise, fresh


class WithLocalError(Sampler):
    """A sampler whose data step knows how far the denoiser may be off in every pixel.

    Args:
        steps: Number of noise levels.
        error: Of D(x_t), ``"local"``: in every pixel its own; ``"white"``: r_t in all of them. An ambient network's is
            white whatever is asked for: its Jacobian is blind to what the further mask removed.
        options: Of :class:`Sampler`.
    """

    def __init__(self, steps: int, *, error: str = "local", **options: Any) -> None:
        super().__init__(steps, **options)
        check_option("error", error, ("local", "white"))
        self.error = error

    def _lam_is_local(self, ambient: bool) -> bool:
        return self.error == "local" and not ambient

    def belief(self, problem: Problem, level: Level, denoised: Tensor) -> tuple[Tensor, Tensor]:
        """r_t and lam_t for D(x_t) = ``denoised``: maps (b, 1, H, W), or (b, 1, 1, 1) and (b,) for a white error."""
        if self.error == "white" or isinstance(problem.denoiser, AmbientDenoiser):
            return per_row(level.r_t, denoised), level.lam
        share = problem.memory.setdefault("local error", LocalError(self.steps)).share(denoised, level)
        return per_row(level.r_t, denoised) * share.sqrt(), per_row(level.lam, denoised) / share

    def add_noise(self, problem: Problem, level: Level, x: Tensor, fresh: float | Tensor = 1.0) -> Tensor:
        """``x`` and white noise of ``fresh`` sigma_next; ``fresh`` a number or (b,)."""
        noise = problem.image_noise()
        if "local error" in problem.memory:
            problem.memory["local error"].remember(noise, fresh)
        return x + per_row(fresh * level.sigma_next, x) * noise


def _real_product(a: Tensor, b: Tensor) -> Tensor:
    """Re(a^* b) per real part of ``a``."""
    if not a.is_complex():
        return a * (b.real if b.is_complex() else b)
    return (torch.view_as_real(a) * torch.view_as_real(b)).mean(dim=-1)


def _smooth(x: Tensor) -> Tensor:
    """G x along the last two axes: weights of sum one, of what lies inside the image."""
    rows, columns = (_weights(n, x) for n in x.shape[-2:])
    return rows @ x @ columns.mT


def _weights(n: int, like: Tensor) -> Tensor:
    place = torch.arange(n, dtype=like.dtype, device=like.device)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / _WIDTH).square())
    weights = weights.where(weights > _NEGLIGIBLE, 0)  # subnormal numbers slow a product down ten times
    return weights / weights.sum(dim=1, keepdim=True)
