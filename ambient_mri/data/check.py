"""What k-space looks like, before hours are spent on it: :func:`check_kspace` looks and says what is odd.

Centring, axes, empty coils and slices, acquired extent, calibration lines, effective acceleration, noise and signal.
Nothing is repaired; every problem is one sentence with its likely fix.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch

from ambient_mri._checks import AmbientMRIError
from ambient_mri.coil_maps import find_acs
from ambient_mri.data.acquisition import Extent
from ambient_mri.data.files import SliceSelection
from ambient_mri.data.normalize import estimate_noise_std, measured_scale, noise_warnings
from ambient_mri.data.oversampling import readout_oversampling
from ambient_mri.data.readers import DataWarning, RawScan, from_arrays, read_scan
from ambient_mri.data.readers.numpy_arrays import ArrayLike

__all__ = ["LOWEST_SNR", "KspaceCheck", "check_kspace"]

#: A coil this much weaker than the median, in signal, is not plugged in.
_WEAK = 1e-2
#: ESPIRiT's maps are the largest error of a reconstruction below this number of calibration lines.
_FEW_ACS_LINES = 16
#: Brightest pixels over the noise of a k-space sample, below which there is hardly an image in the data.
LOWEST_SNR = 3.0


@dataclass(frozen=True)
class KspaceCheck:
    """The findings of :func:`check_kspace`.

    Attributes:
        name: Of the scan.
        shape: Slices, coils, rows, columns.
        recon_shape: Rows and columns of the image after the centre crop.
        acquisition: The contrast's name; may be empty.
        phase_encode_axis: -1 columns, -2 rows, None for a 2-D mask.
        readout_oversampling: Encoded over wanted field of view along the readout.
        acquired_extent: Rows and columns really covered, half-open.
        acceleration: Effective: locations of the acquired extent over those measured, zero padding left out.
        sampled: Lines (1-D masks) or locations (2-D masks) measured, and out of how many of the acquired extent.
        acs: Rows and columns of the calibration region, or None.
        peak: Row and column of the strongest location; near ``(rows // 2, columns // 2)`` where k-space is centred.
        coil_energy: Energy of every coil as a share of all.
        noise_std: Per real and imaginary part, raw units; None where it cannot be told.
        noise_source: Where the noise level comes from.
        scale: Raw units per unit of a prior; None where there is none.
        snr: ``scale / noise_std``: how far the brightest pixels stand above the noise of one k-space sample.
        mask_per_slice: Whether the slices have masks of their own.
        has_coil_maps: Whether the file brings coil maps.
        voxel_mm: Rows, columns and slices, where the header knows them.
        notes: What the reader inferred or left out.
        problems: One sentence each, with the likely fix.
    """

    name: str
    shape: tuple[int, int, int, int]
    recon_shape: tuple[int, int]
    acquisition: str
    phase_encode_axis: int | None
    readout_oversampling: float
    acquired_extent: Extent
    acceleration: float
    sampled: tuple[int, int]
    acs: tuple[int, int] | None
    peak: tuple[int, int]
    coil_energy: tuple[float, ...]
    noise_std: float | None
    noise_source: str
    scale: float | None
    snr: float | None
    mask_per_slice: bool = False
    has_coil_maps: bool = False
    voxel_mm: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def fully_sampled(self) -> bool:
        """Whether every location of the acquired extent was measured."""
        return self.sampled[0] == self.sampled[1]

    @property
    def empty_coils(self) -> tuple[int, ...]:
        """Coils with no signal at all."""
        return tuple(i for i, energy in enumerate(self.coil_energy) if energy == 0)


def check_kspace(
    scan: str | os.PathLike[str] | ArrayLike | RawScan,
    mask: ArrayLike | None = None,
    *,
    slices: SliceSelection = None,
) -> KspaceCheck:
    """Look at a scan and say what it holds and what is odd about it.

    Args:
        scan: A file that :func:`~ambient_mri.data.readers.read_scan` reads, arrays (slices, coils, H, W), or a scan.
        mask: Sampling mask of arrays; inferred when None.
        slices: Of a file; all when None.

    Raises:
        DataError: If it is no k-space at all; a scan that is odd gives ``problems`` instead.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        if isinstance(scan, RawScan):
            raw = scan
        elif isinstance(scan, np.ndarray | torch.Tensor):
            raw = from_arrays(scan, mask)
        else:
            raw = read_scan(scan, slices)
    told = [_without_name(str(w.message)) for w in caught if issubclass(w.category, DataWarning)]
    found = _measure(raw)
    return replace(found, problems=(*told, *_problems(raw, found)))


def _measure(raw: RawScan) -> KspaceCheck:
    energy = np.zeros(raw.num_coils)
    strongest = np.zeros(raw.shape)
    for part in raw.kspace:
        power = np.square(np.abs(part), dtype=np.float64)
        energy += power.sum(axis=(1, 2))
        strongest = np.maximum(strongest, power.sum(axis=0))
    row, column = np.unravel_index(int(strongest.argmax()), raw.shape)
    acs = find_acs(torch.from_numpy(np.ascontiguousarray(raw.mask)), raw.shape)
    noise_std, noise_source = _noise(raw)
    scale = _scale(raw)
    known = noise_std is not None and scale is not None and noise_std > 0
    return KspaceCheck(
        name=raw.name,
        shape=(len(raw), raw.num_coils, *raw.shape),
        recon_shape=raw.recon_shape,
        acquisition=raw.acquisition,
        phase_encode_axis=raw.phase_encode_axis,
        readout_oversampling=readout_oversampling(raw),
        acquired_extent=raw.acquired_extent,
        acceleration=raw.acceleration,
        sampled=_sampled(raw),
        acs=None if acs is None else acs.shape,
        peak=(int(row), int(column)),
        coil_energy=tuple(float(e) for e in energy / max(energy.sum(), np.finfo(float).tiny)),
        noise_std=noise_std,
        noise_source=noise_source,
        scale=scale,
        snr=float(scale / noise_std) if known else None,  # type: ignore[operator]
        mask_per_slice=len(raw.mask) > 1,
        has_coil_maps=raw.coil_maps is not None,
        voxel_mm=None if raw.affine is None else tuple(float(n) for n in np.linalg.norm(raw.affine[:3, :3], axis=0)),
        notes=raw.notes,
    )


def _sampled(raw: RawScan) -> tuple[int, int]:
    """Measured and possible lines of a 1-D mask, or locations of a 2-D mask, in the acquired extent (first slice)."""
    rows, columns = (slice(*part) for part in raw.acquired_extent)
    inner = np.broadcast_to(raw.mask[0, 0], raw.shape)[rows, columns]
    if raw.phase_encode_axis is None:
        return int(inner.sum()), inner.size
    lines = np.asarray(inner.any(axis=0 if raw.phase_encode_axis == -1 else 1))
    return int(lines.sum()), len(lines)


def _noise(raw: RawScan) -> tuple[float | None, str]:
    if raw.noise_std is not None:
        return float(np.mean(raw.noise_std)), "from the file"
    try:
        return estimate_noise_std(raw.kspace, raw.mask, raw.acquired_extent)
    except AmbientMRIError as error:
        return None, f"unknown: {error}"


def _scale(raw: RawScan) -> float | None:
    try:
        return measured_scale(raw.kspace, raw.mask)
    except AmbientMRIError:
        return None


def _problems(raw: RawScan, found: KspaceCheck) -> list[str]:
    """What the readers do not say already."""
    problems = []
    if found.empty_coils:
        problems.append(f"coils {list(found.empty_coils)} are zero everywhere: leave them out")
    energy = np.asarray(found.coil_energy)
    weak = np.flatnonzero((energy > 0) & (energy < _WEAK * np.median(energy)))
    if len(weak):
        problems.append(
            f"coils {weak.tolist()} hold less than 1 % of the median coil's energy: unplugged, or far away?"
        )
    problems += _off_centre(raw, found)
    few = found.acs is not None and not found.fully_sampled and min(found.acs) < _FEW_ACS_LINES
    if found.acs is None:
        problems.append(
            "the zero frequency is not sampled: no calibration lines, coil maps will be poor; pass coil_maps"
        )
    elif few:
        problems.append(f"{min(found.acs)} calibration lines (16 are enough): coil maps will be the largest error")
    problems += [text.rstrip(".") for text in noise_warnings(found.noise_source, raw.num_coils)]
    if found.snr is not None and found.snr < LOWEST_SNR:
        problems.append(
            f"signal is {found.snr:.1f} times the noise of a sample: is this a noise scan, or one empty slice?"
        )
    return problems


def _off_centre(raw: RawScan, found: KspaceCheck) -> list[str]:
    """The strongest location lies within the object's own spread of the centre; a shift by a line is no accident."""
    problems = []
    for name, peak, size in zip(("rows", "columns"), found.peak, raw.shape, strict=True):
        offset = peak - size // 2
        # Stored from the zero frequency: the readers say so themselves.
        at_origin = size >= 16 and min(peak, size - peak) <= size // 8
        if abs(offset) > max(2, math.ceil(0.02 * size)) and not at_origin:
            problems.append(
                f"the strongest location is {offset:+d} {name} off the centre {size // 2}: is the zero frequency at "
                "n//2, or the echo displaced (partial echo)?"
            )
    return problems


def _without_name(text: str) -> str:
    """The reader's sentence without the file that it begins with, and without its full stop."""
    return text.partition(": ")[2].rstrip(".") or text
