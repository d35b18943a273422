r"""The models of published methods, with the same network: what our own conditional denoiser is compared with.

    ProjectedNoiseDenoiser    ambient training as published: EDM's preconditioning (arXiv:2206.00364, Table 1) of the
                              back-projected input, which knows nothing of the operator,
                                  u = A_tilde^H A_tilde x_t,    D = c_skip u + c_out network( c_in u, .. )
                              c_out goes to zero with sigma, and with it all that the network could fill in. Its noise
                              lies in the image and is projected: A_tilde (x0 + sigma n).
    FeedForward               a reconstruction network: the conditional denoiser at sigma = noise_std, nowhere else.

Reference: Aali et al. 2025, arXiv:2403.08728; Yaman et al. 2020, arXiv:1912.07669. Differs from the first: the mask
reaches the network as its profile, not as image channels, so that all methods share one network.
"""

from __future__ import annotations

from torch import Tensor

from ambient_mri.denoiser import ConditionalDenoiser, apply_network, output_scale
from ambient_mri.operators.base import LinearOperator
from ambient_mri.tensors import per_row

__all__ = ["FeedForward", "ProjectedNoiseDenoiser"]


class ProjectedNoiseDenoiser(ConditionalDenoiser):
    """An ambient network with noise of the image, projected, and EDM's preconditioning (module docstring).

    Arguments as for :class:`~ambient_mri.denoiser.ConditionalDenoiser`; ``e0`` and ``cg_iterations`` have no use here.
    """

    noise_domain = "image"

    def forward(self, z: Tensor, sigma: Tensor, operator: LinearOperator, kept: Tensor) -> Tensor:
        """E[x0 | A_tilde x_t, A_tilde] for z = A_tilde x_t; arguments as for the base class."""
        u = operator.adjoint(z)
        level = per_row(sigma, u)
        x_lin = u * (self.sd**2 / (self.sd**2 + level.square()))
        condition = self.profile(kept).expand(len(u), -1)
        mask = kept.expand(len(u), self.mask_channels, *u.shape[-2:]) if self.mask_channels else None
        output = apply_network(self.network, u, x_lin, sigma, self.sd, condition, self.precision, mask)
        return x_lin + per_row(output_scale(sigma, self.sd, 1.0, 0.0), u) * output

    def loss_weight(self, sigma: Tensor, rate: Tensor) -> Tensor:
        """EDM's lambda(sigma) = (sigma^2 + sd^2) / (sigma sd)^2, (b,)."""
        return output_scale(sigma, self.sd, 1.0, 0.0).square().reciprocal()


class FeedForward(ConditionalDenoiser):
    """A network that reconstructs a scan at its own noise level, and is no denoiser at any other (module docstring)."""

    kind = "feedforward"
