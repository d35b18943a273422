"""A complex-valued U-Net: the default network with complex feature maps, and a phase that passes through untouched.

MR images are complex, and their global phase means nothing: a network f of these layers has f(exp(i phi) x) =
exp(i phi) f(x) exactly, for any weights. The interface is that of :class:`~ambient_mri.networks.UNet`: real channels in
and out, a scalar and a vector of conditions (which carry no phase), any H and W. C complex channels cost what 2C real
ones do.

Reference: Trabelsi et al. 2018, arXiv:1705.09792; Cole et al. 2021, arXiv:2004.01738 (complex U-Nets for MRI).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri._checks import require
from ambient_mri.networks.complex_layers import ComplexConv2d, ComplexResidualBlock, NormModReLU, cat_complex
from ambient_mri.networks.skeleton import UNetSkeleton

__all__ = ["ComplexUNet", "SubPixelUpsample"]


class ComplexUNet(UNetSkeleton):
    """Complex residual U-Net.

    Args:
        in_channels: Real input channels: one block or several of ``out_channels``, each real parts first, then
            imaginary parts.
        out_channels: Real output channels, even: real parts first.

    All others are those of :class:`~ambient_mri.networks.skeleton.UNetSkeleton`; widths count complex channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 1,
        fold: int = 2,
        condition_dim: int = 0,
    ) -> None:
        require(
            out_channels % 2 == 0 and in_channels % out_channels == 0,
            f"a complex network takes pairs of real and imaginary parts and nothing else; got {in_channels} input and "
            f"{out_channels} output channels. For real images, or with mask channels: network=unet_mp.",
        )
        self.in_blocks = in_channels // out_channels
        super().__init__(
            in_channels // 2,
            out_channels // 2,
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            fold=fold,
            attention=(),
            condition_dim=condition_dim,
            embedding=8 * channels,
        )

    def prefers_channels_last(self) -> bool:
        """Without gradients: the convolutions gain more than the activations lose."""
        return not torch.is_grad_enabled()

    def _convolution(self, in_channels: int, out_channels: int) -> nn.Module:
        return ComplexConv2d(in_channels, out_channels, 3)

    def _residual(self, in_channels: int, out_channels: int) -> nn.Module:
        return ComplexResidualBlock(in_channels, out_channels, self._embedding)

    def _downsample(self, in_channels: int, out_channels: int) -> nn.Module:
        return ComplexConv2d(in_channels, out_channels, 3, stride=2)

    def _upsample(self, in_channels: int, out_channels: int) -> nn.Module:
        return SubPixelUpsample(ComplexConv2d(in_channels, out_channels * 4, 1))

    def _normalization(self, channels: int) -> nn.Module:
        return NormModReLU(channels)

    def _joined(self, h: Tensor, skip: Tensor) -> Tensor:
        return cat_complex(h, skip)

    def _arranged(self, x: Tensor) -> Tensor:
        """All real parts before all imaginary parts."""
        if self.in_blocks == 1:
            return x
        halves = x.chunk(2 * self.in_blocks, dim=1)
        return torch.cat([*halves[::2], *halves[1::2]], dim=1)


class SubPixelUpsample(nn.Module):
    """Twice the resolution by a convolution to four times the channels."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, H, W) -> (b, c', 2H, 2W)."""
        # Real parts come first before and after: the shuffle takes four neighbouring channels to one.
        return functional.pixel_shuffle(self.conv(x), 2)
