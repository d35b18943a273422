"""Many files: one after the other or in several processes, each prepared once, a bad one named and skipped.

A file appears under its name when it is complete, so a run that was killed lost the volumes it was working on and
nothing else; the next run makes these, and leaves the others alone. What is there was made with the settings that it
records: another law or other settings in the same folder are refused, and a source that has changed is prepared again.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ambient_mri._checks import AmbientMRIError, DataError, require
from ambient_mri.data.files import is_hdf5, open_hdf5, sha256_of_file
from ambient_mri.data.readers import DataWarning, read_scan
from ambient_mri.data.schema import PreparedScan, read_prepared, write_prepared
from ambient_mri.masks import SamplingLaw
from ambient_mri.prepare.scan import prepare_scan
from ambient_mri.prepare.settings import Preparation
from ambient_mri.tensors import choose_device

__all__ = ["PreparationSummary", "is_prepared", "prepare_file", "prepare_files"]

log = logging.getLogger(__name__)

# No volume takes this long to write.
_STALE_SECONDS = 3600.0

Progress = Callable[[Iterable[Path]], Iterable[Path]]


@dataclass(frozen=True)
class PreparationSummary:
    """Outcome of :func:`prepare_files`.

    Attributes:
        done: Prepared files, in the order of their sources.
        kept: How many of them were there already.
        failed: (source, reason) of every file that could not be prepared.
    """

    done: tuple[Path, ...]
    kept: int
    failed: tuple[tuple[Path, str], ...] = field(default=())


@dataclass(frozen=True)
class _Job:
    """What a worker process needs to prepare one file."""

    source: Path
    target: Path
    law: SamplingLaw | None
    settings: Preparation
    device: str


def prepare_file(
    source: str | Path,
    target: str | Path,
    *,
    law: SamplingLaw | None = None,
    settings: Preparation | None = None,
    device: str = "auto",
) -> Path:
    """Prepare one file; a target that was made from the same source in the same way is kept.

    Args:
        source: Any file that :func:`~ambient_mri.data.readers.read_scan` reads.
        target: The prepared file, written atomically.
        law: See :func:`~ambient_mri.prepare.prepare_scan`.
        settings: Settings; the defaults when None.
        device: Where coil maps are estimated: a torch device, or ``"auto"`` for the GPU where there is one.

    Returns:
        ``target``.

    Raises:
        AmbientMRIError: Naming the file and what is wrong with it.
    """
    settings = Preparation() if settings is None else settings
    source, target = Path(source), Path(target)
    _check_target(target, source)
    if _is_current(target, source, law, settings):
        return target
    raw = read_scan(source, None if settings.slices is None else slice(*settings.slices))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        scan = prepare_scan(raw, law, settings, choose_device(device))
    except AmbientMRIError as error:
        known = str(error).startswith(str(source))
        raise DataError(str(error) if known else f"{source}: {error}") from error
    state = source.stat()
    stamp = {
        "source_bytes": state.st_size,
        "source_mtime_ns": state.st_mtime_ns,
        "source_place": _place(source),
    }
    write_prepared(target, replace(scan, preparation={**scan.preparation, **stamp}))
    return target


def prepare_files(
    sources: Sequence[str | Path],
    folder: str | Path,
    *,
    law: SamplingLaw | None = None,
    settings: Preparation | None = None,
    progress: Progress = iter,
    workers: int = 1,
    device: str = "auto",
) -> PreparationSummary:
    """Prepare many files into ``folder``, one ``<name>.h5`` each. A file that fails is reported by name and skipped.

    Safe to interrupt, and to run in several processes at once: a file appears when it is complete.

    Args:
        sources: Raw files, of different names.
        folder: Made if missing.
        law: See :func:`~ambient_mri.prepare.prepare_scan`.
        settings: Settings.
        progress: Wraps the list of sources, such as tqdm.
        workers: Processes; 0 for one a core.
        device: See :func:`prepare_file`.

    Raises:
        DataError: If two sources have one name, none could be prepared, or the folder holds scans that were prepared in
            another way.
        AmbientMRIError: If a worker process dies; what is finished stays.
    """
    settings = Preparation() if settings is None else settings
    paths = [Path(s) for s in sources]
    names = [p.stem for p in paths]
    twice = sorted({n for n in names if names.count(n) > 1})
    require(not twice, f"two source files share the name {twice[:1]}: their prepared files would collide.", DataError)
    require(workers >= 0, f"workers must not be negative (0: one a core); got {workers}.")
    _remove_leftovers(Path(folder))
    jobs = [_Job(path, Path(folder) / f"{path.stem}.h5", law, settings, device) for path in paths]
    for job in jobs:
        _check_target(job.target, job.source)
    kept = sum(_is_current(job.target, job.source, law, settings) for job in jobs)
    count = min(workers or os.cpu_count() or 1, max(len(jobs) - kept, 1))
    results = _one_by_one(jobs, progress) if count == 1 else _in_processes(jobs, progress, count)
    failed = {path: reason for path, reason in results if reason}
    done = tuple(job.target for job in jobs if job.source not in failed)
    reason = f" The first: {next(iter(failed.values()))}" if failed else ""
    require(bool(done), f"none of the {len(paths)} files could be prepared.{reason}", DataError)
    return PreparationSummary(done, kept, tuple((path, failed[path]) for path in paths if path in failed))


def is_prepared(path: str | Path) -> bool:
    """Whether ``path`` is a complete prepared scan of this schema version."""
    return _first_slice(path) is not None


def _first_slice(path: str | Path) -> PreparedScan | None:
    if not Path(path).is_file():
        return None
    try:
        return read_prepared(path, slices=0)
    except DataError:
        return None


def _check_target(target: Path, source: Path) -> None:
    """Check that nothing is lost: what stands at ``target`` is no raw file, and comes from this source.

    Raises:
        DataError: If not.
    """
    if not target.exists():
        return
    same = source.exists() and target.samefile(source)
    fix = "Choose another folder."
    require(not same, f"{source} would be replaced by what is prepared from it. {fix}", DataError)
    require(_was_prepared(target), f"{target} is no prepared scan: it is not written over. {fix}", DataError)


def _was_prepared(path: Path) -> bool:
    """Whether a file is a prepared scan of any version, or an HDF5 file that is damaged: it may have been one."""
    if not is_hdf5(path):
        return False
    try:
        with open_hdf5(path) as handle:
            return "schema_version" in handle.attrs
    except DataError:
        return True


def _is_current(target: Path, source: Path, law: SamplingLaw | None, settings: Preparation) -> bool:
    """Whether ``target`` is complete and was made from ``source`` with these settings.

    Raises:
        DataError: If it was made with other settings: one folder holds scans of one kind.
    """
    scan = _first_slice(target)
    if scan is None:
        return False
    made, wanted = scan.preparation, _plain(settings.describe())
    other = [f"{k} {made[k]!r} instead of {wanted[k]!r}" for k in wanted if k in made and made[k] != wanted[k]]
    if made.get("retrospective") and law is not None and scan.sampling_law != _plain(law.describe()):
        other.append(f"the law {scan.sampling_law} instead of {law.describe()}")
    if law is not None and not made.get("retrospective") and made.get("acceleration") == 1:
        other.append(f"no law instead of {law.describe()}")
    if made.get("retrospective") and law is None:
        other.append(f"the law {scan.sampling_law} instead of none")
    hint = "Choose another folder, or remove the file."
    require(not other, f"{target} was prepared with other settings: {', '.join(other[:3])}. {hint}", DataError)
    return not _has_changed(source, scan)


def _has_changed(source: Path, scan: PreparedScan) -> bool:
    """Whether the source is another file now; its content is read only where its size or time differ."""
    if not source.is_file():  # the raw data may be gone once they are prepared
        return False
    now, made = source.stat(), scan.preparation
    if (now.st_size, now.st_mtime_ns) == (made.get("source_bytes"), made.get("source_mtime_ns")):
        return False
    changed = sha256_of_file(source) != scan.source_sha256
    require(
        not changed or made.get("source_place", _place(source)) == _place(source),
        f"{source}: another file of this name, from another folder, was prepared to the same place. Two scans of one "
        "name need two folders; or remove the prepared one.",
        DataError,
    )
    if changed:
        log.warning("%s has changed since it was prepared: it is prepared again", source)
    return changed


def _place(source: Path) -> str:
    """Names where a file lies, without saying it."""
    return hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]


def _remove_leftovers(folder: Path) -> None:
    """What killed runs were writing; another run may be writing now, so recent files stay."""
    for path in folder.glob(".tmp-*.h5"):
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:  # finished, or removed by another run
            continue


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def _one_by_one(jobs: Sequence[_Job], progress: Progress) -> Iterator[tuple[Path, str]]:
    by_source = {job.source: job for job in jobs}
    # Each process begins elsewhere and skips what is there by then: several at once share the work.
    start = os.getpid() % max(len(jobs), 1)
    order = [job.source for job in jobs]
    for path in progress([*order[start:], *order[:start]]):
        yield _reported(path, _attempt(by_source[path]), ())


def _in_processes(jobs: Sequence[_Job], progress: Progress, count: int) -> Iterator[tuple[Path, str]]:
    """The same in ``count`` processes. They are started afresh: a fork of a process that has used torch may hang."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // count)
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(threads,)) as pool:
        waiting = {pool.submit(_attempt_quietly, job): job.source for job in jobs}
        finished = _Finished(waiting)
        try:
            for path in progress(finished):
                yield _reported(path, *finished.results.pop(path))
        except BrokenProcessPool as error:
            raise AmbientMRIError(
                f"one of the {count} worker processes was killed, perhaps for lack of memory. What is finished stays: "
                "run the same command again, with fewer workers."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Finished:
    """Sources in the order in which they are done; the outcome of each waits in ``results``."""

    def __init__(self, waiting: Mapping[Any, Path]) -> None:
        self.waiting = waiting
        self.results: dict[Path, tuple[str, tuple[str, ...]]] = {}

    def __iter__(self) -> Iterator[Path]:
        for future in as_completed(self.waiting):
            path = self.waiting[future]
            self.results[path] = future.result()
            yield path

    def __len__(self) -> int:  # progress bars ask for it
        return len(self.waiting)


def _reported(path: Path, reason: str, told: Sequence[str]) -> tuple[Path, str]:
    for text in told:
        log.warning("%s", text)
    if reason:
        log.warning("skipped %s", reason)
    return path, reason


def _attempt(job: _Job) -> str:
    """Prepare one file; why not, or an empty string."""
    try:
        prepare_file(job.source, job.target, law=job.law, settings=job.settings, device=job.device)
    except Exception as error:  # one file ends no batch, whatever is wrong with it
        text = str(error) or ("out of memory" if isinstance(error, MemoryError) else "no reason given")
        if not isinstance(error, AmbientMRIError | MemoryError):
            log.debug("%s", job.source, exc_info=True)
            text = f"{type(error).__name__}: {text}"
        return text if str(job.source) in text else f"{job.source}: {text}"
    return ""


def _attempt_quietly(job: _Job) -> tuple[str, tuple[str, ...]]:
    """The same in a worker process: its warnings travel to the parent."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        reason = _attempt(job)
    return reason, tuple(str(w.message) for w in caught if issubclass(w.category, DataWarning))


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
