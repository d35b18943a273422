"""Files named on the command line: arrays to read, and results to write."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ambient_mri._checks import DataError, require
from ambient_mri.cli.terminal import one_line

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check_writable", "kspace_files", "load_array", "unused"]

_KSPACE = (".h5", ".hdf5", ".npz", ".npy")


def load_array(source: str, default: str) -> np.ndarray:
    """The array that ``FILE[:NAME[:INDEX]]`` names: a .npy file, or one array of a .npz or HDF5 file.

    Args:
        source: ``mask.npy``, ``masks.npz:R4``, or ``masks.npz:R4:0`` for the first entry of that array.
        default: Name of the array where none is given.

    Raises:
        DataError: If the file, the array or the entry is not there, or cannot be read.
    """
    path, name, index = _split(source)
    array = _load(path, name, default)
    if index is None:
        return array
    fits = array.ndim > 0 and -len(array) <= index < len(array)
    require(fits, f"{source}: there is no entry {index} in an array of shape {array.shape}.", DataError)
    return array[index : index + 1 or None][0]


def kspace_files(source: Path) -> list[Path]:
    """The file itself, or the k-space files of a folder, sorted.

    Raises:
        DataError: If the folder holds none.
    """
    if not source.is_dir():
        return [source]
    # Hidden files are what a killed run was writing.
    shown = (path for path in source.iterdir() if not path.name.startswith(".") and path.is_file())
    found = sorted(path for path in shown if path.suffix.lower() in _KSPACE)
    require(bool(found), f"{source}: no k-space file ({', '.join(_KSPACE)}) in this folder.", DataError)
    return found


def unused(path: Path) -> Path:
    """``path``, or with a number in its name where there is such a file already."""
    names = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], names) if not candidate.exists())


def check_writable(path: Path, endings: Sequence[str], inputs: Sequence[str] = ()) -> None:
    """Before an hour of sampling, not after it.

    Args:
        path: Of the result.
        endings: That it may have.
        inputs: What is read, as on the command line, and never written over.

    Raises:
        DataError: If the ending is not one of ``endings``, the folder does not exist or cannot be written to, or the
            result would replace an input.
        AmbientMRIError: If what writes such a file is not installed.
    """
    known = path.name.lower().endswith(tuple(endings))
    require(known, f"{path}: the ending must be one of {', '.join(endings)}.", DataError)
    require(path.parent.is_dir(), f"{path}: the folder {path.parent} does not exist. Make it first.", DataError)
    require(not path.is_dir(), f"{path} is a folder: give a file in it.", DataError)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise DataError(f"{path}: nothing can be written to {path.parent} ({error.strerror}).") from error
    for source in (Path(_split(name)[0]) for name in inputs):
        same = path.exists() and source.exists() and path.samefile(source)
        require(not same, f"{path} is what is read: it is not written over. Choose another name.", DataError)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        from ambient_mri.data.writers.reconstruction import require_nibabel

        require_nibabel(path)


def _split(source: str) -> tuple[str, str, int | None]:
    """File, name and index; a path that exists is taken whole."""
    head, colon, tail = source.rpartition(":")
    if Path(source).exists() or not colon:
        return source, "", None
    file, _, name = head.rpartition(":")
    if file and not Path(head).exists() and tail.lstrip("-").isdigit():
        return file, name, int(tail)
    return head, tail, None


def _load(path: str, name: str, default: str) -> np.ndarray:
    import numpy as np

    from ambient_mri.data.files import open_hdf5, require_dataset, require_file

    file = require_file(path)
    if file.suffix.lower() in (".h5", ".hdf5"):
        with open_hdf5(file) as handle:
            return np.asarray(require_dataset(handle, name or default, file, f"Name it: {path}:NAME.")[()])
    try:
        content = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{file}: not a .npy, .npz or .h5 file that can be read ({one_line(error)}).") from error
    if isinstance(content, np.ndarray):
        return content
    with content:
        chosen = name or (content.files[0] if len(content.files) == 1 else default)
        known = ", ".join(content.files)
        missing = f"{file}: no array {chosen!r}; it holds {known}. Name it: {path}:NAME."
        require(chosen in content.files, missing, DataError)
        return content[chosen]
