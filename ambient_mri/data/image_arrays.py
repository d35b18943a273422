"""NumPy files of images: what ``.npz`` and ``.npy`` hold, whatever images mean to the reader."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ambient_mri._checks import DataError, require
from ambient_mri.data.files import require_file

__all__ = ["read_image_arrays"]


def read_image_arrays(source: Path, suffixes: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` by name, or that of a ``.npy`` as ``images``; pickled objects are refused.

    Args:
        source: The file.
        suffixes: Of the pictures that a folder may hold instead, for the message.

    Raises:
        DataError: If the file is missing, damaged or of another type.
    """
    known = f"{source}: image sets are .npz or .npy files, or folders of {', '.join(suffixes)} images."
    require(source.suffix.lower() in (".npz", ".npy"), known, DataError)
    require_file(source)
    try:
        with source.open("rb") as handle:
            loaded = np.load(handle, allow_pickle=False)
            return {"images": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{source}: cannot be read as NumPy arrays ({error}). Is the file complete?") from error
