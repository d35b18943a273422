"""2-D laws: single locations of the plane."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import check_positive, require
from ambient_mri.masks.base import SamplingLaw, centre_mask
from ambient_mri.tensors import keyed_generator, per_row

__all__ = ["IndependentPixels", "PoissonDisc"]


@dataclass(frozen=True)
class PoissonDisc(SamplingLaw):
    """Variable-density Poisson disc in 2-D: no two samples closer than a radius that grows away from the centre.

    Attributes:
        acceleration: R over the whole matrix; met within 2 % by bisection on the radius.
        acs_lines: Side of the fully sampled central square.
        density: How much wider the radius is at the corner than at the centre.

    Source: Bridson 2007 (dart throwing with a minimum distance). Differs: 1. on the Cartesian grid, in random order,
        which
    needs no active list. 2. the radius grows linearly with the distance from the centre.
    """

    acceleration: float = 4.0
    acs_lines: int = 16
    density: float = 2.0
    exact = False

    def __post_init__(self) -> None:
        check_positive("acceleration", self.acceleration)
        require(self.acs_lines >= 0, f"acs_lines must not be negative; got {self.acs_lines}.")

    def always(self, shape: tuple[int, int]) -> Tensor:
        rows, columns = (centre_mask(n, min(self.acs_lines, n)) for n in shape)
        return (rows[:, None] & columns[None])[None, None]

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        order = torch.randperm(shape[0] * shape[1], generator=generator).numpy()
        centre = self.always(shape)[0, 0].numpy()
        target = shape[0] * shape[1] / self.acceleration
        require(
            centre.sum() <= 1.02 * target,
            f"the central square of {self.acs_lines} x {self.acs_lines} alone holds more than "
            f"1 / {self.acceleration:g} of {shape[0]} x {shape[1]} locations. Choose fewer acs_lines, or "
            "a lower acceleration.",
        )
        low, high = 0.3, 4.0 * self.acceleration**0.5
        for _ in range(12):
            radius = 0.5 * (low + high)
            mask = _throw_darts(order, shape, radius, self.density) | centre
            if abs(mask.sum() - target) < 0.02 * target:
                break
            low, high = (radius, high) if mask.sum() > target else (low, radius)
        return torch.from_numpy(mask)[None, None]

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor, acquired: Tensor | None = None) -> Tensor:
        p = self.inclusion_probability((mask.shape[-2], mask.shape[-1])).to(mask.device, torch.float32)
        q = per_row(keep, mask.float())
        return torch.where(p >= 1, torch.ones_like(p), p * (1 - q) / (1 - p * q)).expand(mask.shape)

    def inclusion_probability(self, shape: tuple[int, int]) -> Tensor:
        return _radial_inclusion(self, shape)


def _throw_darts(order: np.ndarray, shape: tuple[int, int], radius: float, density: float) -> np.ndarray:
    """Visit the grid in ``order``; accept a location unless an accepted one lies within the local radius."""
    height, width = shape
    half = np.array([height / 2, width / 2])
    blocked = np.zeros(shape, dtype=bool)
    accepted = np.zeros(shape, dtype=bool)
    reach = int(np.ceil(radius * density)) + 1
    offset = np.arange(-reach, reach + 1)
    square = offset[:, None] ** 2 + offset[None] ** 2
    rows, columns = np.divmod(order, width)
    distance = np.hypot((rows - height // 2) / half[0], (columns - width // 2) / half[1])
    radii = radius * (1 + (density - 1) * np.minimum(distance, 1.0))
    for row, column, r in zip(rows.tolist(), columns.tolist(), (radii**2).tolist(), strict=True):
        if blocked[row, column]:
            continue
        accepted[row, column] = True
        top, left = max(row - reach, 0), max(column - reach, 0)
        window = blocked[top : row + reach + 1, left : column + reach + 1]
        disc = square[top - row + reach :, left - column + reach :][: window.shape[0], : window.shape[1]] < r
        window |= disc
    return accepted


@lru_cache(maxsize=16)
def _radial_inclusion(law: PoissonDisc, shape: tuple[int, int], draws: int = 24, bins: int = 32) -> Tensor:
    """Marginal probability by simulation, averaged over rings: the law is symmetric about the centre."""
    mean = sum(law.draw(shape, keyed_generator("poisson", i))[0, 0].double() for i in range(draws)) / draws
    mean = torch.as_tensor(mean)
    rows = (torch.arange(shape[0]) - shape[0] // 2) / (shape[0] / 2)
    columns = (torch.arange(shape[1]) - shape[1] // 2) / (shape[1] / 2)
    ring = (torch.hypot(rows[:, None], columns[None]) * bins / 1.4143).long().clamp(0, bins - 1)
    outer = ~law.always(shape)[0, 0]
    total = torch.zeros(bins, dtype=torch.float64).index_add_(0, ring[outer], mean[outer])
    count = torch.zeros(bins, dtype=torch.float64).index_add_(0, ring[outer], torch.ones_like(mean[outer]))
    profile = total / count.clamp_min(1)
    return torch.where(outer, profile[ring].clamp(1e-3, 1 - 1e-6), torch.ones_like(mean))[None, None]


@dataclass(frozen=True)
class IndependentPixels(SamplingLaw):
    """Every location of the plane is present independently with the same probability; there is no centre that always
    is.

    Attributes:
        probability: Pr(a location is present).
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.probability <= 1, f"probability must be in (0, 1]; got {self.probability}.")

    def always(self, shape: tuple[int, int]) -> Tensor:
        return torch.full((1, 1, *shape), self.probability == 1)

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        return (torch.rand(shape, generator=generator) < self.probability)[None, None]

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor, acquired: Tensor | None = None) -> Tensor:
        p, q = self.probability, per_row(keep, mask.float())
        return (p * (1 - q) / (1 - p * q)).expand(mask.shape)

    def inclusion_probability(self, shape: tuple[int, int]) -> Tensor:
        return torch.full((1, 1, *shape), float(self.probability), dtype=torch.float64)
