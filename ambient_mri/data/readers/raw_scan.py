"""RawScan: a scan as its file holds it, in raw units, with what was really measured made explicit.

There is deliberately no field for a reference image; see :mod:`ambient_mri.data.readers.reference`.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ambient_mri.data.acquisition import Extent, Sampling
from ambient_mri.data.files import sha256_of_file

__all__ = ["DataWarning", "RawScan", "blank_unsampled", "warn_about"]


class DataWarning(UserWarning):
    """A file that can be read, but holds something that its owner should look at."""


@dataclass(frozen=True, eq=False)
class RawScan:
    """A volume, or some of its slices.

    Attributes:
        kspace: (slices, coils, H, W) complex64, raw units, zero frequency at n//2, zero where ``mask`` is False.
        mask: (slices or 1, 1, H or 1, W or 1) bool, True where measured; of fully sampled data, the acquired extent.
        phase_encode_axis: -1 or -2, or None for a 2-D mask.
        acquired_extent: ((row0, row1), (column0, column1)) that the scan covers, half-open; outside it is zero padding.
        recon_shape: Rows and columns of the image after the centre crop that removes readout oversampling.
        header: The ISMRMRD header as a dictionary (``header.parse_header``); may be empty.
        acquisition: The contrast's name, such as ``AXT2`` or ``CORPD_FBK``; may be empty.
        source: The file, or None for arrays.
        attrs: Other attributes of the file.
        coil_maps: (slices or 1, coils, H, W) complex64 where the file brings them.
        noise_std: (slices,) per real and imaginary part, raw units, where the file brings it.
        affine: (4, 4) map of (row, column, slice) of the cropped image to mm, where the file knows its field of view.
        slice_indices: Which of the file's slices these are.
        notes: What the reader inferred or left out, for the record.
    """

    kspace: np.ndarray
    mask: np.ndarray
    phase_encode_axis: int | None
    acquired_extent: Extent
    recon_shape: tuple[int, int]
    header: dict[str, Any] = field(default_factory=dict)
    acquisition: str = ""
    source: Path | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    coil_maps: np.ndarray | None = None
    noise_std: np.ndarray | None = None
    affine: np.ndarray | None = None
    slice_indices: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.kspace.shape[0]

    @property
    def volume_slices(self) -> tuple[int, ...]:
        """Numbers of the slices in the volume: of a file that was prepared from some of its slices, not its own."""
        first = int(self.attrs.get("first_slice", 0))
        return tuple(first + i for i in self.slice_indices)

    @property
    def estimated_maps(self) -> bool:
        """Whether a preparation estimated the coil maps from this scan's own lines."""
        made = str(self.attrs.get("maps", ""))
        known = ("espirit/", "low_resolution", "single_coil")
        return self.coil_maps is not None and any(name in made for name in known)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of k-space."""
        return int(self.kspace.shape[-2]), int(self.kspace.shape[-1])

    @property
    def num_coils(self) -> int:
        """Number of receiver coils."""
        return int(self.kspace.shape[1])

    @property
    def name(self) -> str:
        """The file's name without its ending, or ``array``."""
        return "array" if self.source is None else self.source.stem

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file (of the k-space, for arrays); computed when first asked for."""
        if self.source is None:
            return hashlib.sha256(self.kspace.tobytes()).hexdigest()
        return sha256_of_file(self.source)

    @property
    def acceleration(self) -> float:
        """Effective acceleration: locations of the acquired extent, zero padding left out, over those measured."""
        (row0, row1), (column0, column1) = self.acquired_extent
        full = np.broadcast_to(self.mask, (len(self.mask), 1, *self.shape))
        return float((row1 - row0) * (column1 - column0) / full.mean(axis=0).sum())

    @property
    def fully_sampled(self) -> bool:
        """Whether every location of the acquired extent was measured."""
        (row0, row1), (column0, column1) = self.acquired_extent
        full = np.broadcast_to(self.mask, (len(self.mask), 1, *self.shape))
        return bool(full[..., row0:row1, column0:column1].all())


def blank_unsampled(kspace: np.ndarray, sampling: Sampling) -> np.ndarray:
    """K-space with everything outside the mask set to zero; the input itself where there is nothing to blank."""
    mask = np.broadcast_to(sampling.mask, (kspace.shape[0], 1, *kspace.shape[-2:]))
    stray = any(bool((part[:, ~m[0]] != 0).any()) for part, m in zip(kspace, mask, strict=True))
    return np.where(mask, kspace, np.complex64(0)) if stray else kspace


def warn_about(suspicions: tuple[str, ...], where: object) -> None:
    """One :class:`DataWarning` for each suspicion, naming the file."""
    for text in suspicions:
        warnings.warn(f"{where}: {text}.", DataWarning, stacklevel=3)
