"""Read the reference image of a fully sampled file: for evaluation alone, never for training or reconstruction."""

from __future__ import annotations

import numpy as np

from ambient_mri._checks import DataError, require
from ambient_mri.data.files import (
    PathLike,
    SliceSelection,
    check_finite_array,
    open_hdf5,
    read_rows,
    require_dataset,
    select_slices,
)

__all__ = ["read_reference"]


def read_reference(path: PathLike, slices: SliceSelection = None, *, name: str | None = None) -> np.ndarray:
    """Magnitude reference (slices, H, W) float32, raw units, of a file in fastMRI's layout.

    Args:
        path: The HDF5 file.
        slices: Slices to read.
        name: Dataset; by default ``reconstruction_rss`` (root sum of squares over coils), else ``reconstruction_esc``
            (emulated single coil).

    Raises:
        DataError: If the file has no reference (test files have none), or it is damaged.
    """
    with open_hdf5(path) as handle:
        single = "reconstruction_esc" in handle and "reconstruction_rss" not in handle
        name = name or ("reconstruction_esc" if single else "reconstruction_rss")
        made = "A fully sampled file may hold its image, (slices, H, W): the root sum of squares over coils."
        dataset = require_dataset(handle, name, path, made)
        require(
            dataset.ndim == 3 and dataset.dtype.kind in "fiu",
            f"{path}: dataset '{name}' must be real (slices, H, W); got {dataset.dtype} {dataset.shape}.",
            DataError,
        )
        indices = select_slices(slices, dataset.shape[0], path)
        image = read_rows(dataset, indices).astype(np.float32)
    check_finite_array(image, name, path, indices)
    return image
