"""The default network: a residual U-Net whose first stage folds pixels into channels (space-to-depth).

Folding 2 x 2 pixels into channels quarters the cost of everything that follows and costs little quality. The network
knows nothing of MRI or of diffusion: real channels in, real channels out, one scalar and one vector of conditions,
any H and W (odd
too: padded with zeros to a multiple of the total stride and cropped again).

Reference: Ronneberger et al. 2015, arXiv:1505.04597; Dhariwal & Nichol 2021, arXiv:2105.05233.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri._checks import require
from ambient_mri.networks.layers import NoiseEmbedding, ResidualBlock, SelfAttention

__all__ = ["UNet"]


class UNet(nn.Module):
    """Residual U-Net.

    Args:
        in_channels: Real input channels.
        out_channels: Real output channels.
        channels: Width of the first level, after space-to-depth.
        multipliers: Width of each level as a multiple of ``channels``; each further level halves the resolution.
        blocks: Residual blocks a level on the way down; one more on the way up.
        fold: Space-to-depth factor of the first stage (1, 2 or 4).
        attention: Levels (0-based) that get self-attention.
        condition_dim: Length of the condition vector; 0 for none.
        dropout: Dropout inside the residual blocks.
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
        super().__init__()
        require(fold in (1, 2, 4), f"fold must be 1, 2 or 4; got {fold}.")
        require(len(multipliers) > 0, "multipliers must name at least one level.")
        self.fold = fold
        self.stride = fold * 2 ** (len(multipliers) - 1)
        self.condition_dim = condition_dim
        embedding = 4 * channels
        self.noise = NoiseEmbedding(embedding)
        self.condition = nn.Sequential()
        if condition_dim:
            self.condition.extend([nn.Linear(condition_dim, embedding), nn.SiLU(), nn.Linear(embedding, embedding)])
        widths = [channels * m for m in multipliers]
        self.stem = nn.Conv2d(in_channels * fold**2, widths[0], 3, padding=1)
        self.down, skips = _build_down(widths, blocks, embedding, attention, dropout)
        self.middle = ResidualBlock(widths[-1], widths[-1], embedding, dropout)
        self.up = _build_up(widths, blocks, embedding, attention, dropout, skips)
        self.norm = nn.GroupNorm(min(32, widths[0] // 4), widths[0])
        self.head = nn.Conv2d(widths[0], out_channels * fold**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

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
        embedding = self.noise(noise)
        if self.condition_dim:
            require(condition is not None, f"this network needs a condition vector of length {self.condition_dim}.")
            embedding = embedding + self.condition(condition)
        embedding = functional.silu(embedding)
        h = self.stem(functional.pixel_unshuffle(x, self.fold) if self.fold > 1 else x)
        skips = [h]
        for level in self.down:
            h = _run(level, h, embedding, skips)
        h = self.middle(h, embedding)
        for level in self.up:
            for block in level:  # type: ignore[attr-defined]
                h = block(torch.cat([h, skips.pop()], 1), embedding) if isinstance(block, ResidualBlock) else block(h)
        h = self.head(functional.silu(self.norm(h)))
        return (functional.pixel_shuffle(h, self.fold) if self.fold > 1 else h)[..., :height, :width]


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


def _run(level: nn.Module, h: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
    for block in level:  # type: ignore[attr-defined]
        if isinstance(block, SelfAttention):
            h = skips[-1] = block(h)
            continue
        h = block(h, embedding) if isinstance(block, ResidualBlock) else block(h)
        skips.append(h)
    return h


def _build_down(
    widths: list[int], blocks: int, embedding: int, attention: Sequence[int], dropout: float
) -> tuple[nn.ModuleList, list[int]]:
    """Levels on the way down, and the width of every skip connection in order."""
    levels, skips = nn.ModuleList(), [widths[0]]
    for i, width in enumerate(widths):
        level = nn.ModuleList()
        if i > 0:
            level.append(_Downsample(widths[i - 1], width))
            skips.append(width)
        for _ in range(blocks):
            level.append(ResidualBlock(width, width, embedding, dropout))
            skips.append(width)
            if i in attention:
                level.append(SelfAttention(width))
        levels.append(level)
    return levels, skips


def _build_up(
    widths: list[int], blocks: int, embedding: int, attention: Sequence[int], dropout: float, skips: list[int]
) -> nn.ModuleList:
    levels, skips = nn.ModuleList(), list(skips)
    for i in reversed(range(len(widths))):
        level = nn.ModuleList()
        for _ in range(blocks + 1):
            level.append(ResidualBlock(widths[i] + skips.pop(), widths[i], embedding, dropout))
            if i in attention:
                level.append(SelfAttention(widths[i]))
        if i > 0:
            level.append(_Upsample(widths[i], widths[i - 1]))
        levels.append(level)
    return levels
