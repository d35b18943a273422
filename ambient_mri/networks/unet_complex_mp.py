"""A complex, magnitude-preserving U-Net: the phase passes through untouched, and activations keep their size.

The layers of :mod:`~ambient_mri.networks.complex_magnitude_layers` in the arrangement of the default network; the
interface is that of :class:`~ambient_mri.networks.ComplexUNet`, and f(exp(i phi) x) = exp(i phi) f(x) exactly, for any
weights.

Reference: Karras et al. 2024, arXiv:2312.02696 (EDM2, configuration G); Cole et al. 2021, arXiv:2004.01738 (complex
U-Nets for MRI).
"""

from __future__ import annotations

from torch import Tensor, nn

from ambient_mri.networks.complex_magnitude_layers import (
    ComplexMagnitudeConv2d,
    ComplexMagnitudeResidualBlock,
    ModReLU,
    cat_complex_magnitude,
)
from ambient_mri.networks.magnitude_layers import (
    MagnitudeEmbedding,
    MagnitudeLinear,
    normalize_weights_,
    silu_magnitude,
    sum_magnitude,
)
from ambient_mri.networks.unet_complex import ComplexUNet, SubPixelUpsample

__all__ = ["ComplexMagnitudePreservingUNet"]


class ComplexMagnitudePreservingUNet(ComplexUNet):
    """Complex magnitude-preserving residual U-Net; arguments as :class:`~ambient_mri.networks.ComplexUNet`."""

    def normalize_(self) -> None:
        """Put all weights back on their spheres (:meth:`MagnitudePreservingUNet.normalize_`)."""
        normalize_weights_(self)

    def _noise_embedding(self, dim: int) -> nn.Module:
        return MagnitudeEmbedding(dim)

    def _condition_embedding(self, condition_dim: int, dim: int) -> nn.Module:
        return MagnitudeLinear(condition_dim, dim)

    def _embedded(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        return silu_magnitude(noise if condition is None else sum_magnitude(noise, condition, 0.5))

    def _convolution(self, in_channels: int, out_channels: int) -> nn.Module:
        return ComplexMagnitudeConv2d(in_channels, out_channels, 3)

    def _head(self, in_channels: int, out_channels: int) -> nn.Module:
        return ComplexMagnitudeConv2d(in_channels, out_channels, 3, gain=0.0)

    def _residual(self, in_channels: int, out_channels: int) -> nn.Module:
        return ComplexMagnitudeResidualBlock(in_channels, out_channels, self._embedding)

    def _downsample(self, in_channels: int, out_channels: int) -> nn.Module:
        return ComplexMagnitudeConv2d(in_channels, out_channels, 3, stride=2)

    def _upsample(self, in_channels: int, out_channels: int) -> nn.Module:
        return SubPixelUpsample(ComplexMagnitudeConv2d(in_channels, out_channels * 4, 1))

    def _normalization(self, channels: int) -> nn.Module:
        return ModReLU(channels)

    def _joined(self, h: Tensor, skip: Tensor) -> Tensor:
        return cat_complex_magnitude(h, skip)
