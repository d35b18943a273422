"""Writing files: beside the target, flushed to disk, then renamed over it.

A reader, or a run that was killed, finds the old file or the new one and never a part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

from ambient_mri._checks import DataError, require

__all__ = ["PathLike", "atomic_path", "write_atomically"]

PathLike: TypeAlias = str | os.PathLike[str]


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """A temporary path beside ``path``; on success it is flushed to disk and renamed over ``path``, else removed.

    Raises:
        DataError: If the folder does not exist.
    """
    target = Path(path)
    require(target.parent.is_dir(), f"{target}: the folder {target.parent} does not exist. Make it first.", DataError)
    # The suffix stays last, in small letters: some libraries choose the format, or add one, by it.
    temporary = target.with_name(f".tmp-{uuid4().hex}-{target.name.lower()}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
        if os.name == "posix":
            _flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: PathLike, content: bytes) -> Path:
    """Write ``content`` as the whole of a file; parent folders are made."""
    destination = Path(path)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(destination) as temporary:
        temporary.write_bytes(content)
    return destination


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
