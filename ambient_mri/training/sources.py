"""Where training scans come from: files, or simulation into a cache. Either way training reads prepared files alone.

``prepare(law)`` of every source gives a :class:`ScanSet`: prepared scans for training and, of other subjects, for
validation; for simulated sets also where their reference images lie, in files of their own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ambient_mri._checks import DataError, require
from ambient_mri.data.datasets import read_images
from ambient_mri.data.fastmri_layout import apply_split, list_volumes, read_split, with_acquisition
from ambient_mri.data.schema import read_prepared
from ambient_mri.masks import SamplingLaw
from ambient_mri.prepare import Preparation, is_prepared, prepare_files
from ambient_mri.training.draws import check_scan_of_image, draw_of_files
from ambient_mri.training.provenance import short_hash

__all__ = ["ScanFolder", "ScanSet", "cache_folder", "progress"]

log = logging.getLogger(__name__)

_SCANS_TO_CHECK = 32
_READABLE = ("*.h5", "*.npz", "*.npy")


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
        missing = len(self.train) - len(found)
        require(
            missing == 0,
            f"{missing} of the {len(self.train)} training scans of {self.manifest.get('set')!r} have no reference "
            "images: objective=supervised needs a simulated set, or data.references from a finished E-step.",
            DataError,
        )
        return found

    def val_references(self) -> tuple[Path, ...]:
        """Image files of the held-out scans, as many as there are."""
        return self._images(self.val)

    def require_names(self) -> None:
        """Check that no held-out scan has the name of a training scan: images are found by it.

        Raises:
            DataError: Naming some that do.
        """
        both = sorted({scan.name for scan in self.train} & {scan.name for scan in self.val})
        require(
            not both,
            f"{len(both)} held-out scans have the file names of training scans, such as {', '.join(both[:3])}: images "
            "are found by the name of their scan, and would be taken for those of the others. Rename the files.",
            DataError,
        )

    def with_references(self, folder: Path) -> ScanSet:
        """The scans with an image file in ``folder``, and these as references: reconstructions, for the M-step of EM.

        Raises:
            DataError: If there is no image file of a training scan in ``folder``, or scans share their names.
            AmbientMRIError: If an E-step made them from another draw of the scans.
        """
        self.require_names()
        kept = tuple(scan for scan in self.train if (folder / scan.name).is_file())
        require(
            bool(kept),
            f"data.references={folder} holds no image file of the {len(self.train)} training scans, such as "
            f"{self.train[0].name}. Run the E-step on the same scans first.",
            DataError,
        )
        if len(kept) < len(self.train):
            log.warning("%s holds images of %d of the %d training scans: those.", folder, len(kept), len(self.train))
        for scan in kept[:: max(1, len(kept) // _SCANS_TO_CHECK)]:
            image = read_images(folder / scan.name)
            check_scan_of_image(read_prepared(scan, slices=0), image.scale, image.attrs, folder / scan.name)
        attrs = {k: v for k, v in read_images(folder / kept[0].name).attrs.items() if k != "mask"}
        described = {**self.manifest, "references": attrs or "given"}
        return replace(self, train=kept, references=folder, manifest={**described, "volumes": len(kept)})

    def _images(self, scans: Sequence[Path]) -> tuple[Path, ...]:
        if self.references is None:
            return ()
        return tuple(p for p in (self.references / scan.name for scan in scans) if p.is_file())


class ScanFolder:
    """K-space files in a folder: prepared ones are used as they are, raw ones are prepared into the cache first.

    Args:
        name: Name of the set.
        root: Folder with ``.h5`` or ``.npz`` files, or with the subfolders ``train`` and ``val``.
        train: Subfolder with training files; where it is missing, ``root`` itself holds them.
        val: Subfolder with held-out files; where it is missing, every tenth file is held out.
        cache: Where prepared scans are written; see :func:`cache_folder`.
        seed: Data seed: masks of fully sampled volumes are drawn from it.
        pattern: Which files to take; all that can be read (.h5, .npz, .npy) when None.
        limit: At most this many training volumes.
        page: Where the data are to be had, for the message when ``root`` is missing.
        variable: Environment variable that ``root`` is taken from, for the same message.
        licence: What the data may be used for; recorded in the prior.
        settings: Further arguments of :class:`~ambient_mri.prepare.Preparation`.
        acquisitions: Which to take, by official or short name, such as ``PD`` or ``AXT2``; all when None.
        split: A split list (JSON, ``{"train": [...], "val": [...]}``, volumes by name) in place of the folders' own.
        workers: Processes that prepare raw files; 0 for one a core.
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
        pattern: str | None = "*.h5",
        limit: int | None = None,
        page: str = "",
        variable: str = "",
        licence: str = "",
        settings: dict[str, Any] | None = None,
        acquisitions: Sequence[str] | None = None,
        split: str | None = None,
        workers: int = 1,
    ) -> None:
        self.name, self.root, self.cache, self.seed, self.pattern = name, root, cache, seed, pattern
        self.acquisitions, self.split, self.workers = tuple(acquisitions or ()), split, workers
        self.train_folder, self.val_folder, self.limit, self.licence = train, val, limit, licence
        self.page, self.variable = page, variable
        self.preparation = Preparation(seed=seed, **(settings or {}))

    def prepare(self, law: SamplingLaw | None) -> ScanSet:
        """The set's prepared scans.

        Raises:
            DataError: If there is no such folder, no file in it, or none can be used.
        """
        train, val = self._split()
        described = None if law is None else law.describe()
        settings = {"set": self.name, "from": self.train_folder, "law": described, **self.preparation.describe()}
        # Files of one name lie in other folders, too. The place is no part of what the prior's card says.
        place = {**settings, "root": str(Path(str(self.root)).expanduser().resolve())}
        target = cache_folder(self.cache) / f"{self.name}-{short_hash(place)}"
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
            "draw": draw_of_files(self.name, prepared["train"]).plain(),
        }
        return ScanSet(prepared["train"], prepared["val"], None, manifest)

    def _split(self) -> tuple[list[Path], list[Path]]:
        where = f" Register at {self.page}, download, and" if self.page else ""
        variable = f" (or set {self.variable})" if self.variable else ""
        command = f"python -m ambient_mri.train data={self.name} data.root=/path/to/{self.name}"
        require(self.root is not None, f"data={self.name} needs a folder.{where} run `{command}`{variable}.", DataError)
        root = Path(str(self.root)).expanduser()
        require(root.is_dir(), f"data.root={root} is not a folder.{where} run `{command}`{variable}.", DataError)
        # `ambient-mri prepare` makes train/ and val/ of any data set.
        folder = next((f for f in (root / self.train_folder, root / "train") if f.is_dir()), root)
        train = with_acquisition(self._volumes(folder), self.acquisitions)
        wanted = self.pattern or ", ".join(_READABLE)
        holds = ", ".join(sorted({p.suffix or p.name for p in folder.iterdir()})[:6]) or "nothing"
        require(bool(train), f"no {wanted} file in {folder}, which holds {holds}: set data.pattern.", DataError)
        held_out = next((f for f in (root / self.val_folder, root / "val") if f.is_dir()), None)
        own = [] if held_out is None else with_acquisition(self._volumes(held_out), self.acquisitions)
        if self.split is not None:
            parts = apply_split([*train, *own], read_split(Path(self.split).expanduser()))
            require(bool(parts.get("train")), f"{self.split} lists no volume to train on.", DataError)
            return parts["train"][: self.limit], parts.get("val", [])
        val = train[9::10] if held_out is None else own
        if held_out is None and val:
            log.info(
                "%d of %d files are held out, each taken for another subject. Where a subject has several, say which "
                "to hold out: a folder %s/, or data.split.",
                len(val),
                len(train),
                self.val_folder,
            )
        if not val:
            log.warning(
                "%s has no held-out scan: below 10 volumes none is put aside; a folder %s/ would hold your own choice.",
                root,
                self.val_folder,
            )
        return [f for f in train if f not in val][: self.limit], val

    def _volumes(self, folder: Path) -> list[Path]:
        patterns = _READABLE if self.pattern is None else (self.pattern,)
        return sorted(path for pattern in patterns for path in list_volumes(folder, pattern))

    def _prepared(self, files: Sequence[Path], folder: Path, law: SamplingLaw | None) -> tuple[Path, ...]:
        if not files or all(is_prepared(f) for f in files):
            return tuple(files)
        summary = prepare_files(
            files,
            folder,
            law=law,
            settings=self.preparation,
            progress=lambda paths: progress(paths, f"preparing {self.name}"),
            workers=self.workers,
        )
        if summary.failed:
            log.warning(
                "%d of %d files skipped: %s",
                len(summary.failed),
                len(files),
                ", ".join(p.name for p, _ in summary.failed),
            )
        return summary.done


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
