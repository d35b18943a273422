"""Building blocks of the networks: real-valued, resolution-free, unaware of MRI and of diffusion.

Reference: Dhariwal & Nichol 2021, arXiv:2105.05233 (residual block with adaptive group norm).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ErrorHead", "FourierFeatures", "NoiseEmbedding", "ResidualBlock", "SelfAttention", "group_count"]


_HEAD_GAIN = 4.0


class FourierFeatures(nn.Module):
    """A scalar condition (ln sigma / 4) as cosines and sines, (b,) -> (b, 2 frequencies).

    Args:
        frequencies: Number of frequencies, geometric from 1 to ``max_frequency`` radians per unit.
        max_frequency: Highest frequency.
    """

    frequencies: Tensor

    def __init__(self, frequencies: int = 32, max_frequency: float = 64.0) -> None:
        super().__init__()
        exponents = torch.linspace(0, 1, frequencies)
        self.register_buffer("frequencies", torch.exp(exponents * math.log(max_frequency)), persistent=False)

    def forward(self, condition: Tensor) -> Tensor:
        angles = condition.float()[:, None] * self.frequencies[None]
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class NoiseEmbedding(FourierFeatures):
    """A scalar condition to ``dim`` features: sines and cosines, then two linear layers.

    Args:
        dim: Number of features.
        frequencies: As :class:`FourierFeatures`.
    """

    def __init__(self, dim: int, frequencies: int = 32) -> None:
        super().__init__(frequencies)
        self.layers = nn.Sequential(nn.Linear(2 * frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, condition: Tensor) -> Tensor:
        """(b,) -> (b, dim)."""
        return self.layers(super().forward(condition))


class ErrorHead(nn.Module):
    """A smooth scalar function of a scalar condition (ln sigma / 4): linear in a few slow sines and cosines.

    It starts at zero.

    Args:
        frequencies: Number of frequencies, 1 to ``frequencies`` radians per unit.
    """

    frequencies: Tensor

    def __init__(self, frequencies: int = 4) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.arange(1.0, frequencies + 1), persistent=False)
        self.layer = nn.Linear(2 * frequencies, 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, condition: Tensor) -> Tensor:
        """(b,) -> (b,)."""
        angles = condition.float()[:, None] * self.frequencies[None]
        # The gain lets it keep up at the learning rate of the network.
        return _HEAD_GAIN * self.layer(torch.cat([angles.cos(), angles.sin()], dim=1))[:, 0]


class ResidualBlock(nn.Module):
    """Norm, activation, convolution, twice; the embedding scales and shifts after the second norm.

    The last convolution starts at zero, so that every block starts as the identity (or its 1x1 projection).
    """

    def __init__(self, in_channels: int, out_channels: int, embedding: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(group_count(in_channels), in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * out_channels)
        self.norm2 = nn.GroupNorm(group_count(out_channels), out_channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(b, in_channels, H, W), (b, embedding) -> (b, out_channels, H, W)."""
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        return self.skip(x) + self.conv2(self.dropout(h))


class SelfAttention(nn.Module):
    """Multi-head self-attention over all pixels of a (small) feature map, with a residual connection."""

    def __init__(self, channels: int, head_channels: int = 32) -> None:
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm = nn.GroupNorm(group_count(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, H, W) -> the same shape."""
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2).unbind(1)
        attended = functional.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        return x + self.out(attended.transpose(-1, -2).reshape(b, c, h, w))


def group_count(channels: int) -> int:
    """The largest divisor of ``channels`` up to a quarter of it and 32."""
    limit = max(1, min(32, channels // 4))
    return next(g for g in range(limit, 0, -1) if channels % g == 0)
