"""1-D laws: whole lines, along the last axis; exact weights (:mod:`ambient_mri.masks`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.masks.base import SamplingLaw, centre_mask, comb_probability
from ambient_mri.tensors import per_row

__all__ = ["EquispacedLines", "IndependentLines", "RandomLines"]


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

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor, acquired: Tensor | None = None) -> Tensor:
        outer = ~self._always_like(mask)
        outer = outer if acquired is None else outer & acquired
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

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor, acquired: Tensor | None = None) -> Tensor:
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

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor, acquired: Tensor | None = None) -> Tensor:
        combs = self._combs(mask.shape[-1]).to(mask.device)
        return comb_probability(combs, self._always_like(mask), kept, keep, acquired=acquired)

    def inclusion_probability(self, shape: tuple[int, int]) -> Tensor:
        return torch.where(self.always(shape), 1.0, self._combs(shape[1]).double().mean(0)).double()
