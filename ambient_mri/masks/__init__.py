r"""Sampling laws: which k-space locations a scan acquires, and how probable a location is, given what was kept of the
scan.

A law has two duties. ``draw`` gives the mask P of a scan. ``probability_sampled`` gives, for a further mask B that
keeps a sampled location with probability q (independently, the always-sampled centre apart),

    Pr( P_j = 1 | B P, q )        at locations j that B P does not hold,

the number that the inverse-probability weights of ambient training need (methods: W_j = 1 / Pr). It is exact for

    independent lines, p:             p (1 - q) / (1 - p q)
    n of N lines, k of them kept:     (n - k) / (N - k)
    equispaced, random offset:        1 once a line is kept (the offset is known), else the posterior of the offset
    a few masks that recur:           the posterior of the mask

and marginal, therefore approximate, for Poisson discs and where each scan has a mask of its own (``exact`` is False
there). 1-D laws vary along the last axis,
the phase-encode axis of fastMRI files; the readout is fully sampled.
"""

from __future__ import annotations

from ambient_mri.masks.base import (
    SamplingLaw,
    always_on,
    centre_mask,
    centre_on,
    comb_probability,
    effective_acceleration,
)
from ambient_mri.masks.lines import EquispacedLines, IndependentLines, RandomLines
from ambient_mri.masks.observed import ObservedMasks
from ambient_mri.masks.planes import IndependentPixels, PoissonDisc

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
