"""A complex-valued U-Net: the default network with complex feature maps, and a phase that passes through untouched.

MR images are complex, and their global phase means nothing: a network f of these layers has f(exp(i phi) x) =
exp(i phi) f(x) exactly, for any weights. The interface is that of :class:`~ambient_mri.networks.UNet`: real channels in
and out, a scalar and a vector of conditions (which carry no phase), any H and W. C complex channels cost what 2C real
ones do.

Reference: Trabelsi et al. 2018, arXiv:1705.09792; Cole et al. 2021, arXiv:2004.01738 (complex U-Nets for MRI).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri._checks import require
from ambient_mri.networks.complex_layers import ComplexConv2d, ComplexResidualBlock, NormModReLU, cat_complex
from ambient_mri.networks.layers import NoiseEmbedding

__all__ = ["ComplexUNet"]


class ComplexUNet(nn.Module):
    """Complex residual U-Net.

    Args:
        in_channels: Real input channels: one block or several of ``out_channels``, each real parts first, then
            imaginary parts.
        out_channels: Real output channels, even: real parts first.
        channels: Complex width of the first level, after space-to-depth.
        multipliers: Width of each level as a multiple of ``channels``; each further level halves the resolution.
        blocks: Residual blocks a level on the way down; one more on the way up.
        fold: Space-to-depth factor of the first stage (1, 2 or 4).
        condition_dim: Length of the condition vector; 0 for none.
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
        super().__init__()
        require(fold in (1, 2, 4), f"fold must be 1, 2 or 4; got {fold}.")
        require(len(multipliers) > 0, "multipliers must name at least one level.")
        require(
            out_channels % 2 == 0 and in_channels % out_channels == 0,
            f"ComplexUNet takes pairs of real and imaginary parts and nothing else; got {in_channels} input and "
            f"{out_channels} output channels. Use UNet for real images, or with mask channels.",
        )
        self.fold, self.stride = fold, fold * 2 ** (len(multipliers) - 1)
        self.in_blocks, self.condition_dim = in_channels // out_channels, condition_dim
        embedding = 8 * channels
        self.noise = NoiseEmbedding(embedding)
        self.condition = nn.Sequential()
        if condition_dim:
            self.condition.extend([nn.Linear(condition_dim, embedding), nn.SiLU(), nn.Linear(embedding, embedding)])
        widths = [channels * m for m in multipliers]
        self.stem = ComplexConv2d(in_channels // 2 * fold**2, widths[0], 3)
        self.down, skips = _build_down(widths, blocks, embedding)
        self.middle = ComplexResidualBlock(widths[-1], widths[-1], embedding)
        self.up = _build_up(widths, blocks, embedding, skips)
        self.norm = NormModReLU(widths[0])
        self.head = ComplexConv2d(widths[0], out_channels // 2 * fold**2, 3)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Apply the network.

        Args:
            x: (b, in_channels, H, W) real.
            noise: Scalar condition, (b,).
            condition: (b, condition_dim), where the network was built with one.

        Returns:
            (b, out_channels, H, W).
        """
        height, width = x.shape[-2:]
        x = functional.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        if self.in_blocks > 1:  # all real parts before all imaginary parts
            halves = x.chunk(2 * self.in_blocks, dim=1)
            x = torch.cat([*halves[::2], *halves[1::2]], dim=1)
        embedding = self.noise(noise)
        if self.condition_dim:
            require(condition is not None, f"this network needs a condition vector of length {self.condition_dim}.")
            embedding = embedding + self.condition(condition)
        embedding = functional.silu(embedding)
        h = self.stem(functional.pixel_unshuffle(x, self.fold) if self.fold > 1 else x)
        skips = [h]
        for level in self.down:
            for block in level:  # type: ignore[attr-defined]
                h = block(h, embedding) if isinstance(block, ComplexResidualBlock) else block(h)
                skips.append(h)
        h = self.middle(h, embedding)
        for level in self.up:
            for block in level:  # type: ignore[attr-defined]
                into = isinstance(block, ComplexResidualBlock)
                h = block(cat_complex(h, skips.pop()), embedding) if into else block(h)
        h = self.head(self.norm(h))
        return (functional.pixel_shuffle(h, self.fold) if self.fold > 1 else h)[..., :height, :width]


class _Upsample(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ComplexConv2d(in_channels, out_channels * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Real parts come first before and after: the shuffle takes four neighbouring channels to one.
        return functional.pixel_shuffle(self.conv(x), 2)


def _build_down(widths: list[int], blocks: int, embedding: int) -> tuple[nn.ModuleList, list[int]]:
    """Levels on the way down, and the width of every skip connection in order."""
    levels = nn.ModuleList(
        [nn.ModuleList(ComplexResidualBlock(widths[0], widths[0], embedding) for _ in range(blocks))]
    )
    skips = [widths[0]] * (blocks + 1)
    for above, width in pairwise(widths):
        residual = (ComplexResidualBlock(width, width, embedding) for _ in range(blocks))
        levels.append(nn.ModuleList([ComplexConv2d(above, width, 3, stride=2), *residual]))
        skips += [width] * (blocks + 1)
    return levels, skips


def _build_up(widths: list[int], blocks: int, embedding: int, skips: list[int]) -> nn.ModuleList:
    levels, skips = nn.ModuleList(), list(skips)
    for i in reversed(range(len(widths))):
        level = nn.ModuleList(
            ComplexResidualBlock(widths[i] + skips.pop(), widths[i], embedding) for _ in range(blocks + 1)
        )
        if i > 0:
            level.append(_Upsample(widths[i], widths[i - 1]))
        levels.append(level)
    return levels
