"""A scan read from a file or arrays, with what a caller gives beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import DataError, check_finite, check_shape, require

if TYPE_CHECKING:
    from ambient_mri.data.files import SliceSelection
    from ambient_mri.data.readers import RawScan

__all__ = ["ArrayLike", "levels_of_slices", "read_raw"]

ArrayLike: TypeAlias = np.ndarray | Tensor


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
    from ambient_mri.data.readers.numpy_arrays import to_numpy

    if mask is not None:
        mask = to_numpy(mask)
        sampled = bool(mask.any())
        require(sampled, "mask selects no k-space location: nothing would be measured. Is it inverted?", DataError)
    total = None
    if isinstance(scan, RawScan):
        raw = scan
    elif isinstance(scan, np.ndarray | Tensor):
        picked = select_slices(slices, len(scan), "the arrays") if scan.ndim == 4 else (0,)
        if scan.ndim == 4:  # slices that were not asked for are not looked at
            total, scan, slices = len(scan), scan[list(picked)], None
            nothing = f"slices {list(picked)} hold nothing but zeros: there is nothing to reconstruct."
            require(bool(to_numpy(scan).any()), nothing, DataError)
        mask = None if mask is None else _of_slices(mask, picked, "mask", 3, total)
        raw, mask = replace(from_arrays(scan, mask), slice_indices=picked), None
    elif not isinstance(scan, str | os.PathLike):
        raise DataError(f"a scan is a file or an array; got {type(scan).__name__}. Pass numpy.asarray(...) of it.")
    else:
        raw, slices = read_scan(scan, slices), None
    if mask is not None:
        again = from_arrays(raw.kspace, _of_slices(mask, raw.slice_indices, "mask", 3, total), where=raw.name)
        axis, notes = again.phase_encode_axis, raw.notes + again.notes
        # Maps that a preparation estimated from more data than the mask leaves would tell what was left out.
        told = raw.estimated_maps and bool((raw.mask & ~again.mask).any())
        maps = None if told else raw.coil_maps
        raw = replace(raw, kspace=again.kspace, mask=again.mask, phase_encode_axis=axis, notes=notes, coil_maps=maps)
    if coil_maps is not None:
        attrs = {name: value for name, value in raw.attrs.items() if name != "maps"}
        own = _of_slices(to_numpy(coil_maps), raw.slice_indices, "coil_maps", 4, total)
        raw = replace(raw, coil_maps=_given_maps(own, raw.kspace.shape), attrs=attrs)
    if slices is None:
        return raw
    return _pick(raw, select_slices(slices, len(raw), raw.name))


def levels_of_slices(
    noise_std: float | ArrayLike | None, scan: str | os.PathLike[str] | ArrayLike | RawScan, raw: RawScan
) -> float | ArrayLike | None:
    """Noise levels that were given for each slice of ``scan``, of those slices that ``raw`` holds of it."""
    from ambient_mri.data.readers.numpy_arrays import to_numpy

    if not isinstance(noise_std, np.ndarray | Tensor):
        return noise_std
    total = len(scan) if isinstance(scan, np.ndarray | Tensor) else None
    return _of_slices(to_numpy(noise_std).reshape(-1), raw.slice_indices, "noise_std", 1, total)


def _of_slices(array: np.ndarray, indices: Sequence[int], name: str, ndim: int, total: int | None = None) -> np.ndarray:
    """Entries ``indices`` of an array that has one for each slice of the whole volume; another one as it is.

    Args:
        array: One entry for all slices, or one for each of ``indices``, or one for each of the volume.
        indices: The slices that were chosen, by their place in the volume.
        name: Of the array, for messages.
        ndim: Axes of an array that has one entry a slice, at least.
        total: Number of slices of the volume; None where it is not known.

    Raises:
        DataError: If it cannot be told whether the array is in the order of the volume or of ``indices``.
    """
    if array.ndim < ndim or len(array) == 1:
        return array
    if total is None:
        chosen = len(array) == len(indices)
        require(
            not chosen or list(indices) == sorted(indices),
            f"{name} has one entry for each of the {len(indices)} slices, which were chosen in the order "
            f"{list(indices)}: it cannot be told whether {name} is in that order, too. Choose slices in "
            "their own order.",
            DataError,
        )
        return array[list(indices)] if not chosen and len(array) > max(indices) else array
    return array[list(indices)] if len(array) == total else array


def _given_maps(coil_maps: np.ndarray, kspace: tuple[int, ...]) -> np.ndarray:
    maps = torch.from_numpy(np.ascontiguousarray(coil_maps))
    maps = maps[None] if maps.ndim == 3 else maps
    require(maps.is_complex(), f"coil_maps must be complex (slices or 1, coils, H, W); got {maps.dtype}.")
    per_slice = kspace[0] if maps.ndim == 4 and maps.shape[0] != 1 else 1
    hint = f"K-space has shape {kspace}. Were the maps estimated from another scan?"
    check_shape("coil_maps", maps, (per_slice, *kspace[1:]), hint)
    check_finite("coil_maps", maps)
    return maps.to(torch.complex64).numpy()


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
