r"""Ambient diffusion posterior sampling (A-DPS), as published and with its two faults mended.

One further mask B for each scan, drawn once; h = h(x_t, B, sigma) = E[x0 | A_tilde x_t, A_tilde], r = y - A h:

    x_next = x_t + ((sigma_next - sigma) / sigma) ( x_t - h ) - ( l / ||r|| ) grad_x ||r||^2

Euler steps of a probability flow, 500 of them from sigma 10 to 0.004. ``adps`` is the published update, kept to
compare with: it returns the iterate before the last step, which still holds its noise, and its gradient has constant
length, so that it never stops fitting the noise of the data. ``adps_fixed`` takes the last step, and takes no gradient
of rows whose ||r||^2 is no larger than the noise alone makes it, m noise_std^2 for m real numbers measured.

Neither samples the posterior: E[x0 | A_tilde x_t] is not the denoiser of the flow, and its error does not vanish with
sigma.

The network gets its state in the noise domain that it was trained in (:class:`~ambient_mri.denoiser.AmbientDenoiser`):
one trained as published, the projected noise of the image, A_tilde x_t; one of the ambient objective, white noise of
k-space for each coil.

Reference: Aali et al. 2025, arXiv:2403.08728.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import check_positive
from ambient_mri.sampling.ambient import ambient_of
from ambient_mri.sampling.guidance import VJP, WithoutDataStep, row_norm, value_and_vjp
from ambient_mri.sampling.measurement_noise import MeasurementNoise
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row

__all__ = ["ADPS", "ADPSFixed"]


class ADPS(WithoutDataStep):
    """A-DPS as published (module docstring).

    Args:
        steps: Number of noise levels.
        likelihood_weight: l; depends on the size of the images and is meant to be tuned on validation scans, in
            {1, 3, 10, 30} for instance.
        sigma_max: Highest level.
        sigma_min: Lowest level.
        options: ``rho`` of :class:`Sampler`.
    """

    name: ClassVar[str] = "adps"
    accepts: ClassVar[tuple[str, ...]] = ("ambient",)
    refusal: ClassVar[str] = (
        "its update is made for a network that is given a further mask of the scan's data. Use dps, or split_gibbs."
    )

    def __init__(
        self,
        steps: int = 500,
        *,
        likelihood_weight: float = 1.0,
        sigma_max: float = 10.0,
        sigma_min: float = 0.004,
        **options: Any,
    ) -> None:
        super().__init__(steps, sigma_max=sigma_max, sigma_min=sigma_min, **options)
        check_positive("likelihood_weight", likelihood_weight)
        self.likelihood_weight = likelihood_weight

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        if level.last:
            return x_t
        return self._move(problem, level, x_t)

    def _move(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        denoised, vjp = self._denoise(problem, level, x_t)
        misfit = problem.y - problem.operator.forward(denoised)
        norm = row_norm(misfit)
        length = self._length(problem, norm) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        downhill = 2 * vjp(problem.operator.adjoint(misfit))
        flow = per_row((level.sigma_next - level.sigma) / level.sigma, x_t) * (x_t - denoised)
        return x_t + flow + per_row(length, x_t) * downhill

    def _length(self, problem: Problem, norm: Tensor) -> Tensor:
        """l for every row, (b,), given ||r||."""
        return torch.full_like(norm, self.likelihood_weight)

    def _denoise(self, problem: Problem, level: Level, x_t: Tensor) -> tuple[Tensor, VJP]:
        """h and its vector-Jacobian product, for the further mask of this run."""
        ambient = ambient_of(self, problem)
        if "further" not in problem.memory:
            problem.memory["further"] = ambient.corruption.further(ambient.measurement, ambient.generators)
        further = problem.memory["further"]
        problem.evaluations += 1
        return value_and_vjp(
            problem, lambda x: ambient.denoise_partial(x, level.sigma, further.operator, further.kept), x_t
        )


class ADPSFixed(ADPS):
    """A-DPS that takes its last step and stops fitting noise (module docstring); arguments of :class:`ADPS`."""

    name: ClassVar[str] = "adps_fixed"

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        return self._move(problem, level, x_t)

    def _length(self, problem: Problem, norm: Tensor) -> Tensor:
        if "measured" not in problem.memory:
            numbers = MeasurementNoise(problem.operator, problem.y).real_numbers()
            problem.memory["measured"] = torch.tensor(numbers, device=norm.device)
        noise = problem.memory["measured"].sqrt() * problem.noise_std
        return torch.where(norm > noise, super()._length(problem, norm), torch.zeros_like(norm))
