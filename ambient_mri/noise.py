"""Diffusion noise levels: the law of sigma in training and the ladder of sigmas in sampling.

sigma is the standard deviation of the diffusion noise per real part of the image; x_t = x0 + sigma n. It is never the
noise of the measurement, which is ``noise_std`` everywhere.

Reference: Karras et al. 2022, arXiv:2206.00364 (EDM), section 5 (training law) and equation 5 (ladder).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ambient_mri._checks import check_positive, require
from ambient_mri.tensors import RowGenerators, rand_rows

__all__ = ["TrainingNoise", "karras_ladder"]


@dataclass(frozen=True)
class TrainingNoise:
    """ln sigma ~ N(ln sd + shift, spread), cut to [sigma_min, sigma_max] (in units of sd).

    Attributes:
        shift: Mean of ln(sigma / sd).
        spread: Standard deviation of ln sigma.
        sigma_min: Lowest sigma / sd.
        sigma_max: Highest sigma / sd.
    """

    shift: float = -1.0
    spread: float = 1.5
    sigma_min: float = 0.005
    sigma_max: float = 50.0

    def draw(self, sd: float, generators: RowGenerators, above: Tensor | float = 0.0) -> Tensor:
        """One sigma a row, (b,), by inversion of the cut law, never below ``above`` (a number or (b,))."""
        # Everything stays where the streams are: a copy to the CPU would wait for the GPU at every step.
        uniform = rand_rows(generators, 1)[:, 0].double()
        low = (torch.as_tensor(above, dtype=torch.float64, device=uniform.device) / sd).clamp_min(self.sigma_min)
        low = low.expand(len(generators))
        start = torch.special.ndtr((low.log() - self.shift) / self.spread)
        end = 0.5 * (1 + math.erf((math.log(self.sigma_max) - self.shift) / (self.spread * math.sqrt(2))))
        quantile = (start + uniform * (end - start)).clamp(1e-12, 1 - 1e-12)
        sigma = sd * torch.exp(self.shift + self.spread * torch.special.ndtri(quantile))
        return torch.maximum(sigma, low * sd).float()


def karras_ladder(steps: int, sigma_max: float, sigma_min: float, rho: float = 7.0) -> Tensor:
    """Descending noise levels (steps,), sigma_max first, sigma_min last (EDM equation 5, without the final zero).

    Raises:
        AmbientMRIError: Unless 0 < sigma_min < sigma_max and steps >= 1.
    """
    require(steps >= 1, f"a sampler needs at least one step; got {steps}.")
    check_positive("sigma_min", sigma_min)
    require(
        math.isfinite(sigma_max) and sigma_max > sigma_min,
        f"sigma_max must be above sigma_min; got {sigma_max} and {sigma_min}.",
    )
    if steps == 1:
        return torch.tensor([sigma_max])
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return levels.float()
