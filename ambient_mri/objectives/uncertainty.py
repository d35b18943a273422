r"""The EDM denoising objective with a learned uncertainty of every noise level.

    J = E  e / u(sigma)^2 + ln u(sigma)^2 ,      e = lambda(sigma) || D(x0 + sigma n, sigma) - x0 ||^2  per real part

For a given D the minimum over u is u(sigma)^2 = E[e | sigma]: every level gets the same share of the gradient, whatever
its loss, and u / sqrt(lambda) is the denoiser's rms error at sigma - the error curve of the prior, at no cost. It is
the error on the training images; the curve measured on held-out ones, where there are any, is the one that samplers
use.

Reference: Karras et al. 2024, arXiv:2312.02696; Kendall et al. 2018, arXiv:1705.07115. Differs: 1. the
head is linear in a few smooth features of ln sigma. 2. it is kept, and stored with the prior.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri.denoiser import CleanDenoiser
from ambient_mri.noise import TrainingNoise
from ambient_mri.objectives.base import Loss
from ambient_mri.tensors import RowGenerators, per_row, randn_like_rows, squared_modulus

__all__ = ["UncertaintyObjective"]


class UncertaintyObjective:
    """Denoising of images with a learned uncertainty (module docstring).

    Args:
        noise: Law of sigma.
    """

    kind: ClassVar[str] = "clean"
    architecture: ClassVar[dict[str, Any]] = {"error_frequencies": 4}

    def __init__(self, noise: TrainingNoise | None = None) -> None:
        self.noise = TrainingNoise() if noise is None else noise

    def __call__(self, model: CleanDenoiser, batch: Tensor, generators: RowGenerators) -> Loss:
        sigma = self.noise.draw(model.sd, generators).to(batch.device)
        x_t = batch + per_row(sigma, batch) * randn_like_rows(batch, generators)
        parts = 2 if batch.is_complex() else 1
        error = squared_modulus(model(x_t, sigma) - batch).mean(dim=(1, 2, 3)) / parts
        weighted = error * model.expected_error(sigma).square().reciprocal()
        log_variance = model.log_relative_variance(sigma)
        loss = weighted * torch.exp(-log_variance) + log_variance
        return Loss(loss.mean(), {"residual": error.mean().sqrt(), "weighted": weighted.mean()})
