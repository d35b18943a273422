"""The law of given masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.masks.base import SamplingLaw, comb_probability, effective_acceleration
from ambient_mri.tensors import per_row

__all__ = ["ObservedMasks"]

# As many masks as this are told apart, where each is seen twice or more.
_RECURRING = 64


class ObservedMasks(SamplingLaw):
    """The law of a user's own scans, estimated from their masks: marginal frequencies, shrunk towards their mean.

    Args:
        masks: Masks of the scans, each (1, 1, 1 or H, W) bool, all of one size.
        strength: Weight of the mean frequency, in scans (the estimate from few scans must not be 0 or 1 by chance).

    A line sampled in every scan counts as always sampled; one that none samples is a hole (see the learnability check).
    Where few masks recur, again and again, the law is that of these masks: what B keeps says which of them it was
    (:func:`~ambient_mri.masks.comb_probability`), and its weights are exact.
    """

    def __init__(self, masks: Sequence[Tensor], strength: float = 4.0) -> None:
        require(len(masks) > 0, "ObservedMasks needs at least one mask.")
        sizes = {tuple(m.shape[-2:]) for m in masks}
        require(
            len(sizes) == 1,
            f"ObservedMasks needs masks of one size; got {sorted(sizes)}. Train on scans of one size "
            "(data.split), or name the law that they were drawn from.",
        )
        self.masks = torch.cat([m.reshape(1, 1, *m.shape[-2:]) for m in masks])
        frequency = self.masks.double().mean(dim=0, keepdim=True)
        self._always = frequency == 1
        partial = (frequency > 0) & ~self._always
        mean = frequency[partial].mean() if bool(partial.any()) else frequency.mean()
        shrunk = (frequency * len(masks) + strength * mean) / (len(masks) + strength)
        self.frequency = torch.where(partial, shrunk, frequency)
        different, self.counts = torch.unique(self.masks, dim=0, return_counts=True)
        recurring = len(different) <= min(len(masks) // 2, _RECURRING)
        self.combs = (different & ~self._always)[:, 0] if recurring else None
        self.exact = recurring

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        index = int(torch.randint(len(self.masks), (1,), generator=generator))
        return self.masks[index : index + 1]

    def always(self, shape: tuple[int, int]) -> Tensor:
        return self._always

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor, acquired: Tensor | None = None) -> Tensor:
        if self.combs is not None:
            always = self._always.to(mask.device)
            return comb_probability(self.combs.to(mask.device), always, kept, keep, self.counts)
        p, q = self.frequency.to(mask.device, torch.float32), per_row(keep, mask.float())
        return torch.where(p >= 1, torch.ones_like(p), p * (1 - q) / (1 - p * q)).expand(mask.shape)

    def inclusion_probability(self, shape: tuple[int, int]) -> Tensor:
        return self.frequency

    def describe(self) -> dict[str, Any]:
        return {"law": "ObservedMasks", "scans": len(self.masks), "acceleration": effective_acceleration(self.masks)}
