r"""Layers that keep the magnitude of what passes through them: unit variance in, about unit variance out.

Weights have unit norm wherever they are used,

    w_i -> w_i / ||w_i|| ,       ||w_i|| over everything that makes output channel i,

so that a layer neither grows nor shrinks what it is given, and only the direction of a weight is learned. Sums,
concatenations and activations are scaled to the same end. There is no bias and no group norm; a constant channel at the
input of the network takes the place of the biases. Inside a block the constants of activations and of sums go into the
weights: a pass over every feature map saved for each.

Reference: Karras et al. 2024, arXiv:2312.02696 (EDM2, configuration G; section 2.3 and appendix B). Differs: a forward
does not put the stored weights back on the sphere; ``normalize_()`` does, which a training calls before every step.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri.networks.layers import FourierFeatures

__all__ = [
    "BRANCH_WEIGHT",
    "MagnitudeConv2d",
    "MagnitudeEmbedding",
    "MagnitudeLinear",
    "MagnitudeResidualBlock",
    "UnitNorm",
    "balanced",
    "cat_magnitude",
    "normalize_weights_",
    "silu_magnitude",
    "sum_magnitude",
    "with_main_path",
]

# rms of SiLU of a standard normal variable.
_SILU_GAIN = 0.596
# Share of a residual branch in its sum.
_BRANCH = 0.3
# Weights of both parts of that sum, which keep the rms of independent parts of equal rms.
BRANCH_WEIGHT, _MAIN_WEIGHT = (t / math.hypot(1 - _BRANCH, _BRANCH) for t in (_BRANCH, 1 - _BRANCH))
_CLIP = 256.0
_EPS = 1e-4


class UnitNorm(nn.Module):
    """Weights of unit norm for each output, times an optional learned gain that starts at ``gain``."""

    def __init__(self, shape: tuple[int, ...], gain: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.gain = None if gain is None else nn.Parameter(torch.tensor(float(gain)))
        self._kept: tuple[object, Tensor] | None = None

    def unit_weight(self, scale: float = 1.0) -> Tensor:
        """The weights in use, times ``scale``; made once for all evaluations without gradients.

        What changes the stored weights in place by ``.data``, as fused optimisers and averaging do, leaves no trace
        on them: nothing is kept in training mode, nor over ``eval()`` and ``train()``, which stand between.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._made(scale)
        stored = (self.weight, *([] if self.gain is None else [self.gain]))
        if any(t.is_inference() for t in stored):  # they know nothing of their changes
            return self._made(scale)
        key = (scale, *((t.data_ptr(), t._version, t.dtype, t.device) for t in stored))
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self._made(scale))
        return self._kept[1]

    def train(self, mode: bool = True) -> Self:
        """As for any module."""
        self._kept = None
        return super().train(mode)

    def _made(self, scale: float) -> Tensor:
        return self.weight * ((scale if self.gain is None else scale * self.gain) / self._norm().clamp_min(_EPS))

    def _norm(self) -> Tensor:
        return torch.linalg.vector_norm(self.weight, dim=tuple(range(1, self.weight.ndim)), keepdim=True)

    @torch.no_grad()
    def normalize_(self) -> None:
        """Put the stored weights on the sphere of rms one, as they started."""
        self.weight.mul_(math.sqrt(self.weight[0].numel()) / self._norm().clamp_min(_EPS))


class MagnitudeConv2d(UnitNorm):
    """Convolution without bias (module docstring), padding keeps the size.

    Args:
        in_channels: Channels of the input.
        out_channels: Of the output.
        kernel_size: Odd.
        stride: Of the convolution.
        gain: Start of a learned gain; None for none.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, gain: float | None = None
    ) -> None:
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), gain)
        self.stride, self.padding = stride, kernel_size // 2

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """(b, in_channels, H, W) -> (b, out_channels, H, W), times ``scale``."""
        return functional.conv2d(x, self.unit_weight(scale), stride=self.stride, padding=self.padding)


class MagnitudeLinear(UnitNorm):
    """Linear layer without bias (module docstring)."""

    def __init__(self, in_features: int, out_features: int, *, gain: float | None = None) -> None:
        super().__init__((out_features, in_features), gain)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_features) -> (b, out_features)."""
        return functional.linear(x, self.unit_weight())


class MagnitudeEmbedding(FourierFeatures):
    """A scalar condition to ``dim`` features: sines and cosines of unit rms, then one linear layer.

    Args:
        dim: Number of features.
        frequencies: As :class:`~ambient_mri.networks.layers.FourierFeatures`.
    """

    def __init__(self, dim: int, frequencies: int = 32) -> None:
        super().__init__(frequencies)
        self.layer = MagnitudeLinear(2 * frequencies, dim)

    def forward(self, condition: Tensor) -> Tensor:
        """(b,) -> (b, dim)."""
        return self.layer(math.sqrt(2) * super().forward(condition))


class MagnitudeResidualBlock(nn.Module):
    """Activation, convolution, twice; the embedding scales in between; pixels of unit rms where the width stays.

    Where the width stays (on the way down) every pixel's feature vector is brought to unit rms first, which keeps the
    magnitudes of the main path from growing with depth; where it changes, a 1x1 convolution carries the main path.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = MagnitudeConv2d(in_channels, out_channels, 3)
        self.modulation = MagnitudeLinear(embedding, out_channels, gain=0.0)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = MagnitudeConv2d(out_channels, out_channels, 3)
        same = in_channels == out_channels
        self.skip = None if same else MagnitudeConv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(b, in_channels, H, W), (b, embedding) -> (b, out_channels, H, W)."""
        if self.skip is None:
            x = _unit_pixels(x)
        # SiLU is silu_magnitude but for a constant, which the convolution after it takes; the sum is sum_magnitude.
        h = self.conv1(functional.silu(x), 1 / _SILU_GAIN)
        h = functional.silu(h * (1 + self.modulation(embedding)[:, :, None, None]).to(h.dtype))
        h = with_main_path(self.conv2(self.dropout(h), BRANCH_WEIGHT / _SILU_GAIN), x, self.skip)
        return functional.hardtanh(h, -_CLIP, _CLIP)


def normalize_weights_(network: nn.Module) -> None:
    """Put all weights of unit norm in ``network`` back on their spheres."""
    for module in network.modules():
        if isinstance(module, UnitNorm):
            module.normalize_()


def silu_magnitude(x: Tensor) -> Tensor:
    """SiLU, scaled so that a standard normal input keeps its rms."""
    return functional.silu(x) / _SILU_GAIN


def sum_magnitude(a: Tensor, b: Tensor, share: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) with t = ``share``: the rms of independent inputs of equal rms."""
    return torch.lerp(a, b, share) / math.hypot(1 - share, share)


def cat_magnitude(a: Tensor, b: Tensor) -> Tensor:
    """Channels of ``a`` beside those of ``b``, either part of the same weight in what follows: the rms stays."""
    return torch.cat(balanced(a, b), dim=1)


def balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps, scaled so that side by side they have equal weight and the rms of the parts."""
    total, (m, n) = a.shape[1] + b.shape[1], (a.shape[1], b.shape[1])
    return (a, b) if m == n else (a * math.sqrt(total / (2 * m)), b * math.sqrt(total / (2 * n)))


def with_main_path(branch: Tensor, x: Tensor, skip: UnitNorm | None) -> Tensor:
    """A branch, weighted by ``BRANCH_WEIGHT`` already, and the main path: ``x``, or what ``skip`` makes of it."""
    return torch.add(branch, x, alpha=_MAIN_WEIGHT) if skip is None else branch + skip(x, _MAIN_WEIGHT)


def _unit_pixels(x: Tensor) -> Tensor:
    """Every pixel's feature vector over its rms, (b, c, H, W)."""
    precise = torch.promote_types(x.dtype, torch.float32)
    rms = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=precise) / math.sqrt(x.shape[1])
    return x / (rms + _EPS).to(x.dtype)
