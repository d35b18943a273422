"""Prepared scans and images as training sets: one item a slice, the same items in every worker, rank and resumed run.

Volumes live in memory as far as a byte budget allows, in a compact form: only the sampled lines of k-space, and coil
maps once a volume where all its slices share them. The others are read slice by slice through a small pool of open
files.

Which items step s trains on is a pure function of (seed, s): see :class:`StepSampler`. A resumed run starts its
sampler at the step it had reached, and needs no other state.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ambient_mri._checks import DataError, require
from ambient_mri.data.acquisition import Extent, acquired_mask, compact_mask
from ambient_mri.data.files import PathLike, atomic_path, check_finite_array, open_hdf5, plain_value, require_dataset
from ambient_mri.data.schema import read_prepared
from ambient_mri.measurement import Measurement
from ambient_mri.tensors import keyed_generator

__all__ = ["ImageBatch", "ImageDataset", "ScanDataset", "StepSampler", "read_images", "write_images"]

GIGABYTE = 2**30


@dataclass(frozen=True)
class ImageBatch:
    """Clean images, or reconstructions, in scaled units.

    Attributes:
        images: (b, 1, H, W) complex64.
        key: Volume and slice of each row.
    """

    images: Tensor
    key: tuple[str, ...]

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        """The same batch on another device."""
        return ImageBatch(self.images.to(device, non_blocking=non_blocking), self.key)


@dataclass(frozen=True)
class _Arrays:
    """A volume in memory, scaled.

    Where one 1-D mask serves all slices, ``kspace`` holds the sampled ``lines`` along ``axis`` alone.
    """

    mask: Tensor
    noise_std: Tensor
    kspace: Tensor
    coil_maps: Tensor
    axis: int = -1
    lines: Tensor | None = None

    def slice(self, i: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y, mask, maps and noise of slice ``i``, one row each."""
        pick = lambda t: t[i : i + 1] if t.shape[0] == len(self.kspace) else t  # noqa: E731
        y = self.kspace[i : i + 1]
        if self.lines is not None:
            full = y.new_zeros(1, y.shape[1], *size)
            y = full.index_copy_(full.ndim + self.axis, self.lines, y)
        return y, pick(self.mask), pick(self.coil_maps), self.noise_std[i : i + 1]

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.mask, self.kspace, self.coil_maps))


@dataclass(frozen=True)
class _Volume:
    """One file, and its content where it is held in memory."""

    path: Path
    count: int
    size: tuple[int, int]
    source: str
    scale: float
    extent: Extent
    arrays: _Arrays | None = None

    def row(self, i: int, y: Tensor, mask: Tensor, coil_maps: Tensor, noise_std: Tensor) -> Measurement:
        """Slice ``i`` as a Measurement."""
        scale = torch.tensor([self.scale], dtype=torch.float32)
        inside = acquired_mask(self.extent, self.size, mask.shape)
        acquired = None if inside is None else torch.from_numpy(inside)
        return Measurement(y, mask, coil_maps, noise_std, scale, (f"{self.source}/{i}",), acquired=acquired)


class ScanDataset(Dataset[Measurement]):
    """Slices of prepared scans (schema version 1) as scaled Measurements of one row.

    Args:
        files: Prepared scans; their order gives the items' numbers.
        in_memory: Keep volumes in memory, in order, until ``memory_gb`` is used up.
        memory_gb: Byte budget for volumes in memory, in GiB.
        open_files: Files kept open for what is not in memory.

    Raises:
        DataError: If there is no file, or one of them is damaged; the message names it.
    """

    def __init__(
        self, files: Sequence[PathLike], *, in_memory: bool = True, memory_gb: float = 8.0, open_files: int = 32
    ) -> None:
        require(len(files) > 0, "a data set needs at least one prepared scan; got none.", DataError)
        self._pool = _FilePool(open_files)
        budget = memory_gb * GIGABYTE if in_memory else 0.0
        self.volumes: list[_Volume] = []
        for file in files:
            volume = _open_volume(Path(file))
            if budget > 0:
                arrays = _load_arrays(volume.path)
                budget -= arrays.num_bytes
                volume = replace(volume, arrays=arrays)
            self.volumes.append(volume)
        self._starts = np.cumsum([0, *(v.count for v in self.volumes)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Measurement:
        position = int(np.searchsorted(self._starts, index, side="right")) - 1
        volume, i = self.volumes[position], index - int(self._starts[position])
        if volume.arrays is not None:
            return volume.row(i, *volume.arrays.slice(i, volume.size))
        return self._read(volume, i)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Matrix size of every item."""
        return [v.size for v in self.volumes for _ in range(v.count)]

    @property
    def files(self) -> list[Path]:
        """The files, in order."""
        return [v.path for v in self.volumes]

    @property
    def first_slices(self) -> list[int]:
        """Number of the first item of every volume."""
        return [int(start) for start in self._starts[:-1]]

    def masks(self, volumes: int) -> list[Tensor]:
        """Masks of at most so many volumes, evenly spaced: one a volume whose slices share it, else one a slice.

        Each is (1, 1, 1 or H, W or 1) bool.
        """
        count = len(self.volumes)
        chosen = [self.volumes[i * count // min(volumes, count)] for i in range(min(volumes, count))]
        return [row for volume in chosen for row in self._masks(volume).split(1)]

    def _masks(self, volume: _Volume) -> Tensor:
        if volume.arrays is not None:
            return volume.arrays.mask
        return torch.from_numpy(compact_mask(self._pool.open(volume.path)["mask"][()]))

    def _read(self, volume: _Volume, i: int) -> Measurement:
        handle = self._pool.open(volume.path)
        pick = lambda name: handle[name][i if len(handle[name]) == volume.count else 0][None]  # noqa: E731
        return volume.row(
            i,
            torch.from_numpy(pick("kspace") / np.float32(volume.scale)),
            torch.from_numpy(compact_mask(pick("mask"))),
            torch.from_numpy(pick("coil_maps")),
            torch.tensor([float(handle["noise_std"][i]) / volume.scale], dtype=torch.float32),
        )


class ImageDataset(Dataset[ImageBatch]):
    """Complex images of HDF5 files written by :func:`write_images`, divided by their scale.

    Used by the supervised objective (references of simulated sets) and by the M-step of EM (reconstructions). All
    images are kept in memory.

    Args:
        files: Image files.
    """

    def __init__(self, files: Sequence[PathLike]) -> None:
        require(len(files) > 0, "a data set needs at least one image file; got none.", DataError)
        parts = [read_images(file) for file in files]
        self._images = [torch.from_numpy(p.images / np.float32(p.scale)) for p in parts]
        self._keys = [p.key for p in parts]
        self.files = [Path(file) for file in files]
        self._starts = np.cumsum([0, *(len(p) for p in self._images)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> ImageBatch:
        position = int(np.searchsorted(self._starts, index, side="right")) - 1
        i = index - int(self._starts[position])
        return ImageBatch(self._images[position][i : i + 1], (self._keys[position][i],))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Matrix size of every item."""
        return [(int(p.shape[-2]), int(p.shape[-1])) for p in self._images for _ in range(len(p))]

    def by_key(self) -> dict[str, Tensor]:
        """Scaled images (1, 1, H, W) by key, for metrics on held-out scans."""
        return {k: self._images[p][i : i + 1] for p, keys in enumerate(self._keys) for i, k in enumerate(keys)}

    @staticmethod
    def collate(items: Sequence[ImageBatch]) -> ImageBatch:
        """One batch out of many."""
        return ImageBatch(torch.cat([b.images for b in items]), tuple(k for b in items for k in b.key))


class StepSampler(Sampler[list[int]]):
    """Item numbers for every training step, a pure function of (seed, step).

    An epoch visits each item at most once, in batches of one matrix size; what does not fill a batch waits for the
    next epoch, which has another order. A size with fewer items than a batch gives one batch an epoch, with repeats.
    Rank r of w takes every w-th item of a batch, from r.

    Args:
        sizes: Matrix size of every item (:attr:`ScanDataset.sizes`).
        batch_size: Items in a batch, all ranks together.
        steps: Number of batches of the whole run.
        seed: Training seed.
        start: First step to give; the sampler's length stays ``steps``.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        steps: int,
        seed: int,
        *,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        require(batch_size > 0, f"batch_size must be positive; got {batch_size}.")
        require(
            batch_size % world_size == 0, f"batch_size {batch_size} must be a multiple of the {world_size} processes."
        )
        self.batch_size, self.steps, self.seed, self.start = batch_size, steps, seed, start
        self.rank, self.world_size = rank, world_size
        self._groups = [torch.tensor([i for i, s in enumerate(sizes) if s == size]) for size in sorted(set(sizes))]
        self.batches_per_epoch = sum(max(1, len(g) // batch_size) for g in self._groups)
        self._epoch: tuple[int, list[Tensor]] = (-1, [])

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            yield self.batch(step)

    def batch(self, step: int) -> list[int]:
        """The items of this rank at ``step``."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._draw_epoch(epoch))
        return self._epoch[1][position][self.rank :: self.world_size].tolist()

    def _draw_epoch(self, epoch: int) -> list[Tensor]:
        generator = keyed_generator(self.seed, "order", epoch)
        batches: list[Tensor] = []
        for group in self._groups:
            count = max(1, len(group) // self.batch_size)
            repeats = -(-count * self.batch_size // len(group))
            order = torch.cat([group[torch.randperm(len(group), generator=generator)] for _ in range(repeats)])
            batches.extend(order[: count * self.batch_size].split(self.batch_size))
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


@dataclass(frozen=True, eq=False)
class ImageFile:
    """Content of an image file: images (slices, 1, H, W) complex64 in raw units, their keys, scale and attributes."""

    images: np.ndarray
    key: tuple[str, ...]
    scale: float
    attrs: dict[str, Any] = field(default_factory=dict)


def write_images(
    path: PathLike,
    images: np.ndarray,
    keys: Sequence[str],
    *,
    scale: float = 1.0,
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Write images atomically: ``images`` (slices, 1, H, W) complex64 in raw units, ``key`` (slices,) text, ``scale``.

    Args:
        path: The HDF5 file.
        images: (slices, 1, H, W) complex.
        keys: Volume and slice of every image, as in ``Measurement.key``.
        scale: Raw units per scaled unit, of the scan that the images belong to.
        attrs: Plain attributes: where the images come from.

    Raises:
        DataError: If shapes do not fit, or values are not finite.
    """
    good = images.ndim == 4 and images.shape[1] == 1 and np.iscomplexobj(images)
    found = f"{images.dtype} {images.shape}"
    require(good, f"{path}: images must be complex (slices, 1, H, W); got {found}.", DataError)
    require(len(keys) == len(images), f"{path}: {len(images)} images, but {len(keys)} keys.", DataError)
    check_finite_array(images, "images", path)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        handle.create_dataset("images", data=images.astype(np.complex64), chunks=(1, *images.shape[1:]))
        handle.create_dataset("key", data=list(keys), dtype=h5py.string_dtype())
        handle["scale"] = np.float64(scale)
        handle.attrs.update(dict(attrs or {}))


def read_images(path: PathLike) -> ImageFile:
    """Read a file that :func:`write_images` wrote.

    Raises:
        DataError: Naming the file and the dataset that is missing or damaged.
    """
    fix = "Write the image file again."
    with open_hdf5(path) as handle:
        found = {name: require_dataset(handle, name, path, fix) for name in ("images", "key", "scale")}
        images = np.asarray(found["images"][()])
        require(
            images.ndim == 4 and np.iscomplexobj(images),
            f"{path}: dataset 'images' must be complex (slices, 1, H, W); got {images.dtype} {images.shape}. {fix}",
            DataError,
        )
        keys = tuple(str(k) for k in found["key"].asstr()[()])
        attrs = {k: plain_value(v) for k, v in handle.attrs.items()}
        return ImageFile(images, keys, float(found["scale"][()]), attrs)


class _FilePool:
    """Open HDF5 files, least recently used closed first; every worker process opens its own."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._files: OrderedDict[Path, h5py.File] = OrderedDict()
        self._owner = os.getpid()

    def open(self, path: Path) -> h5py.File:
        if self._owner != os.getpid():  # HDF5 handles do not survive a fork
            self._files, self._owner = OrderedDict(), os.getpid()
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        if len(self._files) >= self.capacity:
            self._files.popitem(last=False)[1].close()
        self._files[path] = h5py.File(path, "r", locking="best-effort")
        return self._files[path]

    def __getstate__(self) -> dict[str, Any]:
        return {"capacity": self.capacity, "_files": OrderedDict(), "_owner": -1}


def _open_volume(path: Path) -> _Volume:
    with open_hdf5(path) as handle:
        fix = "Prepare the scan again."
        kspace = require_dataset(handle, "kspace", path, fix)
        count, _, height, width = kspace.shape
        scale = float(require_dataset(handle, "scale", path, fix)[()])
        source = str(plain_value(handle.attrs.get("source", path.stem)))
        rows, columns = np.asarray(handle.attrs.get("acquired_extent", ((0, height), (0, width)))).tolist()
    return _Volume(path, count, (int(height), int(width)), source, scale, (tuple(rows), tuple(columns)))


def _load_arrays(path: Path) -> _Arrays:
    scan = read_prepared(path)
    mask = torch.from_numpy(scan.mask)
    kspace = torch.from_numpy(scan.kspace / np.float32(scan.scale))
    noise_std = torch.from_numpy((scan.noise_std / scan.scale).astype(np.float32))
    coil_maps = torch.from_numpy(scan.coil_maps)
    varying = [axis for axis in (-2, -1) if mask.shape[axis] > 1]
    if mask.shape[0] > 1 or len(varying) != 1:
        return _Arrays(mask, noise_std, kspace, coil_maps)
    (axis,) = varying
    lines = mask.flatten().nonzero()[:, 0]
    return _Arrays(mask, noise_std, kspace.index_select(kspace.ndim + axis, lines), coil_maps, axis, lines)
