"""Natural images, grey or in colour, as real channels in [-1, 1]: files of arrays, and folders of pictures.

| layout | content |
|---|---|
| ``.npz`` with ``images`` | (n, H, W) or (n, H, W, 1 or 3); ``split`` (n,) "train" or "val" may stand beside |
| ``.npy`` | the same array |
| folder | ``.png``, ``.jpg``, ``.webp``, ``.tif`` ... pictures of one size, in subfolders too; grey if all are |

Bytes are divided by 255, uint16 by 65535, real numbers are taken to lie in [0, 1]; then [0, 1] becomes
[-1, 1]. Where there is no split, every tenth image (by a hash of its number) is held out.

Images that are corrupted already, of which no clean version is known, bring in the ``.npz``

| array | content |
|---|---|
| ``mask`` | (n, H, W) or (n, H, W, 1 or channels), bool or 0 and 1: where a pixel (or a colour of it) is known |
| ``noise_std`` | one number or (n,): their noise, counted in [-1, 1], where 25 of 255 grey levels are 0.196 |

either of them or both; in a folder, transparent pixels are unknown. Reals of noisy images may leave [0, 1]. What stands
in a missing pixel (0, NaN, -1) is never looked at, but to tell a mask that is inverted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, DataError, check_option, require
from ambient_mri.data.files import PathLike
from ambient_mri.data.image_arrays import read_image_arrays
from ambient_mri.tensors import keyed_generator

__all__ = ["NaturalImages", "load_natural_images"]

# Noise levels by which a pixel may leave its range; eight of them are one in 10^15.
_NOISE_RANGE = 8
# Images of 16 bits reach this; those of cameras and scanners that store 10 to 14 bits in 16 do not.
_FAINT = 2**14
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class NaturalImages:
    """Images as they are stored; :meth:`image` gives numbers to compute with.

    Attributes:
        name: Of the file or folder.
        images: (n, H, W, channels), integers or reals in [0, 1].
        train: Numbers of the training images.
        val: Numbers of the held-out ones.
        mask: (n, H, W, 1 or channels) bool, the pixels that are known, of images that are corrupted already; None of
            clean ones.
        noise_std: (n,) their noise, of values in [-1, 1]; None of clean ones.
    """

    name: str
    images: np.ndarray
    train: tuple[int, ...]
    val: tuple[int, ...]
    mask: np.ndarray | None = None
    noise_std: np.ndarray | None = None

    @property
    def corrupted(self) -> bool:
        """Whether these are measurements, with ``mask`` and ``noise_std``, and no clean images."""
        return self.mask is not None

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

    def known(self, index: int) -> Tensor:
        """The mask of one image that is corrupted already, (1, 1 or channels, H, W) bool."""
        require(self.mask is not None, f"{self.name} holds clean images: no pixel of them is missing.", DataError)
        return torch.from_numpy(np.moveaxis(self.mask[index], -1, 0).copy())[None]  # type: ignore[index]


def load_natural_images(
    path: PathLike,
    *,
    channels: int | None = None,
    val_share: float = 0.1,
    corrupted: bool | None = False,
    noise_std: float = 0.0,
) -> NaturalImages:
    """Read natural images in any of the layouts of this module.

    Args:
        path: ``.npz`` or ``.npy`` file, or a folder of pictures.
        channels: 1 (colours are averaged) or 3 (grey is repeated); as they are when None.
        val_share: Share held out where the file brings no split.
        corrupted: Whether they are corrupted already; None: where the file brings ``mask`` or ``noise_std``.
        noise_std: Of images that are corrupted already, where the file does not say it, of values in [-1, 1].

    Raises:
        DataError: If the file is missing, damaged or in another layout, or pictures differ in size.
    """
    source = Path(path).expanduser()
    arrays = _read_folder(source, channels, bool(corrupted)) if source.is_dir() else _read_arrays(source)
    measured = bool({"mask", "noise_std"} & {*arrays}) if corrupted is None else corrupted
    levels = _noise_of(arrays, noise_std, source) if measured else None
    stack = _stacked(arrays["images"], source)
    mask = _mask_of(arrays, stack, source) if measured else None
    if mask is not None:
        stack = _known_alone(stack, mask, source)
    images = _checked(stack, source, 0.0 if levels is None else float(levels.max()))
    train, val = _split(arrays.get("split"), len(images), val_share, source)
    if measured:
        require(
            channels in (None, images.shape[-1]),
            f"{source}: its {images.shape[-1]} channels are corrupted one by one, and cannot be made {channels}: leave "
            "channels out.",
            DataError,
        )
        return NaturalImages(source.name, images, train, val, mask, levels)
    return NaturalImages(source.name, _with_channels(images, channels), train, val)


def _split(
    split: np.ndarray | None, count: int, val_share: float, source: Path
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the training images and of those held out."""
    if split is None:
        draws = [float(torch.rand(1, generator=keyed_generator("held out", i))) for i in range(count)]
        held_out = np.array(draws) < val_share
        usable = ~held_out
    else:
        require(
            split.shape == (count,),
            f"{source}: split must have one entry for each of the {count} images; got {split.shape}.",
            DataError,
        )
        names = split.astype(str)
        unknown = sorted({*names} - {"train", "val", "test"})
        require(
            not unknown,
            f"{source}: split says train, val or test for every image; found {', '.join(unknown[:3])}.",
            DataError,
        )
        held_out, usable = names == "val", names == "train"
    numbers = np.arange(count)
    require(bool(usable.any()), f"{source}: no image is left to train on.", DataError)
    return tuple(numbers[usable].tolist()), tuple(numbers[held_out].tolist())


def _noise_of(arrays: dict[str, np.ndarray], noise_std: float, source: Path) -> np.ndarray:
    """(n,) noise of images that are corrupted already: the file's, or ``noise_std``."""
    count, stored = len(arrays["images"]), arrays.get("noise_std")
    require(
        stored is None or noise_std == 0,
        f"{source}: says its own noise_std: leave data.noise_std out, or that array.",
        DataError,
    )
    levels = np.asarray(noise_std if stored is None else stored, dtype=np.float64)
    require(
        levels.shape in ((), (1,), (count,)) and bool((np.isfinite(levels) & (levels >= 0)).all()),
        f"{source}: noise_std must be one number, or one for each of the {count} images, and not negative; got shape "
        f"{levels.shape}.",
        DataError,
    )
    require(
        float(levels.max(initial=0)) < 4,
        f"{source}: noise_std counts values in [-1, 1], where 25 of 255 grey levels are 0.196; got {levels.max():.3g}.",
        DataError,
    )
    return np.broadcast_to(levels, (count,)).copy()


def _mask_of(arrays: dict[str, np.ndarray], images: np.ndarray, source: Path) -> np.ndarray:
    """(n, H, W, 1 or channels) bool; everything is known where there is no mask."""
    stored = arrays.get("mask")
    if stored is None:
        return np.ones((*images.shape[:3], 1), dtype=bool)
    mask = stored[..., None] if stored.ndim == 3 else stored
    require(
        mask.shape in ((*images.shape[:3], 1), images.shape),
        f"{source}: mask must have the shape {images.shape[:3]} of the images, or one plane a colour; got "
        f"{stored.shape}.",
        DataError,
    )
    known = mask.astype(bool)
    require(
        mask.dtype == bool or bool((known == mask).all()),
        f"{source}: mask must be bool, or 0 where a pixel is missing and 1 where it is known; got numbers up to "
        f"{mask.max():g}: store mask > 0 if what is above 0 is known.",
        DataError,
    )
    without = np.flatnonzero(~known.reshape(len(known), -1).any(axis=1))
    require(not len(without), f"{source}: image {without[:1]} has no known pixel: leave it out.", DataError)
    return known


def _read_arrays(source: Path) -> dict[str, np.ndarray]:
    arrays = read_image_arrays(source, _SUFFIXES)
    found = ", ".join(arrays) or "nothing"
    require("images" in arrays, f"{source}: needs an array `images` (n, H, W, channels); found {found}.", DataError)
    return arrays


def _read_folder(folder: Path, channels: int | None, corrupted: bool) -> dict[str, np.ndarray]:
    """Every picture below a folder, sorted by name: ``images`` (n, H, W, channels) uint8, and ``mask`` if corrupted."""
    from PIL import Image

    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
    require(len(files) > 0, f"{folder}: holds no {', '.join(_SUFFIXES)} picture.", DataError)
    pictures: list[np.ndarray] = []
    known: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as opened:
                known.append(_opaque(opened, file, corrupted))
                # Colours that were measured are neither averaged nor repeated.
                grey = opened.mode in ("1", "L", "LA") if corrupted or channels is None else channels == 1
                picture = np.asarray(opened.convert("L" if grey else "RGB"))
        except AmbientMRIError:  # is a ValueError, and says what is wrong
            raise
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
            raise DataError(f"{file}: cannot be read as a picture ({error}). Is the file complete?") from error
        pictures.append(picture if picture.ndim == 3 else picture[..., None])
        require(
            pictures[-1].shape[:2] == pictures[0].shape[:2],
            f"{file}: is {picture.shape}, {files[0].name} is {pictures[0].shape}: crop or resize to one size.",
            DataError,
        )
    colours = {picture.shape[-1] for picture in pictures}
    require(
        len(colours) == 1 or not corrupted,
        f"{folder}: holds grey pictures and coloured ones, which are corrupted channel by channel: make two folders.",
        DataError,
    )
    pictures = [_with_channels(picture, max(colours)) for picture in pictures]
    return {"images": np.stack(pictures), **({"mask": np.stack(known)} if corrupted else {})}


def _opaque(picture: Any, file: Path, corrupted: bool) -> np.ndarray:
    """(H, W) bool, where a picture of eight bits a colour is not transparent.

    Raises:
        DataError: If it has more bits, which would be cut off in silence; if it is transparent anywhere and stands for
            a clean image; if it is half transparent.
    """
    deep = picture.mode == "F" or picture.mode.startswith("I")
    require(
        not deep,
        f"{file}: has more than 8 bits a pixel (mode {picture.mode}): convert it, or give arrays of reals in [0, 1].",
        DataError,
    )
    full = picture.convert("RGBA") if "transparency" in picture.info else picture  # palettes have no such band
    if "A" not in full.getbands():
        return np.ones(picture.size[::-1], dtype=bool)
    alpha = np.asarray(full.getchannel("A"))
    require(
        corrupted or int(alpha.min()) == 255,
        f"{file}: has transparent pixels: put it on a background first; or, if they are missing ones, say "
        "data.corrupted=true.",
        DataError,
    )
    require(
        bool(np.isin(alpha, (0, 255)).all()),
        f"{file}: has half transparent pixels; a pixel is known (opaque) or missing (transparent).",
        DataError,
    )
    return alpha == 255


def _stacked(images: np.ndarray, source: Path) -> np.ndarray:
    """The images as (n, H, W, 1 or 3)."""
    stack = images[..., None] if images.ndim == 3 else images
    first = stack.ndim == 4 and stack.shape[1] in (1, 3) and stack.shape[-1] not in (1, 3)
    hint = " Channels come last: images.transpose(0, 2, 3, 1)." if first else ""
    require(
        stack.ndim == 4 and stack.size > 0 and stack.shape[-1] in (1, 3) and stack.dtype.kind in "uif",
        f"{source}: images must be real numbers (n, H, W) or (n, H, W, 1 or 3); got {images.dtype} {images.shape}."
        + hint,
        DataError,
    )
    return stack


def _known_alone(stack: np.ndarray, mask: np.ndarray, source: Path) -> np.ndarray:
    """The images with zero where nothing is known, whatever number stands there in the file.

    Raises:
        DataError: If what is called known is one number everywhere, and what is called missing is not.
    """
    known = np.broadcast_to(mask, stack.shape)
    if known.all():
        return stack
    require(
        not _is_constant(stack[known]) or _is_constant(stack[~known]),
        f"{source}: all pixels that `mask` calls known hold one number, those that it calls missing do not: it is "
        "inverted. It must be 1 where a pixel is known: store ~mask, or 1 - mask.",
        DataError,
    )
    return np.where(known, stack, stack.dtype.type(0))


def _is_constant(values: np.ndarray) -> bool:
    """Whether all are the same number, or none is a number."""
    return bool((values == values[0]).all() or np.isnan(values).all())


def _checked(stack: np.ndarray, source: Path, noise_std: float) -> np.ndarray:
    """(n, H, W, channels), finite, in a known range; integers that are bytes (nothing above 255) become bytes.

    Reals may leave [0, 1] by what noise of ``noise_std`` (of values in [-1, 1]) explains.
    """
    if stack.dtype.kind in "ui" and stack.dtype != np.uint8:
        lowest, highest = int(stack.min()), int(stack.max())
        sixteen = stack.dtype == np.uint16 and highest > 255
        require(
            sixteen or 0 <= lowest <= highest <= 255,
            f"{source}: integers are bytes, 0 to 255, or uint16 up to 65535; got {stack.dtype}, {lowest} to {highest}.",
            DataError,
        )
        require(
            not sixteen or highest >= _FAINT,
            f"{source}: uint16 is divided by 65535, and no pixel is above {highest}: nearly black images. Divide by "
            "the largest level that the camera or scanner gives, such as 4095, and store reals in [0, 1].",
            DataError,
        )
        stack = stack if sixteen else stack.astype(np.uint8)
    require(
        stack.dtype != np.uint8 or int(stack.max()) != 1,
        f"{source}: bytes are divided by 255, and these are 0 and 1: store reals, images.astype(float).",
        DataError,
    )
    if stack.dtype.kind == "f":
        require(
            bool(np.isfinite(stack).all()),
            f"{source}: images hold NaN or infinite numbers where pixels are known. If these are missing, say so in "
            "`mask` (n, H, W): 0 there, and 1 where a pixel is known.",
            DataError,
        )
        low, high, beyond = float(stack.min()), float(stack.max()), _NOISE_RANGE * noise_std / 2
        more = f", give or take their noise of {noise_std:g}" if noise_std else ""
        require(
            low >= -beyond and high <= 1 + beyond,
            f"{source}: real images must lie in [0, 1]{more}; found {low:.3g} to {high:.3g}. Rescale them.",
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
