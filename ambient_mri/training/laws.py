"""The law that a run's scans were sampled by: as configured or estimated from their masks, and checked against them.

A mask is a draw of the law once a volume, where all slices of the volume share it: slices are no further draws.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.corruption import Undersampling, check_learnable
from ambient_mri.data.datasets import ScanDataset
from ambient_mri.masks import ObservedMasks, RandomLines, SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.tensors import keyed_generator
from ambient_mri.training.build import build
from ambient_mri.training.estimates import evenly_spaced
from ambient_mri.training.sources import ScanSet

__all__ = ["check_law", "configured_law", "scan_corruption"]

log = logging.getLogger(__name__)

_VOLUMES_OF_A_LAW = 512
_SCANS_TO_CHECK = 32
# Slices from which one mask for all is no start of a training set.
_FEW = 12
# Draws that the variety of a law is judged by, and the chance below which a coincidence is none.
_DRAWS, _CHANCE = 64, 1e-3
# Numbers of sampled locations may differ by this share, and as many standard deviations of their mean.
_SHARE_TOLERANCE, _DEVIATIONS = 0.1, 3.0


def configured_law(cfg: DictConfig) -> SamplingLaw | None:
    """The law that the configuration names; None where it is to be estimated from the scans' masks."""
    return None if cfg.corruption.law == "observed" else build(cfg.corruption.law)


def scan_corruption(cfg: DictConfig, measured: ScanDataset) -> Undersampling:
    """The corruption of scans: as configured, or with the law of their own masks."""
    law = configured_law(cfg) or ObservedMasks(measured.masks(_VOLUMES_OF_A_LAW))
    found: Undersampling = build(cfg.corruption, law=law)
    return found


def check_law(corruption: Undersampling, scans: ScanSet, measured: ScanDataset) -> None:
    """Check that the scans follow the configured law, and that the clean distribution can be learned under it.

    Raises:
        AmbientMRIError: If another law is recorded in the scans, if their masks contradict it, or if it leaves a hole.
    """
    law = corruption.law.describe()
    observed = isinstance(corruption.law, ObservedMasks)
    recorded = scans.manifest.get("sampling_law") or {}
    require(
        not recorded or observed or recorded == law,
        f"the scans were undersampled by {recorded}, but corruption.law is {law}: the weights of the loss would be "
        "wrong. Choose the same law, or corruption=observed.",
    )
    # One slice a volume is a draw of the law; slices with masks of their own are looked at as well.
    firsts = [measured.first_slices[i] for i in evenly_spaced(len(measured.volumes), _SCANS_TO_CHECK)]
    looked_at = {i: measured[i] for i in (*firsts, *evenly_spaced(len(measured), _SCANS_TO_CHECK))}
    draws = [looked_at[i] for i in firsts]
    for scan in looked_at.values():
        across = scan.mask.shape[-1] == 1 and scan.mask.shape[-2] > 1
        require(
            not across,
            f"scan {scan.key[0]} is phase-encoded along the rows; training expects the phase-encode axis last, as in "
            "fastMRI files. Swap the two image axes of the k-space and prepare it again.",
        )
        always = corruption.law.always(scan.image_shape)
        require(
            scan.is_complete or (scan.mask.shape[-2] > 1) == (always.shape[-2] > 1),
            f"the mask of scan {scan.key[0]} is one of {'points' if scan.mask.shape[-2] > 1 else 'lines'}, and "
            f"{_words(law)} draws others. {_name_it()}",
        )
        require(
            bool((scan.mask | ~always).all()),
            f"scan {scan.key[0]} does not sample lines that {_words(law)} always samples: it follows another law. "
            f"{_name_it()}",
        )
    _check_masks_differ(list(looked_at.values()), len(draws), corruption.law)
    if not observed and not recorded:
        _check_shares(draws, corruption.law)
    result = check_learnable(corruption, measured[0])
    known = not math.isnan(result.smallest_eigenvalue)
    notes = [f"smallest eigenvalue of E[A^H A | A~] {result.smallest_eigenvalue:.2g}"] if known else ["no holes"]
    notes += (
        [f"{result.rim} {'lines' if known else 'locations'} at the rim are never sampled: lower resolution"]
        if result.rim
        else []
    )
    notes += [] if result.exact_weights else ["weights of this law are approximate (marginal)"]
    log.info("learnable: %s", ", ".join(notes))


def _check_masks_differ(scans: Sequence[Measurement], volumes: int, law: SamplingLaw) -> None:
    """Scans do not all have one mask, unless they are few, and of so few volumes that the law may have drawn it."""
    first = scans[0]
    if first.is_complete or not all(torch.equal(scan.mask, first.mask) for scan in scans[1:]):
        return
    generator = keyed_generator("variety of a law")
    drawn = [law.draw(first.image_shape, generator) for _ in range(_DRAWS)]
    variety = len(torch.unique(torch.cat(drawn), dim=0))
    require(
        len(scans) < _FEW and variety ** (1.0 - volumes) > _CHANCE,
        f"all of {volumes} volumes have the same mask, which {law.describe()} does not draw: what it leaves out is "
        "never measured, and no prior can be learned of it. Scans with different masks are needed.",
    )


def _check_shares(scans: Sequence[Measurement], law: SamplingLaw) -> None:
    """As many locations are sampled as the law says, and none in every scan that the law takes for random.

    A law of a fixed number of lines reads that number off each mask, and its weights are right whatever it is.
    """
    scans = [scan for scan in scans if not scan.is_complete]
    if not scans:
        return
    included = [_within(law, scan) for scan in scans]
    expected = sum(float(p.sum()) for p in included) / len(scans)
    counts = torch.tensor([float(scan.mask.sum()) for scan in scans])
    variance = 0.0 if isinstance(law, RandomLines) else float((included[0] * (1 - included[0])).sum())
    spread = (variance / len(scans)) ** 0.5
    differs = abs(float(counts.mean()) - expected) > _SHARE_TOLERANCE * expected + _DEVIATIONS * spread
    says = _words(law.describe())
    found = f"the scans sample {float(counts.mean()):.1f} locations of k-space on average, {says} {expected:.1f}"
    wrong = f"the weights of the loss would be wrong. {_name_it()}"
    if isinstance(law, RandomLines) and differs:
        log.warning("%s: sd is measured wrongly. %s", found, _name_it())
    require(isinstance(law, RandomLines) or not differs, f"{found}: {wrong}")
    common = _in_every_scan(scans, law)
    require(
        not common,
        f"locations {common[:8]} of k-space are sampled in every one of {len(scans)} scans, and {says} takes them for "
        f"random: {wrong}",
    )


def _in_every_scan(scans: Sequence[Measurement], law: SamplingLaw) -> list[int]:
    """Locations, by number along the mask, that all scans sample and by the law would hardly."""
    shape = scans[0].mask.shape
    if any(scan.mask.shape != shape or scan.image_shape != scans[0].image_shape for scan in scans):
        return []
    different = torch.unique(torch.cat([scan.mask for scan in scans]), dim=0)
    included = _within(law, scans[0]).expand(1, 1, *shape[-2:])
    chance = included ** len(different) * included.numel()
    return (different.all(dim=0, keepdim=True) & (included < 1) & (chance < _CHANCE)).flatten().nonzero()[:, 0].tolist()


def _within(law: SamplingLaw, scan: Measurement) -> Tensor:
    """The law's marginal probabilities; none in the zero padding of the scan."""
    included = law.inclusion_probability(scan.image_shape)
    return included if scan.acquired is None else included * scan.acquired


def _words(law: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in law.items())


def _name_it() -> str:
    return (
        "Name the law (corruption=..., corruption.law.acceleration=, corruption.law.acs_lines=), or choose "
        "corruption=observed, which estimates it from many scans."
    )
