"""What a denoiser is."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ambient_mri._checks import check_positive, require

__all__ = ["Denoiser"]


class Denoiser(nn.Module):
    """x_hat = E[x0 | x_t] at noise level sigma.

    Attributes:
        sd: Rms of a real channel of the images.
        sigma_min: Lowest sigma that the denoiser was made for.
        sigma_max: Highest sigma that the denoiser was made for.
    """

    error_sigmas: Tensor
    error_values: Tensor

    def __init__(self, sd: float, sigma_min: float, sigma_max: float) -> None:
        super().__init__()
        check_positive("sd", sd)
        self.sd, self.sigma_min, self.sigma_max = float(sd), float(sigma_min), float(sigma_max)
        self.register_buffer("error_sigmas", torch.empty(0), persistent=False)
        self.register_buffer("error_values", torch.empty(0), persistent=False)

    @abstractmethod
    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Denoise.

        Args:
            x_t: Noisy images, (b, 1, H, W) complex (or (b, channels, H, W) real).
            sigma: Noise standard deviation per real part, (b,).

        Returns:
            x_hat, in the shape and units of ``x_t``.
        """

    def set_error_curve(self, sigmas: Tensor, errors: Tensor) -> None:
        """Store the denoiser's rms error per real part at ascending ``sigmas``; :meth:`posterior_std` reads it."""
        require(
            sigmas.ndim == 1 and sigmas.shape == errors.shape and bool((sigmas[1:] > sigmas[:-1]).all()),
            "an error curve is two vectors of one length, sigmas ascending.",
        )
        self.error_sigmas = sigmas.detach().float().to(self.error_sigmas.device)
        self.error_values = errors.detach().float().to(self.error_values.device)

    def posterior_std(self, sigma: Tensor) -> Tensor:
        """r_t: standard deviation of x0 given x_t, per real part; from the error curve, else from a Gaussian image
        model.
        """
        prior = sigma * self.sd / (sigma.square() + self.sd**2).sqrt()
        if self.error_sigmas.numel() < 2:
            return prior
        grid, values = self.error_sigmas.to(sigma).log(), self.error_values.to(sigma).log()
        position = sigma.log().clamp(grid[0], grid[-1])
        right = torch.searchsorted(grid, position.contiguous()).clamp(1, len(grid) - 1)
        share = (position - grid[right - 1]) / (grid[right] - grid[right - 1])
        curve = (values[right - 1] + share * (values[right] - values[right - 1])).exp()
        return torch.minimum(curve, prior)
