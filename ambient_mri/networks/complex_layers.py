r"""Layers on complex feature maps that commute with a global phase: f(exp(i phi) z) = exp(i phi) f(z).

A complex map of C channels is a real tensor (b, 2C, H, W), all real parts first, so that every convolution is one real
convolution with tied weights,

    [ Re ]     [ W_r  -W_i ] [ Re ]
    [ Im ]  =  [ W_i   W_r ] [ Im ]          (Trabelsi et al. 2018, arXiv:1705.09792)

with the arithmetic of a real one of 2C channels and half of its parameters. Nothing adds to z, because a bias would fix
the phase. Normalisation and activation are one factor, which depends on the modulus alone:

    s = e^a / rms(z over its group),      f(z) = ReLU( s |z| + b ) z / |z| = ReLU( s + b / |z| ) z

modReLU (Arjovsky et al. 2016, arXiv:1511.06464) of the normalised map. Differs: 1. normalised by the rms of a group,
without a mean and without whitening. 2. a and b may come from an embedding, which carries no phase.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri.networks.layers import group_count

__all__ = ["ComplexConv2d", "ComplexResidualBlock", "NormModReLU", "cat_complex", "squared_modulus"]

# Threshold of modReLU at the start, in units of the rms: it lets about four fifths of Gaussian values through.
_THRESHOLD = -0.5
_EPS = 1e-12


class ComplexConv2d(nn.Module):
    """Complex convolution without bias (module docstring).

    Args:
        in_channels: Complex channels.
        out_channels: Complex channels.
        kernel_size: Odd; the padding keeps the size.
        stride: Of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.padding = stride, kernel_size // 2
        shape = (2, out_channels, in_channels, kernel_size, kernel_size)
        # What torch does by default for the real convolution that this is.
        bound = 1 / math.sqrt(2 * in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 2 in_channels, H, W) -> (b, 2 out_channels, H, W)."""
        real, imag = self.weight
        weight = torch.cat([torch.cat([real, -imag], dim=1), torch.cat([imag, real], dim=1)], dim=0)
        return functional.conv2d(x, weight, stride=self.stride, padding=self.padding)


class NormModReLU(nn.Module):
    """Group normalisation and modReLU in one factor (module docstring).

    Args:
        channels: Complex channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = group_count(channels)
        self.bias = nn.Parameter(torch.full((channels,), _THRESHOLD))

    def forward(self, x: Tensor, log_scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """(b, 2 channels, H, W) -> the same shape.

        Args:
            x: Complex map.
            log_scale: a, (b, channels); zero when not given.
            shift: Added to the bias, (b, channels).
        """
        batch, channels = len(x), len(self.bias)
        parts = x.unflatten(1, (2, channels))
        power = squared_modulus(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        energy = power.mean(dim=(2, 3), dtype=wide).reshape(batch, self.groups, -1).mean(dim=2)
        scale = (energy + _EPS).rsqrt().repeat_interleave(channels // self.groups, dim=1)
        if log_scale is not None:
            scale = scale * log_scale.to(wide).exp()
        bias = self.bias if shift is None else self.bias + shift.to(wide)
        scale, bias = (t.expand(batch, channels).to(x.dtype)[:, :, None, None] for t in (scale, bias))
        factor = functional.relu(torch.addcmul(scale, bias, (power + _EPS).rsqrt()))
        return (parts * factor[:, None]).flatten(1, 2)


class ComplexResidualBlock(nn.Module):
    """Norm, modReLU, convolution, twice; the embedding scales the second and moves its threshold.

    The last convolution starts at zero, so that every block starts as the identity (or its 1x1 projection).
    """

    def __init__(self, in_channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = NormModReLU(in_channels)
        self.conv1 = ComplexConv2d(in_channels, out_channels, 3)
        self.modulation = nn.Linear(embedding, 2 * out_channels)
        self.norm2 = NormModReLU(out_channels)
        self.conv2 = ComplexConv2d(out_channels, out_channels, 3)
        self.skip = ComplexConv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(b, 2 in_channels, H, W), (b, embedding) real -> (b, 2 out_channels, H, W)."""
        h = self.conv1(self.norm1(x))
        log_scale, shift = self.modulation(embedding).chunk(2, dim=1)
        return self.skip(x) + self.conv2(self.norm2(h, log_scale, shift))


def squared_modulus(x: Tensor) -> Tensor:
    """|z|^2 of a complex map, (b, 2C, H, W) -> (b, C, H, W)."""
    real, imag = x.chunk(2, dim=1)
    return torch.addcmul(real * real, imag, imag)


def cat_complex(a: Tensor, b: Tensor) -> Tensor:
    """The channels of two complex maps side by side."""
    (a_real, a_imag), (b_real, b_imag) = a.chunk(2, dim=1), b.chunk(2, dim=1)
    return torch.cat([a_real, b_real, a_imag, b_imag], dim=1)
