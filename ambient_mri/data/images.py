"""Image sets that training scans are simulated from: files of many images, with the subject that each one shows.

| layout | content |
|---|---|
| ``.npz`` with ``images`` (n, H, W) | magnitudes, any real type |
| ``.npz`` with ``real_imag`` (n, H, W, 2) and ``scale`` (n,) | complex, x = (real + i imaginary) / scale |
| ``.npz`` with one array of the shapes below; ``.npy`` | (n, H, W) or (H, W), real magnitudes or complex |
| folder | grey-level ``.png``, ``.jpg``, ``.tif`` images of one size |

``subject``, ``slice`` and ``split`` ("train" or "val"), each (n,), may stand beside the images of an ``.npz``. In a
folder the subject is the subfolder, or else the file name without its last number: ``anna_012.png`` shows ``anna``. An
array without subjects is one volume. Where a set brings no split, one is made by subject, never by slice: neighbouring
slices are nearly the same image, and a set split through a subject measures memory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ambient_mri._checks import DataError, check_option, require
from ambient_mri.data.files import PathLike, check_finite_array, require_file
from ambient_mri.data.image_arrays import read_image_arrays

__all__ = ["ImageSet", "load_image_set", "split_by_subject"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_SPLITS = ("train", "val")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of subjects, as they are stored; :meth:`volume` gives numbers to compute with.

    Attributes:
        name: Of the file or folder, for keys and messages.
        images: (n, H, W) real magnitudes in any type, or complex64.
        subject: (n,) str.
        slice: (n,) position of each image within its subject.
        split: (n,) str, "train" or "val", the same for all images of a subject.
    """

    name: str
    images: np.ndarray
    subject: np.ndarray
    slice: np.ndarray
    split: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_complex(self) -> bool:
        """Whether the images bring their own phase."""
        return bool(np.iscomplexobj(self.images))

    def subjects(self, split: str | None = None) -> tuple[str, ...]:
        """Names of the subjects, sorted; of one split if it is given."""
        chosen = self.subject if split is None else self.subject[self.split == split]
        return tuple(str(s) for s in np.unique(chosen))

    def select(self, split: str) -> ImageSet:
        """The images of one split.

        Raises:
            AmbientMRIError: If there is no such split.
            DataError: If no subject belongs to it.
        """
        check_option("split", split, _SPLITS)
        rows = self.split == split
        require(
            bool(rows.any()),
            f"{self.name}: no image belongs to the split {split!r}; number of subjects: {len(self.subjects())}. Splits "
            "are made by subject: give a `subject` array, a subfolder for each subject, or a `split` array.",
            DataError,
        )
        return ImageSet(self.name, *(a[rows] for a in (self.images, self.subject, self.slice, self.split)))

    def volume(self, subject: str) -> np.ndarray:
        """All images of a subject in the order of their slices, (slices, H, W) float32 or complex64.

        Raises:
            DataError: If the set has no such subject.
        """
        rows = np.flatnonzero(self.subject == subject)
        require(len(rows) > 0, f"{self.name}: no subject {subject!r}; there are {len(self.subjects())}.", DataError)
        rows = rows[np.argsort(self.slice[rows], kind="stable")]
        return self.images[rows].astype(np.complex64 if self.is_complex else np.float32)

    def volumes(self, split: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Subject and :meth:`volume`, one after the other."""
        for subject in self.subjects(split):
            yield subject, self.volume(subject)


def load_image_set(path: PathLike, *, val_fraction: float = 0.1) -> ImageSet:
    """Read an image set in any of the layouts of this module.

    Args:
        path: ``.npz`` or ``.npy`` file, or a folder of images.
        val_fraction: Share of the subjects held out where the set brings no split.

    Raises:
        DataError: If the file is missing, damaged or in another layout, or holds NaN or negative magnitudes, or images
            of different sizes, or a split that runs through a subject.
    """
    source = Path(path)
    if source.is_dir():
        arrays = _read_folder(source)
    else:
        arrays = _images_of(source, read_image_arrays(source, _SUFFIXES))
    images = _checked(arrays["images"], source)
    count = len(images)
    subject = _aligned(arrays.get("subject", np.full(count, "0")), "subject", count, source).astype(str)
    number = _aligned(arrays.get("slice", np.arange(count)), "slice", count, source)
    if "split" in arrays:
        split = _aligned(arrays["split"], "split", count, source).astype(str)
        _check_split(split, subject, source)
    else:
        held_out = split_by_subject(tuple(np.unique(subject)), val_fraction)
        split = np.where(np.isin(subject, held_out), "val", "train")
    return ImageSet(source.name, images, subject, number, split)


def split_by_subject(subjects: tuple[str, ...], val_fraction: float) -> tuple[str, ...]:
    """Which subjects are held out: those whose hashed names come first, at least one if there are two or more.

    The same names give the same split on any machine, in any order.
    """
    require(0 <= val_fraction < 1, f"val_fraction must lie in [0, 1); got {val_fraction}.")
    if len(subjects) < 2 or val_fraction == 0:
        return ()
    ranked = sorted((str(s) for s in subjects), key=lambda s: hashlib.sha256(s.encode()).digest())
    return tuple(sorted(ranked[: min(max(1, round(val_fraction * len(ranked))), len(ranked) - 1)]))


def _images_of(source: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a file, its images, in whatever layout, under the name ``images``."""
    if "images" in arrays:
        return arrays
    if "real_imag" in arrays:
        parts = arrays["real_imag"]
        good = parts.ndim == 4 and parts.shape[-1] == 2
        require(good, f"{source}: real_imag must have shape (n, H, W, 2); got {parts.shape}.", DataError)
        scale = _aligned(arrays.get("scale", np.ones(len(parts))), "scale", len(parts), source).astype(np.float32)
        require(bool((scale > 0).all()), f"{source}: scale must be positive.", DataError)
        values = parts.astype(np.float32) / scale[:, None, None, None]
        return {**arrays, "images": np.ascontiguousarray(values).view(np.complex64)[..., 0]}
    stacks = [name for name, a in arrays.items() if a.ndim in (2, 3) and a.dtype.kind in "uifcb"]
    found = ", ".join(f"{name} {a.shape}" for name, a in arrays.items()) or "nothing"
    require(
        len(stacks) == 1,
        f"{source}: found {found}; expected `images` (n, H, W), or `real_imag` (n, H, W, 2) with `scale` (n,).",
        DataError,
    )
    return {**arrays, "images": arrays[stacks[0]]}


def _read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Every image file below a folder, in natural order (2 before 10)."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
    files = sorted(found, key=lambda p: _natural(p, folder))
    require(len(files) > 0, f"{folder}: holds no {', '.join(_SUFFIXES)} image.", DataError)
    images = []
    for file in files:
        images.append(_read_image(file))
        same = images[-1].shape == images[0].shape
        require(
            same,
            f"{file}: is {images[-1].shape}, {files[0].name} is {images[0].shape}: crop or pad to one size.",
            DataError,
        )
    subject = [_subject_of(file, folder) for file in files]
    return {"images": np.stack(images), "subject": np.array(subject)}


def _read_image(file: Path) -> np.ndarray:
    """A grey-level image, (H, W); three equal channels, opaque or not, are one."""
    from PIL import Image

    require_file(file)
    try:
        with Image.open(file) as opened:
            pages = getattr(opened, "n_frames", 1)
            require(pages == 1, f"{file}: has {pages} pages; save each as an image of its own.", DataError)
            image = np.asarray(opened.convert("RGBA") if opened.mode in ("P", "PA") else opened)
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
        raise DataError(f"{file}: cannot be read as an image ({error}). Is the file complete?") from error
    if image.ndim == 3 and image.shape[-1] in (2, 4):
        image = image[..., :-1]  # opacity
    if image.ndim == 3 and bool((image == image[..., :1]).all()):
        image = image[..., 0]
    require(
        image.ndim == 2, f"{file}: is a colour image {image.shape}; MR images have one grey level a pixel.", DataError
    )
    return image


def _natural(file: Path, folder: Path) -> list[tuple[int, str]]:
    pieces = re.split(r"(\d+)", file.relative_to(folder).as_posix().lower())
    return [(int(p), "") if p.isdigit() else (-1, p) for p in pieces]


def _subject_of(file: Path, folder: Path) -> str:
    parent = file.parent.relative_to(folder).as_posix()
    if parent != ".":
        return parent
    return re.sub(r"[\s_.-]*\d+$", "", file.stem) or folder.name


def _checked(images: np.ndarray, source: Path) -> np.ndarray:
    """(n, H, W), finite, not negative; complex types as complex64."""
    stack = images[None] if images.ndim == 2 else images
    require(
        stack.ndim == 3 and stack.size > 0 and stack.dtype.kind in "uifcb",
        f"{source}: images must be numbers of shape (n, H, W), or (H, W); got {stack.dtype} {stack.shape}. "
        "Colour images and volumes with more axes are not image sets.",
        DataError,
    )
    if stack.dtype.kind in "fc":
        check_finite_array(stack, "images", source)
    if stack.dtype.kind == "c":
        return stack.astype(np.complex64)
    least = float(stack.min())
    require(
        least >= 0,
        f"{source}: magnitudes must not be negative; the smallest is {least:.4g}. Were they normalised to mean zero?",
        DataError,
    )
    return stack


def _aligned(array: np.ndarray, name: str, count: int, source: Path) -> np.ndarray:
    good = array.shape == (count,)
    require(good, f"{source}: {name} must have one entry for each of the {count} images; got {array.shape}.", DataError)
    return array


def _check_split(split: np.ndarray, subject: np.ndarray, source: Path) -> None:
    unknown = sorted(set(split.tolist()) - set(_SPLITS))
    require(not unknown, f"{source}: split may be 'train' or 'val'; found {unknown}.", DataError)
    torn = sorted(set(subject[split == "train"].tolist()) & set(subject[split == "val"].tolist()))
    require(
        not torn,
        f"{source}: train and val share the subjects {', '.join(torn[:5])}: neighbouring slices would be trained and "
        "tested on. Split by subject.",
        DataError,
    )
