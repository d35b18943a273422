"""A mask from a sampling law, and B that thins it: what k-space undersampling and missing pixels share.

B keeps each measured location with probability q, q itself uniform in ``keep``. With the law's probability

    W = 1 where B kept a location,   W = 1 / Pr(P_j = 1 | B P, q) where P has it and B removed it,   0 elsewhere,

E[W P | A_tilde] = I, and the ambient loss estimates the supervised one without bias (for noiseless data).

Reference: Daras et al. 2023, arXiv:2305.19256, section 3; weights as in Millard & Chiew 2023 (arXiv:2205.10278).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.corruption.base import Corruption, Further
from ambient_mri.masks import SamplingLaw, always_on, centre_on
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import LinearOperator
from ambient_mri.tensors import RowGenerators, rand_rows

__all__ = ["ThinnedMasks", "check_keep", "check_weight_cap"]


def check_keep(keep: tuple[float, float]) -> tuple[float, float]:
    """``keep`` as two floats.

    Raises:
        AmbientMRIError: Unless 0 <= low <= high < 1.
    """
    low, high = keep
    require(
        0 <= low <= high < 1,
        f"keep must satisfy 0 <= low <= high < 1; got {tuple(keep)}. At 1 nothing is removed and the weights diverge.",
    )
    return float(low), float(high)


def check_weight_cap(cap: float | None) -> float | None:
    """``cap``, once it is known to be None or at least 1.

    Raises:
        AmbientMRIError: If it is below 1.
    """
    require(cap is None or cap >= 1, f"weight_cap must be at least 1, or null for none; got {cap}.")
    return cap


class ThinnedMasks(Corruption):
    """A = a mask after some transform; B thins the mask.

    Args:
        law: The law that the masks were drawn from.
        core: Central lines (1-D laws) or side of the central square (2-D laws) that B never removes, as far as every
            scan has them.
        keep: Range of q.
        always_removal: How often the locations that every mask holds, beyond the core, are subject to removal as well.
        weight_cap: Upper bound on W; None for none.
    """

    def __init__(
        self,
        law: SamplingLaw,
        *,
        core: int,
        keep: tuple[float, float],
        always_removal: float,
        weight_cap: float | None,
    ) -> None:
        self.keep, self.weight_cap = check_keep(keep), check_weight_cap(weight_cap)
        require(core >= 0, f"core must not be negative; got {core}.")
        self.law, self.core, self.always_removal = law, core, always_removal

    @abstractmethod
    def _operator(self, m: Measurement, mask: Tensor) -> LinearOperator:
        """The operator of the rows of ``m`` with ``mask`` in place of their own."""

    def forward_operator(self, m: Measurement) -> LinearOperator:
        return self._operator(m, m.mask)

    def describe(self) -> dict[str, Any]:
        return self.law.describe()

    def further(self, m: Measurement, generators: RowGenerators) -> Further:
        mask = m.mask.expand(len(m), *m.mask.shape[1:])
        uniform = rand_rows(generators, mask[0].numel() + 2, device=mask.device)
        keep = self.keep[0] + (self.keep[1] - self.keep[0]) * uniform[:, 0]
        chosen = uniform[:, 2:].reshape(mask.shape) < keep.reshape(-1, 1, 1, 1)
        always = always_on(self.law, m.image_shape, mask.device)
        spared = always & (uniform[:, 1].reshape(-1, 1, 1, 1) >= self.always_removal)
        # A central location that some scans lack is like any other: never removed, it would never be learned.
        core = self._core(mask) & always if self.law.weighted else self._core(mask)
        kept = mask & (chosen | spared | core)
        inverse = 1 / self.law.probability_sampled(mask, kept, keep, m.acquired).clamp_min(1e-6)
        if self.weight_cap is not None:
            inverse = inverse.clamp_max(self.weight_cap)
        weights = torch.where(kept, torch.ones_like(inverse), inverse) * mask
        return Further(operator=self._operator(m, kept), kept=kept, weights=weights, rate=self.rate(m, kept))

    def _core(self, mask: Tensor) -> Tensor:
        columns = centre_on(mask.shape[-1], self.core, mask.device)
        if mask.shape[-2] == 1:
            return columns[None, None, None]
        return (centre_on(mask.shape[-2], self.core, mask.device)[:, None] & columns[None])[None, None]
