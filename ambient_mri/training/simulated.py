"""Training sets that are simulated into the cache, one file a volume: procedural heads, and files of images.

The settings of a set, its law and its seed name its folder; what is there already stays, and several processes share
the work. Each volume has a scan and, in a file of its own, the reference images that belong to it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ambient_mri._checks import DataError, require
from ambient_mri.data.datasets import write_images
from ambient_mri.data.files import sha256_of_file
from ambient_mri.data.images import ImageSet, load_image_set
from ambient_mri.data.phantom import BrainPhantom
from ambient_mri.data.schema import write_prepared
from ambient_mri.data.simulate import Simulation, simulate_scan
from ambient_mri.masks import RandomLines, SamplingLaw
from ambient_mri.tensors import keyed_generator
from ambient_mri.training.draws import Draw, digest, draw_of_simulation
from ambient_mri.training.provenance import short_hash, write_json
from ambient_mri.training.sources import ScanSet, cache_folder, progress

__all__ = ["ImageFiles", "Phantoms", "SimulatedSet"]

log = logging.getLogger(__name__)


class SimulatedSet(ABC):
    """A set whose scans are simulated from images, volume by volume, into the cache; what is there already stays.

    Args:
        name: Name of the set.
        cache: Where scans are written; see :func:`cache_folder`.
        seed: Data seed: with a volume's name it decides everything that belongs to a scan.
        licence: What the images may be used for; recorded in the prior.
        scanner: Arguments of :class:`~ambient_mri.data.simulate.Simulation`.
        fully_sampled_fraction: Share of the volumes that keep all of k-space, chosen by their names.
        mask_per: "volume", as scanners do, or "slice": see :func:`~ambient_mri.data.simulate.simulate_scan`.
    """

    def __init__(
        self,
        name: str,
        *,
        cache: str | None = None,
        seed: int = 0,
        licence: str = "",
        scanner: dict[str, Any] | None = None,
        mask_per: str = "volume",
        fully_sampled_fraction: float = 0.0,
    ) -> None:
        share = fully_sampled_fraction
        require(0 <= share <= 1, f"data.fully_sampled_fraction must lie in [0, 1]; got {share}.", DataError)
        self.fully_sampled_fraction = share
        self.name, self.cache, self.seed, self.licence, self.mask_per = name, cache, seed, licence, mask_per
        ranges: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in (scanner or {}).items()}
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

    def content(self) -> dict[str, Any]:
        """Digests of files that :meth:`settings` gives by name; part of the cache's name as well."""
        return {}

    def subjects(self) -> frozenset[str]:
        """Digests of the training subjects; empty where the settings alone say whose scans they are."""
        return frozenset()

    def draw(self, law: SamplingLaw | None) -> Draw:
        """Which draw of which subjects the set is; nothing is simulated for it.

        Raises:
            DataError: If the images cannot be read, or no law is given.
        """
        return draw_of_simulation(self.name, self._settings(self._checked(law)), self.subjects())

    def _checked(self, law: SamplingLaw | None) -> SamplingLaw:
        if law is None:
            raise DataError(f"data={self.name} is simulated and needs a law: choose another corruption.")
        # A fixed number of lines is read off each mask; the weights of other laws suppose one density for all.
        require(
            self.fully_sampled_fraction == 0 or isinstance(law, RandomLines),
            "data.fully_sampled_fraction needs corruption=random_lines: the weights of other laws do not know that a "
            "scan is fully sampled.",
            DataError,
        )
        return law

    def _settings(self, law: SamplingLaw) -> dict[str, Any]:
        """All that decides the scans, as plain data; it names the folder in the cache."""
        settings = {
            **{"set": self.name, "seed": self.seed, "law": law.describe(), "scanner": asdict(self.scanner)},
            **self.settings(),
        }
        settings |= {} if self.mask_per == "volume" else {"mask_per": self.mask_per}
        if self.fully_sampled_fraction:
            settings |= {"fully_sampled_fraction": self.fully_sampled_fraction}
        # Through JSON, so that a tuple and the list that a file gives back have one name.
        return dict(json.loads(json.dumps(settings)))

    def prepare(self, law: SamplingLaw | None) -> ScanSet:
        """Simulate what is missing in the cache.

        Raises:
            DataError: If the images cannot be read, or no law is given.
        """
        law = self._checked(law)
        settings = self._settings(law)
        # Which images the names stand for is told by their content.
        target = cache_folder(self.cache) / f"{self.name}-{short_hash({**settings, **self.content()})}"
        for part in ("scans", "references"):
            (target / part).mkdir(parents=True, exist_ok=True)
        train, val = self.volumes()
        self._simulate_missing([*train, *val], target, law)
        manifest = {
            "set": self.name,
            "simulated": True,
            "volumes": len(train),
            "held_out_volumes": len(val),
            "sampling_law": settings["law"],
            "noise_std": list(self.scanner.noise_std),
            "licence": self.licence,
            "settings": settings,
            "hash": short_hash(settings),
            "draw": self.draw(law).plain(),
        }
        write_json(target / "manifest.json", manifest)
        scans = target / "scans"
        return ScanSet(
            tuple(scans / f"{v}.h5" for v in train),
            tuple(scans / f"{v}.h5" for v in val),
            target / "references",
            manifest,
        )

    def is_fully_sampled(self, volume: str) -> bool:
        """Whether a volume keeps all of k-space: a function of (data seed, name)."""
        draw = torch.rand((), generator=keyed_generator(self.seed, volume, "fully sampled"))
        return bool(draw < self.fully_sampled_fraction)

    def _simulate_missing(self, volumes: Sequence[str], target: Path, law: SamplingLaw) -> None:
        missing = [v for v in volumes if not (target / "scans" / f"{v}.h5").is_file()]
        if not missing:
            return
        log.info("simulating %d scans into %s", len(missing), target)
        said = time.monotonic()
        # Each process begins elsewhere and skips what is there by then: several at once share the work.
        start = os.getpid() % len(missing)
        missing = [*missing[start:], *missing[:start]]
        for count, volume in enumerate(progress(missing, f"simulating {self.name}"), start=1):
            if (target / "scans" / f"{volume}.h5").is_file():
                continue
            found = simulate_scan(
                self.images(volume),
                law=RandomLines(1, 0) if self.is_fully_sampled(volume) else law,
                seed=self.seed,
                scan_id=volume,
                settings=self.scanner,
                mask_per=self.mask_per,
            )
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
        self,
        name: str,
        *,
        size: int = 64,
        train_volumes: int = 100,
        val_volumes: int = 8,
        slices: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self.size, self.train_volumes, self.val_volumes, self.slices = size, train_volumes, val_volumes, slices

    def volumes(self) -> tuple[list[str], list[str]]:
        """One volume a head."""
        train, val = range(self.train_volumes), range(self.val_volumes)
        return [f"train_{i:05d}" for i in train], [f"val_{i:05d}" for i in val]

    def images(self, volume: str) -> np.ndarray:
        """Neighbouring slices of one head."""
        part, index = volume.split("_")
        # Two seeds, so that the heads of the two parts are different ones however many there are.
        phantom = BrainPhantom(self.size, seed=2 * self.seed + (part == "val"))
        return phantom.volume(int(index), self.slices)

    def settings(self) -> dict[str, Any]:
        """What a head's picture depends on."""
        return {"size": self.size, "slices": self.slices}


class ImageFiles(SimulatedSet):
    """Image files (see :mod:`ambient_mri.data.images`), simulated one subject at a time.

    Args:
        name: Name of the set.
        root: Folder that holds the files, directly or in ``images/``.
        files: File names.
        limit: At most this many training volumes.
        exclude: Names of volumes to leave out, ``<file stem>_<subject>``.
        page: Where to get the files, for the message when ``root`` is missing.
        reduce: Average blocks of this many pixels a side, before anything is simulated.
        options: Of :class:`SimulatedSet`.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        *,
        files: Sequence[str] = (),
        limit: int | None = None,
        exclude: Sequence[str] = (),
        page: str = "",
        reduce: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self.root, self.files, self.limit, self.page = root, list(files), limit, page
        require(reduce >= 1, f"data.reduce must be at least 1; got {reduce}.", DataError)
        self.reduce = reduce
        self.exclude = list(exclude)
        self._sets: dict[str, ImageSet] = {}

    def volumes(self) -> tuple[list[str], list[str]]:
        """One volume a subject and file."""
        parts: dict[str, list[str]] = {"train": [], "val": []}
        for path in self._paths():
            images = self._sets.setdefault(path.stem, load_image_set(path))
            for part, found in parts.items():
                subjects = set(images.subject[images.split == part].tolist())
                found += sorted(f"{path.stem}_{str(s).zfill(4)}" for s in subjects)
        unknown = set(self.exclude) - {*parts["train"], *parts["val"]}
        require(not unknown, f"data={self.name} has no volume {', '.join(sorted(unknown))} to exclude.", DataError)
        train, val = ([v for v in part if v not in self.exclude] for part in parts.values())
        return train[: self.limit], val

    def images(self, volume: str) -> np.ndarray:
        """The slices of one subject."""
        return _block_mean(self._stored(volume), self.reduce)

    def _stored(self, volume: str) -> np.ndarray:
        stem = next(s for s in self._sets if volume.startswith(f"{s}_"))
        subject = volume.removeprefix(f"{stem}_")
        names = {str(s).zfill(4): str(s) for s in self._sets[stem].subjects()}
        return self._sets[stem].volume(names[subject])

    def subjects(self) -> frozenset[str]:
        """By the first image of each, as it is stored."""
        train, _ = self.volumes()
        return frozenset(digest(np.ascontiguousarray(self._stored(v)[0]).tobytes()) for v in train)

    def settings(self) -> dict[str, Any]:
        """The files, by name."""
        files: dict[str, Any] = {"files": [p.name for p in self._paths()]}
        return files if self.reduce == 1 else files | {"reduce": self.reduce}

    def content(self) -> dict[str, Any]:
        """The files, by content."""
        return {"sha256": [sha256_of_file(path) for path in self._paths()]}

    def _paths(self) -> list[Path]:
        command = f"python -m ambient_mri.train data={self.name} data.root=/path/to/images"
        where = f" They come from {self.page}." if self.page else ""
        hint = f"run `{command}` (or set AMBIENT_MRI_DATA).{where}"
        require(
            self.root is not None, f"data={self.name} needs the folder with {', '.join(self.files)}: {hint}", DataError
        )
        root = Path(str(self.root)).expanduser()
        found = [next((p for p in (root / f, root / "images" / f) if p.exists()), None) for f in self.files]
        missing = [f for f, p in zip(self.files, found, strict=True) if p is None]
        require(not missing, f"{', '.join(missing)} not found in {root} or {root / 'images'}: {hint}", DataError)
        return [p for p in found if p is not None]


def _block_mean(images: np.ndarray, factor: int) -> np.ndarray:
    """Averages over blocks of ``factor`` x ``factor`` pixels: (n, H, W) -> (n, H / factor, W / factor)."""
    if factor == 1:
        return images
    count, height, width = images.shape
    fits = height % factor == 0 and width % factor == 0
    require(fits, f"images of {height} x {width} do not split into blocks of {factor}; see data.reduce.", DataError)
    return images.reshape(count, height // factor, factor, width // factor, factor).mean(axis=(2, 4))
