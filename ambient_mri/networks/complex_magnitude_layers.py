r"""Complex layers that commute with a global phase and keep the magnitude of what passes through them.

:mod:`~ambient_mri.networks.complex_layers` and :mod:`~ambient_mri.networks.magnitude_layers` together: complex
convolutions whose weights have unit norm, over the real and imaginary parts of all that makes an output channel, so
that every real part keeps its rms. The activation is modReLU in units of the rms modulus,

    f(z) = ReLU( s + b sqrt(2) / |z| ) z ,         |z|^2 / 2 exponential with mean one  ->  rms of f = _MODRELU_GAIN

with a threshold b for each channel, the only thing besides directions that is learned: what a constant channel does
for real networks would fix the phase here. A feature map is brought to unit rms as a whole, not pixel by pixel: nothing
else would tell a dark pixel from a bright one.

Reference: Karras et al. 2024, arXiv:2312.02696 (EDM2); Arjovsky et al. 2016, arXiv:1511.06464 (modReLU). Differs: all
of the above.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri.networks.complex_layers import cat_complex, squared_modulus
from ambient_mri.networks.magnitude_layers import BRANCH_WEIGHT, MagnitudeLinear, UnitNorm, balanced, with_main_path

__all__ = ["ComplexMagnitudeConv2d", "ComplexMagnitudeResidualBlock", "ModReLU", "cat_complex_magnitude"]

# Threshold of modReLU at the start, in units of the rms modulus, and the rms that it leaves of a Gaussian map.
_THRESHOLD, _MODRELU_GAIN = -0.5, 0.5946
_EPS = 1e-12
# Channels from which on either half of a channels-last pixel is worth its own way.
_WIDE = 32


class ComplexMagnitudeConv2d(UnitNorm):
    """Complex convolution without bias, of unit norm (module docstring); padding keeps the size.

    Args:
        in_channels: Complex channels.
        out_channels: Complex channels.
        kernel_size: Odd.
        stride: Of the convolution.
        gain: Start of a learned gain; None for none.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, gain: float | None = None
    ) -> None:
        super().__init__((out_channels, 2, in_channels, kernel_size, kernel_size), gain)
        self.stride, self.padding = stride, kernel_size // 2

    def _made(self, scale: float) -> Tensor:
        """The real convolution that this is, (2 out_channels, 2 in_channels, k, k)."""
        real, imag = super()._made(scale).unbind(1)
        return torch.cat([torch.cat([real, -imag], dim=1), torch.cat([imag, real], dim=1)], dim=0)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """(b, 2 in_channels, H, W), real parts first -> (b, 2 out_channels, H, W), times ``scale``."""
        return functional.conv2d(x, self.unit_weight(scale), stride=self.stride, padding=self.padding)


class ModReLU(nn.Module):
    """modReLU (module docstring).

    Args:
        channels: Complex channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.full((channels,), _THRESHOLD))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """(b, 2 channels, H, W) -> the same shape, of rms ``_MODRELU_GAIN`` where x has one.

        Args:
            x: Complex map.
            scale: s, (b, channels); one when not given.
            shift: Added to the threshold, (b, channels).
        """
        threshold = self.threshold[None] if shift is None else self.threshold + shift
        weight = (math.sqrt(2) * threshold).to(x.dtype)[:, :, None, None]
        start = torch.ones_like(weight) if scale is None else scale.to(x.dtype)[:, :, None, None]
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _modrelu(x, start, weight)
        factor = torch.addcmul(start, (squared_modulus(x) + _EPS).rsqrt(), weight).relu()
        return (x.unflatten(1, (2, len(self.threshold))) * factor[:, None]).flatten(1, 2)


class ComplexMagnitudeResidualBlock(nn.Module):
    """modReLU, convolution, twice; the embedding scales the second and moves its threshold.

    Where the width stays (on the way down) the map is brought to unit rms first; where it changes, a 1x1 convolution
    carries the main path.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.activation1 = ModReLU(in_channels)
        self.conv1 = ComplexMagnitudeConv2d(in_channels, out_channels, 3)
        self.modulation = MagnitudeLinear(embedding, 2 * out_channels, gain=0.0)
        self.activation2 = ModReLU(out_channels)
        self.conv2 = ComplexMagnitudeConv2d(out_channels, out_channels, 3)
        same = in_channels == out_channels
        self.skip = None if same else ComplexMagnitudeConv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(b, 2 in_channels, H, W), (b, embedding) real -> (b, 2 out_channels, H, W)."""
        if self.skip is None:
            x = _unit_map(x)
        h = self.conv1(self.activation1(x), 1 / _MODRELU_GAIN)
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        h = self.conv2(self.activation2(h, 1 + scale, shift), BRANCH_WEIGHT / _MODRELU_GAIN)
        return with_main_path(h, x, self.skip)


def _modrelu(x: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """ReLU(s + w / |z|) z without gradients, in fewer passes through memory: s and w (b, C, 1, 1)."""
    channels = x.shape[1] // 2
    if channels < _WIDE and x.is_contiguous(memory_format=torch.channels_last):
        # Halves of so few channels are short pieces of memory: a 1x1 convolution puts their sum in place of either.
        both = torch.eye(channels, dtype=x.dtype, device=x.device).repeat(2, 2)[:, :, None, None]
        power = functional.conv2d(x * x, both, bias=x.new_full((2 * channels,), _EPS))
        start, weight = start.repeat(1, 2, 1, 1), weight.repeat(1, 2, 1, 1)
        return torch.addcmul(start, power.rsqrt_(), weight).relu_().mul_(x)
    real, imag = x.chunk(2, dim=1)
    factor = (real * real).addcmul_(imag, imag).add_(_EPS).rsqrt_().mul_(weight).add_(start).relu_()
    out = torch.empty_like(x)
    torch.mul(real, factor, out=out[:, :channels])
    torch.mul(imag, factor, out=out[:, channels:])
    return out


def cat_complex_magnitude(a: Tensor, b: Tensor) -> Tensor:
    """The channels of two complex maps side by side, either of the same weight in what follows: the rms stays."""
    return cat_complex(*balanced(a, b))


def _unit_map(x: Tensor) -> Tensor:
    """The map of every row over its rms, (b, c, H, W)."""
    precise = torch.promote_types(x.dtype, torch.float32)
    rms = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True, dtype=precise) / math.sqrt(x[0].numel())
    return x / (rms + 1e-4).to(x.dtype)
