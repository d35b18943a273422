"""Scans in NumPy files (.npy, .npz), and in arrays or tensors that a user already holds.

K-space layouts: (H, W), one coil and one slice; (coils, H, W), one slice; (slices, coils, H, W). A layout that could be
read in two ways is refused with the line of code that makes it plain.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from ambient_mri._checks import DataError, require
from ambient_mri.data.acquisition import describe_sampling, mask_from_any_shape, support_of
from ambient_mri.data.files import PathLike, SliceSelection, check_finite_array, require_file, select_slices
from ambient_mri.data.readers.layout import check_layout, pairs_hint
from ambient_mri.data.readers.raw_scan import RawScan, blank_unsampled, warn_about

__all__ = ["ArrayLike", "from_arrays", "read_npy", "read_npz", "to_numpy"]

ArrayLike: TypeAlias = np.ndarray | torch.Tensor
_SMALLEST = 8  # rows or columns of k-space; fewer are coils or slices
_KEYS = ("kspace", "mask", "coil_maps", "noise_std")


def read_npy(path: PathLike, slices: SliceSelection = None) -> RawScan:
    """Read the k-space in a .npy file; the file is mapped, so that only the chosen slices are read.

    Raises:
        DataError: If the file is damaged or its array is no k-space.
    """
    file = require_file(path)
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{file}: NumPy cannot read it ({error}). Is it truncated, or saved with pickle?") from error
    return _from_mapping({"kspace": array}, file, slices)


def read_npz(path: PathLike, slices: SliceSelection = None) -> RawScan:
    """Read a .npz file with ``kspace`` and, where known, ``mask``, ``coil_maps`` and ``noise_std``.

    Raises:
        DataError: If the file is damaged, has no ``kspace``, or its arrays do not belong together.
    """
    file = require_file(path)
    try:
        # NumPy leaves a file that it opened itself, and that is no archive, open.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            torch_file = any(name.endswith("data.pkl") for name in archive.files)
            hint = "This is a file of torch.save: pass the tensor, reconstruct(torch.load(...), ...)."
            require(not torch_file, f"{file}: not a .npz file. {hint}", DataError)
            names = ", ".join(archive.files) or "nothing"
            require(
                "kspace" in archive.files,
                f"{file}: array 'kspace' is missing (the file holds {names}). Use numpy.savez(file, kspace=...).",
                DataError,
            )
            arrays = {key: archive[key] for key in _KEYS if key in archive.files}
    except DataError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file}: NumPy cannot read it ({error}). Is it truncated, or saved with pickle?") from error
    return _from_mapping(arrays, file, slices)


def from_arrays(
    kspace: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    coil_maps: ArrayLike | None = None,
    noise_std: ArrayLike | float | None = None,
    where: object = "the arrays",
) -> RawScan:
    """A scan from arrays or tensors, with everything inferred that a file's reader infers.

    Args:
        kspace: Complex (H, W), (coils, H, W) or (slices, coils, H, W), raw units, zero frequency at n//2.
        mask: (W,), (H,), (H, W), (slices, H, W) or broadcastable, bool or zeros and ones; data outside it are ignored.
            By default it is inferred from exact zeros.
        coil_maps: (coils, H, W) or (slices or 1, coils, H, W).
        noise_std: Noise per real and imaginary part, raw units, one number or one a slice.
        where: How messages name the source.

    Raises:
        DataError: If a layout, dtype or value is wrong, naming the array and the fix.

    Warns:
        DataWarning: If the data contradict the mask, or their zero frequency seems not to be at n//2.
    """
    data = _kspace_4d(to_numpy(kspace), where).astype(np.complex64)
    shape = (data.shape[-2], data.shape[-1])
    check_finite_array(data, "kspace", where)
    stored = None if mask is None else mask_from_any_shape(to_numpy(mask), len(data), shape, where)
    sampling = describe_sampling(support_of(data), stored, where=where)
    # A caller who gives a mask together with more data means to undersample: no reason to warn.
    suspicions = tuple(s for s in sampling.suspicions if mask is None or "hold data where the mask" not in s)
    warn_about(suspicions + check_layout(data) + _real(data), where)
    return RawScan(
        kspace=blank_unsampled(data, sampling),
        mask=sampling.mask,
        phase_encode_axis=sampling.phase_encode_axis,
        acquired_extent=sampling.acquired_extent,
        recon_shape=shape,
        coil_maps=None if coil_maps is None else _coil_maps_4d(to_numpy(coil_maps), data.shape, where),
        noise_std=None if noise_std is None else _noise_per_slice(to_numpy(noise_std), len(data), where),
        slice_indices=tuple(range(len(data))),
        notes=sampling.notes,
    )


def _from_mapping(arrays: Mapping[str, np.ndarray], file: Path, slices: SliceSelection) -> RawScan:
    kspace = _kspace_4d(arrays["kspace"], file)
    indices = select_slices(slices, len(kspace), file)
    picked = list(indices)

    def pick(name: str, ndim: int) -> Any:
        """The chosen slices of an array that has one entry a slice; any other array as it is."""
        array = arrays.get(name)
        per_slice = array is not None and array.ndim >= ndim and len(array) == len(kspace) > 1
        return array[picked] if array is not None and per_slice else array

    scan = from_arrays(
        kspace[picked], pick("mask", 3), coil_maps=pick("coil_maps", 4), noise_std=pick("noise_std", 1), where=file
    )
    return replace(scan, source=file, slice_indices=indices)


def to_numpy(array: ArrayLike | float) -> np.ndarray:
    """An array, tensor or number as a NumPy array on the CPU, without gradients, in the machine's byte order."""
    if isinstance(array, torch.Tensor):
        whole = array.to(torch.complex64) if array.dtype == torch.complex32 else array
        return whole.detach().cpu().resolve_conj().resolve_neg().numpy()
    found = np.asarray(array)
    return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))


def _kspace_4d(array: np.ndarray, where: object) -> np.ndarray:
    """(H, W), (coils, H, W) or (slices, coils, H, W) as the last of these."""
    shape = array.shape
    require(
        array.dtype.kind == "c",
        f"{where}: 'kspace' must be complex; got {array.dtype} {shape}. "
        f"{pairs_hint(shape) or 'Is this a magnitude image?'}",
        DataError,
    )
    require(
        array.ndim in (2, 3, 4),
        f"{where}: 'kspace' must be (H, W), (coils, H, W) or (slices, coils, H, W); got {shape}. Reshape it.",
        DataError,
    )
    require(array.size > 0, f"{where}: 'kspace' is empty, shape {shape}.", DataError)
    if array.ndim > 2:
        coils = shape[-3]
        last = f"{where}: 'kspace' {shape} looks like coils stored last. Pass numpy.moveaxis(kspace, -1, -3)."
        require(not (shape[-1] < 16 and coils > shape[-1]) and not (coils > 128 and array.ndim == 4), last, DataError)
    require(
        array.ndim != 3 or shape[0] <= 128,
        f"{where}: 'kspace' {shape} is ambiguous: {shape[0]} coils or slices? Pass kspace[:, None] for slices of one "
        "coil, kspace[None] for one slice of that many coils.",
        DataError,
    )
    require(
        min(shape[-2:]) >= _SMALLEST,
        f"{where}: 'kspace' {shape} has {shape[-2]} x {shape[-1]} locations. The last two axes are those of the image: "
        "(slices, coils, H, W); move the axes with numpy.moveaxis.",
        DataError,
    )
    return array[(None,) * (4 - array.ndim)]


def _real(kspace: np.ndarray) -> tuple[str, ...]:
    """A suspicion where the imaginary part was lost: the image is then laid over its own half turn."""
    if kspace.imag.any() or not kspace.any():
        return ()
    return ("the imaginary part of 'kspace' is zero everywhere: were real numbers made complex? Pass the complex data",)


def _coil_maps_4d(maps: np.ndarray, shape: tuple[int, ...], where: object) -> np.ndarray:
    full = maps[None] if maps.ndim == 3 else maps
    fits = full.ndim == 4 and full.shape[1:] == shape[1:] and full.shape[0] in (1, shape[0]) and full.dtype.kind == "c"
    require(
        fits,
        f"{where}: 'coil_maps' must be complex {shape[1:]} or {shape} to match kspace; got {maps.dtype} {maps.shape}. "
        "Were the maps estimated from another scan?",
        DataError,
    )
    check_finite_array(full, "coil_maps", where)
    return full.astype(np.complex64)


def _noise_per_slice(noise: np.ndarray, slices: int, where: object) -> np.ndarray:
    good = noise.size in (1, slices) and noise.dtype.kind in "fiu" and bool((np.isfinite(noise) & (noise >= 0)).all())
    require(
        good,
        f"{where}: 'noise_std' must be one number, or one for each of the {slices} slices, finite and not negative; "
        f"got {noise.dtype} {noise.shape}.",
        DataError,
    )
    return np.broadcast_to(noise.astype(np.float32).ravel(), (slices,)).copy()
