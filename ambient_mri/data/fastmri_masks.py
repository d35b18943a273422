r"""fastMRI's masks as sampling laws: bit for bit what its own mask functions draw under the same seed.

With N the lines of the matrix, R the nominal acceleration, f the centre fraction and n = round(N f) central lines:

    random                every other line independently, p = (N/R - n) / (N - n)
    equispaced            every R-th line from a random offset, the centre on top
    equispaced_fraction   lines R' = R (n - N) / (n R - N) apart, rounded, so that about N/R lines result
    magic                 every R-th line, the two halves of k-space offset against each other: the conjugate of a line
                          lies between two lines (Defazio 2019, arXiv:1912.01101)
    magic_fraction        magic, its spacing widened so that about N/R lines result

The nominal R is not what a scan is accelerated by: the centre comes on top of the comb, and lines that fall on zero
padding are no measurement. ``effective_acceleration`` says what is left; preparation records it for every scan.

fastMRI seeds the mask of a validation volume with the characters of its file name (``tuple(map(ord, name))``).
``by_name=True`` does so too, so that numbers are comparable with published ones; otherwise the data seed decides.

Source: the definitions of fastMRI's ``RandomMaskFunc``, ``EquiSpacedMaskFunc``, ``EquispacedMaskFractionFunc``,
``MagicMaskFunc`` and ``MagicMaskFractionFunc`` (Zbontar et al. 2018, arXiv:1811.08839). Differs: 1. conditional
probabilities for ambient training. 2. effective acceleration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import check_option, require
from ambient_mri.masks import SamplingLaw, centre_mask, comb_probability
from ambient_mri.tensors import per_row

__all__ = ["KINDS", "FastMRIMask"]

KINDS = ("random", "equispaced", "equispaced_fraction", "magic", "magic_fraction")
#: 8 % of the lines at R = 4, 4 % at R = 8: the settings of fastMRI's baselines.
_CENTRE_TIMES_R = 0.32


@dataclass(frozen=True)
class FastMRIMask(SamplingLaw):
    """One of fastMRI's mask functions.

    Attributes:
        kind: One of ``random``, ``equispaced``, ``equispaced_fraction``, ``magic``, ``magic_fraction``.
        acceleration: Nominal R; a whole number except for ``random`` and ``equispaced_fraction``.
        center_fraction: Share of central lines that every scan samples; 0.32 / R (fastMRI's choice) when None.
        by_name: Seed the mask of a volume by its file name, as fastMRI does for validation.
    """

    kind: str = "equispaced_fraction"
    acceleration: float = 4
    center_fraction: float | None = None
    by_name: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        check_option("kind", self.kind, KINDS)
        require(self.acceleration >= 1, f"acceleration must be at least 1; got {self.acceleration}.")
        whole = self.kind in ("random", "equispaced_fraction") or float(self.acceleration).is_integer()
        require(whole, f"{self.kind} sampling needs a whole acceleration; got {self.acceleration}.")
        share = self._share
        require(0 <= share <= 1, f"center_fraction must be between 0 and 1; got {share}.")

    @property
    def _share(self) -> float:
        return _CENTRE_TIMES_R / self.acceleration if self.center_fraction is None else self.center_fraction

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """A mask whose seed comes from ``generator``."""
        return self.draw_seeded(shape, int(torch.randint(2**31 - 1, (1,), generator=generator)))

    def draw_for_file(self, shape: tuple[int, int], name: str) -> Tensor:
        """The mask that fastMRI draws for the volume in the file ``name`` (with its ending)."""
        return self.draw_seeded(shape, tuple(map(ord, name)))

    def draw_seeded(self, shape: tuple[int, int], seed: int | Sequence[int]) -> Tensor:
        """The mask (1, 1, 1, W) that fastMRI's function draws under ``seed``.

        Args:
            shape: Rows and columns; the mask varies along the columns.
            seed: A number, or numbers, as ``numpy.random.RandomState`` takes them.
        """
        width = shape[1]
        generator = np.random.RandomState(seed if isinstance(seed, int) else list(seed))
        # fastMRI draws which of its accelerations to use, even where there is one.
        generator.randint(1)
        centre = centre_mask(width, self._low(width)).numpy()
        if self.kind == "random":
            lines = generator.uniform(size=width) < self._rate(width)
        else:
            combs = self._all_combs(width)
            lines = combs[generator.randint(0, high=len(combs))]
        return torch.from_numpy(np.asarray(lines | centre))[None, None, None]

    def always(self, shape: tuple[int, int]) -> Tensor:
        """The central lines."""
        return centre_mask(shape[1], self._low(shape[1]))[None, None, None]

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor, acquired: Tensor | None = None) -> Tensor:
        """Exact: independent lines, or the posterior of the offset."""
        width, always = mask.shape[-1], self._always_like(mask)
        if self.kind != "random":
            combs = torch.from_numpy(self._all_combs(width)).to(mask.device) & ~always[0, 0, 0]
            return comb_probability(combs, always, kept, keep, acquired=acquired)
        p, q = self._rate(width), per_row(keep, mask.float())
        probability = p * (1 - q) / (1 - p * q)
        return torch.where(always, torch.ones_like(probability), probability.expand(mask.shape))

    def inclusion_probability(self, shape: tuple[int, int]) -> Tensor:
        """Marginal Pr(P_j = 1), (1, 1, 1, W)."""
        width = shape[1]
        if self.kind == "random":
            rate = torch.full((1, 1, 1, width), self._rate(width), dtype=torch.float64)
        else:
            rate = torch.from_numpy(self._all_combs(width)).double().mean(0)[None, None, None]
        return torch.where(self.always(shape), 1.0, rate).double()

    def describe(self) -> dict[str, Any]:
        """The law as plain data."""
        return {"law": type(self).__name__, **asdict(self), "center_fraction": self._share}

    def _low(self, width: int) -> int:
        low = round(width * self._share)
        if self.kind != "magic_fraction":
            return low
        return max(min(low, round(width / self.acceleration)), 1)

    def _rate(self, width: int) -> float:
        low = self._low(width)
        rate = (width / self.acceleration - low) / max(width - low, 1)
        self._require_room(rate >= 0, width, low)
        return rate

    def _require_room(self, fits: bool, width: int, low: int) -> None:
        require(
            fits,
            f"{width} lines at acceleration {self.acceleration:g} are {width / self.acceleration:.0f} lines, no more "
            f"than the {low} central ones: lower center_fraction or the acceleration.",
        )

    def _all_combs(self, width: int) -> np.ndarray:
        """(offsets, W) bool: the lines outside the centre for every offset that may be drawn."""
        low = self._low(width)
        if self.kind == "equispaced":
            spacing = round(self.acceleration)
            return np.stack([_every(width, offset, spacing) for offset in range(spacing)])
        if self.kind == "equispaced_fraction":
            self._require_room(low * self.acceleration < width, width, low)
            spread = (self.acceleration * (low - width)) / (low * self.acceleration - width)
            return np.stack([_rounded(width, offset, spread) for offset in range(max(round(spread), 1))])
        spacing = round(self.acceleration)
        if self.kind == "magic_fraction":
            wanted = round(width / self.acceleration) - low
            self._require_room(wanted > 0, width, low)
            spacing = round(width / wanted)
        return np.stack([_magic(width, offset, spacing) for offset in range(spacing)])


def _every(width: int, offset: int, spacing: int) -> np.ndarray:
    lines = np.zeros(width, dtype=bool)
    lines[offset::spacing] = True
    return lines


def _rounded(width: int, offset: int, spread: float) -> np.ndarray:
    lines = np.zeros(width, dtype=bool)
    lines[np.around(np.arange(offset, width - 1, spread)).astype(np.int64)] = True
    return lines


def _magic(width: int, offset: int, spacing: int) -> np.ndarray:
    """Frequencies 0, 1, 2... and -1, -2... each take every ``spacing``-th, from starts of different parity."""
    ahead, behind = (offset + 1, offset + 2) if offset % 2 == 0 else (offset + 2, offset - 1)
    positive = _every((width + 1) // 2, ahead, spacing)
    negative = _every(width - (width + 1) // 2, behind, spacing)
    return np.fft.fftshift(np.concatenate([positive, negative[::-1]]))
