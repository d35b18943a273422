r"""Missing rectangles: a box, or everything but a patch.

    RandomBoxes     P lacks one box;                         B removes another box, disjoint from the first
    RandomPatches   P is one patch;                          B is a smaller patch inside it

Weights of boxes. A's box is uniform over the allowed places, B's box uniform over the N(a) places that are disjoint
from A's box a. Seeing the two holes a and b, A made hole a with probability (1/N(a)) / (1/N(a) + 1/N(b)). A pixel in
B's hole b was measured if and only if A made hole a, so W = 1 + N(a) / N(b) there. (Holes that overlap would give
their intersection away: no image of that A_tilde has it.)

Weights of patches. The small patch is uniform inside A's patch, so that, given the small one, A's patch is uniform
over the places that contain it; W is one over the share of these places that cover the pixel, rows times columns.

Each law goes with noise as it is: ``noise_std`` belongs to the measurement.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.corruption.base import Further, ImageCorruption, Learnability
from ambient_mri.corruption.thinning import check_weight_cap
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.masking import Mask
from ambient_mri.tensors import RowGenerators, rand_rows

__all__ = ["RandomBoxes", "RandomPatches"]


class _Rectangle(ImageCorruption):
    """A rectangle at a random place: its size, and where its top left corner may be."""

    what: ClassVar[str] = "rectangle"

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        rows: tuple[int, int] | None,
        columns: tuple[int, int] | None,
        weight_cap: float | None,
    ) -> None:
        both = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        require(min(both) >= 1, f"the size of a {self.what} must be positive; got {size}.")
        self.size = both
        self.rows, self.columns = (None if r is None else (int(r[0]), int(r[1])) for r in (rows, columns))
        self.weight_cap = check_weight_cap(weight_cap)

    def forward_operator(self, m: Measurement) -> LinearOperator:
        return Mask(m.mask)

    def check_masks(self, masks: Tensor) -> None:
        """Each is one rectangle of this size at an allowed place."""
        inside = self._inside(masks[:, :1])
        top, left = _corner(inside)
        sides = [torch.full_like(top, n) for n in self.size]
        exact = _rectangle((top, left), (sides[0], sides[1]), (masks.shape[-2], masks.shape[-1]))
        allowed = torch.ones_like(top, dtype=torch.bool)
        for start, (first, last) in zip((top, left), self.places((masks.shape[-2], masks.shape[-1])), strict=True):
            allowed &= (start >= first) & (start <= last)
        wrong = int((~allowed | (exact != inside).flatten(1).any(1)).sum())
        rows, columns = self.size
        require(
            masks.shape[1] == 1 and wrong == 0,
            f"{wrong} of {len(masks)} masks are not one {self.what} of {rows} x {columns} at an allowed place, for all "
            "colours: give its corruption.size, or choose corruption=observed_pixels.",
        )

    @abstractmethod
    def _inside(self, masks: Tensor) -> Tensor:
        """The rectangle, of masks."""

    def places(self, image_shape: tuple[int, int]) -> list[tuple[int, int]]:
        """First and last allowed index of the top left corner, along rows and columns.

        Raises:
            AmbientMRIError: If the rectangle does not fit.
        """
        found = []
        for length, side, given, axis in zip(
            image_shape, self.size, (self.rows, self.columns), ("rows", "columns"), strict=True
        ):
            first, last = (0, length - side) if given is None else given
            require(
                0 <= first <= last <= length - side,
                f"a {self.what} of {self.size[0]} x {self.size[1]} does not fit at {axis} {first} to {last} of an "
                f"image of {image_shape[0]} x {image_shape[1]}.",
            )
            found.append((first, last))
        return found

    def _place(self, image_shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """A random rectangle, (1, 1, H, W) bool."""
        corner = [
            first + torch.randint(last - first + 1, (1,), generator=generator)
            for first, last in self.places(image_shape)
        ]
        sides = [torch.tensor([n]) for n in self.size]
        return _rectangle((corner[0], corner[1]), (sides[0], sides[1]), image_shape)

    def _coverage(self, image_shape: tuple[int, int]) -> Tensor:
        """Pr(a pixel is inside the rectangle), (1, 1, H, W)."""
        shares = [
            _covered(torch.tensor([first]), torch.tensor([last]), side, length)
            for (first, last), side, length in zip(self.places(image_shape), self.size, image_shape, strict=True)
        ]
        return shares[0][:, None, :, None] * shares[1][:, None, None, :]

    def _weights(self, inverse: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
        inverse = inverse if self.weight_cap is None else inverse.clamp_max(self.weight_cap)
        return torch.where(kept, torch.ones_like(inverse), inverse) * mask


class RandomBoxes(_Rectangle):
    """A box is missing at a random place; B removes another one beside it (module docstring).

    Args:
        size: Rows and columns of the box.
        rows: First and last row that its upper edge may be at; anywhere when None.
        columns: The same for its left edge.
        weight_cap: As for :class:`~ambient_mri.corruption.Undersampling`.
    """

    what = "box"

    def _inside(self, masks: Tensor) -> Tensor:
        return ~masks

    def __init__(
        self,
        size: int | tuple[int, int] = 8,
        *,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
        weight_cap: float | None = None,
    ) -> None:
        super().__init__(size, rows=rows, columns=columns, weight_cap=weight_cap)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Everything but a box."""
        return ~self._place(shape[1:], generator), None

    def inclusion(self, m: Measurement) -> Tensor:
        """Pr(a pixel is outside the box)."""
        return (1 - self._coverage(m.image_shape)).clamp_min(1e-3)

    def further(self, m: Measurement, generators: RowGenerators) -> Further:
        mask = m.mask.expand(len(m), *m.mask.shape[1:])
        top, left = _corner(~mask)
        disjoint = self._disjoint(top, left, m.image_shape)
        count = disjoint.sum(1)
        chosen = (rand_rows(generators, 1, device=mask.device)[:, 0] * count).floor()
        index = (disjoint.cumsum(1) <= chosen[:, None]).sum(1).clamp_max(disjoint.shape[1] - 1)
        (first_row, _), (first_column, last_column) = self.places(m.image_shape)
        width = last_column - first_column + 1
        top, left = first_row + index // width, first_column + index % width
        sides = [torch.full_like(top, n) for n in self.size]
        hole = _rectangle((top, left), (sides[0], sides[1]), m.image_shape) & (count > 0).reshape(-1, 1, 1, 1)
        kept = mask & ~hole
        ratio = count / self._disjoint(top, left, m.image_shape).sum(1).clamp_min(1)
        weights = self._weights((1 + ratio).reshape(-1, 1, 1, 1).expand(mask.shape), mask, kept)
        return Further(Mask(kept), kept, weights, kept.float().mean(dim=(1, 2, 3)))

    def learnability(self, image_shape: tuple[int, int]) -> Learnability:
        """Every pixel must be outside some boxes, and every box must leave room for a second one."""
        (top, bottom), (left, right) = self.places(image_shape)
        behind = int((self._coverage(image_shape) >= 1).sum())
        require(
            behind == 0,
            f"{behind} pixels are behind the box in every image: what belongs there cannot be learned. Let the box "
            "move further (rows, columns).",
        )
        rows, columns = torch.meshgrid(torch.arange(top, bottom + 1), torch.arange(left, right + 1), indexing="ij")
        counts = self._disjoint(rows.flatten(), columns.flatten(), image_shape).sum(1)
        require(
            int(counts.min()) > 0,
            f"some boxes of {self.size[0]} x {self.size[1]} leave no place for a second one beside them: their pixels "
            "would never be filled in under supervision. Use a smaller box.",
        )
        return Learnability(float(counts.min() / (counts.min() + counts.max())))

    def _disjoint(self, top: Tensor, left: Tensor, image_shape: tuple[int, int]) -> Tensor:
        """Which places are disjoint from the box at (top, left), (b, number of places) bool, row by row."""
        (first_row, last_row), (first_column, last_column) = self.places(image_shape)
        rows = torch.arange(first_row, last_row + 1, device=top.device)
        columns = torch.arange(first_column, last_column + 1, device=top.device)
        above = (rows[None] - top[:, None]).abs() >= self.size[0]
        beside = (columns[None] - left[:, None]).abs() >= self.size[1]
        return (above[:, :, None] | beside[:, None, :]).flatten(1)


class RandomPatches(_Rectangle):
    """One patch of each image is known, the rest is not; B keeps a smaller patch inside it (module docstring).

    The images themselves are not learnable from patches: pixels farther apart than a patch were never seen together.
    What is learned is the distribution of everything that fits in a patch; given a small patch, the network is
    supervised as far as a patch around it can reach, and no farther.

    Args:
        size: Rows and columns of the patch.
        inner: Range of the small patch's size, as a share of the patch's.
        rows: First and last row that its upper edge may be at; anywhere when None.
        columns: The same for its left edge.
        weight_cap: As for :class:`~ambient_mri.corruption.Undersampling`.
    """

    what = "patch"

    def _inside(self, masks: Tensor) -> Tensor:
        return masks

    def __init__(
        self,
        size: int | tuple[int, int] = 16,
        *,
        inner: tuple[float, float] = (0.5, 0.8),
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
        weight_cap: float | None = 50.0,
    ) -> None:
        super().__init__(size, rows=rows, columns=columns, weight_cap=weight_cap)
        low, high = inner
        require(0 < low <= high < 1, f"inner must satisfy 0 < low <= high < 1; got {tuple(inner)}.")
        self.inner = (float(low), float(high))

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """The patch alone."""
        return self._place(shape[1:], generator), None

    def inclusion(self, m: Measurement) -> Tensor:
        """Pr(a pixel is in the patch)."""
        return self._coverage(m.image_shape).clamp_min(1e-3)

    def further(self, m: Measurement, generators: RowGenerators) -> Further:
        mask = m.mask.expand(len(m), *m.mask.shape[1:])
        uniform = rand_rows(generators, 3, device=mask.device)
        share = self.inner[0] + (self.inner[1] - self.inner[0]) * uniform[:, 0]
        starts, sides, shares = [], [], []
        for axis, corner in enumerate(_corner(mask)):
            side, length = self.size[axis], m.image_shape[axis]
            small = (share * side).round().long().clamp(1, max(1, side - 1))
            start = corner + (uniform[:, 1 + axis] * (side - small + 1)).floor().long()
            first, last = self.places(m.image_shape)[axis]
            earliest, latest = (start - (side - small)).clamp_min(first), start.clamp_max(last)
            starts.append(start)
            sides.append(small)
            shares.append(_covered(earliest, latest, side, length))
        kept = _rectangle((starts[0], starts[1]), (sides[0], sides[1]), m.image_shape)
        probability = shares[0][:, None, :, None] * shares[1][:, None, None, :]
        weights = self._weights(1 / probability.clamp_min(1e-6), mask, kept)
        return Further(Mask(kept), kept, weights, kept.float().mean(dim=(1, 2, 3)))

    def learnability(self, image_shape: tuple[int, int]) -> Learnability:
        """Every pixel must be in some patches."""
        never = int((self._coverage(image_shape) <= 0).sum())
        places = self.places(image_shape)
        fixed = all(first == last for first, last in places)
        require(
            never == 0,
            f"{never} pixels are outside {'the one fixed patch' if fixed else 'every patch'}: what belongs there "
            "cannot be learned. Let the patch move over the whole image (rows, columns), or crop the images to it.",
        )
        rows, columns = self.size
        whole = (rows, columns) == tuple(image_shape)
        note = (
            f"patches of {rows} x {columns}: their distribution is learned, not that of whole images, whose distant "
            "pixels were never seen together"
        )
        return Learnability(1.0 if whole else 0.0, notes=() if whole else (note,))


def _rectangle(corner: tuple[Tensor, Tensor], sides: tuple[Tensor, Tensor], image_shape: tuple[int, int]) -> Tensor:
    """(b, 1, H, W) bool, True inside: top row and left column (b,), height and width (b,)."""
    inside = []
    for start, side, length in zip(corner, sides, image_shape, strict=True):
        index = torch.arange(length, device=start.device)[None]
        inside.append((index >= start[:, None]) & (index < (start + side)[:, None]))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]


def _corner(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Top row and left column of the rectangle of each row of ``inside`` (b, 1, H, W)."""
    return tuple(inside[:, 0].any(dim=dim).byte().argmax(dim=1) for dim in (2, 1))  # type: ignore[return-value]


def _covered(first: Tensor, last: Tensor, side: int, length: int) -> Tensor:
    """Share of the intervals [s, s + side), s from ``first`` to ``last`` (b,), that hold each index: (b, length)."""
    index = torch.arange(length, device=first.device)[None]
    low, high = torch.maximum(first[:, None], index - side + 1), torch.minimum(last[:, None], index)
    return (high - low + 1).clamp_min(0).float() / (last - first + 1)[:, None]
