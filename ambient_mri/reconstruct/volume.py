"""A scan made ready for a sampler: read, and what was not given inferred from the scan alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import DataError, check_finite, check_positive, check_shape, require
from ambient_mri.coil_maps import absorb_phase, estimate_coil_maps
from ambient_mri.data.normalize import estimate_noise_std, measured_scale
from ambient_mri.measurement import Measurement
from ambient_mri.prior import Prior
from ambient_mri.sampling.calibration import effective_noise_std
from ambient_mri.sampling.joint_maps import JointSettings, calibrationless_coil_maps, joint_coil_maps

if TYPE_CHECKING:
    from ambient_mri.data.files import SliceSelection
    from ambient_mri.data.readers import RawScan

__all__ = ["ArrayLike", "Chunk", "Volume", "read_raw"]

ArrayLike: TypeAlias = np.ndarray | Tensor

# Below this number of ACS lines, joint estimation gives better coil maps than ESPIRiT (benchmarks/quality/maps.py).
JOINT_BELOW = 6
_BLIND = (
    "with no ACS lines to speak of, coil maps were estimated together with the image, from nothing: that serves where "
    "the centre of k-space is sampled densely and irregularly (Poisson disc), and fails on equispaced lines. Pass "
    "coil_maps if you have them."
)


@dataclass(frozen=True)
class Chunk:
    """Some slices of a volume, ready for a sampler.

    Attributes:
        measurement: Scaled, in hybrid space where the mask allows it; its ``noise_std`` is the level to sample with.
        phase: (b, 1, H, W) radians, absorbed into the coil maps.
        support: (b, 1, H, W) bool: where the coil maps see anything.
        noise_std: (b,) noise of the scan, scaled units.
        agreement: (b,) chi^2 of the calibration lines under ``noise_std``, NaN where it is not known.
        maps_method: Where the coil maps come from.
        warnings: What a user should know.
        poor_maps: Whether the maps come from so few ACS lines that joint estimation does better.
    """

    measurement: Measurement
    phase: Tensor
    support: Tensor
    noise_std: Tensor
    agreement: Tensor
    maps_method: str
    warnings: tuple[str, ...]
    poor_maps: bool = False

    def with_joint_maps(self, prior: Prior, seed: int) -> Chunk:
        """The same slices with coil maps estimated together with the image."""
        if self.measurement.num_coils == 1:
            return self
        settings = JointSettings(seed=seed)
        if self.maps_method == "low_resolution":
            measurement = calibrationless_coil_maps(prior.model, self.measurement, self.noise_std, settings)
            return replace(
                self, measurement=measurement, maps_method="joint without calibration lines", warnings=(_BLIND,)
            )
        measurement = joint_coil_maps(prior.model, self.measurement, self.noise_std, settings)
        return replace(self, measurement=measurement, maps_method=f"joint from {self.maps_method}")


@dataclass(frozen=True)
class Volume:
    """A raw scan with its scale and noise level.

    Attributes:
        raw: The scan.
        scale: Raw units per scaled unit.
        noise_std: (slices,) per real part, scaled units.
        noise_source: Where it comes from.
    """

    raw: RawScan
    scale: float
    noise_std: Tensor
    noise_source: str

    @classmethod
    def measure(cls, raw: RawScan, noise_std: float | ArrayLike | None = None, scale: float | None = None) -> Volume:
        """Scale and noise level of ``raw``.

        Args:
            raw: The scan.
            noise_std: Per real part, raw units, one number or one a slice; from the file, or estimated, when None.
            scale: Raw units per scaled unit; measured when None.
        """
        if scale is None:
            scale = measured_scale(raw.kspace, raw.mask)
        check_positive("scale", scale)
        if noise_std is not None:
            values, source = torch.as_tensor(noise_std, dtype=torch.float32).reshape(-1), "given"
            require(
                len(values) in (1, len(raw)),
                f"noise_std must be one number, or one for each of the {len(raw)} slices; got {len(values)}.",
            )
            check_positive("noise_std", float(values.min()), allow_zero=True)
            check_finite("noise_std", values)
        elif raw.noise_std is not None:
            values, source = torch.as_tensor(raw.noise_std, dtype=torch.float32), "from the file"
        else:
            estimate, source = estimate_noise_std(raw.kspace, raw.mask, raw.acquired_extent)
            values = torch.tensor([estimate])
        return cls(raw, scale, (values / scale).expand(len(raw)), source)

    def chunk(self, rows: slice, device: torch.device, *, transpose: bool = False) -> Chunk:
        """Slices ``rows`` of the volume on ``device``; maps are estimated where the scan brings none.

        Args:
            rows: Range of positions in the volume.
            device: Device of the result.
            transpose: Swap rows and columns, so that the lines of the mask vary along the last axis.
        """
        raw, per_slice = self.raw, lambda a: a[rows] if len(a) > 1 else a
        y = torch.from_numpy(raw.kspace[rows]).to(device) / self.scale
        mask = torch.from_numpy(np.ascontiguousarray(per_slice(raw.mask))).to(device)
        noise = self.noise_std[rows].to(device)
        if raw.coil_maps is None:
            found = estimate_coil_maps(y, mask, noise_std=noise)
            maps, phase, method, notes = found.maps, found.phase, found.method, found.warnings
            poor = found.acs is None or found.acs.num_lines < JOINT_BELOW
            support = torch.ones_like(phase, dtype=torch.bool)
        else:
            given = torch.from_numpy(np.ascontiguousarray(per_slice(raw.coil_maps))).to(device).expand_as(y)
            maps, support, notes = _normalised(given)
            maps, phase = absorb_phase(maps, y, mask)
            method, poor = "given", False
        m = Measurement(
            y=y,
            mask=mask,
            coil_maps=maps,
            noise_std=noise,
            scale=torch.full((len(y),), self.scale, device=device),
            key=tuple(str(raw.slice_indices[i]) for i in range(len(raw))[rows]),
        ).check()
        effective, agreement = effective_noise_std(m)
        m = replace(m, noise_std=effective)
        if transpose:
            m = replace(m, y=m.y.mT, mask=m.mask.mT, coil_maps=maps.mT)
        return Chunk(m.cancel_readout(), phase, support, noise, agreement, method, notes, poor)

    def settings(self) -> dict[str, Any]:
        """What was measured of the volume, as plain data."""
        raw = self.raw
        return {
            "source": str(raw.source or raw.name),
            "slices": list(raw.slice_indices),
            "acceleration": raw.acceleration,
            "phase_encode_axis": raw.phase_encode_axis,
            "acquired_extent": [list(interval) for interval in raw.acquired_extent],
            "scale": self.scale,
            "noise_source": self.noise_source,
            "notes": list(raw.notes),
        }


def read_raw(
    scan: str | os.PathLike[str] | ArrayLike | RawScan,
    mask: ArrayLike | None = None,
    coil_maps: ArrayLike | None = None,
    slices: SliceSelection = None,
) -> RawScan:
    """A scan from a file, arrays, or a RawScan, with the mask and maps that a caller may give beside it.

    Raises:
        DataError: If it cannot be read, or the mask does not fit.
        AmbientMRIError: If the coil maps do not fit.
    """
    from ambient_mri.data.files import select_slices
    from ambient_mri.data.readers import RawScan, from_arrays, read_scan

    if mask is not None:
        sampled = bool(torch.as_tensor(mask).any())
        require(sampled, "mask selects no k-space location: nothing would be measured. Is it inverted?", DataError)
    if isinstance(scan, RawScan):
        raw = scan
    elif isinstance(scan, np.ndarray | Tensor):
        raw, mask = from_arrays(scan, mask), None
    else:
        raw, slices = read_scan(scan, slices), None
    if mask is not None:
        again = from_arrays(raw.kspace, mask, where=raw.name)
        axis, notes = again.phase_encode_axis, raw.notes + again.notes
        raw = replace(raw, kspace=again.kspace, mask=again.mask, phase_encode_axis=axis, notes=notes)
    if coil_maps is not None:
        raw = replace(raw, coil_maps=_given_maps(coil_maps, raw.kspace.shape))
    if slices is None:
        return raw
    return _pick(raw, select_slices(slices, len(raw), raw.name))


def _given_maps(coil_maps: ArrayLike, kspace: tuple[int, ...]) -> np.ndarray:
    maps = torch.as_tensor(coil_maps).detach().cpu().resolve_conj()
    maps = maps[None] if maps.ndim == 3 else maps
    require(maps.is_complex(), f"coil_maps must be complex (slices or 1, coils, H, W); got {maps.dtype}.")
    per_slice = kspace[0] if maps.ndim == 4 and maps.shape[0] != 1 else 1
    hint = f"K-space has shape {kspace}. Were the maps estimated from another scan?"
    check_shape("coil_maps", maps, (per_slice, *kspace[1:]), hint)
    check_finite("coil_maps", maps)
    return maps.to(torch.complex64).numpy()


def _normalised(maps: Tensor) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Maps with sum |S|^2 = 1, where they see anything, and a note if they had to be changed for it."""
    norm = maps.norm(dim=1, keepdim=True)
    support = norm > 1e-3 * norm.amax()
    require(bool(support.any()), "coil_maps are zero everywhere.")
    off = float((norm[support] - 1).abs().max())
    notes: tuple[str, ...] = ()
    if off > 0.02:
        notes = (
            "coil_maps did not have sum |S|^2 = 1 where they see the object; they were normalised, so the image is the "
            "combination of all coils.",
        )
    flat = torch.full_like(maps, maps.shape[1] ** -0.5)
    return torch.where(support, maps / norm.clamp_min(1e-30), flat), support, notes


def _pick(raw: RawScan, rows: Sequence[int]) -> RawScan:
    chosen = list(rows)
    per_slice = lambda a: a if a is None or len(a) == 1 != len(raw) else a[chosen]  # noqa: E731
    return replace(
        raw,
        kspace=raw.kspace[chosen],
        mask=per_slice(raw.mask),
        coil_maps=per_slice(raw.coil_maps),
        noise_std=None if raw.noise_std is None else raw.noise_std[chosen],
        slice_indices=tuple(raw.slice_indices[i] for i in chosen),
    )
