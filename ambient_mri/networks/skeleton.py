"""What all U-Nets of this package are: one arrangement of blocks, whatever the blocks are made of.

    fold -> stem -> levels down, each with its skip connections -> middle -> levels up -> norm -> head -> unfold

The first stage folds pixels into channels (space-to-depth), each further level halves the resolution. Any H and W, odd
too: padded with zeros to a multiple of the total stride and cropped again, to twice the stride at least: oneDNN 3.12
reads beyond the rows of a bfloat16 convolution that leaves one pixel of two, and returns NaN where NaN happens to lie
there. A scalar and a vector of conditions enter every residual block as one embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from ambient_mri._checks import require
from ambient_mri.networks.layers import NoiseEmbedding, SelfAttention

__all__ = ["UNetSkeleton"]


class UNetSkeleton(nn.Module):
    """A residual U-Net whose blocks a subclass makes.

    The names of its parts, and the order in which they are made, are those of the weights in a prior: they stay.

    Args:
        in_channels: Input channels of the stem before the fold, in its own units (complex ones count once).
        out_channels: The same of the head.
        channels: Width of the first level, after space-to-depth.
        multipliers: Width of each level as a multiple of ``channels``; each further level halves the resolution.
        blocks: Residual blocks a level on the way down; one more on the way up.
        fold: Space-to-depth factor of the first stage (1, 2 or 4).
        attention: Levels (0-based) that get self-attention.
        condition_dim: Length of the condition vector; 0 for none.
        embedding: Length of the embedding that residual blocks are given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        fold: int,
        attention: Sequence[int],
        condition_dim: int,
        embedding: int,
    ) -> None:
        super().__init__()
        require(fold in (1, 2, 4), f"fold must be 1, 2 or 4; got {fold}.")
        require(len(multipliers) > 0, "multipliers must name at least one level.")
        self.fold, self.stride = fold, fold * 2 ** (len(multipliers) - 1)
        self.condition_dim, self._embedding = condition_dim, embedding
        self.noise = self._noise_embedding(embedding)
        self.condition = self._condition_embedding(condition_dim, embedding) if condition_dim else nn.Sequential()
        widths = [channels * m for m in multipliers]
        self.stem = self._convolution(in_channels * fold**2, widths[0])
        self.down, skips = self._build_down(widths, blocks, attention)
        self.middle = self._residual(widths[-1], widths[-1])
        self.up = self._build_up(widths, blocks, attention, skips)
        self.norm = self._normalization(widths[0])
        self.head = self._head(widths[0], out_channels * fold**2)

    @abstractmethod
    def _convolution(self, in_channels: int, out_channels: int) -> nn.Module:
        """A 3 x 3 convolution with a ``weight``: the stem, and the head before it is set to zero."""

    @abstractmethod
    def _residual(self, in_channels: int, out_channels: int) -> nn.Module:
        """A residual block, (features, embedding) -> features."""

    @abstractmethod
    def _downsample(self, in_channels: int, out_channels: int) -> nn.Module:
        """Half the resolution."""

    @abstractmethod
    def _upsample(self, in_channels: int, out_channels: int) -> nn.Module:
        """Twice the resolution."""

    @abstractmethod
    def _normalization(self, channels: int) -> nn.Module:
        """What comes before the head."""

    @abstractmethod
    def _joined(self, h: Tensor, skip: Tensor) -> Tensor:
        """Features of the way up beside those of a skip connection."""

    def prefers_channels_last(self) -> bool:
        """Whether that is the faster layout on a CPU, here and now (on a GPU it always is): not for group norms."""
        return False

    def _head(self, in_channels: int, out_channels: int) -> nn.Module:
        """The last layer, whose output is zero before any training."""
        head = self._convolution(in_channels, out_channels)
        nn.init.zeros_(head.weight)  # type: ignore[arg-type]
        if getattr(head, "bias", None) is not None:
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]
        return head

    def _noise_embedding(self, dim: int) -> nn.Module:
        """The scalar condition, (b,) -> (b, dim)."""
        return NoiseEmbedding(dim)

    def _condition_embedding(self, condition_dim: int, dim: int) -> nn.Module:
        """The condition vector, (b, condition_dim) -> (b, dim)."""
        return nn.Sequential(nn.Linear(condition_dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def _embedded(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Both embeddings, (b, dim) each, as one, activated."""
        return functional.silu(noise if condition is None else noise + condition)

    def _activated(self, h: Tensor) -> Tensor:
        """What comes between the normalisation and the head."""
        return h

    def _arranged(self, x: Tensor) -> Tensor:
        """The input channels in the order that the stem takes."""
        return x

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
        lower, right = (max(-n % self.stride, 2 * self.stride - n) for n in (height, width))
        x = self._arranged(functional.pad(x, (0, right, 0, lower)))
        embedding = self._embed(noise, condition)
        h = self.stem(functional.pixel_unshuffle(x, self.fold) if self.fold > 1 else x)
        skips = [h]
        for level in self.down:
            h = self._run_down(level, h, embedding, skips)
        h = self.middle(h, embedding)
        for level in self.up:
            for block in level:  # type: ignore[attr-defined]
                residual = isinstance(block, type(self.middle))
                h = block(self._joined(h, skips.pop()), embedding) if residual else block(h)
        h = self.head(self._activated(self.norm(h)))
        return (functional.pixel_shuffle(h, self.fold) if self.fold > 1 else h)[..., :height, :width]

    def _embed(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        if not self.condition_dim:
            return self._embedded(self.noise(noise), None)
        require(condition is not None, f"this network needs a condition vector of length {self.condition_dim}.")
        return self._embedded(self.noise(noise), self.condition(condition))

    def _run_down(self, level: nn.Module, h: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        for block in level:  # type: ignore[attr-defined]
            if isinstance(block, SelfAttention):
                h = skips[-1] = block(h)
                continue
            h = block(h, embedding) if isinstance(block, type(self.middle)) else block(h)
            skips.append(h)
        return h

    def _build_down(self, widths: list[int], blocks: int, attention: Sequence[int]) -> tuple[nn.ModuleList, list[int]]:
        """Levels on the way down, and the width of every skip connection in order."""
        levels, skips = nn.ModuleList(), [widths[0]]
        for i, width in enumerate(widths):
            level = nn.ModuleList()
            if i > 0:
                level.append(self._downsample(widths[i - 1], width))
                skips.append(width)
            for _ in range(blocks):
                level.append(self._residual(width, width))
                skips.append(width)
                if i in attention:
                    level.append(SelfAttention(width))
            levels.append(level)
        return levels, skips

    def _build_up(self, widths: list[int], blocks: int, attention: Sequence[int], skips: list[int]) -> nn.ModuleList:
        levels, skips = nn.ModuleList(), list(skips)
        for i in reversed(range(len(widths))):
            level = nn.ModuleList()
            for _ in range(blocks + 1):
                level.append(self._residual(widths[i] + skips.pop(), widths[i]))
                if i in attention:
                    level.append(SelfAttention(widths[i]))
            if i > 0:
                level.append(self._upsample(widths[i], widths[i - 1]))
            levels.append(level)
        return levels
