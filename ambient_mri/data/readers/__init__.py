"""Readers: from a file of any known kind to a :class:`RawScan`; the file's content, not its name, decides which."""

from __future__ import annotations

import h5py

from ambient_mri._checks import DataError
from ambient_mri.data.files import PathLike, SliceSelection, is_hdf5, open_hdf5, require_file
from ambient_mri.data.readers.fastmri import read_fastmri
from ambient_mri.data.readers.numpy_arrays import from_arrays, read_npy, read_npz
from ambient_mri.data.readers.prepared import read_prepared_as_raw
from ambient_mri.data.readers.raw_scan import DataWarning, RawScan
from ambient_mri.data.readers.reference import read_reference

__all__ = ["DataWarning", "RawScan", "from_arrays", "read_fastmri", "read_reference", "read_scan"]


def read_scan(path: PathLike, slices: SliceSelection = None) -> RawScan:
    """Read a scan from fastMRI HDF5, a prepared scan (schema version 1), .npy or .npz.

    Args:
        path: The file.
        slices: A ``slice``, indices, one index, or None for all. Only these are read from HDF5 and .npy files.

    Returns:
        The scan, in raw units.

    Raises:
        DataError: If the file is missing, damaged, of an unknown kind, or holds no usable k-space; one line that names
            the file, the dataset and the fix.

    Warns:
        DataWarning: If the file can be read but contradicts itself.
    """
    file = require_file(path)
    with file.open("rb") as stream:
        start = stream.read(8)
    if start.startswith(b"\x93NUMPY"):
        return read_npy(file, slices)
    if start.startswith(b"PK\x03\x04"):
        return read_npz(file, slices)
    if is_hdf5(file):
        return _read_hdf5(file, slices)
    raise DataError(
        f"{file}: not a k-space file of a known kind (fastMRI HDF5, prepared scan, .npy, .npz). "
        "Convert it, or pass arrays: reconstruct(kspace, mask=...)."
    )


def _read_hdf5(path: PathLike, slices: SliceSelection) -> RawScan:
    with open_hdf5(path) as handle:
        prepared = "schema_version" in handle.attrs
        groups = [name for name, item in handle.items() if isinstance(item, h5py.Group) and "data" in item]
        known = "kspace" in handle or not groups
    if prepared:
        return read_prepared_as_raw(path, slices)
    if not known:
        raise DataError(
            f"{path}: group '{groups[0]}' makes it an ISMRMRD raw-data file, and there is no dataset 'kspace'. "
            "Sort its readouts into k-space (slices, coils, H, W) first."
        )
    return read_fastmri(path, slices)
