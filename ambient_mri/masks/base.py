"""What a sampling law is, and what its masks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ambient_mri.tensors import keyed_generator

__all__ = ["SamplingLaw", "always_on", "centre_mask", "centre_on", "comb_probability", "effective_acceleration"]


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


def comb_probability(
    combs: Tensor,
    always: Tensor,
    kept: Tensor,
    keep: Tensor,
    counts: Tensor | None = None,
    acquired: Tensor | None = None,
) -> Tensor:
    """Pr(P_j = 1 | B P, q) of a law that draws one of a few masks ("combs"): the posterior of the comb.

    Args:
        combs: (n, W) or (n, H, W) bool, the sampled locations of each comb, the always-sampled ones left out.
        always: (1, 1, 1 or H, W) bool.
        kept: B P, (b, 1, 1 or H, W) bool.
        keep: q, (b,).
        counts: (n,) how often each comb is drawn, up to a factor; equally often when None.
        acquired: As for :meth:`SamplingLaw.probability_sampled`.

    Returns:
        (b, 1, 1 or H, W) float.
    """
    flat = combs.flatten(1)
    lines = (kept & ~always).flatten(1)  # (b, L)
    outside = lines.double() @ (~flat).double().mT  # kept locations that a comb does not have
    held = flat.sum(-1)[None]
    if acquired is not None:  # what a comb has in the zero padding was not there for B to remove
        held = acquired.expand_as(kept).flatten(1).double() @ flat.double().mT
    removed = held - lines.sum(-1)[:, None]
    chance = removed * torch.log1p(-keep.to(kept.device).double())[:, None]
    if counts is not None:
        chance = chance + counts.to(kept.device).double().log()
    posterior = torch.softmax(chance.masked_fill(outside > 0, -torch.inf), dim=1).nan_to_num(0.0)
    probability = (posterior @ flat.double()).float().reshape(len(kept), *always.shape[1:])
    return torch.where(always, torch.ones_like(probability), probability)


class SamplingLaw(ABC):
    """How a scanner chooses k-space locations.

    Attributes:
        exact: Whether ``probability_sampled`` is.
        weighted: Whether a loss is weighted by it; a sampler, which asks for no weights, keeps a scan's whole core.
    """

    exact: bool = True
    weighted: bool = True

    @abstractmethod
    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """One mask, (1, 1, 1, W) or (1, 1, H, W) bool, for k-space of ``shape`` (H, W); ``generator`` is on the CPU."""

    @abstractmethod
    def always(self, shape: tuple[int, int]) -> Tensor:
        """The locations that every draw holds (the ACS), in the shape of a draw."""

    @abstractmethod
    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor, acquired: Tensor | None = None) -> Tensor:
        """Pr(P_j = 1 | what was kept), meaningful where ``kept`` is False; 1 on the always-sampled locations.

        Args:
            mask: The scans' own masks P, (b, 1, 1 or H, W) bool. A law uses no more of it than it may: its number of
                lines.
            kept: B P, same shape.
            keep: q, the probability with which B kept a location, (b,).
            acquired: Where the draw counts, (b or 1, 1, 1 or H, W) bool: not on zero padding. None for everywhere.
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
