"""Where training scans come from: files on disk, or simulation into a cache. Either way training reads prepared files alone.

``prepare(law)`` of every source gives a :class:`ScanSet`: prepared scans for training and, of other subjects, for validation;
for simulated sets also where their reference images lie, in files of their own.
"""

from __future__ import annotations

import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ambient_mri._checks import DataError, require
from ambient_mri.data.datasets import write_images
from ambient_mri.data.phantom import BrainPhantom
from ambient_mri.data.schema import read_prepared, write_prepared
from ambient_mri.data.simulate import Simulation, simulate_scan
from ambient_mri.masks import SamplingLaw
from ambient_mri.prepare import Preparation, is_prepared, prepare_files
from ambient_mri.training.provenance import short_hash, write_json

__all__ = ["BrainImages", "Phantoms", "ScanFolder", "ScanSet", "SimulatedSet", "cache_folder"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScanSet:
    """Prepared scans, split by subject.

    Attributes:
        train: Prepared files to train on.
        val: Prepared files of other subjects; may be empty.
        references: Folder with the image file of every scan, under the scan's file name; None where there is none.
        manifest: Plain data on the set: name, numbers, settings, sampling law, licence, whether it is simulated.
    """

    train: tuple[Path, ...]
    val: tuple[Path, ...]
    references: Path | None = None
    manifest: dict[str, Any] = field(default_factory=dict)

    def train_references(self) -> tuple[Path, ...]:
        """Image files of the training scans, for the supervised upper bound.

        Raises:
            DataError: If the set has no references.
        """
        found = self._images(self.train)
        require(
            len(found) == len(self.train),
            f"the set {self.manifest.get('set')!r} has no reference images: objective=supervised needs a simulated set.",
            DataError,
        )
        return found

    def val_references(self) -> tuple[Path, ...]:
        """Image files of the held-out scans, as many as there are."""
        return self._images(self.val)

    def _images(self, scans: Sequence[Path]) -> tuple[Path, ...]:
        if self.references is None:
            return ()
        return tuple(p for p in (self.references / scan.name for scan in scans) if p.is_file())


class SimulatedSet(ABC):
    """A set whose scans are simulated from images, volume by volume, into the cache; what is there already stays.

    Args:
        name: Name of the set.
        cache: Where scans are written; see :func:`cache_folder`.
        seed: Data seed: with a volume's name it decides everything that belongs to a scan.
        licence: What the images may be used for; recorded in the prior.
        scanner: Arguments of :class:`~ambient_mri.data.simulate.Simulation`.
    """

    def __init__(
        self,
        name: str,
        *,
        cache: str | None = None,
        seed: int = 0,
        licence: str = "",
        scanner: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.cache, self.seed, self.licence = name, cache, seed, licence
        ranges = {k: tuple(v) if isinstance(v, list) else v for k, v in (scanner or {}).items()}
        self.scanner = Simulation(**ranges)

    @abstractmethod
    def volumes(self) -> tuple[list[str], list[str]]:
        """Names of the training and of the held-out volumes."""

    @abstractmethod
    def images(self, volume: str) -> np.ndarray:
        """The images of a volume, (slices, H, W), magnitude or complex."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What :meth:`images` depends on, as plain data; part of the cache's name."""

    def prepare(self, law: SamplingLaw | None) -> ScanSet:
        """Simulate what is missing in the cache.

        Raises:
            DataError: If the images cannot be read, or no law is given.
        """
        require(law is not None, f"data={self.name} is simulated and needs a law: choose another corruption.", DataError)
        settings = {
            "set": self.name, "seed": self.seed, "law": law.describe(), "scanner": asdict(self.scanner), **self.settings(),
        }  # fmt: skip
        # Through JSON, so that a tuple and the list that a file gives back have one name.
        settings = json.loads(json.dumps(settings))
        target = cache_folder(self.cache) / f"{self.name}-{short_hash(settings)}"
        for part in ("scans", "references"):
            (target / part).mkdir(parents=True, exist_ok=True)
        train, val = self.volumes()
        self._simulate_missing([*train, *val], target, law)
        manifest = {
            "set": self.name,
            "simulated": True,
            "volumes": len(train),
            "held_out_volumes": len(val),
            "sampling_law": law.describe(),
            "noise_std": list(self.scanner.noise_std),
            "licence": self.licence,
            "settings": settings,
            "hash": short_hash(settings),
        }
        write_json(target / "manifest.json", manifest)
        scans = target / "scans"
        return ScanSet(
            tuple(scans / f"{v}.h5" for v in train), tuple(scans / f"{v}.h5" for v in val), target / "references", manifest
        )

    def _simulate_missing(self, volumes: Sequence[str], target: Path, law: SamplingLaw) -> None:
        missing = [v for v in volumes if not (target / "scans" / f"{v}.h5").is_file()]
        if not missing:
            return
        log.info("simulating %d scans into %s", len(missing), target)
        said = time.monotonic()
        for count, volume in enumerate(progress(missing, f"simulating {self.name}"), start=1):
            found = simulate_scan(self.images(volume), law=law, seed=self.seed, scan_id=volume, settings=self.scanner)
            keys = [f"{volume}/{i}" for i in range(len(found.scan))]
            # The scan is written last: where it is, its references are, too.
            write_images(target / "references" / f"{volume}.h5", found.images, keys, scale=found.scan.scale)
            write_prepared(target / "scans" / f"{volume}.h5", found.scan)
            if time.monotonic() - said > 30:
                said = time.monotonic()
                log.info("simulated %d of %d scans", count, len(missing))


class Phantoms(SimulatedSet):
    """Procedural brain-like volumes, each another head: runs anywhere, with no download.

    Args:
        size: Rows and columns.
        train_volumes: Number of training heads.
        val_volumes: Number of held-out heads.
        slices: Slices a head.
        options: Of :class:`SimulatedSet`.
    """

    def __init__(
        self, name: str, *, size: int = 64, train_volumes: int = 100, val_volumes: int = 8, slices: int = 4, **options: Any
    ) -> None:
        super().__init__(name, **options)
        self.size, self.train_volumes, self.val_volumes, self.slices = size, train_volumes, val_volumes, slices

    def volumes(self) -> tuple[list[str], list[str]]:
        train, val = range(self.train_volumes), range(self.val_volumes)
        return [f"train_{i:05d}" for i in train], [f"val_{i:05d}" for i in val]

    def images(self, volume: str) -> np.ndarray:
        part, index = volume.split("_")
        # Two seeds, so that the heads of the two parts are different ones however many there are.
        phantom = BrainPhantom(self.size, seed=2 * self.seed + (part == "val"))
        return phantom.volume(int(index), self.slices)

    def settings(self) -> dict[str, Any]:
        return {"size": self.size, "slices": self.slices}


class BrainImages(SimulatedSet):
    """Image files (.npz), simulated one subject at a time.

    A file holds ``images`` (n, H, W), magnitudes, or ``real_imag`` (n, H, W, 2) with ``scale`` (n,); ``subject`` (n,); and
    where it is known ``split`` (n,), "train" or "val". Without a split every tenth subject is held out.

    Args:
        name: Name of the set.
        root: Folder that holds the files, directly or in ``images/``.
        files: File names.
        limit: At most this many training volumes.
        page: Where to get the files, for the message when ``root`` is missing.
        options: Of :class:`SimulatedSet`.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        *,
        files: Sequence[str] = (),
        limit: int | None = None,
        page: str = "",
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self.root, self.files, self.limit, self.page = root, list(files), limit, page

    def volumes(self) -> tuple[list[str], list[str]]:
        train: list[str] = []
        val: list[str] = []
        for path in self._paths():
            with np.load(path, allow_pickle=False) as archive:
                subjects = archive["subject"]
                split = archive["split"] if "split" in archive.files else None
            everyone = sorted({int(s) for s in subjects})
            held_out = set(everyone[9::10]) if split is None else {int(s) for s in subjects[split == "val"]}
            names = {s: f"{path.stem}_{s:04d}" for s in everyone}
            train += [names[s] for s in everyone if s not in held_out]
            val += [names[s] for s in everyone if s in held_out]
        return train[: self.limit], val

    def images(self, volume: str) -> np.ndarray:
        stem, subject = volume.rsplit("_", 1)
        path = next(p for p in self._paths() if p.stem == stem)
        images, subjects = _read_npz(path)
        return images[subjects == int(subject)]

    def settings(self) -> dict[str, Any]:
        return {"files": [p.name for p in self._paths()]}

    def _paths(self) -> list[Path]:
        command = f"python -m ambient_mri.train data={self.name} data.root=/path/to/images"
        where = f" They come from {self.page}." if self.page else ""
        hint = f"run `{command}` (or set AMBIENT_MRI_DATA).{where}"
        require(self.root is not None, f"data={self.name} needs the folder with {', '.join(self.files)}: {hint}", DataError)
        root = Path(str(self.root)).expanduser()
        found = [next((p for p in (root / f, root / "images" / f) if p.is_file()), None) for f in self.files]
        missing = [f for f, p in zip(self.files, found, strict=True) if p is None]
        require(not missing, f"{', '.join(missing)} not found in {root} or {root / 'images'}: {hint}", DataError)
        return [p for p in found if p is not None]


class ScanFolder:
    """K-space files in a folder: prepared ones are used as they are, raw ones are prepared into the cache first.

    Args:
        name: Name of the set.
        root: Folder with ``.h5`` or ``.npz`` files, or with the subfolders ``train`` and ``val``.
        train: Subfolder with training files; where it is missing, ``root`` itself holds them.
        val: Subfolder with held-out files; where it is missing, every tenth subject is held out.
        cache: Where prepared scans are written; see :func:`cache_folder`.
        seed: Data seed: masks of fully sampled volumes are drawn from it.
        pattern: Which files to take.
        limit: At most this many training volumes.
        page: Where the data are to be had, for the message when ``root`` is missing.
        variable: Environment variable that ``root`` is taken from, for the same message.
        licence: What the data may be used for; recorded in the prior.
        settings: Further arguments of :class:`~ambient_mri.prepare.Preparation`.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        *,
        train: str = "train",
        val: str = "val",
        cache: str | None = None,
        seed: int = 0,
        pattern: str = "*.h5",
        limit: int | None = None,
        page: str = "",
        variable: str = "",
        licence: str = "",
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.root, self.cache, self.seed, self.pattern = name, root, cache, seed, pattern
        self.train_folder, self.val_folder, self.limit, self.licence = train, val, limit, licence
        self.page, self.variable = page, variable
        self.preparation = Preparation(seed=seed, **(settings or {}))

    def prepare(self, law: SamplingLaw | None) -> ScanSet:
        """The set's prepared scans.

        Raises:
            DataError: If there is no such folder, no file in it, or none can be used.
        """
        train, val = self._split()
        settings = {"set": self.name, "law": None if law is None else law.describe(), **vars(self.preparation)}
        target = cache_folder(self.cache) / f"{self.name}-{short_hash(settings)}"
        prepared = {part: self._prepared(files, target / part, law) for part, files in (("train", train), ("val", val))}
        first = read_prepared(prepared["train"][0], slices=0)
        manifest = {
            "set": self.name,
            "simulated": False,
            "volumes": len(prepared["train"]),
            "held_out_volumes": len(prepared["val"]),
            "sampling_law": first.sampling_law,
            "noise_std": "measured for each scan",
            "licence": self.licence,
            "settings": settings,
            "hash": short_hash(settings),
        }
        return ScanSet(prepared["train"], prepared["val"], None, manifest)

    def _split(self) -> tuple[list[Path], list[Path]]:
        where = f" Register at {self.page}, download, and" if self.page else ""
        variable = f" (or set {self.variable})" if self.variable else ""
        command = f"python -m ambient_mri.train data={self.name} data.root=/path/to/{self.name}"
        require(self.root is not None, f"data={self.name} needs a folder.{where} run `{command}`{variable}.", DataError)
        root = Path(str(self.root)).expanduser()
        require(root.is_dir(), f"data.root={root} is not a folder.{where} run `{command}`{variable}.", DataError)
        folder = root / self.train_folder
        train = sorted((folder if folder.is_dir() else root).glob(self.pattern))
        require(bool(train), f"no {self.pattern} file in {folder if folder.is_dir() else root}.", DataError)
        held_out = root / self.val_folder
        val = sorted(held_out.glob(self.pattern)) if held_out.is_dir() else train[9::10]
        return [f for f in train if f not in val][: self.limit], val

    def _prepared(self, files: Sequence[Path], folder: Path, law: SamplingLaw | None) -> tuple[Path, ...]:
        if not files or all(is_prepared(f) for f in files):
            return tuple(files)
        summary = prepare_files(
            files, folder, law=law, settings=self.preparation, progress=lambda paths: progress(paths, f"preparing {self.name}")
        )
        if summary.failed:
            log.warning("%d of %d files skipped: %s", len(summary.failed), len(files), ", ".join(p.name for p, _ in summary.failed))
        return summary.done


@lru_cache(maxsize=2)
def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All images of a file, (n, H, W) float32 or complex64, and their subjects."""
    with np.load(path, allow_pickle=False) as archive:
        subjects = archive["subject"].astype(np.int64)
        if "real_imag" in archive.files:
            parts = archive["real_imag"].astype(np.float32) / archive["scale"].astype(np.float32)[:, None, None, None]
            return (parts[..., 0] + 1j * parts[..., 1]).astype(np.complex64), subjects
        return archive["images"].astype(np.float32), subjects


def cache_folder(given: str | None) -> Path:
    """``given``, else $AMBIENT_MRI_CACHE, else the user's cache folder."""
    if given:
        return Path(given).expanduser()
    variable = os.environ.get("AMBIENT_MRI_CACHE")
    if variable:
        return Path(variable).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ambient_mri"


def progress(items: Iterable[Any], description: str) -> Iterator[Any]:
    """A progress bar where there is a terminal."""
    return iter(tqdm(items, desc=description, disable=None, leave=False))
