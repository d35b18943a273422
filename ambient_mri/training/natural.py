"""Training on natural images: measurements drawn once an image, and nothing else of it.

    y = A x0 + noise      A and the noise are functions of (data seed, image), the same in every epoch, worker and run

A :class:`CorruptedImages` gives measurements alone: with an ambient objective no clean image reaches training. Images
that are corrupted already are their own measurements: nothing is drawn, and there is no clean one to be had.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ambient_mri._checks import AmbientMRIError, DataError, require
from ambient_mri.corruption import ImageCorruption
from ambient_mri.data.datasets import ImageDataset
from ambient_mri.data.natural_images import NaturalImages, load_natural_images
from ambient_mri.measurement import Measurement
from ambient_mri.stationary import fit_stationary, products_of
from ambient_mri.tensors import keyed_generator
from ambient_mri.training.draws import Draw, digest, draw_of_pictures
from ambient_mri.training.estimates import evenly_spaced
from ambient_mri.training.provenance import short_hash
from ambient_mri.training.restored import RestoredImages, made_by, stored_numbers

__all__ = [
    "CleanImages",
    "CorruptedImages",
    "ImageFolder",
    "ImageSplit",
    "covariance_of_images",
    "covariance_of_measurements",
    "sd_of_measurements",
]


class CorruptedImages(Dataset[Measurement]):
    """Measurements of images, one row an item.

    Args:
        images: The images; none of them is given out.
        numbers: Which of them.
        corruption: The law of A.
        noise_std: Range of the noise per real part, log-uniform; one number twice for a fixed level.
        seed: Data seed.
    """

    def __init__(
        self,
        images: NaturalImages,
        numbers: tuple[int, ...],
        corruption: ImageCorruption,
        *,
        noise_std: tuple[float, float] = (0.0, 0.0),
        seed: int = 0,
    ) -> None:
        self._images, self.numbers, self.corruption = images, numbers, corruption
        self.noise_std, self.seed = noise_std, seed

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Measurement:
        number = self.numbers[index]
        if self._images.corrupted:
            return self._as_it_is(number)
        generator = keyed_generator(self.seed, "image", number)
        low, high = self.noise_std
        share = float(torch.rand(1, generator=generator))
        level = low if low == high else math.exp(math.log(low) + share * math.log(high / low))
        return self.corruption.measure(
            self._images.image(number),
            noise_std=level,
            key=f"{self._images.name}/{number}",
            generator=generator,
        )

    def _as_it_is(self, number: int) -> Measurement:
        mask, levels = self._images.known(number), self._images.noise_std
        level = torch.tensor([0.0 if levels is None else levels[number]], dtype=torch.float32)
        y, key = self._images.image(number) * mask, f"{self._images.name}/{number}"
        return Measurement(y, mask, None, level, torch.ones(1), (key,), axes=())

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Matrix size of every item."""
        return [self._images.shape[1:]] * len(self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns of the images."""
        return self._images.shape


class CleanImages(ImageDataset):
    """The images themselves, for the supervised upper bound and for reconstructions; all in memory.

    Args:
        images: The images.
        numbers: Which of them.
    """

    def __init__(self, images: NaturalImages, numbers: tuple[int, ...]) -> None:
        self._images = [torch.cat([images.image(i) for i in numbers])]
        self._keys = [tuple(f"{images.name}/{i}" for i in numbers)]
        self.files: list[Path] = []
        self._starts = np.array([0, len(numbers)])


@dataclass(frozen=True)
class ImageSplit:
    """What a run on images reads.

    Attributes:
        images: All images.
        noise_std: Range of the noise.
        seed: Data seed.
        manifest: Plain data on the set.
        references: Folder of restorations that stand for the images (the M-step of EM); None for the images themselves.
        corruption: The law of A; given by :meth:`drawn_by`.
    """

    images: NaturalImages
    noise_std: tuple[float, float]
    seed: int
    manifest: dict[str, Any]
    references: Path | None = None
    corruption: ImageCorruption | None = None

    def drawn_by(self, corruption: ImageCorruption) -> ImageSplit:
        """The same under a law of A, with the draw of its measurements in the manifest."""
        subject = digest(np.ascontiguousarray(self.images.images).tobytes())
        if self.images.corrupted:
            draw = Draw(self.manifest["set"], {}, frozenset([subject]), frozenset([self.images.name]))
        else:
            draw = draw_of_pictures(self.manifest["set"], self.manifest["settings"], corruption.describe(), [subject])
        return replace(self, corruption=corruption, manifest={**self.manifest, "draw": draw.plain()})

    def corrupted(self, part: str) -> CorruptedImages | None:
        """Measurements of a part, "train" or "val"; None where it is empty."""
        numbers = self.images.train if part == "train" else self.images.val
        return self._measured(numbers) if numbers else None

    def corrupted_parts(self, *, held_out: int | None) -> list[CorruptedImages]:
        """Measurements of the training images, then of the first ``held_out`` of the others (all where None)."""
        return [self._measured(n) for n in (self.images.train, self.images.val[:held_out]) if n]

    def _measured(self, numbers: tuple[int, ...]) -> CorruptedImages:
        if self.corruption is None:
            raise DataError(f"{self.images.name}: how its images are corrupted is not said; see drawn_by.")
        return CorruptedImages(self.images, numbers, self.corruption, noise_std=self.noise_std, seed=self.seed)

    def clean(self, part: str) -> ImageDataset | None:
        """Images of a part, or the restorations that stand for them; None where there is none."""
        numbers = self.images.train if part == "train" else self.images.val
        if self.references is not None:
            if part != "train":
                there = stored_numbers(self.references)
                numbers = tuple(n for n in numbers if n in there)
            return RestoredImages(self.references, numbers, self.images.name) if numbers else None
        require(
            not self.images.corrupted,
            f"{self.images.name} holds images that are corrupted already: there is no clean one to train on. Choose "
            "objective=ambient, and objective=em after it.",
            DataError,
        )
        return CleanImages(self.images, numbers) if numbers else None

    def val_references(self) -> tuple[Path, ...]:
        """No image files: references of held-out images are not read by training."""
        return ()


class ImageFolder:
    """Natural images in a file or a folder: what ``data=cifar10|image_folder|npz`` names.

    Args:
        name: Name of the set.
        root: The file or folder of :func:`~ambient_mri.data.natural_images.load_natural_images`, or a folder that
            holds ``file``, directly or in ``images/``.
        file: Name of the file inside ``root``; None where ``root`` is the set itself.
        channels: 1 or 3; as they are when None.
        noise_std: Noise that is added to every image's measurement, per real part of values in [-1, 1]; a number, or a
            range to draw from. Of images that are corrupted already, the noise that is in them: a number.
        corrupted: Whether the images are corrupted already, by a mask or noise of their own; None: where the file says
            so, by the arrays of :mod:`ambient_mri.data.natural_images`.
        val_share: Share held out where the file brings no split.
        seed: Data seed: with an image's number it decides everything that belongs to the image.
        page: Where the data are to be had.
        licence: What the data may be used for; recorded in the prior.
        references: Folder of restorations (an E-step's) to train on in place of the images: the M-step of EM.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        *,
        file: str | None = None,
        channels: int | None = None,
        noise_std: float | tuple[float, float] = 0.0,
        corrupted: bool | None = None,
        val_share: float = 0.1,
        seed: int = 0,
        page: str = "",
        licence: str = "",
        references: str | None = None,
    ) -> None:
        low, high = (noise_std, noise_std) if isinstance(noise_std, int | float) else noise_std
        require(
            0 <= low <= high and (low > 0 or high == 0),
            f"noise_std must be zero, a positive number, or a range of positive numbers; got {noise_std}.",
        )
        self.name, self.root, self.file, self.channels = name, root, file, channels
        self.corrupted = corrupted
        self.noise_std, self.val_share, self.seed = (float(low), float(high)), val_share, seed
        self.page, self.licence = page, licence
        self.references = None if references is None else Path(references).expanduser().resolve()

    def load(self) -> ImageSplit:
        """Read the images.

        Raises:
            DataError: If they are not there or cannot be read.
        """
        path = self._path()
        low, high = self.noise_std
        images = load_natural_images(
            path, channels=self.channels, val_share=self.val_share, corrupted=self.corrupted, noise_std=high
        )
        require(
            not images.corrupted or low == high,
            f"noise_std={[low, high]} is a range to draw from; the noise of images that are corrupted already is one "
            "number, or an array noise_std (n,) beside them.",
            DataError,
        )
        levels = self.noise_std
        if images.noise_std is not None:
            levels = float(images.noise_std.min()), float(images.noise_std.max())
        settings: dict[str, Any] = {
            "set": self.name,
            "file": path.name,
            "channels": self.channels,
            "noise_std": list(levels),
        }
        settings |= {"seed": self.seed, "val_share": self.val_share, "images": _digest(images)}
        if self.references is not None:
            settings["restorations"] = made_by(self.references)
        manifest = {
            "set": self.name,
            "simulated": not images.corrupted,
            "images": len(images.train),
            "held_out_images": len(images.val),
            "image_shape": list(images.shape),
            "noise_std": list(levels),
            "licence": self.licence,
            "settings": settings,
            "hash": short_hash(settings),
        }
        return ImageSplit(images, levels, self.seed, manifest, self.references)

    def _path(self) -> Path:
        where = f" They come from {self.page}." if self.page else ""
        command = f"python -m ambient_mri.train data={self.name} data.root=/path/to/images"
        require(self.root is not None, f"data={self.name} needs images: run `{command}`.{where}", DataError)
        root = Path(str(self.root)).expanduser()
        if self.file is None or root.is_file():
            require(root.exists(), f"data.root={root} does not exist: run `{command}`.{where}", DataError)
            return root
        found = next((p for p in (root / self.file, root / "images" / self.file) if p.is_file()), None)
        if found is None:
            raise DataError(f"{self.file} not found in {root} or {root / 'images'}: run `{command}`.{where}")
        return found


def sd_of_measurements(data: CorruptedImages, *, count: int = 256) -> float:
    """sd, the rms of a real channel of the images, from at most ``count`` measurements, evenly spaced over the set.

    Raises:
        AmbientMRIError: If the estimate is not positive: the measurements hold nothing but noise.
    """
    powers = [data.corruption.image_power(data[i]) for i in evenly_spaced(len(data), count)]
    value = float(torch.cat(powers).double().mean())
    require(value > 0, "the images hold no more energy than their noise_std explains; check it.", AmbientMRIError)
    return math.sqrt(value)


def covariance_of_measurements(data: CorruptedImages, *, count: int = 512) -> dict[str, Any]:
    """The stationary model of the images, from at most ``count`` measurements, evenly spaced over the set."""
    m = Measurement.collate([data[i] for i in evenly_spaced(len(data), count)])
    return fit_stationary(*products_of(m.y, m.mask, m.noise_std))


def covariance_of_images(data: ImageDataset, *, count: int = 512) -> dict[str, Any]:
    """The same from the images themselves, or from the restorations that stand for them."""
    images = torch.cat([data[i].images for i in evenly_spaced(len(data), count)])
    return fit_stationary(*products_of(images, torch.ones_like(images, dtype=torch.bool), torch.zeros(len(images))))


def _digest(images: NaturalImages) -> str:
    """A short hash of the pixels, of the split, and of what is missing and how noisy the rest is."""
    held_out: Tensor = torch.zeros(len(images.images), dtype=torch.uint8)
    held_out[list(images.val)] = 1
    content = hashlib.sha256(np.ascontiguousarray(images.images).tobytes())
    content.update(held_out.numpy().tobytes())
    for own in (images.mask, images.noise_std):
        content.update(b"" if own is None else own.tobytes())
    return content.hexdigest()[:16]
