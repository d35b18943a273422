"""What a denoiser is, and the measured error that a model may carry."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ambient_mri._checks import check_positive, require

__all__ = ["Denoiser", "ErrorCurve"]


class ErrorCurve(nn.Module):
    """A model that may carry its measured rms error, at a few noise levels.

    Attributes:
        error_sigmas: (levels,) ascending; empty without a curve.
        error_values: (levels,) rms error per real part, in the units of the scaled images.
    """

    error_sigmas: Tensor
    error_values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("error_sigmas", torch.empty(0), persistent=False)
        self.register_buffer("error_values", torch.empty(0), persistent=False)

    @property
    def has_error_curve(self) -> bool:
        """Whether there is a curve to interpolate."""
        return self.error_sigmas.numel() >= 2

    def set_error_curve(self, sigmas: Tensor, errors: Tensor) -> None:
        """Store the model's rms error per real part at ascending ``sigmas``; :meth:`measured_error` reads it."""
        require(
            sigmas.ndim == 1 and sigmas.shape == errors.shape and bool((sigmas[1:] > sigmas[:-1]).all()),
            "an error curve is two vectors of one length, sigmas ascending.",
        )
        self.error_sigmas = sigmas.detach().float().to(self.error_sigmas.device)
        self.error_values = errors.detach().float().to(self.error_values.device)

    def measured_error(self, sigma: Tensor) -> Tensor:
        """The curve at ``sigma`` (b,), log-log interpolated, its ends held; (b,)."""
        grid, values = self.error_sigmas.to(sigma).log(), self.error_values.to(sigma).log()
        position = sigma.log().clamp(grid[0], grid[-1])
        right = torch.searchsorted(grid, position.contiguous()).clamp(1, len(grid) - 1)
        share = (position - grid[right - 1]) / (grid[right] - grid[right - 1])
        return (values[right - 1] + share * (values[right] - values[right - 1])).exp()


class Denoiser(ErrorCurve):
    """x_hat = E[x0 | x_t] at noise level sigma.

    Attributes:
        sd: Rms of a real channel of the images.
        sigma_min: Lowest sigma that the denoiser was made for.
        sigma_max: Highest sigma that the denoiser was made for.
    """

    def __init__(self, sd: float, sigma_min: float, sigma_max: float) -> None:
        super().__init__()
        check_positive("sd", sd)
        self.sd, self.sigma_min, self.sigma_max = float(sd), float(sigma_min), float(sigma_max)

    @abstractmethod
    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Denoise.

        Args:
            x_t: Noisy images, (b, 1, H, W) complex (or (b, channels, H, W) real).
            sigma: Noise standard deviation per real part, (b,).

        Returns:
            x_hat, in the shape and units of ``x_t``.
        """

    def posterior_std(self, sigma: Tensor) -> Tensor:
        """r_t: standard deviation of x0 given x_t, per real part; from the error curve, else from a Gaussian image
        model.
        """
        prior = sigma * self.sd / (sigma.square() + self.sd**2).sqrt()
        return torch.minimum(self.measured_error(sigma), prior) if self.has_error_curve else prior
