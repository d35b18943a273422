r"""Noise level from what the coils cannot have seen: linear relations between neighbouring samples of all coils.

Patches of k-space, all coils, from a small window span a space that is smaller than the window has samples: coils see
one image, and smoothly (Uecker et al. 2014; Shin et al. 2014). A vector v orthogonal to it gives v^H patch = 0 at
every place of k-space, so for a real patch only noise remains,

    E | v^H patch |^2 = 2 noise_std^2 ,      |v| = 1.

The vectors come from the middle rows of the calibration lines, where signal is strong, and are tried on rows further
out, whose noise they have not met: had they been chosen and tried on the same noise, they would be those that fit it.
Signal that they do not annul adds to the estimate; it errs upwards. One coil has no such relations but those of an
object smaller than the field of view; two or three have few.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ambient_mri.coil_maps import find_acs
from ambient_mri.coil_maps.noise_likelihood import FEWEST_COILS

__all__ = ["null_space_variance"]

# Window along and across the calibration lines, and the share of its vectors, of least signal, that are tried.
_WINDOW, _SHARE = (6, 3), 0.25
# Rows that vectors are learned from and tried on, in distances from the zero frequency; filters begin further out.
_INNER, _OUTER = 0.4, (0.5, 0.85)
_SLICES = 3


def null_space_variance(data: Tensor, sampled: Tensor) -> float:
    """Noise variance per real part from the calibration lines; infinite where they do not suffice.

    Args:
        data: (slices, coils, H, W) complex; coils of about equal noise.
        sampled: (slices, H, W) bool.
    """
    acs = find_acs(sampled.all(dim=0)[None, None])
    data = data[:, data.abs().amax(dim=(0, 2, 3)) > 0]  # a silent coil is orthogonal to everything
    if acs is None or data.shape[1] < FEWEST_COILS:
        return math.inf
    middle = len(data) // 2
    block = acs.crop(data[max(0, middle - 1) : max(0, middle - 1) + _SLICES])
    first, size = acs.rows[0], acs.image_shape[0]
    if block.shape[-1] > block.shape[-2]:  # the long side is the readout
        block, first, size = block.mT, acs.cols[0], acs.image_shape[1]
    found = [_slice_variance(part, first, size) for part in block]
    return sum(found) / len(found)


def _slice_variance(block: Tensor, first: int, size: int) -> float:
    """Of one slice (coils, readout, lines), whose readout begins at ``first`` of ``size``."""
    long, wide = _WINDOW
    if block.shape[-1] < wide or block.shape[-2] < long:
        return math.inf
    windows = block.to(torch.complex128).unfold(1, long, 1).unfold(2, wide, 1)  # (C, readout, lines, long, wide)
    patches = windows.permute(1, 2, 0, 3, 4).flatten(2)
    place = (torch.arange(len(patches), device=block.device) + first + (long - 1) / 2 - size // 2).abs() / (size / 2)
    inner, outer = patches[place < _INNER], patches[(place > _OUTER[0]) & (place < _OUTER[1])]
    inner, outer = inner.flatten(0, 1), outer.flatten(0, 1)
    unknowns = inner.shape[1]
    if len(inner) < unknowns or len(outer) == 0:
        return math.inf
    vectors = torch.linalg.eigh(inner.mT @ inner.conj())[1][:, : max(1, int(_SHARE * unknowns))]
    return float((outer @ vectors.conj()).abs().square().mean() / 2)
