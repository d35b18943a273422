"""Coil maps of a scan: ESPIRiT by one of three programs, or a low-resolution fall-back that says so.

Rows are independent: the maps of a row are those that it would get alone, whatever masks the other rows have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ambient_mri._checks import check_finite, check_option, require
from ambient_mri.coil_maps.acs import AcsRegion, absorb_phase, find_acs, low_resolution_images, rows_by_mask
from ambient_mri.coil_maps.backends import bart_espirit, sigpy_espirit
from ambient_mri.coil_maps.calibration import (
    CALIBRATION_LINES,
    NOT_FINITE,
    espirit,
    noise_per_slice,
    require_signal,
)

__all__ = ["CoilMaps", "MapSource", "estimate_coil_maps", "flat_maps", "source_of_estimate"]

_ESPIRIT = {"torch": espirit, "sigpy": sigpy_espirit, "bart": bart_espirit}
#: ESPIRiT with a kernel of 2 halves the error of low-resolution images from 2 lines on (measured on real heads).
_MIN_ACS_LINES = 2
# A few neighbours in the middle of a Poisson disc are no calibration region.
_MIN_ACS_SAMPLES = 32
#: Below this number of ACS lines the user is told.
_FEW_ACS_LINES = 16
# The method of rows that hold nothing but zeros.
_FLAT = "flat"


@dataclass(frozen=True)
class MapSource:
    """Where the maps of one row come from.

    Attributes:
        acs: The calibration region that was used, or None.
        method: ``"espirit/<backend>"``, ``"low_resolution"`` or ``"single_coil"``; ``"flat"`` where a row is all zeros.
        warnings: What a user should know about the quality of these maps, one sentence each.
    """

    acs: AcsRegion | None
    method: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class CoilMaps:
    """Estimated coil maps and how they came about.

    Attributes:
        maps: (batch, coils, H, W) complex, sum over coils of |S|^2 = 1 at every pixel.
        eigenvalue: (batch, 1, H, W) ESPIRiT eigenvalue, near 1 inside the object; 0 in rows whose method has none, None
            where no row has one.
        phase: (batch, 1, H, W) radians, absorbed into ``maps`` (zero where none was): maps * exp(-i phase) undoes it.
        sources: Where the maps of every row come from.
    """

    maps: Tensor
    eigenvalue: Tensor | None
    phase: Tensor
    sources: tuple[MapSource, ...]

    @property
    def acs(self) -> AcsRegion | None:
        """The calibration region that was used, of the row with the fewest lines; None where a row has none."""
        regions = [source.acs for source in self.sources if source.method != _FLAT]
        known = [region for region in regions if region is not None]
        return min(known, key=lambda region: region.num_lines) if known and len(known) == len(regions) else None

    @property
    def method(self) -> str:
        """How the maps were made, as in :class:`MapSource`; several where rows have masks of their own."""
        return ", ".join(_unique(s.method for s in self.sources if s.method != _FLAT)) or _FLAT

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about the quality of these maps, one sentence each."""
        notes = _unique(text for source in self.sources for text in source.warnings)
        empty = [row for row, source in enumerate(self.sources) if source.method == _FLAT]
        flat = f"slices {empty} hold nothing but zeros: their coil maps are flat, the same for every coil."
        return (*notes, flat) if empty else notes


def estimate_coil_maps(
    kspace: Tensor,
    mask: Tensor,
    *,
    backend: str = "torch",
    calib: int = CALIBRATION_LINES,
    kernel: int = 6,
    threshold: float = 0.02,
    noise_std: Tensor | float = 0.0,
    absorb: bool = True,
) -> CoilMaps:
    """Coil maps of an undersampled scan, from its own ACS.

    Fewer than 2 ACS lines, or fewer than 32 samples: a low-resolution combination, S_c = l_c / sqrt(sum |l|^2) with l
    the windowed images of the central k-space, and a warning, because without calibration lines those images are
    aliased. A prior does better then (:func:`~ambient_mri.sampling.joint_maps.calibrationless_coil_maps`).

    A row that holds nothing but zeros gets flat maps, the same for every coil, eigenvalue 0 and a warning.

    Args:
        kspace: (batch, coils, H, W) complex, zero where not sampled, any units.
        mask: bool, (batch or 1, 1, H or 1, W or 1); rows with masks of their own are calibrated by their own lines.
        backend: ``"torch"`` (:func:`espirit`), ``"sigpy"`` (EspiritCalib, square calibration regions only) or
            ``"bart"`` (the ``ecalib`` binary of the BART toolbox).
        calib: Calibration lines used, at most, along each axis.
        kernel: Kernel size, at most; it shrinks where there are few lines.
        threshold: Singular values below this fraction of the largest count as noise.
        noise_std: Noise per real and imaginary part, in the units of ``kspace``, (batch,) or one number; 0 where it is
            not known. Pass it where you can: on noisy scans ``threshold`` alone keeps noise, and the maps with it.
        absorb: Absorb the low-resolution phase into the maps (see :func:`absorb_phase`).

    Raises:
        AmbientMRIError: For k-space that is not complex 4-D, not finite, or holds signal outside its ACS alone, a mask
            that does not fit, or a backend that is not there.
    """
    check_option("backend", backend, _ESPIRIT)
    require(
        kspace.ndim == 4 and kspace.is_complex(),
        f"kspace must be complex (batch, coils, H, W); got {kspace.dtype} {tuple(kspace.shape)}.",
    )
    expected = (len(kspace), 1, *kspace.shape[-2:])
    fits = mask.ndim == 4 and all(n in (1, full) for n, full in zip(mask.shape, expected, strict=True))
    require(
        fits and mask.dtype == torch.bool,
        f"mask must be bool and broadcast to {expected}; got {mask.dtype} {tuple(mask.shape)}.",
    )
    check_finite("kspace", kspace, NOT_FINITE)
    estimator = _Estimator(backend, calib, kernel, threshold, absorb)
    noise = torch.tensor(noise_per_slice(noise_std, len(kspace)), dtype=torch.float64)
    signal = ((kspace != 0) & mask).flatten(1).any(dim=1).tolist()
    parts = []
    for group in rows_by_mask(mask, len(kspace)):
        if rows := [row for row in group if signal[row]]:
            pick = slice(None) if len(rows) == len(kspace) else rows  # the usual case without a copy
            parts.append((rows, estimator.estimate(kspace[pick], mask[group[0] : group[0] + 1], noise[pick], rows)))
    return _in_order(parts, kspace)


@dataclass(frozen=True)
class _Estimator:
    """The settings of :func:`estimate_coil_maps`, by their names there."""

    backend: str
    calib: int
    kernel: int
    threshold: float
    absorb: bool

    def estimate(self, kspace: Tensor, mask: Tensor, noise_std: Tensor, rows: Sequence[int]) -> CoilMaps:
        """Maps of rows with signal and one mask (1, 1, H or 1, W or 1); ``rows`` are their numbers, for messages."""
        image_shape = (int(kspace.shape[-2]), int(kspace.shape[-1]))
        found = find_acs(mask, image_shape)
        acs = None if found is None else found.limited(self.calib)
        source, eigenvalue = MapSource(acs, "single_coil"), None
        if kspace.shape[1] == 1:
            maps = torch.ones_like(kspace)
        elif acs is None or _too_small(acs):
            region = AcsRegion.central(image_shape, self.calib) if acs is None else acs
            maps = low_resolution_images(kspace, region)
            source = MapSource(acs, "low_resolution", _quality_notes(acs))
        else:
            require_signal(acs.crop(kspace), rows)
            maps, eigenvalue = _ESPIRIT[self.backend](
                kspace, acs, kernel=self.kernel, threshold=self.threshold, noise_std=noise_std
            )
            source = MapSource(acs, f"espirit/{self.backend}", _quality_notes(acs))
        maps = _normalise(maps)
        phase = torch.zeros_like(kspace.real[:, :1])
        if self.absorb and source.method != "low_resolution":  # those hold the phase of the images they are made of
            maps, phase = absorb_phase(maps, kspace, mask)
        return CoilMaps(maps, eigenvalue, phase, (source,) * len(kspace))


def source_of_estimate(mask: Tensor, image_shape: tuple[int, int], method: str) -> MapSource:
    """The source of maps that :func:`estimate_coil_maps` made before, of one row that holds signal.

    Args:
        mask: bool, (1, 1, H or 1, W or 1).
        image_shape: (H, W).
        method: What ESPIRiT was made by, such as ``"espirit/torch"``; rows with too few lines for it have another.
    """
    found = find_acs(mask, image_shape)
    acs = None if found is None else found.limited(CALIBRATION_LINES)
    low = acs is None or _too_small(acs)
    return MapSource(acs, "low_resolution" if low else method, _quality_notes(acs))


def flat_maps(kspace: Tensor) -> Tensor:
    """Maps (batch, coils, H, W) that are the same for every coil: of rows that say nothing on them."""
    return torch.full_like(kspace, 1 / math.sqrt(kspace.shape[1]))


def _in_order(parts: Sequence[tuple[Sequence[int], CoilMaps]], kspace: Tensor) -> CoilMaps:
    """Maps of groups of rows as those of the batch; flat maps for rows that no group has."""
    if len(parts) == 1 and len(parts[0][0]) == len(kspace):
        return parts[0][1]
    maps, phase = flat_maps(kspace), torch.zeros_like(kspace.real[:, :1])
    eigenvalue = None if parts and all(part.eigenvalue is None for _, part in parts) else torch.zeros_like(phase)
    sources = [MapSource(None, _FLAT)] * len(kspace)
    for rows, part in parts:
        maps[rows], phase[rows] = part.maps, part.phase
        if eigenvalue is not None and part.eigenvalue is not None:
            eigenvalue[rows] = part.eigenvalue
        for row, source in zip(rows, part.sources, strict=True):
            sources[row] = source
    return CoilMaps(maps, eigenvalue, phase, tuple(sources))


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _quality_notes(acs: AcsRegion | None) -> tuple[str, ...]:
    if acs is None:
        return (
            "the zero frequency is not sampled, so the scan has no ACS lines: coil maps are a low-resolution "
            "combination of aliased images and will be poor. Pass coil_maps if you have them.",
        )
    if acs.num_lines < _MIN_ACS_LINES:
        return (
            f"only {acs.num_lines} ACS line (ESPIRiT needs {_MIN_ACS_LINES}): coil maps are a low-resolution "
            "combination and will be poor. Pass coil_maps if you have them.",
        )
    if _too_small(acs):
        return (
            f"the fully sampled centre has {acs.shape[0]} x {acs.shape[1]} samples (ESPIRiT needs {_MIN_ACS_SAMPLES}): "
            "coil maps are a low-resolution combination and will be poor. Pass coil_maps if you have them.",
        )
    if acs.num_lines < _FEW_ACS_LINES and acs.num_lines < min(acs.image_shape):
        return (
            f"coil maps come from {acs.num_lines} ACS lines (16 are enough): expect them to be the largest error of "
            "the reconstruction.",
        )
    return ()


def _too_small(acs: AcsRegion) -> bool:
    return acs.num_lines < _MIN_ACS_LINES or acs.shape[0] * acs.shape[1] < _MIN_ACS_SAMPLES


def _normalise(maps: Tensor) -> Tensor:
    """Unit norm at every pixel; equal maps where there is no signal at all."""
    norm = maps.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, maps / norm.clamp_min(torch.finfo(norm.dtype).tiny), flat_maps(maps))
