"""Natural images, grey or in colour, as real channels in [-1, 1]: files of arrays, and folders of pictures.

| layout | content |
|---|---|
| ``.npz`` with ``images`` | (n, H, W) or (n, H, W, 1 or 3); ``split`` (n,) "train" or "val" may stand beside |
| ``.npy`` | the same array |
| folder | ``.png``, ``.jpg``, ``.webp``, ``.tif`` ... pictures of one size, in subfolders too |

Integers are divided by the largest number of their type, real numbers are taken to lie in [0, 1]; then [0, 1] becomes
[-1, 1]. Where there is no split, every tenth image (by a hash of its number) is held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import DataError, check_option, require
from ambient_mri.data.files import PathLike, check_finite_array
from ambient_mri.data.image_arrays import read_image_arrays
from ambient_mri.tensors import keyed_generator

__all__ = ["NaturalImages", "load_natural_images"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class NaturalImages:
    """Images as they are stored; :meth:`image` gives numbers to compute with.

    Attributes:
        name: Of the file or folder.
        images: (n, H, W, channels), integers or reals in [0, 1].
        train: Numbers of the training images.
        val: Numbers of the held-out ones.
    """

    name: str
    images: np.ndarray
    train: tuple[int, ...]
    val: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns."""
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    def image(self, index: int) -> Tensor:
        """One image, (1, channels, H, W) float32 in [-1, 1]."""
        stored = self.images[index]
        high = float(np.iinfo(stored.dtype).max) if stored.dtype.kind in "ui" else 1.0
        values = torch.from_numpy(np.moveaxis(stored, -1, 0).astype(np.float32))[None]
        return values.mul_(2 / high).sub_(1)


def load_natural_images(path: PathLike, *, channels: int | None = None, val_share: float = 0.1) -> NaturalImages:
    """Read natural images in any of the layouts of this module.

    Args:
        path: ``.npz`` or ``.npy`` file, or a folder of pictures.
        channels: 1 (colours are averaged) or 3 (grey is repeated); as they are when None.
        val_share: Share held out where the file brings no split.

    Raises:
        DataError: If the file is missing, damaged or in another layout, or pictures differ in size.
    """
    source = Path(path).expanduser()
    arrays = {"images": _read_folder(source, channels)} if source.is_dir() else _read_arrays(source)
    images = _with_channels(_checked(arrays["images"], source), channels)
    split = arrays.get("split")
    if split is None:
        draws = [float(torch.rand(1, generator=keyed_generator("held out", i))) for i in range(len(images))]
        held_out = np.array(draws) < val_share
    else:
        require(
            split.shape == (len(images),),
            f"{source}: split must have one entry for each of the {len(images)} images; got {split.shape}.",
            DataError,
        )
        names = split.astype(str)
        unknown = sorted({*names} - {"train", "val", "test"})
        require(
            not unknown,
            f"{source}: split says train, val or test for every image; found {', '.join(unknown[:3])}.",
            DataError,
        )
        held_out = names == "val"
    numbers = np.arange(len(images))
    usable = ~held_out if split is None else names == "train"
    train, val = numbers[usable].tolist(), numbers[held_out].tolist()
    require(bool(train), f"{source}: no image is left to train on.", DataError)
    return NaturalImages(source.name, images, tuple(train), tuple(val))


def _read_arrays(source: Path) -> dict[str, np.ndarray]:
    arrays = read_image_arrays(source, _SUFFIXES)
    found = ", ".join(arrays) or "nothing"
    require("images" in arrays, f"{source}: needs an array `images` (n, H, W, channels); found {found}.", DataError)
    return arrays


def _read_folder(folder: Path, channels: int | None) -> np.ndarray:
    """Every picture below a folder, sorted by name, (n, H, W, channels) uint8."""
    from PIL import Image

    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    require(len(files) > 0, f"{folder}: holds no {', '.join(_SUFFIXES)} picture.", DataError)
    pictures: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as opened:
                _check_picture(opened, file)
                picture = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
            raise DataError(f"{file}: cannot be read as a picture ({error}). Is the file complete?") from error
        pictures.append(picture if picture.ndim == 3 else picture[..., None])
        require(
            pictures[-1].shape == pictures[0].shape,
            f"{file}: is {picture.shape}, {files[0].name} is {pictures[0].shape}: crop or resize to one size.",
            DataError,
        )
    return np.stack(pictures)


def _check_picture(picture: Any, file: Path) -> None:
    """Eight bits a colour, and nothing transparent: the rest would be cut off in silence."""
    deep = picture.mode == "F" or picture.mode.startswith("I")
    require(
        not deep,
        f"{file}: has more than 8 bits a pixel (mode {picture.mode}): convert it, or give arrays of reals in [0, 1].",
        DataError,
    )
    full = picture.convert("RGBA") if "transparency" in picture.info else picture  # palettes have no such band
    alpha = full.getchannel("A").getextrema()[0] if "A" in full.getbands() else 255
    require(alpha == 255, f"{file}: has transparent pixels: put it on a background first.", DataError)


def _checked(images: np.ndarray, source: Path) -> np.ndarray:
    """(n, H, W, channels), finite, in a known range; integers that are bytes (nothing above 255) become bytes."""
    stack = images[..., None] if images.ndim == 3 else images
    require(
        stack.ndim == 4 and stack.size > 0 and stack.shape[-1] in (1, 3) and stack.dtype.kind in "uif",
        f"{source}: images must be real numbers (n, H, W) or (n, H, W, 1 or 3); got {images.dtype} {images.shape}.",
        DataError,
    )
    if stack.dtype.kind in "ui" and stack.dtype != np.uint8:
        lowest, highest = int(stack.min()), int(stack.max())
        sixteen = stack.dtype == np.uint16 and highest > 255
        require(
            sixteen or 0 <= lowest <= highest <= 255,
            f"{source}: integers are bytes, 0 to 255, or uint16 up to 65535; got {stack.dtype}, {lowest} to {highest}.",
            DataError,
        )
        stack = stack if sixteen else stack.astype(np.uint8)
    if stack.dtype.kind == "f":
        check_finite_array(stack, "images", source)
        low, high = float(stack.min()), float(stack.max())
        require(
            low >= 0 and high <= 1,
            f"{source}: real images must lie in [0, 1]; found {low:.3g} to {high:.3g}. Rescale them.",
            DataError,
        )
    return stack


def _with_channels(images: np.ndarray, channels: int | None) -> np.ndarray:
    if channels is None or channels == images.shape[-1]:
        return images
    check_option("channels", channels, (1, 3))
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    mean = images.mean(axis=-1, keepdims=True)
    return np.rint(mean).astype(images.dtype) if images.dtype.kind in "ui" else mean.astype(images.dtype)
