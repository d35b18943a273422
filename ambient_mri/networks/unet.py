"""The default network: a residual U-Net whose first stage folds pixels into channels (space-to-depth).

Folding 2 x 2 pixels into channels quarters the cost of everything that follows and costs little quality. The network
knows nothing of MRI or of diffusion: real channels in, real channels out, one scalar and one vector of conditions, any
H and W (:mod:`ambient_mri.networks.skeleton`).

Reference: Ronneberger et al. 2015, arXiv:1505.04597; Dhariwal & Nichol 2021, arXiv:2105.05233.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri.networks.layers import ResidualBlock, group_count
from ambient_mri.networks.skeleton import UNetSkeleton

__all__ = ["UNet"]


class UNet(UNetSkeleton):
    """Residual U-Net.

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
        attention: Sequence[int] = (),
        condition_dim: int = 0,
        dropout: float = 0.0,
    ) -> None:
        self.dropout = dropout
        super().__init__(
            in_channels,
            out_channels,
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            fold=fold,
            attention=attention,
            condition_dim=condition_dim,
            embedding=4 * channels,
        )

    def _convolution(self, in_channels: int, out_channels: int) -> nn.Module:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def _residual(self, in_channels: int, out_channels: int) -> nn.Module:
        return ResidualBlock(in_channels, out_channels, self._embedding, self.dropout)

    def _downsample(self, in_channels: int, out_channels: int) -> nn.Module:
        return _Downsample(in_channels, out_channels)

    def _upsample(self, in_channels: int, out_channels: int) -> nn.Module:
        return _Upsample(in_channels, out_channels)

    def _normalization(self, channels: int) -> nn.Module:
        return nn.GroupNorm(group_count(channels), channels)

    def _activated(self, h: Tensor) -> Tensor:
        return functional.silu(h)

    def _joined(self, h: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([h, skip], 1)


class _Downsample(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Upsample(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.conv(x), 2)
