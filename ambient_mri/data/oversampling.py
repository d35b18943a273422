"""Readout oversampling removed: the scanner samples the readout twice as densely as the image needs, at no cost of
time, and what lies outside the wanted field of view is cut off in the image.

    y' = F_n crop( F_N^H y )        along the readout, N samples -> n

Both transforms are orthonormal, so white noise stays white and keeps its level. Half the data, half the transforms.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ambient_mri._checks import DataError, require
from ambient_mri.data.readers.raw_scan import RawScan
from ambient_mri.operators.fourier import fft, ifft

__all__ = ["readout_oversampling", "remove_readout_oversampling"]


def readout_oversampling(raw: RawScan) -> float:
    """Field of view that was encoded along the readout over that of the image; 1 where there is no oversampling.

    From the header's fields of view; without a header, 2 where the image has at most half of the rows of k-space.
    """
    encoded, recon = raw.header.get("encoded_fov_mm"), raw.header.get("recon_fov_mm")
    if encoded is not None and recon is not None and min(encoded[0], recon[0]) > 0:
        return max(1.0, float(encoded[0]) / float(recon[0]))
    axis = raw.header.get("readout_axis", -2)
    return 2.0 if 2 * raw.recon_shape[axis] <= raw.shape[axis] else 1.0


def remove_readout_oversampling(raw: RawScan) -> RawScan:
    """The scan on its wanted field of view along the readout; the scan itself where there is no oversampling.

    Raises:
        DataError: If the readout is not fully acquired, or the file brings coil maps.
    """
    factor = readout_oversampling(raw)
    axis = int(raw.header.get("readout_axis", -2))
    length = raw.shape[axis]
    target = round(length / factor)
    if target >= length:
        return raw
    along_readout = raw.mask.shape[axis] == 1 and raw.acquired_extent[axis] == (0, length)
    hint = "Leave readout oversampling in (crop_readout=false)."
    require(
        along_readout,
        f"{raw.name}: readout oversampling can be removed only where every sample of the readout was acquired. {hint}",
        DataError,
    )
    require(
        raw.coil_maps is None, f"{raw.name}: the file brings coil maps of the oversampled matrix. {hint}", DataError
    )
    kept = slice(length // 2 - target // 2, length // 2 - target // 2 + target)
    index = (..., kept, slice(None)) if axis == -2 else (..., kept)
    parts = []
    for part in raw.kspace:
        image = ifft(torch.from_numpy(part), (axis,))[index]
        parts.append(fft(image.contiguous(), (axis,)).numpy())
    extent, shape = list(raw.acquired_extent), list(raw.recon_shape)
    extent[axis], shape[axis] = (0, target), min(shape[axis], target)
    return replace(
        raw,
        kspace=np.stack(parts),
        acquired_extent=(extent[0], extent[1]),
        recon_shape=(shape[0], shape[1]),
        notes=(*raw.notes, f"readout oversampling of {factor:.2g} removed: {length} -> {target} samples"),
    )
