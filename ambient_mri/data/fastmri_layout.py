"""The folders, file names and acquisitions of the fastMRI data set, as it is unpacked.

    root/multicoil_train/file1000001.h5     root/singlecoil_train/...
    root/multicoil_val/                     root/singlecoil_val/
    root/multicoil_test/                    root/singlecoil_test/        (undersampled, no reference)
    root/multicoil_challenge/               root/singlecoil_challenge/

Knees hold ``CORPD_FBK`` and ``CORPDFS_FBK`` (without and with fat suppression), brains ``AXT1``, ``AXT1PRE``,
``AXT1POST``, ``AXT2`` and ``AXFLAIR``. Source: Zbontar et al. 2018, arXiv:1811.08839.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import h5py

from ambient_mri._checks import DataError, check_option, require
from ambient_mri.data.files import PathLike, open_hdf5, plain_value, require_file

__all__ = [
    "ACQUISITIONS",
    "PARTS",
    "acquisition_names",
    "acquisition_of",
    "apply_split",
    "find_parts",
    "list_volumes",
    "read_split",
    "with_acquisition",
]

PARTS = ("train", "val", "test", "challenge")
KINDS = ("multicoil", "singlecoil")
#: Official names, and what the short ones stand for.
ACQUISITIONS: dict[str, tuple[str, ...]] = {
    "PD": ("CORPD_FBK",),
    "PDFS": ("CORPDFS_FBK",),
    "T1": ("AXT1", "AXT1PRE", "AXT1POST"),
    "T2": ("AXT2",),
    "FLAIR": ("AXFLAIR",),
}
# Folders as later releases name them.
_ENDINGS = ("", "_v2", "_full")


def find_parts(root: PathLike, kind: str = "multicoil") -> dict[str, Path]:
    """The parts of the data set under ``root`` and their folders; empty where ``root`` has another layout.

    Args:
        root: Folder that holds ``multicoil_train`` and the like.
        kind: ``"multicoil"`` or ``"singlecoil"``.
    """
    check_option("kind", kind, KINDS)
    found = {}
    for part in PARTS:
        folders = [Path(root) / f"{kind}_{part}{ending}" for ending in _ENDINGS]
        there = [folder for folder in folders if folder.is_dir()]
        if there:
            found[part] = there[0]
    return found


def list_volumes(folder: PathLike, pattern: str = "*.h5") -> list[Path]:
    """The files of a folder, sorted by name; hidden ones (what a killed run was writing) are left out."""
    return sorted(p for p in Path(folder).glob(pattern) if p.is_file() and not p.name.startswith("."))


def acquisition_names(wanted: Iterable[str]) -> tuple[str, ...]:
    """Official names of acquisitions given by official or short names, in capitals or not.

    Names that fastMRI does not have are taken as they are: other data sets have their own.
    """
    names = [name for given in wanted for name in ACQUISITIONS.get(given.upper(), (given.upper(),))]
    return tuple(dict.fromkeys(names))


def acquisition_of(path: PathLike) -> str:
    """The file's ``acquisition`` attribute, or an empty string.

    Raises:
        DataError: If the file cannot be opened.
    """
    with open_hdf5(path) as handle:
        return str(plain_value(handle.attrs.get("acquisition", "")))


def with_acquisition(files: Sequence[Path], wanted: Sequence[str]) -> list[Path]:
    """The files of the acquisitions that are wanted (all, where none is named).

    A file that cannot be opened stays in the list: whoever reads it next reports it by name.

    Raises:
        DataError: If there are files, and none is of a wanted acquisition; the message lists what there is.
    """
    names = acquisition_names(wanted)
    if not names or not files:
        return list(files)
    found: dict[Path, str | None] = {path: _try_acquisition(path) for path in files}
    chosen = [path for path, name in found.items() if name is None or name.upper() in names]
    there = sorted({name or "no name" for name in found.values() if name is not None})
    message = f"{files[0].parent}: no volume is of acquisition {', '.join(names)}; there are {', '.join(there)}."
    require(any(found[path] is not None for path in chosen) or not there, message, DataError)
    return chosen


def read_split(path: PathLike) -> dict[str, tuple[str, ...]]:
    """A split list: JSON, ``{"train": ["file1000001", ...], "val": [...]}``, by volume.

    Raises:
        DataError: If it is not that, or a volume is in two parts.
    """
    file = require_file(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: no JSON ({error}). A split list is {{'train': [names], 'val': [names]}}.") from error
    good = isinstance(content, dict) and all(
        part in PARTS and isinstance(names, list) and all(isinstance(n, str) for n in names)
        for part, names in content.items()
    )
    require(good, f"{file}: a split list maps {', '.join(PARTS)} to lists of volume names.", DataError)
    split = {part: tuple(Path(n).name.removesuffix(".h5") for n in names) for part, names in content.items()}
    every = [n for names in split.values() for n in names]
    twice = sorted({n for n in every if every.count(n) > 1})
    require(not twice, f"{file}: volume {twice[:1]} is listed twice: a volume belongs to one part.", DataError)
    return split


def apply_split(files: Iterable[Path], split: Mapping[str, Sequence[str]]) -> dict[str, list[Path]]:
    """Files by part as a split list says; volumes that it does not name are left out.

    Raises:
        DataError: If a volume of the list is not there.
    """
    there = {path.stem: path for path in files}
    missing = [name for names in split.values() for name in names if name not in there]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    message = f"the split list names volume {missing[:1]}{more} that the data do not hold."
    require(not missing, message, DataError)
    return {part: [there[name] for name in names] for part, names in split.items()}


def _try_acquisition(path: Path) -> str | None:
    if not h5py.is_hdf5(path):
        return "" if path.suffix in (".npy", ".npz") else None  # arrays have no name; other files are damaged ones
    try:
        return acquisition_of(path)
    except DataError:
        return None
