"""Coil maps of a scan: ESPIRiT by one of three programs, or a low-resolution fall-back that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ambient_mri._checks import check_finite, check_option, require
from ambient_mri.coil_maps.acs import AcsRegion, absorb_phase, find_acs, low_resolution_images
from ambient_mri.coil_maps.backends import bart_espirit, sigpy_espirit
from ambient_mri.coil_maps.calibration import espirit

__all__ = ["CoilMaps", "estimate_coil_maps"]

_ESPIRIT = {"torch": espirit, "sigpy": sigpy_espirit, "bart": bart_espirit}
#: ESPIRiT with a kernel of 2 halves the error of low-resolution images from 2 lines on (measured on real heads).
_MIN_ACS_LINES = 2
# A few neighbours in the middle of a Poisson disc are no calibration region.
_MIN_ACS_SAMPLES = 32
#: Below this number of ACS lines the user is told.
_FEW_ACS_LINES = 16


@dataclass(frozen=True)
class CoilMaps:
    """Estimated coil maps and how they came about.

    Attributes:
        maps: (batch, coils, H, W) complex, sum over coils of |S|^2 = 1 at every pixel.
        eigenvalue: (batch, 1, H, W) ESPIRiT eigenvalue, near 1 inside the object; None where the method has none.
        phase: (batch, 1, H, W) radians, absorbed into ``maps`` (zero where none was): maps * exp(-i phase) undoes it.
        acs: The calibration region that was used, or None.
        method: ``"espirit/<backend>"``, ``"low_resolution"`` or ``"single_coil"``.
        warnings: What a user should know about the quality of these maps, one sentence each.
    """

    maps: Tensor
    eigenvalue: Tensor | None
    phase: Tensor
    acs: AcsRegion | None
    method: str
    warnings: tuple[str, ...] = ()


def estimate_coil_maps(
    kspace: Tensor,
    mask: Tensor,
    *,
    backend: str = "torch",
    calib: int = 24,
    kernel: int = 6,
    threshold: float = 0.02,
    noise_std: Tensor | float = 0.0,
    absorb: bool = True,
) -> CoilMaps:
    """Coil maps of an undersampled scan, from its own ACS.

    Fewer than 2 ACS lines, or fewer than 32 samples: a low-resolution combination, S_c = l_c / sqrt(sum |l|^2) with l
    the windowed images of the central k-space, and a warning, because without calibration lines those images are
    aliased. A prior does better then (:func:`~ambient_mri.sampling.joint_maps.calibrationless_coil_maps`).

    Args:
        kspace: (batch, coils, H, W) complex, zero where not sampled, any units.
        mask: bool, (batch or 1, 1, H or 1, W or 1).
        backend: ``"torch"`` (:func:`espirit`), ``"sigpy"`` (EspiritCalib, square calibration regions only) or
            ``"bart"`` (the ``ecalib`` binary of the BART toolbox).
        calib: Calibration lines used, at most, along each axis.
        kernel: Kernel size, at most; it shrinks where there are few lines.
        threshold: Singular values below this fraction of the largest count as noise.
        noise_std: Noise per real and imaginary part, in the units of ``kspace``, (batch,) or one number; 0 where it is
            not known. Pass it where you can: on noisy scans ``threshold`` alone keeps noise, and the maps with it.
        absorb: Absorb the low-resolution phase into the maps (see :func:`absorb_phase`).

    Raises:
        AmbientMRIError: For k-space that is not complex 4-D, not finite or empty, or a backend that is not there.
    """
    check_option("backend", backend, _ESPIRIT)
    require(
        kspace.ndim == 4 and kspace.is_complex(),
        f"kspace must be complex (batch, coils, H, W); got {kspace.dtype} {tuple(kspace.shape)}.",
    )
    check_finite("kspace", kspace)
    image_shape = (int(kspace.shape[-2]), int(kspace.shape[-1]))
    found = find_acs(mask, image_shape)
    acs = None if found is None else found.limited(calib)
    notes = _quality_notes(acs)
    eigenvalue: Tensor | None = None
    if kspace.shape[1] == 1:
        maps, method, notes = torch.ones_like(kspace), "single_coil", ()
    elif acs is None or _too_small(acs):
        region = AcsRegion.central(image_shape, calib) if acs is None else acs
        maps, method = low_resolution_images(kspace, region), "low_resolution"
    else:
        maps, eigenvalue = _ESPIRIT[backend](kspace, acs, kernel=kernel, threshold=threshold, noise_std=noise_std)
        method = f"espirit/{backend}"
    maps = _normalise(maps)
    phase = torch.zeros_like(kspace.real[:, :1])
    if absorb and method != "low_resolution":  # those hold the phase of the images that they are made of
        maps, phase = absorb_phase(maps, kspace, mask)
    return CoilMaps(maps=maps, eigenvalue=eigenvalue, phase=phase, acs=acs, method=method, warnings=notes)


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
            f"coil maps come from {acs.num_lines} ACS lines (24 are usual): expect them to be the largest error of the "
            "reconstruction.",
        )
    return ()


def _too_small(acs: AcsRegion) -> bool:
    return acs.num_lines < _MIN_ACS_LINES or acs.shape[0] * acs.shape[1] < _MIN_ACS_SAMPLES


def _normalise(maps: Tensor) -> Tensor:
    """Unit norm at every pixel; equal maps where there is no signal at all."""
    norm = maps.norm(dim=1, keepdim=True)
    flat = torch.full_like(maps, 1 / math.sqrt(maps.shape[1]))
    return torch.where(norm > 0, maps / norm.clamp_min(torch.finfo(norm.dtype).tiny), flat)
