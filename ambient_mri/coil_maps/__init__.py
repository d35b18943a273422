"""Coil sensitivity maps and image phase, from the calibration lines (ACS) of the undersampled scan itself.

Maps are *uncropped* and normalised everywhere, sum_c |S_c|^2 = 1: pixels outside the object stay supervised. The
low-resolution phase of the scan is absorbed into the maps by default: x -> x exp(-i phase), S_c -> S_c exp(i phase), so
that S_c x does not change and what is left in x is nearly real.

    find_acs            mask -> the calibration region
    rows_by_mask        the rows of a batch that share one
    estimate_coil_maps  k-space and mask -> maps, by ESPIRiT (torch, sigpy or BART) or a fall-back, with warnings
    espirit             the estimator itself
    absorb_phase        maps and k-space -> maps that hold the phase
    likely_noise_std    k-space, mask and maps -> the noise level, lowered to what the coils agree on
"""

from __future__ import annotations

from ambient_mri.coil_maps.acs import AcsRegion, absorb_phase, find_acs, rows_by_mask
from ambient_mri.coil_maps.calibration import espirit
from ambient_mri.coil_maps.estimate import CoilMaps, MapSource, estimate_coil_maps
from ambient_mri.coil_maps.noise_likelihood import likely_noise_std

__all__ = [
    "AcsRegion",
    "CoilMaps",
    "MapSource",
    "absorb_phase",
    "espirit",
    "estimate_coil_maps",
    "find_acs",
    "likely_noise_std",
    "rows_by_mask",
]
