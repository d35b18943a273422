r"""Denoisers: clean ones, x_t -> E[x0 | x_t], and ambient ones, (z, A_tilde) -> E[x0 | z, A_tilde].

Both are one network with the same operator-aware preconditioning; a clean denoiser is the ambient one at A_tilde = I:

    u     = A_tilde^H z,               z the noisy kept data (noise of variance sigma^2 per real part and coil)
    x_lin = ( A_tilde^H A_tilde + (sigma^2/sd^2) I )^-1 u
    D     = x_lin + c_out * network( u / sqrt(sigma^2 + sd^2),  x_lin / sd,  mask profile;  ln(sigma) / 4 )
    c_out^2 = rho sigma^2 sd^2 / (sigma^2 + sd^2) + (1 - rho) e0^2

sd is the rms of a real channel of the images, rho the sampled fraction, e0 the rms of what is missing. At rho = 1
this is EDM's preconditioning (arXiv:2206.00364, Table 1) exactly: x_lin = c_skip x_t. The network never sees sigma
scaling, and a sampler never sees x_lin.

An ambient network is trained with noise in k-space, independent for each coil. A sampler's state has its noise in the
image. With normalised maps S S^H is a projection, so F S x_t + sigma (e - F S S^H F^H e), e white, has white noise
for each coil: ``as_denoiser`` uses this to give the network exactly the input that it was trained on.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri._checks import AmbientMRIError, check_option, check_positive, require
from ambient_mri.corruption import Corruption
from ambient_mri.measurement import Measurement
from ambient_mri.networks.layers import ErrorHead
from ambient_mri.operators.base import Identity, LinearOperator
from ambient_mri.operators.linear_solvers import solve_regularized
from ambient_mri.stationary import StationaryGaussian
from ambient_mri.tensors import from_channels, per_row, to_channels

__all__ = [
    "AmbientDenoiser",
    "CleanDenoiser",
    "ConditionalDenoiser",
    "Denoiser",
    "GaussianDenoiser",
    "ProfileEncoder",
    "apply_network",
    "output_scale",
]


# Conjugate-gradient steps of the Wiener filter: with nothing missing the preconditioner is exact but for the edges.
_FILTER_ITERATIONS = 3


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


class ProfileEncoder(nn.Module):
    """What the mask is, without a matrix size: its density along each axis, in a fixed number of bins.

    A mask aligns with k-space, not with the pixels of an image; painted on pixels it means nothing to a convolution.
    """

    def __init__(self, bins: int = 32) -> None:
        super().__init__()
        self.bins = bins

    @property
    def dim(self) -> int:
        """Length of the condition vector."""
        return 2 * self.bins

    def forward(self, mask: Tensor) -> Tensor:
        """(b, 1, 1 or H, 1 or W) -> (b, 2 * bins): density along the rows and along the columns."""
        mask = mask.float()[:, 0]
        rows = functional.adaptive_avg_pool1d(mask.mean(dim=2)[:, None], self.bins)[:, 0]
        columns = functional.adaptive_avg_pool1d(mask.mean(dim=1)[:, None], self.bins)[:, 0]
        return torch.cat([rows, columns], dim=1)


def output_scale(sigma: Tensor, sd: float, rate: Tensor | float, e0: float) -> Tensor:
    """c_out, (b,): the rms that the network's contribution is expected to have. Its inverse square weights the loss."""
    seen = sigma.square() * sd**2 / (sigma.square() + sd**2)
    return (rate * seen + (1 - rate) * e0**2).sqrt()


class CleanDenoiser(Denoiser):
    """A network as a clean denoiser.

    Args:
        network: Callable (channels (b, 4, H, W), noise (b,), condition) -> (b, 2, H, W); 2c in, c out for real images.
        sd: Rms of a real channel of the images.
        sigma_min: Lowest sigma.
        sigma_max: Highest sigma.
        profile: The mask encoder of an ambient network, so that its weights can be taken over; sees a full mask.
        mask_channels: As for :class:`ConditionalDenoiser`; sees a full mask, too.
        precision: ``"bf16"`` runs the network under autocast; the preconditioning stays in float32.
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
        self.network, self.profile, self.precision = network, profile, _precision(precision)
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


class ConditionalDenoiser(nn.Module):
    """A network as an ambient denoiser: (z, sigma, A_tilde) -> E[x0 | z, A_tilde].

    Args:
        network: As for :class:`CleanDenoiser`, with a condition vector of ``profile.dim`` numbers.
        sd: Rms of a real channel of the images.
        e0: Rms, per real channel, of what is missing given the kept data; 0.25 sd when not given.
        sigma_min: Lowest sigma.
        sigma_max: Highest sigma.
        cg_iterations: Conjugate-gradient steps for x_lin.
        profile: Mask encoder.
        mask_channels: Channels in which the network sees the mask beside the image, for masks that lie on pixels: 1, or
            one a colour. A k-space mask is aligned with nothing in the image; 0.
        precision: As for :class:`CleanDenoiser`.
        covariance: Of natural images, arguments of :class:`~ambient_mri.stationary.StationaryGaussian`. x_lin is then
            the posterior mean under it and c_out its error (``e0`` is of no use); white images, as above, when None.
    """

    kind = "ambient"
    noise_domain = "kspace"

    def __init__(
        self,
        network: nn.Module,
        *,
        sd: float,
        e0: float | None = None,
        sigma_min: float = 0.002,
        sigma_max: float = 20.0,
        cg_iterations: int = 5,
        profile: ProfileEncoder | None = None,
        mask_channels: int = 0,
        precision: str = "bf16",
        covariance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_positive("sd", sd)
        self.stationary = None if covariance is None else StationaryGaussian(**covariance)
        self.network, self.precision = network, _precision(precision)
        self.profile = ProfileEncoder() if profile is None else profile
        self.mask_channels = mask_channels
        self.sd, self.e0 = float(sd), float(0.25 * sd if e0 is None else e0)
        self.sigma_min, self.sigma_max, self.cg_iterations = float(sigma_min), float(sigma_max), cg_iterations

    def forward(self, z: Tensor, sigma: Tensor, operator: LinearOperator, kept: Tensor) -> Tensor:
        """E[x0 | z, A_tilde].

        Args:
            z: Noisy kept data, in the range of ``operator``, zero where nothing was kept.
            sigma: Noise standard deviation per real part, (b,).
            operator: A_tilde.
            kept: What A_tilde keeps, bool, (b, 1, 1 or H, 1 or W).

        Returns:
            x_hat (b, 1, H, W). Differentiable in z, the linear part included; that part is constant for the optimiser.
        """
        u = operator.adjoint(z)
        rate = kept.float().mean(dim=(1, 2, 3)).expand(len(u))
        x_lin = self._linear_start(z, u, sigma, operator, rate)
        scale = per_row(self.expected_error(sigma, rate), u)
        condition = self.profile(kept).expand(len(u), -1)
        mask = kept.expand(len(u), self.mask_channels, *u.shape[-2:]) if self.mask_channels else None
        output = apply_network(self.network, u, x_lin, sigma, self.sd, condition, self.precision, mask)
        return x_lin + scale * output

    def _linear_start(self, z: Tensor, u: Tensor, sigma: Tensor, operator: LinearOperator, rate: Tensor) -> Tensor:
        """x_lin, (b, c, H, W)."""
        if self.stationary is not None:
            return self.stationary.posterior_mean(operator, z, sigma, rate, iterations=self.cg_iterations)
        lam = sigma.square() / self.sd**2
        start = u / (1 + per_row(lam, u))
        return solve_regularized(operator, u, lam, x0=start, max_iterations=self.cg_iterations, rtol=0.0).x

    def expected_error(self, sigma: Tensor, rate: Tensor) -> Tensor:
        """c_out, (b,): the rms that the network's contribution is expected to have, which is the error of x_lin."""
        if self.stationary is not None:
            return self.stationary.error(sigma, rate)
        return output_scale(sigma, self.sd, rate, self.e0)

    def loss_weight(self, sigma: Tensor, rate: Tensor) -> Tensor:
        """lambda(sigma) = 1 / c_out^2, (b,)."""
        return self.expected_error(sigma, rate).square().reciprocal()

    def as_denoiser(
        self,
        corruption: Corruption,
        measurement: Measurement,
        generators: Sequence[torch.Generator],
        masks: int = 1,
    ) -> AmbientDenoiser:
        """This network as a :class:`Denoiser` for one scan: see :class:`AmbientDenoiser`."""
        return AmbientDenoiser(self, corruption, measurement, generators, masks)


class AmbientDenoiser(Denoiser):
    """An ambient network as x_t -> x_hat: a fresh further mask of the scan's own lines at every call, or several,
    averaged.

    Args:
        model: The ambient network.
        corruption: Draws the further masks.
        measurement: The scan; its rows are the rows of x_t (or one row, for all of them).
        generators: One a row.
        masks: How many further masks to average over.
    """

    def __init__(
        self,
        model: ConditionalDenoiser,
        corruption: Corruption,
        measurement: Measurement,
        generators: Sequence[torch.Generator],
        masks: int = 1,
    ) -> None:
        super().__init__(model.sd, model.sigma_min, model.sigma_max)
        require(masks >= 1, f"masks must be at least 1; got {masks}.")
        self.model, self.corruption, self.masks = model, corruption, masks
        self.measurement, self.generators = measurement, list(generators)

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        mean = torch.zeros_like(x_t)
        for _ in range(self.masks):
            further = self.corruption.further(self.measurement, self.generators)
            mean = mean + self.denoise_partial(x_t, sigma, further.operator, further.kept)
        return mean / self.masks

    def denoise_partial(self, x_t: Tensor, sigma: Tensor, operator: LinearOperator, kept: Tensor) -> Tensor:
        """E[x0 | A_tilde x_t, A_tilde] for a given A_tilde, (b, 1, H, W); differentiable in ``x_t``.

        Args:
            x_t: (b, 1, H, W).
            sigma: (b,).
            operator: A_tilde.
            kept: What A_tilde keeps, bool, (b, 1, 1 or H, 1 or W).
        """
        if self.model.noise_domain == "image":  # trained on A_tilde x_t itself
            return self.model(operator.forward(x_t) * kept, sigma, operator, kept)
        z = self._lift(x_t, sigma, operator) * kept
        return self.model(z, sigma, operator, kept)

    def posterior_std(self, sigma: Tensor) -> Tensor:
        """r_t of an ambient network: what is missing stays missing at every sigma."""
        rate = self.measurement.mask.float().mean(dim=(1, 2, 3)).to(sigma)
        return self.model.expected_error(sigma, rate if len(rate) == len(sigma) else rate.mean().expand(len(sigma)))

    def _lift(self, x_t: Tensor, sigma: Tensor, operator: LinearOperator) -> Tensor:
        """A_tilde x_t with its image noise completed to white noise for each coil (module docstring)."""
        return self.corruption.lift(self.measurement, x_t, sigma, operator, self.generators)


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


def apply_network(
    network: nn.Module,
    u: Tensor,
    x_lin: Tensor,
    sigma: Tensor,
    sd: float,
    condition: Tensor | None,
    precision: str,
    mask: Tensor | None = None,
) -> Tensor:
    """The network on preconditioned channels, in the chosen precision; its output in the image's dtype."""
    level = per_row(sigma, u)
    parts = [to_channels(u / (level.square() + sd**2).sqrt()), to_channels(x_lin / sd)]
    channels = torch.cat(parts if mask is None else [*parts, mask.to(parts[0].dtype)], dim=1)
    noise = sigma.to(u.device).float().log().expand(len(u)) / 4
    # Channels last is the fast layout on a GPU, and a slow one for the group norms of a CPU.
    layout = torch.channels_last if u.is_cuda else torch.contiguous_format
    channels = channels.float().contiguous(memory_format=layout)
    with torch.autocast(u.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        output = network(channels, noise, condition).float()
    return from_channels(output).to(u.dtype) if u.is_complex() else output.to(u.dtype)


def _precision(name: str) -> str:
    check_option("precision", name, ("bf16", "fp32"))
    return name


def image_rms(images: Sequence[Tensor]) -> float:
    """sd: rms of a real channel over all pixels of all images."""
    total = sum(float(to_channels(i.reshape(1, 1, *i.shape[-2:])).double().square().sum()) for i in images)
    count = sum(i.numel() * (2 if i.is_complex() else 1) for i in images)
    return math.sqrt(total / max(count, 1))
