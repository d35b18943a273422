"""The exact denoiser of a Gaussian world."""

from __future__ import annotations

import torch
from torch import Tensor

from ambient_mri.denoiser.base import Denoiser

__all__ = ["GaussianDenoiser"]


class GaussianDenoiser(Denoiser):
    r"""The analytic denoiser of x0 ~ N(mean, covariance): D = mean + C (C + sigma^2 I)^-1 (x_t - mean). An exact
    oracle.

    Args:
        covariance: C per real part, Hermitian (n, n), n = H W: x0 = mean + C^(1/2) e with e of unit variance per real
            part.
        mean: (H, W) complex.
        sigma_min: As for :class:`Denoiser`.
        sigma_max: As for :class:`Denoiser`.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor

    def __init__(self, covariance: Tensor, mean: Tensor, *, sigma_min: float = 1e-3, sigma_max: float = 100.0) -> None:
        variances, basis = torch.linalg.eigh(covariance)
        super().__init__(float(variances.clamp_min(0).mean().sqrt()), sigma_min, sigma_max)
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.register_buffer("variances", variances.clamp_min(0))

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        centred = (x_t - self.mean).flatten(1).to(self.basis.dtype)
        gain = self.variances[None] / (self.variances[None] + sigma.to(self.variances).square()[:, None])
        denoised = ((centred @ self.basis.conj()) * gain) @ self.basis.T
        return self.mean + denoised.reshape(x_t.shape).to(x_t.dtype)

    def posterior_std(self, sigma: Tensor) -> Tensor:
        square = sigma.to(self.variances).square()[:, None]
        return (self.variances * square / (self.variances + square)).mean(dim=1).sqrt().to(sigma)
