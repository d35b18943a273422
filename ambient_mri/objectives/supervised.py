"""The EDM denoising objective on images: with reference images the upper bound, with reconstructions the M-step of EM.

    J = E  lambda(sigma) || D(x0 + sigma n, sigma) - x0 ||^2 ,      lambda = (sigma^2 + sd^2) / (sigma^2 sd^2)

Reference: Karras et al. 2022, arXiv:2206.00364, equation 2 and Table 1.
"""

from __future__ import annotations

from torch import Tensor

from ambient_mri.denoiser import CleanDenoiser, Denoiser, output_scale
from ambient_mri.noise import TrainingNoise
from ambient_mri.objectives.base import Loss
from ambient_mri.tensors import RowGenerators, per_row, randn_like_rows

__all__ = ["SupervisedObjective"]


class SupervisedObjective:
    """Denoising of images (module docstring).

    Args:
        noise: Law of sigma.
    """

    kind = "clean"

    def __init__(self, noise: TrainingNoise | None = None) -> None:
        self.noise = TrainingNoise() if noise is None else noise

    def __call__(self, model: Denoiser, batch: Tensor, generators: RowGenerators) -> Loss:
        sigma = self.noise.draw(model.sd, generators).to(batch.device)
        x_t = batch + per_row(sigma, batch) * randn_like_rows(batch, generators)
        error = (model(x_t, sigma) - batch).abs().square().mean(dim=(1, 2, 3)) / (2 if batch.is_complex() else 1)
        # 1 / c_out^2 of the model's own preconditioning: EDM's, unless it has a linear start.
        if isinstance(model, CleanDenoiser):
            scale = model.expected_error(sigma)
        else:
            scale = output_scale(sigma, model.sd, 1.0, 0.0)
        weight = scale.square().reciprocal()
        return Loss((weight * error).mean(), {"residual": error.mean().sqrt()})
