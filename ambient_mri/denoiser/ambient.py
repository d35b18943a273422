"""A network as an ambient denoiser, (z, A_tilde) -> E[x0 | z, A_tilde], and as a denoiser of one scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ambient_mri._checks import check_positive, require
from ambient_mri.corruption import Corruption
from ambient_mri.denoiser.base import Denoiser, ErrorCurve
from ambient_mri.denoiser.preconditioning import ProfileEncoder, apply_network, checked_precision, output_scale
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import Composition, LinearOperator
from ambient_mri.operators.linear_solvers import solve_regularized
from ambient_mri.operators.projection import Projection
from ambient_mri.operators.sense_rows import row_by_row
from ambient_mri.operators.transforms import Diagonal
from ambient_mri.stationary import StationaryGaussian
from ambient_mri.tensors import per_row

__all__ = ["AmbientDenoiser", "ConditionalDenoiser"]


class ConditionalDenoiser(ErrorCurve):
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
        self.network, self.precision = network, checked_precision(precision)
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
        known, operator = operator, row_by_row(operator, z.device)
        u = operator.adjoint(z)
        rate = _share_seen(known, kept, u).expand(len(u))
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


def _share_seen(operator: LinearOperator, kept: Tensor, u: Tensor) -> Tensor:
    """The corruption's rate (:meth:`~ambient_mri.corruption.Corruption.rate`), (b or 1,), told by A_tilde itself."""
    factors = operator.factors if isinstance(operator, Composition) else [operator]
    share = kept.float()
    for gain in (factor.weights for factor in factors if isinstance(factor, Diagonal)):
        share = share * gain.abs().square()
    if any(isinstance(factor, Projection) for factor in factors):  # rows of numbers, that are no pixels
        return share.sum(dim=(1, 2, 3)) / (u.shape[-2] * u.shape[-1])
    return share.mean(dim=(1, 2, 3))


class AmbientDenoiser(Denoiser):
    """An ambient network as x_t -> x_hat: a fresh further mask of the scan's own lines at every call, or several,
    averaged.

    r_t is the error that the network's preconditioning expects. The measured curve of a network that has one is not
    taken over unasked: split Gibbs spreads its samples more with it, nearer to their error, but each of them has a
    lower PSNR. Ask with ``denoiser.set_error_curve(model.error_sigmas, model.error_values)``.

    Args:
        model: The ambient network.
        corruption: Draws the further masks.
        measurement: The scan; its rows are the rows of x_t.
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
        """r_t of an ambient network, per real part: what is missing stays missing at every sigma.

        From this denoiser's error curve, if it was given one: the rms error at the acceleration of the scans that the
        curve is of, for one further mask, at most sd. Without one, the error that the network's preconditioning expects
        at the rate of this scan.
        """
        if self.has_error_curve:
            return self.measured_error(sigma).clamp_max(self.sd)
        rate = self.corruption.rate(self.measurement, self.measurement.mask).to(sigma)
        return self.model.expected_error(sigma, rate if len(rate) == len(sigma) else rate.mean().expand(len(sigma)))

    def _lift(self, x_t: Tensor, sigma: Tensor, operator: LinearOperator) -> Tensor:
        """A_tilde x_t with its image noise completed to white noise for each coil (docstring of the package)."""
        return self.corruption.lift(self.measurement, x_t, sigma, operator, self.generators)
