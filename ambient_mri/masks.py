r"""Sampling laws: which k-space locations a scan acquires, and how probable a location is, given what was kept of the
scan.

A law has two duties. ``draw`` gives the mask P of a scan. ``probability_sampled`` gives, for a further mask B that
keeps a sampled location with probability q (independently, the always-sampled centre apart),

    Pr( P_j = 1 | B P, q )        at locations j that B P does not hold,

the number that the inverse-probability weights of ambient training need (methods: W_j = 1 / Pr). It is exact for

    independent lines, p:             p (1 - q) / (1 - p q)
    n of N lines, k of them kept:     (n - k) / (N - k)
    equispaced, random offset:        1 once a line is kept (the offset is known), else the posterior of the offset

and marginal, therefore approximate, for Poisson discs (``exact`` is False there). 1-D laws vary along the last axis,
the phase-encode axis of fastMRI files; the readout is fully sampled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import check_positive, require
from ambient_mri.tensors import keyed_generator, per_row

__all__ = [
    "EquispacedLines",
    "IndependentLines",
    "IndependentPixels",
    "ObservedMasks",
    "PoissonDisc",
    "RandomLines",
    "SamplingLaw",
    "always_on",
    "centre_mask",
    "centre_on",
    "comb_probability",
    "effective_acceleration",
]


def centre_mask(size: int, count: int) -> Tensor:
    """(size,) bool, True on the ``count`` locations around the zero frequency at size//2 (the fastMRI convention)."""
    start = (size - count + 1) // 2
    mask = torch.zeros(size, dtype=torch.bool)
    mask[max(start, 0) : start + count] = True
    return mask


def effective_acceleration(mask: Tensor, acquired: Tensor | None = None) -> float:
    """Locations that could be acquired over locations that were; ``acquired`` leaves zero padding out of the count."""
    possible = torch.ones_like(mask) if acquired is None else acquired.expand_as(mask)
    return float(possible.sum() / (mask & possible).sum().clamp_min(1))


class SamplingLaw(ABC):
    """How a scanner chooses k-space locations. ``exact`` says whether ``probability_sampled`` is, too."""

    exact: bool = True

    @abstractmethod
    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """One mask, (1, 1, 1, W) or (1, 1, H, W) bool, for k-space of ``shape`` (H, W); ``generator`` is on the CPU."""

    @abstractmethod
    def always(self, shape: tuple[int, int]) -> Tensor:
        """The locations that every draw holds (the ACS), in the shape of a draw."""

    @abstractmethod
    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor) -> Tensor:
        """Pr(P_j = 1 | what was kept), meaningful where ``kept`` is False; 1 on the always-sampled locations.

        Args:
            mask: The scans' own masks P, (b, 1, 1 or H, W) bool. A law uses no more of it than it may: its number of
                lines.
            kept: B P, same shape.
            keep: q, the probability with which B kept a location, (b,).
        """

    def inclusion_probability(self, shape: tuple[int, int]) -> Tensor:
        """Marginal Pr(P_j = 1), in the shape of a draw, by simulation where a law has no closed form."""
        return _simulated_inclusion(self, shape)

    def describe(self) -> dict[str, Any]:
        """The law as plain data, for provenance."""
        return {"law": type(self).__name__, **{k: v for k, v in vars(self).items() if isinstance(v, int | float | str)}}

    def _always_like(self, mask: Tensor) -> Tensor:
        return always_on(self, (max(mask.shape[-2], 1), mask.shape[-1]), mask.device)


@lru_cache(maxsize=64)
def always_on(law: SamplingLaw, shape: tuple[int, int], device: torch.device) -> Tensor:
    """``law.always(shape)`` on a device, copied there once: training asks for it at every step."""
    return law.always(shape).to(device)


@lru_cache(maxsize=64)
def centre_on(size: int, count: int, device: torch.device) -> Tensor:
    """:func:`centre_mask` on a device, copied there once."""
    return centre_mask(size, count).to(device)


@lru_cache(maxsize=16)
def _simulated_inclusion(law: SamplingLaw, shape: tuple[int, int], draws: int = 200) -> Tensor:
    total = sum(law.draw(shape, keyed_generator("inclusion", i)).double() for i in range(draws))
    return torch.as_tensor(total) / draws


@dataclass(frozen=True, eq=True)
class _Lines(SamplingLaw):
    """Fields that 1-D laws share.

    Attributes:
        acceleration: R, fully sampled lines over sampled lines, the ACS included.
        acs_lines: Number of central lines that every scan samples.
    """

    acceleration: float = 4.0
    acs_lines: int = 12

    def __post_init__(self) -> None:
        require(
            self.acceleration >= 1,
            f"acceleration must be at least 1 (R = 4 keeps a quarter of the lines); got {self.acceleration}.",
        )
        require(self.acs_lines >= 0, f"acs_lines must not be negative; got {self.acs_lines}.")

    def always(self, shape: tuple[int, int]) -> Tensor:
        return centre_mask(shape[1], self.acs_lines)[None, None, None]

    def _outer_lines(self, width: int) -> int:
        """How many lines outside the ACS a scan of R samples on average."""
        lines = round(width / self.acceleration) - self.acs_lines
        require(
            lines > 0 or self.acceleration == 1,
            f"{width} lines at acceleration {self.acceleration:g} are {round(width / self.acceleration)} lines, "
            f"no more than the {self.acs_lines} ACS lines: lower acs_lines or the acceleration.",
        )
        return min(lines, width - self.acs_lines)


@dataclass(frozen=True)
class RandomLines(_Lines):
    """A fixed number of lines, chosen uniformly outside the ACS, without replacement."""

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        width = shape[1]
        mask = centre_mask(width, self.acs_lines)
        outer = (~mask).nonzero()[:, 0]
        chosen = torch.randperm(len(outer), generator=generator)[: self._outer_lines(width)]
        mask[outer[chosen]] = True
        return mask[None, None, None]

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor) -> Tensor:
        outer = ~self._always_like(mask)
        total = outer.sum(dim=(-2, -1), keepdim=True)
        sampled = (mask & outer).sum(dim=(-2, -1), keepdim=True)
        known = (kept & outer).sum(dim=(-2, -1), keepdim=True)
        probability = (sampled - known) / (total - known).clamp_min(1)
        return torch.where(outer, probability.expand_as(mask), torch.ones_like(probability))

    def inclusion_probability(self, shape: tuple[int, int]) -> Tensor:
        always = self.always(shape)
        outer = shape[1] - self.acs_lines
        return torch.where(always, 1.0, self._outer_lines(shape[1]) / max(outer, 1)).double()


@dataclass(frozen=True)
class IndependentLines(_Lines):
    """Every line outside the ACS is sampled independently with the same probability (fastMRI's random masks)."""

    def _rate(self, width: int) -> float:
        return self._outer_lines(width) / max(width - self.acs_lines, 1)

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        width = shape[1]
        mask = torch.rand(width, generator=generator) < self._rate(width)
        return (mask | centre_mask(width, self.acs_lines))[None, None, None]

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor) -> Tensor:
        p, q = self._rate(mask.shape[-1]), per_row(keep, mask.float())
        probability = p * (1 - q) / (1 - p * q)
        return torch.where(self._always_like(mask), torch.ones_like(probability), probability.expand(mask.shape))

    def inclusion_probability(self, shape: tuple[int, int]) -> Tensor:
        return torch.where(self.always(shape), 1.0, self._rate(shape[1])).double()


@dataclass(frozen=True)
class EquispacedLines(_Lines):
    """Every R-th line from a random offset, and the ACS on top: the effective acceleration is below R."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            float(self.acceleration).is_integer(),
            f"equispaced sampling needs a whole acceleration; got {self.acceleration}.",
        )

    def _combs(self, width: int) -> Tensor:
        """(R, W) bool: the sampled lines for each offset, the ACS left out."""
        spacing = int(self.acceleration)
        combs = (torch.arange(width)[None] - torch.arange(spacing)[:, None]) % spacing == 0
        return combs & ~centre_mask(width, self.acs_lines)

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        offset = int(torch.randint(int(self.acceleration), (1,), generator=generator))
        mask = self._combs(shape[1])[offset] | centre_mask(shape[1], self.acs_lines)
        return mask[None, None, None]

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor) -> Tensor:
        return comb_probability(self._combs(mask.shape[-1]).to(mask.device), self._always_like(mask), kept, keep)

    def inclusion_probability(self, shape: tuple[int, int]) -> Tensor:
        return torch.where(self.always(shape), 1.0, self._combs(shape[1]).double().mean(0)).double()


def comb_probability(combs: Tensor, always: Tensor, kept: Tensor, keep: Tensor) -> Tensor:
    """Pr(P_j = 1 | B P, q) of a law that draws one of a few combs, all equally probable: the posterior of the comb.

    Args:
        combs: (n, W) bool, the sampled lines of each comb, the always-sampled lines left out.
        always: (1, 1, 1, W) bool.
        kept: B P, (b, 1, 1, W) bool.
        keep: q, (b,).

    Returns:
        (b, 1, 1, W) float.
    """
    lines = kept[:, 0, 0] & ~always[0, 0, 0]  # (b, W)
    consistent = ~(lines[:, None] & ~combs[None]).any(dim=-1)  # (b, n): no kept line outside the comb
    chance = (1 - keep.to(kept.device).double()[:, None]) ** (combs.sum(-1)[None] - lines.sum(-1)[:, None])
    posterior = torch.where(consistent, chance, torch.zeros_like(chance))
    posterior = posterior / posterior.sum(dim=1, keepdim=True).clamp_min(1e-300)
    probability = (posterior @ combs.double()).float()[:, None, None]
    return torch.where(always, torch.ones_like(probability), probability)


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
        low, high = 0.3, 4.0 * self.acceleration**0.5
        for _ in range(12):
            radius = 0.5 * (low + high)
            mask = _throw_darts(order, shape, radius, self.density) | centre
            if abs(mask.sum() - target) < 0.02 * target:
                break
            low, high = (radius, high) if mask.sum() > target else (low, radius)
        return torch.from_numpy(mask)[None, None]

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor) -> Tensor:
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

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor) -> Tensor:
        p, q = self.probability, per_row(keep, mask.float())
        return (p * (1 - q) / (1 - p * q)).expand(mask.shape)

    def inclusion_probability(self, shape: tuple[int, int]) -> Tensor:
        return torch.full((1, 1, *shape), float(self.probability), dtype=torch.float64)


class ObservedMasks(SamplingLaw):
    """The law of a user's own scans, estimated from their masks: marginal frequencies, shrunk towards their mean.

    Args:
        masks: Masks of the scans, each (1, 1, 1 or H, W) bool, all of one size.
        strength: Weight of the mean frequency, in scans (the estimate from few scans must not be 0 or 1 by chance).

    A line sampled in every scan counts as always sampled; one that none samples is a hole (see the learnability check).
    """

    exact = False

    def __init__(self, masks: Sequence[Tensor], strength: float = 4.0) -> None:
        require(len(masks) > 0, "ObservedMasks needs at least one mask.")
        sizes = {tuple(m.shape[-2:]) for m in masks}
        require(len(sizes) == 1, f"ObservedMasks needs masks of one size; got {sorted(sizes)}. Make one law per size.")
        self.masks = torch.cat([m.reshape(1, 1, *m.shape[-2:]) for m in masks])
        frequency = self.masks.double().mean(dim=0, keepdim=True)
        self._always = frequency == 1
        partial = (frequency > 0) & ~self._always
        mean = frequency[partial].mean() if bool(partial.any()) else frequency.mean()
        shrunk = (frequency * len(masks) + strength * mean) / (len(masks) + strength)
        self.frequency = torch.where(partial, shrunk, frequency)

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        index = int(torch.randint(len(self.masks), (1,), generator=generator))
        return self.masks[index : index + 1]

    def always(self, shape: tuple[int, int]) -> Tensor:
        return self._always

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor) -> Tensor:
        p, q = self.frequency.to(mask.device, torch.float32), per_row(keep, mask.float())
        return torch.where(p >= 1, torch.ones_like(p), p * (1 - q) / (1 - p * q)).expand(mask.shape)

    def inclusion_probability(self, shape: tuple[int, int]) -> Tensor:
        return self.frequency

    def describe(self) -> dict[str, Any]:
        return {"law": "ObservedMasks", "scans": len(self.masks), "acceleration": effective_acceleration(self.masks)}
