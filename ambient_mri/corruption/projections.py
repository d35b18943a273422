"""Random projections: an image is known through a few random directions a channel.

The directions are Gaussian rows, orthonormalised: a uniformly random frame, which spans the same subspace as the
Gaussian rows and keeps white noise white. B drops rows, at least one. Given the k rows that it keeps, the d dropped
ones are a fresh uniform frame of the complement, of dimension n - k. With W = 1 on kept rows and W = (n - k) / d on
dropped ones

    E[ A^H W A | A_tilde ] = A~^H A~ + (n - k)/d * d/(n - k) ( I - A~^H A~ ) = I .

The rows are a function of a number that belongs to the image; they are made when they are needed, and never stored.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.corruption.base import Further, ImageCorruption, Learnability
from ambient_mri.corruption.thinning import check_keep, check_weight_cap
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.masking import Mask
from ambient_mri.operators.projection import Projection, orthonormal_rows
from ambient_mri.tensors import RowGenerators, keyed_generator, rand_rows

__all__ = ["RandomProjections"]

# Rows of recent images that are kept: a batch needs them twice.
_RECENT = 64


class RandomProjections(ImageCorruption):
    """Random projections (module docstring); y is (b, c, count, 1).

    Differs from a B that drops one row and adds a fresh one: ours drops a random number of rows and adds none, for a
    fresh row asks for a measurement that real data do not hold, and where measured rows are held out to be predicted
    nothing fresh is needed: the weights are exact.

    Args:
        count: Rows, numbers known of each channel.
        keep: Range of q, the probability that B keeps a row.
        weight_cap: Upper bound on W; None for none.
        fixed: The same rows for all images (what a single-pixel camera with one pattern does), or None; it cannot be
            learned from, and the learnability check says so.
    """

    aligned: ClassVar[bool] = False

    def __init__(
        self,
        count: int,
        *,
        keep: tuple[float, float] = (0.5, 0.9),
        weight_cap: float | None = None,
        fixed: int | None = None,
    ) -> None:
        require(count >= 2, f"count must be at least 2, so that one row can be dropped; got {count}.")
        self.count, self.fixed = int(count), fixed
        self.keep, self.weight_cap = check_keep(keep), check_weight_cap(weight_cap)
        self._recent: OrderedDict[tuple[int, int, int], Tensor] = OrderedDict()

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """All rows are measured; the parameters are the seed of the rows and the image's H and W."""
        seed = int(torch.randint(2**40, (1,), generator=generator)) if self.fixed is None else self.fixed
        parameters = torch.tensor([[seed, *shape[1:]]], dtype=torch.float64)
        return torch.ones(1, 1, self.count, 1, dtype=torch.bool), parameters

    def forward_operator(self, m: Measurement) -> LinearOperator:
        require(m.parameters is not None, "random projections need the seeds of their rows in Measurement.parameters.")
        keys = [(int(s), int(h), int(w)) for s, h, w in m.parameters.tolist()]  # type: ignore[union-attr]
        rows = torch.stack([self._rows(key) for key in keys])
        return Projection(rows.to(m.y.device), keys[0][1:])

    def inclusion(self, m: Measurement) -> Tensor:
        """1: orthonormal rows keep the mean square of a number."""
        return torch.ones(1, 1, 1, 1)

    def further(self, m: Measurement, generators: RowGenerators) -> Further:
        mask = m.mask.expand(len(m), *m.mask.shape[1:])
        uniform = rand_rows(generators, self.count + 2, device=mask.device)
        q = self.keep[0] + (self.keep[1] - self.keep[0]) * uniform[:, :1]
        dropped = (uniform[:, 1] * self.count).long().clamp_max(self.count - 1)
        kept = uniform[:, 2:] < q
        kept.scatter_(1, dropped[:, None], False)
        kept = kept.reshape(mask.shape) & mask
        full = self.forward_operator(m)
        pixels = self._pixels(m).to(uniform).reshape(-1, 1, 1, 1)
        number = kept.sum(dim=(1, 2, 3), keepdim=True)
        inverse = (pixels - number) / (self.count - number)
        inverse = inverse if self.weight_cap is None else inverse.clamp_max(self.weight_cap)
        weights = torch.where(kept, torch.ones_like(inverse), inverse) * mask
        return Further(Mask(kept) @ full, kept, weights, self.rate(m, kept))

    def rate(self, m: Measurement, kept: Tensor) -> Tensor:
        """Rows kept over pixels."""
        return kept.sum(dim=(1, 2, 3)) / self._pixels(m).to(kept.device, torch.float32)

    def learnability(self, image_shape: tuple[int, int]) -> Learnability:
        """The rows must differ from image to image."""
        pixels = image_shape[0] * image_shape[1]
        require(
            self.count <= pixels, f"{self.count} rows are more than an image of {pixels} pixels has; lower the count."
        )
        require(
            self.fixed is None or self.count == pixels,
            f"all images are seen through the same {self.count} directions: what they all miss cannot be learned. Draw "
            "fresh projections for every image (fixed=null).",
        )
        return Learnability(1.0 / pixels)

    def describe(self) -> dict[str, Any]:
        return {"law": "RandomProjections", "count": self.count, "fixed": self.fixed}

    def _pixels(self, m: Measurement) -> Tensor:
        return m.parameters[:, 1:].prod(1)  # type: ignore[index]

    def _rows(self, key: tuple[int, int, int]) -> Tensor:
        if key not in self._recent:
            seed, height, width = key
            self._recent[key] = orthonormal_rows(self.count, height * width, keyed_generator("projection", seed))
            while len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
        return self._recent[key]
