r"""One-step reconstruction: an ambient network at the data's own noise level, then a data-consistency solve.

    D = network(y, sigma = noise_std, A) ,      ( A^H A + lam I ) x = A^H y + lam D ,      lam = noise_std^2 / r^2

r is the ambient network's error. Training at sigma = noise_std supervises the network on lines that it did not see, and
on those alone: both parts belong to the estimator. It is a point estimate; there is nothing to sample.

Reference: Millard & Chiew 2024, arXiv:2210.01696 (robust SSDU); Daras et al. 2024, arXiv:2404.10177.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import PriorError, require
from ambient_mri.denoiser import Denoiser
from ambient_mri.sampling.ambient import ambient_of
from ambient_mri.sampling.base import Sampler
from ambient_mri.sampling.data_step import repeat_rows
from ambient_mri.sampling.problem import Level, Problem

__all__ = ["OneStep"]


class OneStep(Sampler):
    """One-step reconstruction (module docstring).

    Args:
        steps: 1.
        options: ``data_step`` and ``cg_iterations`` of :class:`Sampler`.
    """

    name: ClassVar[str] = "one_step"
    accepts: ClassVar[tuple[str, ...]] = ("ambient", "feedforward")
    refusal: ClassVar[str] = (
        "one step reconstructs with a network that was trained to fill in missing measurements; a clean denoiser only "
        "removes noise. Use split_gibbs or dds."
    )
    stochastic: ClassVar[bool] = False

    def __init__(self, steps: int = 1, **options: Any) -> None:
        require(steps == 1, f"{self.name} has one step, whatever the prior; got steps={steps}. Leave it out.")
        super().__init__(1, **options)

    def ladder(self, denoiser: Denoiser, noise_std: float) -> Tensor:
        """One level: the noise of the data, inside the range that the network was made for."""
        return torch.tensor([min(max(noise_std, denoiser.sigma_min), denoiser.sigma_max)])

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        ambient = ambient_of(self, problem)
        require(
            ambient.model.noise_domain == "kspace",
            f"{self.name} hands over measured k-space, whose noise is independent in every coil; this network was "
            "trained with noise of the image, projected. Use adps.",
            PriorError,
        )
        mask = ambient.measurement.mask
        kept = repeat_rows(mask, len(x_t) // len(mask))
        problem.evaluations += 1
        guess = ambient.model(problem.y, level.sigma, problem.operator, kept)
        return problem.data_step(problem.backprojection, guess, level.lam, level.rtol)
