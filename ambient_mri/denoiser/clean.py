"""A network as a clean denoiser, x_t -> E[x0 | x_t]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ambient_mri._checks import AmbientMRIError
from ambient_mri.denoiser.base import Denoiser
from ambient_mri.denoiser.preconditioning import ProfileEncoder, apply_network, checked_precision, output_scale
from ambient_mri.networks.layers import ErrorHead
from ambient_mri.operators.base import Identity
from ambient_mri.stationary import StationaryGaussian
from ambient_mri.tensors import per_row

__all__ = ["CleanDenoiser"]

# Conjugate-gradient steps of the Wiener filter: with nothing missing the preconditioner is exact but for the edges.
_FILTER_ITERATIONS = 3


class CleanDenoiser(Denoiser):
    """A network as a clean denoiser.

    Args:
        network: Callable (channels (b, 4, H, W), noise (b,), condition) -> (b, 2, H, W); 2c in, c out for real images.
        sd: Rms of a real channel of the images.
        sigma_min: Lowest sigma.
        sigma_max: Highest sigma.
        profile: The mask encoder of an ambient network, so that its weights can be taken over; sees a full mask.
        mask_channels: As for :class:`ConditionalDenoiser`; sees a full mask, too.
        precision: ``"bf16"`` runs the network under autocast where the device computes in it, in float32 elsewhere; the
            preconditioning stays in float32.
        error_frequencies: Size of a head that learns the denoiser's error at every sigma; 0 for none.
        covariance: As for :class:`ConditionalDenoiser`: x_lin is then the Wiener filter of that model.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        sd: float,
        sigma_min: float = 0.002,
        sigma_max: float = 20.0,
        profile: ProfileEncoder | None = None,
        mask_channels: int = 0,
        precision: str = "bf16",
        error_frequencies: int = 0,
        covariance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(sd, sigma_min, sigma_max)
        self.stationary = None if covariance is None else StationaryGaussian(**covariance)
        self.network, self.profile, self.precision = network, profile, checked_precision(precision)
        self.mask_channels = mask_channels
        self.error_head = ErrorHead(error_frequencies) if error_frequencies else None

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        x_lin = self._linear_start(x_t, sigma)
        condition = None if self.profile is None else self.profile(torch.ones_like(x_t.real[:, :1, :1, :]))
        scale = per_row(self.expected_error(sigma.to(x_t.device)), x_t)
        mask = torch.ones_like(x_t.real[:, :1]).expand(-1, self.mask_channels, -1, -1)
        output = apply_network(self.network, x_t, x_lin, sigma, self.sd, condition, self.precision, mask)
        return x_lin + scale * output

    def _linear_start(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """x_lin: c_skip x_t, or the Wiener filter."""
        if self.stationary is None:
            return x_t * (self.sd**2 / (self.sd**2 + per_row(sigma, x_t).square()))
        level = sigma.to(x_t).expand(len(x_t))
        rate = torch.ones_like(level)
        return self.stationary.posterior_mean(Identity(), x_t, level, rate, iterations=_FILTER_ITERATIONS)

    def expected_error(self, sigma: Tensor) -> Tensor:
        """c_out, (b,), as for :class:`ConditionalDenoiser`."""
        if self.stationary is None:
            return output_scale(sigma, self.sd, 1.0, 0.0)
        return self.stationary.error(sigma, torch.ones_like(sigma))

    def log_relative_variance(self, sigma: Tensor) -> Tensor:
        """ln u^2, (b,): the learned squared error at sigma, relative to c_out^2.

        Raises:
            AmbientMRIError: If the model has no head for it.
        """
        if self.error_head is None:
            raise AmbientMRIError(
                "this denoiser was built without error_frequencies and learns no error. Train it with "
                "objective=supervised_uncertainty."
            )
        return self.error_head((sigma / self.sd).log() / 4)

    def learned_error(self, sigma: Tensor) -> Tensor:
        """The rms error per real part at sigma that training has learned, (b,)."""
        relative = torch.exp(0.5 * self.log_relative_variance(sigma))
        return relative * self.expected_error(sigma)
