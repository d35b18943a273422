r"""Unconditional samples by EDM's second-order solver: what a prior believes, before any data.

With t = sigma, gamma = min(churn / steps, sqrt(2) - 1) and e white:

    t' = (1 + gamma) t ,  x' = x_t + sqrt(t'^2 - t^2) e ,       d  = (x' - D(x'; t')) / t'
    x  = x' + (t_next - t') d ,                                 d2 = (x - D(x; t_next)) / t_next
    x_next = x' + (t_next - t') (d + d2) / 2                    (without the second line at the last level)

Reference: Karras et al. 2022, arXiv:2206.00364, algorithm 2 (churn = 0: algorithm 1). Differs: 1. the ladder runs from
the denoiser's highest level (at most 160 sd) to its lowest (at least sd / 250), the paper's range in units of its sd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, PriorError, check_positive, require
from ambient_mri.denoiser import AmbientDenoiser, Denoiser
from ambient_mri.operators.base import Identity
from ambient_mri.sampling.base import Callback, SamplerResult
from ambient_mri.sampling.guidance import NoDataStep, WithoutDataStep
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row

__all__ = ["Heun", "unconditional"]

_MOST_CHURN = math.sqrt(2) - 1


class Heun(WithoutDataStep):
    """EDM's solver (module docstring). It draws from the prior: see :meth:`draw`.

    Args:
        steps: Number of noise levels; all but the last cost two evaluations.
        churn: S_churn, fresh noise: 0 for the deterministic solver.
        churn_range: (S_tmin, S_tmax), the levels with fresh noise, in units of sigma.
        options: ``sigma_max``, ``sigma_min`` and ``rho`` of :class:`Sampler`.
    """

    name: ClassVar[str] = "heun"
    accepts: ClassVar[tuple[str, ...]] = ()
    refusal: ClassVar[str] = (
        "it draws from the prior alone and never looks at data. Use split_gibbs, or for samples of a clean prior "
        "`ambient-mri sample` and sampling.unconditional()."
    )

    def __init__(
        self, steps: int = 40, *, churn: float = 0.0, churn_range: tuple[float, float] = (0.0, math.inf), **options: Any
    ) -> None:
        super().__init__(steps, **options)
        check_positive("churn", churn, allow_zero=True)
        low, high = churn_range
        require(0 <= low <= high, f"churn_range must be two levels in ascending order; got {tuple(churn_range)}.")
        self.churn, self.churn_range = churn, (float(low), float(high))

    def sigma_range(self, denoiser: Denoiser, noise_std: float) -> tuple[float, float]:
        """(sigma_max, sigma_min): all of what the denoiser was made for, within the paper's range."""
        high = 160 * denoiser.sd if self.sigma_max is None else self.sigma_max
        low = denoiser.sd / 250 if self.sigma_min is None else self.sigma_min
        return min(high, denoiser.sigma_max), max(low, denoiser.sigma_min)

    @torch.no_grad()
    def draw(
        self,
        denoiser: Denoiser,
        shape: tuple[int, int, int],
        generators: Sequence[torch.Generator],
        *,
        dtype: torch.dtype = torch.complex64,
        callback: Callback | None = None,
    ) -> SamplerResult:
        """One sample of the prior for every generator.

        Args:
            denoiser: A clean one.
            shape: Of one image, (channels, H, W).
            generators: One a row.
            dtype: Of the images; real for a prior of real images.
            callback: Called with (level, new state) after every step.

        Returns:
            Samples (b, *shape) in the units of the denoiser, on the device of the generators.

        Raises:
            PriorError: If the denoiser is an ambient network's.
            AmbientMRIError: If the shape is not that of an image, or the result is not finite.
        """
        clean = isinstance(denoiser, Denoiser) and not isinstance(denoiser, AmbientDenoiser)
        reason = "unconditional samples need a clean prior: an ambient network has to be given some data."
        require(clean, reason, PriorError)
        require(len(generators) > 0, "unconditional samples need one generator a row; got none.")
        good = len(shape) == 3 and all(n >= 1 for n in shape)
        require(good, f"shape must be (channels, height, width); got {tuple(shape)}.")
        empty = torch.zeros(len(generators), *shape, dtype=dtype, device=generators[0].device)
        noise_std = torch.zeros(len(generators), dtype=empty.real.dtype, device=empty.device)
        problem = Problem(denoiser, Identity(), empty, noise_std, generators, empty, NoDataStep())
        return self._walk(problem, None, callback, "Is the prior trained?")

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        sigma, x = self._churned(problem, level, x_t)
        slope = (x - problem.denoise(x, sigma)) / per_row(sigma, x)
        change = per_row(level.sigma_next - sigma, x)
        euler = x + change * slope
        if level.last:
            return euler
        second = (euler - problem.denoise(euler, level.sigma_next)) / per_row(level.sigma_next, x)
        return x + change * (slope + second) / 2

    def _churned(self, problem: Problem, level: Level, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """(t', x'): the state at a somewhat higher level."""
        gamma = min(self.churn / self.steps, _MOST_CHURN)
        if gamma == 0:
            return level.sigma, x_t
        low, high = self.churn_range
        inside = (level.sigma >= low) & (level.sigma <= high)
        sigma = torch.where(inside, (1 + gamma) * level.sigma, level.sigma)
        added = (sigma.square() - level.sigma.square()).clamp_min(0).sqrt()
        return sigma, x_t + per_row(added, x_t) * problem.image_noise()


def unconditional(
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    generators: Sequence[torch.Generator],
    steps: int = 40,
    **options: Any,
) -> Tensor:
    """Samples of a clean prior, (b, *shape); see :meth:`Heun.draw`.

    Args:
        denoiser: A clean one.
        shape: Of one image, (channels, H, W).
        generators: One a row.
        steps: Number of noise levels.
        options: ``dtype`` and ``callback`` of :meth:`Heun.draw`, the others of :class:`Heun`.

    Raises:
        AmbientMRIError: As :meth:`Heun.draw`; also if an option does not exist.
    """
    given = {key: options.pop(key) for key in ("dtype", "callback") if key in options}
    try:
        sampler = Heun(steps, **options)
    except TypeError as error:
        raise AmbientMRIError(f"heun does not take these options: {error}.") from error
    return sampler.draw(denoiser, shape, generators, **given).x
