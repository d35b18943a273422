"""Read k-space files in fastMRI's HDF5 layout.

Layout (Zbontar et al. 2018, arXiv:1811.08839): ``kspace`` (slices, coils, H, W), or (slices, H, W) for single-coil
data, complex64, zero frequency at n//2; ``ismrmrd_header`` (XML); ``mask`` (W,) in test files; ``reconstruction_rss``
or ``reconstruction_esc`` where fully sampled, of which only the *shape* is looked at here. H is the readout, sampled
twice as densely as the image needs in knees; W is the phase-encode axis, zero-padded in many files.

More than the official layout is read: masks (H, W) or one a slice, headers that are missing or swap the axes, and
complex numbers stored as pairs of other names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ambient_mri._checks import DataError, require
from ambient_mri.data.acquisition import describe_sampling, mask_from_any_shape, support_of
from ambient_mri.data.files import (
    PathLike,
    SliceSelection,
    check_finite_array,
    open_hdf5,
    plain_value,
    read_rows,
    require_dataset,
    select_slices,
)
from ambient_mri.data.readers.header import acquired_interval, image_affine, parse_header, readout_axis, recon_shape
from ambient_mri.data.readers.layout import check_layout, pairs_hint
from ambient_mri.data.readers.raw_scan import RawScan, blank_unsampled, warn_about

__all__ = ["read_fastmri"]

_REFERENCES = ("reconstruction_rss", "reconstruction_esc")
_FIX_KSPACE = "It must be complex (slices, coils, H, W), or (slices, H, W) for one coil."


def read_fastmri(path: PathLike, slices: SliceSelection = None) -> RawScan:
    """Read a volume, or some of its slices, from a file in fastMRI's layout.

    Args:
        path: The HDF5 file.
        slices: Slices to read; only these leave the disk.

    Returns:
        The scan, in raw units.

    Raises:
        DataError: If the file is missing, truncated, or its k-space has the wrong layout, dtype or values; one line
            that names file, dataset and fix.

    Warns:
        DataWarning: If there is no header, or if data, mask and header contradict each other.
    """
    file = Path(path)
    with open_hdf5(file) as handle:
        dataset = require_dataset(handle, "kspace", file, _FIX_KSPACE)
        header = _read_header(handle, file)
        _check_layout(dataset, header, file)
        indices = select_slices(slices, dataset.shape[0], file)
        kspace = _as_complex64(read_rows(dataset, indices), file)
        stored = _read_mask(handle, dataset.shape, indices, file)
        attrs = {key: plain_value(value) for key, value in handle.attrs.items()}
        cropped = _image_shape(handle, header, dataset.shape[-2:])
    check_finite_array(kspace, "kspace", file, indices)
    layout = _layout_suspicions(kspace.shape, header)
    kspace = kspace if kspace.ndim == 4 else kspace[:, None]
    header["readout_axis"] = readout_axis(header, kspace.shape[-2:])
    other = _header_suspicions(header, kspace.shape[-2:])
    if other:  # its limits count lines of another matrix, which its field of view is of, too
        for name in ("encoding_limits", "encoded_fov_mm"):
            header.pop(name, None)
    sampling = describe_sampling(
        support_of(kspace),
        stored,
        header_extent=_header_extent(header, kspace.shape[-2:]),
        readout_axis=header["readout_axis"],
        where=file,
    )
    warn_about(layout + other + sampling.suspicions + check_layout(kspace), file)
    return RawScan(
        kspace=blank_unsampled(kspace, sampling),
        mask=sampling.mask,
        phase_encode_axis=sampling.phase_encode_axis,
        acquired_extent=sampling.acquired_extent,
        recon_shape=cropped,
        header=header,
        acquisition=str(attrs.pop("acquisition", "")),
        source=file,
        attrs=attrs,
        affine=image_affine(header, kspace.shape[-2:], cropped),
        slice_indices=indices,
        notes=sampling.notes,
    )


def _read_header(handle: h5py.File, file: Path) -> dict[str, Any]:
    if "ismrmrd_header" not in handle:
        return {}
    value = require_dataset(handle, "ismrmrd_header", file, "It must hold the XML text.")[()]
    if isinstance(value, np.ndarray):
        value = value.tobytes() if value.dtype.kind in "iuS" else b"".join(map(_to_bytes, value.ravel()))
    return parse_header(value, file) if len(value) else {}


def _header_suspicions(header: dict[str, Any], shape: tuple[int, int]) -> tuple[str, ...]:
    """Why the header cannot tell what was acquired; empty where it can."""
    encoded = header.get("encoded_matrix")
    if encoded is None:
        return (
            "dataset 'ismrmrd_header' is missing or says nothing of the matrix: image size and acquired extent come "
            "from the data. Copy it from the original file where k-space is zero-padded or oversampled",
        )
    if sorted(encoded[:2]) != sorted(shape):
        return (
            f"dataset 'ismrmrd_header' describes a matrix of {encoded[0]} x {encoded[1]}, 'kspace' has {shape[0]} x "
            f"{shape[1]}: the acquired extent comes from the data. Is it the header of another scan",
        )
    return ()


def _layout_suspicions(shape: tuple[int, ...], header: dict[str, Any]) -> tuple[str, ...]:
    """Three axes are slices of one coil in fastMRI's files; in a file without a header they may be coils."""
    if len(shape) != 3 or header or shape[0] == 1:
        return ()
    return (
        f"'kspace' {shape} is read as {shape[0]} slices of one coil, as in fastMRI's single-coil files. If these are "
        "the coils of one slice, write kspace[None]",
    )


def _to_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8")


def _check_layout(dataset: h5py.Dataset, header: dict[str, Any], file: Path) -> None:
    """Rank, dtype, emptiness and axis order, before anything is read."""
    shape = dataset.shape
    is_complex = dataset.dtype.kind == "c" or _pair_names(dataset.dtype) is not None
    pairs = "" if is_complex else pairs_hint(shape)
    axes = f"{file}: dataset 'kspace' has {len(shape)} axes, shape {shape}. {_FIX_KSPACE} {pairs}"
    require(len(shape) in (3, 4), axes.rstrip(), DataError)
    require(
        is_complex,
        f"{file}: dataset 'kspace' is {dataset.dtype}, not complex. {_FIX_KSPACE} "
        f"{pairs or 'Are these magnitude images?'}",
        DataError,
    )
    require(min(shape) > 0, f"{file}: dataset 'kspace' is empty, shape {shape}. Was the export interrupted?", DataError)
    misplaced = _misplaced_axes(shape, header.get("encoded_matrix"))
    require(
        not misplaced,
        f"{file}: dataset 'kspace' has shape {shape}: {misplaced}. {_FIX_KSPACE} Move the axes with numpy.moveaxis.",
        DataError,
    )


def _misplaced_axes(shape: tuple[int, ...], encoded: tuple[int, int, int] | None) -> str:
    """Why the axes cannot be (slices, coils, H, W), or an empty string."""
    if encoded is not None:
        sizes = set(encoded[:2])
        if set(shape[-2:]) == sizes:
            return ""
        if any({shape[i], shape[i + 1]} == sizes for i in range(len(shape) - 2)):
            return f"the header's matrix {encoded[:2]} is not in the last two axes"
    # The smallest image side of any scan is larger than 16; more than 128 coils exist nowhere.
    if len(shape) == 4 and (shape[1] > 128 or (shape[-1] < 16 and shape[1] > shape[-1])):
        return f"{shape[1]} coils and {shape[-1]} columns look like coils stored last"
    return ""


def _pair_names(dtype: np.dtype[Any]) -> tuple[str, str] | None:
    for names in (("r", "i"), ("real", "imag"), ("re", "im")):
        if dtype.names == names:
            return names
    return None


def _as_complex64(array: np.ndarray, file: Path) -> np.ndarray:
    names = _pair_names(array.dtype)
    if names is not None:
        array = array[names[0]] + 1j * array[names[1]]
    with np.errstate(over="ignore"):  # what overflows is reported, with its slice, by the check for finite values
        return np.ascontiguousarray(array.astype(np.complex64, copy=False))


def _read_mask(handle: h5py.File, shape: tuple[int, ...], indices: tuple[int, ...], file: Path) -> np.ndarray | None:
    if "mask" not in handle:
        return None
    mask = np.asarray(require_dataset(handle, "mask", file, "It must be (W,) or (H, W).")[()])
    full = mask_from_any_shape(mask, shape[0], (shape[-2], shape[-1]), file)
    return full if len(full) == 1 else full[list(indices)]


def _image_shape(handle: h5py.File, header: dict[str, Any], shape: tuple[int, int]) -> tuple[int, int]:
    """The header's image size; where a reference image is there its size decides (only the size is looked at)."""
    for name in _REFERENCES:
        if name in handle:
            rows, columns = handle[name].shape[-2:]
            if rows <= shape[0] and columns <= shape[1]:
                return int(rows), int(columns)
    return recon_shape(header, (int(shape[0]), int(shape[1])))


def _header_extent(
    header: dict[str, Any], shape: tuple[int, int]
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    rows, columns = ("kspace_encoding_step_0", "kspace_encoding_step_1")[:: 1 if header["readout_axis"] == -2 else -1]
    return acquired_interval(header, rows, shape[0]), acquired_interval(header, columns, shape[1])
