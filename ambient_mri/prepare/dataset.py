"""A whole data set: the parts of fastMRI's layout, or one folder of files, with a manifest and a split list.

    OUT/train/file1000001.h5 ...   OUT/val/...   OUT/test/...     prepared scans
    OUT/split.json                                                volumes by part
    OUT/manifest.json                                             settings, and the hash of every file and its source

``data=prepared data.root=OUT`` trains on it. A run that was interrupted, or killed, goes on when it is started again;
manifest and split list are written anew at the end, from what is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ambient_mri._checks import DataError, require
from ambient_mri._files import write_atomically
from ambient_mri.data.fastmri_layout import (
    PARTS,
    apply_split,
    find_parts,
    list_volumes,
    read_split,
    with_acquisition,
)
from ambient_mri.data.files import require_file, sha256_of_file
from ambient_mri.data.schema import read_prepared
from ambient_mri.masks import SamplingLaw
from ambient_mri.prepare.files import PreparationSummary, prepare_files
from ambient_mri.prepare.settings import Preparation

__all__ = ["Manifest", "find_sources", "prepare_dataset", "read_manifest", "write_manifest"]

MANIFEST, SPLIT = "manifest.json", "split.json"


@dataclass(frozen=True)
class Manifest:
    """What a prepared data set holds.

    Attributes:
        files: By part: name, file, sha256, source_sha256, acquisition, slices, coils, matrix, acceleration and the
            like of every volume.
        failed: By part: source and reason of every file that could not be prepared.
        settings: Of the preparation.
        law: Of the undersampling; empty where the scans kept their own masks.
    """

    files: dict[str, list[dict[str, Any]]]
    failed: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    law: dict[str, Any] = field(default_factory=dict)

    @property
    def split(self) -> dict[str, list[str]]:
        """Names of the volumes by part."""
        return {part: [entry["name"] for entry in entries] for part, entries in self.files.items()}


def find_sources(
    root: Path | str,
    *,
    kind: str = "multicoil",
    parts: Sequence[str] = (),
    acquisitions: Sequence[str] = (),
    split: Path | str | None = None,
    limit: int | None = None,
) -> dict[str, list[Path]]:
    """Raw files by part.

    Args:
        root: A folder in fastMRI's layout; or a folder of volumes, which then are one part, ``train``.
        kind: ``"multicoil"`` or ``"singlecoil"``, for roots that hold both.
        parts: Parts to take; all that are there when empty.
        acquisitions: Official or short names, such as ``PD`` or ``AXT2``; all when empty.
        split: A split list (:func:`~ambient_mri.data.fastmri_layout.read_split`) that says which volume belongs to
            which part, in place of the folders.
        limit: At most this many volumes of each part.

    Raises:
        DataError: If there is no such folder or part, or nothing in it.
    """
    folder = Path(root).expanduser()
    require(folder.is_dir(), f"{folder} is not a folder. Name the one that holds {kind}_train, or volumes.", DataError)
    unknown = [part for part in parts if part not in PARTS]
    require(not unknown, f"part {unknown[:1]} is unknown; parts are {', '.join(PARTS)}.", DataError)
    layout = find_parts(folder, kind)
    # Named as `multicoil_val`, a single folder is still that part.
    own = next((part for part in PARTS if folder.name.startswith(f"{kind}_{part}")), "train")
    files = {part: list_volumes(place) for part, place in (layout or {own: folder}).items()}
    if split is not None:
        files = apply_split((path for listed in files.values() for path in listed), read_split(split))
    missing = [part for part in parts if part not in files]
    hint = f"it has {', '.join(files)}" if layout else "it is one folder of volumes"
    require(not missing, f"{folder} has no part {', '.join(missing)}: {hint}.", DataError)
    chosen = {part: listed for part, listed in files.items() if not parts or part in parts}
    empty = f"no .h5 file in {folder}, nor in {kind}_train and the like below it."
    require(any(chosen.values()), empty, DataError)
    return {part: with_acquisition(listed, acquisitions)[:limit] for part, listed in chosen.items() if listed}


def prepare_dataset(
    sources: Mapping[str, Sequence[Path]],
    folder: Path | str,
    *,
    law: SamplingLaw | None = None,
    settings: Preparation | None = None,
    progress: Callable[[Iterable[Path], str], Iterable[Path]] = lambda paths, part: paths,
    workers: int = 1,
    device: str = "auto",
) -> dict[str, PreparationSummary]:
    """Prepare the files of every part, then write manifest and split list.

    Args:
        sources: Raw files by part (:func:`find_sources`).
        folder: One folder a part is made in it.
        law: Undersamples fully sampled volumes; scans with a mask of their own keep it.
        settings: Settings.
        progress: Wraps the list of a part, whose name is the second argument.
        workers: Processes; 0 for one a core.
        device: Where coil maps are estimated.

    Returns:
        The outcome of every part.

    Raises:
        DataError: As :func:`~ambient_mri.prepare.prepare_files`.
    """
    settings = Preparation() if settings is None else settings
    summaries = {}
    for part, files in sources.items():
        summaries[part] = prepare_files(
            files,
            Path(folder) / part,
            law=law,
            settings=settings,
            progress=lambda paths, part=part: progress(paths, part),  # type: ignore[misc]
            workers=workers,
            device=device,
        )
    write_manifest(folder, summaries, law=law, settings=settings)
    return summaries


def write_manifest(
    folder: Path | str,
    summaries: Mapping[str, PreparationSummary],
    *,
    law: SamplingLaw | None = None,
    settings: Preparation | None = None,
) -> Manifest:
    """Write ``manifest.json`` and ``split.json`` of prepared parts; hashes of files that did not change are kept.

    What an earlier run prepared into the same folder stays in it, as long as its files are there.
    """
    root = Path(folder)
    known = {entry["file"]: entry for entries in _written(root).files.values() for entry in entries}
    entries_of = {p: {path.stem: _entry(path, root, known) for path in s.done} for p, s in summaries.items()}
    before = _written(root)  # hashing takes minutes: another command may have added its parts meanwhile
    files, failed = dict(before.files), dict(before.failed)
    for part, summary in summaries.items():
        made = entries_of[part]
        kept = {entry["name"]: entry for entry in files.get(part, ()) if (root / entry["file"]).is_file()}
        files[part] = [entry for _, entry in sorted({**kept, **made}.items())]
        failed[part] = [{"source": source.name, "reason": reason} for source, reason in summary.failed]
    settings = Preparation() if settings is None else settings
    found = Manifest(files, failed, settings.describe(), {} if law is None else law.describe())
    content = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **vars(found)}
    _write_json(root / MANIFEST, content)
    _write_json(root / SPLIT, found.split)
    return found


def _written(root: Path) -> Manifest:
    return read_manifest(root) if (root / MANIFEST).is_file() else Manifest({})


def read_manifest(folder: Path | str) -> Manifest:
    """The manifest of a prepared data set.

    Raises:
        DataError: If there is none, or it is damaged.
    """
    path = require_file(Path(folder) / MANIFEST)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(**{key: content[key] for key in ("files", "failed", "settings", "law")})
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a manifest ({error}). Remove it and run the preparation again.") from error


def _entry(path: Path, root: Path, known: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says of one file; its content is hashed once."""
    name, state = path.relative_to(root).as_posix(), path.stat()
    old = known.get(name)
    if old is not None and (old["bytes"], old["mtime_ns"]) == (state.st_size, state.st_mtime_ns):
        return old
    scan = read_prepared(path, slices=0)
    return {
        "name": path.stem,
        "file": name,
        "sha256": sha256_of_file(path),
        "bytes": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "source_sha256": scan.source_sha256,
        "acquisition": scan.acquisition,
        "slices": scan.preparation.get("num_slices", len(scan)),
        "coils": int(scan.kspace.shape[1]),
        "matrix": [int(n) for n in scan.kspace.shape[-2:]],
        "acceleration": scan.preparation.get("acceleration"),
    }


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
