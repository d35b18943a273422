"""Block averaging: every block of an image is known in full, or only by its mean, at random.

In the orthonormal cosine basis of the blocks the mean is the first coefficient, so that A = P T is a mask: T the
:class:`~ambient_mri.operators.transforms.BlockCosine`, P all coefficients of an intact block and the first one of an
averaged block. y holds these coefficients, each at its block's place; white noise on y is white noise on the pixels of
intact blocks. B averages intact blocks too: with p the probability that a block is intact and q that B leaves it so,
Pr(intact | B P) = p (1 - q) / (1 - p q), and W is its inverse on the blocks that B averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ambient_mri._checks import require
from ambient_mri.corruption.base import Further, ImageCorruption, Learnability
from ambient_mri.corruption.thinning import check_keep, check_weight_cap
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.masking import Mask
from ambient_mri.operators.transforms import BlockCosine
from ambient_mri.tensors import RowGenerators, rand_rows

__all__ = ["BlockAveraging"]


class BlockAveraging(ImageCorruption):
    """A random subset of the blocks is averaged (module docstring).

    Args:
        block: Rows and columns of a block, at least 2.
        probability: Pr(a block is intact).
        keep: Range of q.
        weight_cap: Upper bound on W; None for none.
    """

    def __init__(
        self,
        block: int = 4,
        probability: float = 0.5,
        *,
        keep: tuple[float, float] = (0.3, 0.9),
        weight_cap: float | None = None,
    ) -> None:
        require(block >= 2, f"block must be at least 2; got {block}.")
        require(0 <= probability <= 1, f"probability must be in [0, 1]; got {probability}.")
        self.block, self.probability = int(block), float(probability)
        self.keep, self.weight_cap = check_keep(keep), check_weight_cap(weight_cap)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """All coefficients of intact blocks, the first one of the others."""
        blocks = self._blocks(shape[1:])
        return self._coefficients(torch.rand(1, 1, *blocks, generator=generator) < self.probability), None

    def forward_operator(self, m: Measurement) -> LinearOperator:
        return Mask(m.mask) @ BlockCosine(self.block)

    def inclusion(self, m: Measurement) -> Tensor:
        """1 for a block's mean, ``probability`` for the rest."""
        none = torch.zeros(1, 1, *self._blocks(m.image_shape), dtype=torch.bool)
        return torch.where(self._coefficients(none), 1.0, max(self.probability, 1e-3))

    def further(self, m: Measurement, generators: RowGenerators) -> Further:
        mask = m.mask.expand(len(m), *m.mask.shape[1:])
        intact = mask[..., 1 :: self.block, 1 :: self.block]
        uniform = rand_rows(generators, intact[0].numel() + 1, device=mask.device)
        q = (self.keep[0] + (self.keep[1] - self.keep[0]) * uniform[:, 0]).reshape(-1, 1, 1, 1)
        kept = self._coefficients(intact & (uniform[:, 1:].reshape(intact.shape) < q))
        inverse = (1 - self.probability * q) / (self.probability * (1 - q))
        inverse = inverse if self.weight_cap is None else inverse.clamp_max(self.weight_cap)
        weights = torch.where(kept, torch.ones_like(inverse), inverse) * mask
        operator = Mask(kept) @ BlockCosine(self.block)
        return Further(operator, kept, weights, self.rate(m, kept))

    def learnability(self, image_shape: tuple[int, int]) -> Learnability:
        """Some blocks must be intact."""
        self._blocks(image_shape)
        require(
            self.probability > 0,
            f"every block of {self.block} x {self.block} is averaged in every image: what is finer cannot be learned. "
            "Leave some blocks intact (probability above 0).",
        )
        q = self.keep[1]
        return Learnability(self.probability * (1 - q) / (1 - self.probability * q))

    def _blocks(self, image_shape: tuple[int, int]) -> tuple[int, int]:
        height, width = image_shape
        require(
            height % self.block == 0 and width % self.block == 0,
            f"blocks of {self.block} x {self.block} do not tile an image of {height} x {width}: crop it to a multiple.",
        )
        return height // self.block, width // self.block

    def _coefficients(self, intact: Tensor) -> Tensor:
        """Blocks (b, 1, h, w) to coefficients (b, 1, H, W): all of an intact block, the first one of any."""
        full = functional.interpolate(intact.float(), scale_factor=self.block, mode="nearest") > 0
        full[..., :: self.block, :: self.block] = True
        return full
