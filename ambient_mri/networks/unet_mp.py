"""A magnitude-preserving U-Net: the default network's arrangement of EDM2's layers.

Its activations keep their size from the first layer to the last, at any depth and for any weights, so that a learning
rate means the same change everywhere and all along a training. The interface is that of
:class:`~ambient_mri.networks.UNet`: real channels in and out, a scalar and a vector of conditions, any H and W.

Reference: Karras et al. 2024, arXiv:2312.02696 (EDM2, configuration G). Differs: space-to-depth at the start, strided
convolutions on the way down and sub-pixel ones on the way up, as in the default network; no attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri.networks.magnitude_layers import (
    MagnitudeConv2d,
    MagnitudeEmbedding,
    MagnitudeLinear,
    MagnitudeResidualBlock,
    cat_magnitude,
    normalize_weights_,
    silu_magnitude,
    sum_magnitude,
)
from ambient_mri.networks.skeleton import UNetSkeleton

__all__ = ["MagnitudePreservingUNet"]


class MagnitudePreservingUNet(UNetSkeleton):
    """Magnitude-preserving residual U-Net.

    Args:
        in_channels: Real input channels.
        out_channels: Real output channels.
        dropout: Dropout inside the residual blocks.

    All others are those of :class:`~ambient_mri.networks.skeleton.UNetSkeleton`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 1,
        fold: int = 2,
        condition_dim: int = 0,
        dropout: float = 0.0,
    ) -> None:
        self.dropout = dropout
        super().__init__(
            in_channels + 1,  # the constant channel
            out_channels,
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            fold=fold,
            attention=(),
            condition_dim=condition_dim,
            embedding=4 * channels,
        )

    def normalize_(self) -> None:
        """Put all weights back on their spheres; what the network computes stays the same.

        Gradients are orthogonal to the weights, which therefore grow with every step, and turn ever more slowly at the
        same learning rate. Called before every step of a training, the rate alone decides how far they turn.
        """
        normalize_weights_(self)

    def prefers_channels_last(self) -> bool:
        """Always: 1.1 to 1.7 times as fast."""
        return True

    def _noise_embedding(self, dim: int) -> nn.Module:
        return MagnitudeEmbedding(dim)

    def _condition_embedding(self, condition_dim: int, dim: int) -> nn.Module:
        return MagnitudeLinear(condition_dim, dim)

    def _convolution(self, in_channels: int, out_channels: int) -> nn.Module:
        return MagnitudeConv2d(in_channels, out_channels, 3)

    def _head(self, in_channels: int, out_channels: int) -> nn.Module:
        return MagnitudeConv2d(in_channels, out_channels, 3, gain=0.0)

    def _residual(self, in_channels: int, out_channels: int) -> nn.Module:
        return MagnitudeResidualBlock(in_channels, out_channels, self._embedding, self.dropout)

    def _downsample(self, in_channels: int, out_channels: int) -> nn.Module:
        return MagnitudeConv2d(in_channels, out_channels, 3, stride=2)

    def _upsample(self, in_channels: int, out_channels: int) -> nn.Module:
        return _Upsample(in_channels, out_channels)

    def _normalization(self, channels: int) -> nn.Module:
        return nn.Identity()

    def _joined(self, h: Tensor, skip: Tensor) -> Tensor:
        return cat_magnitude(h, skip)

    def _arranged(self, x: Tensor) -> Tensor:
        """A channel of ones beside the others."""
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)

    def _embedded(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        return silu_magnitude(noise if condition is None else sum_magnitude(noise, condition, 0.5))


class _Upsample(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = MagnitudeConv2d(in_channels, out_channels * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.conv(x), 2)
