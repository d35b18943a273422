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

from ambient_mri.denoiser.ambient import AmbientDenoiser, ConditionalDenoiser
from ambient_mri.denoiser.base import Denoiser
from ambient_mri.denoiser.clean import CleanDenoiser
from ambient_mri.denoiser.gaussian import GaussianDenoiser
from ambient_mri.denoiser.preconditioning import (
    ProfileEncoder,
    apply_network,
    computes_in_bf16,
    output_scale,
    runs_in_bf16,
)

__all__ = [
    "AmbientDenoiser",
    "CleanDenoiser",
    "ConditionalDenoiser",
    "Denoiser",
    "GaussianDenoiser",
    "ProfileEncoder",
    "apply_network",
    "computes_in_bf16",
    "output_scale",
    "runs_in_bf16",
]
