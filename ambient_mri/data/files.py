"""Opening and reading data files, so that every failure names the file, the dataset and the fix."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from ambient_mri._checks import DataError, reason_of, require
from ambient_mri._files import PathLike, atomic_path

__all__ = [
    "PathLike",
    "SliceSelection",
    "atomic_path",
    "check_finite_array",
    "is_hdf5",
    "open_hdf5",
    "plain_value",
    "read_rows",
    "require_dataset",
    "require_file",
    "select_slices",
    "sha256_of_file",
]

SliceSelection: TypeAlias = slice | Sequence[int] | int | None


def require_file(path: PathLike) -> Path:
    """The path as a ``Path``.

    Raises:
        DataError: If there is no such file, or it is empty.
    """
    file = Path(path)
    require(not file.is_dir(), f"{file}: is a folder; name one file in it.", DataError)
    require(file.is_file(), f"{file}: no such file. Check the path, and that its drive is mounted.", DataError)
    require(file.stat().st_size > 0, f"{file}: the file is empty. Copy or download it again.", DataError)
    return file


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, though it be damaged."""
    # The second test finds the signature behind a user block; it fails on truncated files, the first does not.
    with path.open("rb") as handle:
        start = handle.read(8)
    return start == b"\x89HDF\r\n\x1a\n" or bool(h5py.is_hdf5(path))


@contextmanager
def open_hdf5(path: PathLike) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; whatever HDF5 then fails at becomes one line that names the file.

    Raises:
        DataError: If the file is missing, empty, truncated or not HDF5.
    """
    file = require_file(path)
    try:
        with h5py.File(file, "r", locking="best-effort") as handle:
            yield handle
    except (OSError, RuntimeError) as error:
        reason = reason_of(error)
        raise DataError(
            f"{file}: HDF5 cannot read it ({reason}). Is it truncated or damaged? "
            "Compare its size and checksum with the source, and copy it again."
        ) from error


def require_dataset(handle: h5py.File, name: str, path: PathLike, fix: str) -> h5py.Dataset:
    """The dataset ``name`` of an open file.

    Raises:
        DataError: If there is none (the message lists what the file holds, then says ``fix``), or if it is damaged.
    """
    found = ", ".join(sorted(handle.keys())) or "nothing"
    require(name in handle, f"{path}: dataset '{name}' is missing (the file holds {found}). {fix}", DataError)
    try:
        item = handle[name]
    except KeyError as error:
        raise DataError(f"{path}: dataset '{name}' is damaged. Copy the file again from its source.") from error
    require(isinstance(item, h5py.Dataset), f"{path}: '{name}' is a group, not a dataset. {fix}", DataError)
    return item


def select_slices(slices: SliceSelection, count: int, where: object) -> tuple[int, ...]:
    """Indices of the slices that were asked for.

    Args:
        slices: A ``slice``, indices (negative ones count from the end), one index, or None for all.
        count: Number of slices there are.
        where: The file or array, for the message.

    Raises:
        DataError: If an index is out of range or the selection is empty.
    """
    if slices is None:
        slices = slice(None)
    said: object = slices
    if isinstance(slices, slice):
        picked = list(range(*slices.indices(count)))
        said = ":".join("" if end is None else str(end) for end in (slices.start, slices.stop))
    else:
        fix = f"slices must be a number, numbers or slice(first, end); got {slices!r}."
        flags = isinstance(slices, bool) or any(isinstance(i, bool | np.bool_) for i in np.atleast_1d(slices))
        require(not isinstance(slices, str), fix, DataError)
        require(not flags, f"slices are numbers, not flags: pass numpy.flatnonzero(...) of {slices!r}.", DataError)
        picked = [int(i) for i in ([slices] if isinstance(slices, int | np.integer) else slices)]
    outside = [i for i in picked if not -count <= i < count]
    require(not outside, f"{where}: slice {outside[:1]} does not exist; there are {count} slices (from 0).", DataError)
    require(bool(picked), f"{where}: the selection {said} picks none of the {count} slices.", DataError)
    return tuple(i % count for i in picked)


def read_rows(dataset: h5py.Dataset, rows: Sequence[int]) -> np.ndarray:
    """Rows of a dataset along its first axis, in the order asked for, reading nothing else from disk."""
    if list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return np.asarray(dataset[rows[0] : rows[0] + len(rows)])
    return np.stack([dataset[i] for i in rows])


def check_finite_array(array: np.ndarray, name: str, where: object, indices: Sequence[int] | None = None) -> None:
    """Check an array slice by slice (a whole volume of flags would double its memory).

    Raises:
        DataError: Naming the file, the dataset, the first bad slice and how many of its values are NaN or infinite; of
            k-space, the coils that hold them, where others do not.
    """
    for i, part in enumerate(array):
        bad = ~np.isfinite(part)
        if not bad.any():
            continue
        number = i if indices is None else indices[i]
        place, fix = _where_not_finite(bad) if name == "kspace" and bad.ndim == 3 else ("", "")
        raise DataError(
            f"{where}: dataset '{name}' holds {int(bad.sum())} non-finite values (NaN or infinity) in slice {number}"
            f"{place}. Export the file again, or leave that slice out with slices=...{fix}"
        )


def _where_not_finite(bad: np.ndarray) -> tuple[str, str]:
    """Of flags (coils, H, W): the coils that hold non-finite values where others do not, and what else may help."""
    coils = [c for c, coil in enumerate(bad) if coil.any()]
    if len(coils) < len(bad):
        return f", coils {coils}", f", or these coils with numpy.delete(kspace, {coils}, axis=-3)"
    marks = bool((bad == bad[0]).all() and not bad.all())
    return "", ". If they mark what was not measured, set them to 0" if marks else ""


def plain_value(value: Any) -> Any:
    """An HDF5 attribute as plain Python: bytes become text, NumPy scalars and arrays numbers and lists."""
    if isinstance(value, bytes | np.bytes_):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, np.ndarray):
        return [plain_value(v) for v in value.tolist()] if value.ndim else plain_value(value.item())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, h5py.Empty):
        return None
    return value


def sha256_of_file(path: PathLike) -> str:
    """SHA-256 of a file's content, as hexadecimal text."""
    with require_file(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
