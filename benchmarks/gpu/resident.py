"""Scans and images that live on the device: during training nothing is read, collated or copied from the host.

A batch is one gather. What :mod:`simulation` stored is loaded once a command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from simulation import evenly
from torch import Tensor

from ambient_mri._checks import DataError, require
from ambient_mri.data.datasets import ImageBatch, StepSampler
from ambient_mri.measurement import Measurement

__all__ = ["LONGEST", "ResidentData", "ResidentImages", "ResidentScans", "load_images", "load_scans"]

#: Steps that a loader could give; no run is longer.
LONGEST = 10_000_000


@dataclass(frozen=True)
class ResidentScans:
    """Slices of many scans on one device.

    Attributes:
        lines: (n, C, H, L + 1) complex64, the sampled columns in hybrid space; the last one is zero.
        place: (n, W) int64, which of ``lines`` belongs to a column; L where none does.
        coil_maps: (n, C, H, W) complex64; coils that a scan does not have are zero.
        noise_std: (n,).
        scale: (n,).
        key: Volume and slice of every row.
    """

    lines: Tensor
    place: Tensor
    coil_maps: Tensor
    noise_std: Tensor
    scale: Tensor
    key: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Measurement:
        return self.batch([index])

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Matrix size of every item."""
        return [(int(self.coil_maps.shape[-2]), int(self.coil_maps.shape[-1]))] * len(self)

    @property
    def gigabytes(self) -> float:
        """Memory that the tensors take."""
        return sum(t.numel() * t.element_size() for t in (self.lines, self.place, self.coil_maps)) / 2**30

    def batch(self, items: Sequence[int]) -> Measurement:
        """Rows as a Measurement in hybrid space, on the device."""
        rows = _index(items, self.lines.device)
        place, lines = self.place[rows], self.lines[rows]
        y = lines.gather(3, place[:, None, None, :].expand(*lines.shape[:3], place.shape[1]))
        mask = (place < self.lines.shape[-1] - 1)[:, None, None]
        return Measurement(
            y=y,
            mask=mask,
            coil_maps=self.coil_maps[rows],
            noise_std=self.noise_std[rows],
            scale=self.scale[rows],
            key=tuple(self.key[i] for i in items),
            axes=(-1,),
        )


@dataclass(frozen=True)
class ResidentImages:
    """Images on one device: (n, 1, H, W) complex64, scaled units, and their keys."""

    images: Tensor
    key: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ImageBatch:
        return self.batch([index])

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Matrix size of every item."""
        return [(int(self.images.shape[-2]), int(self.images.shape[-1]))] * len(self)

    @property
    def gigabytes(self) -> float:
        """Memory that the images take."""
        return self.images.numel() * self.images.element_size() / 2**30

    def batch(self, items: Sequence[int]) -> ImageBatch:
        """Rows as a batch, on the device."""
        return ImageBatch(self.images[_index(items, self.images.device)], tuple(self.key[i] for i in items))

    def by_key(self) -> dict[str, Tensor]:
        """Images (1, 1, H, W) by key, on the CPU."""
        images = self.images.cpu()
        return {k: images[i : i + 1] for i, k in enumerate(self.key)}


def load_scans(folder: Path, device: torch.device | str) -> ResidentScans:
    """All scans of a folder that :func:`simulation.simulate` filled.

    Raises:
        DataError: If there is none.
    """
    parts = [(p.stem, torch.load(p, weights_only=True, mmap=True)) for p in _files(folder / "scans")]
    count = sum(len(p["lines"]) for _, p in parts)
    coils = max(p["lines"].shape[1] for _, p in parts)
    length = max(p["lines"].shape[3] for _, p in parts)
    height, width = parts[0][1]["coil_maps"].shape[-2:]
    lines = torch.zeros(count, coils, height, length + 1, dtype=torch.complex64, device=device)
    coil_maps = torch.zeros(count, coils, height, width, dtype=torch.complex64, device=device)
    place = torch.full((count, width), length, dtype=torch.int64)
    start, keys = 0, []
    for name, part in parts:
        rows = slice(start, start + len(part["lines"]))
        here, sampled = part["lines"].shape[1], part["lines"].shape[3]
        lines[rows, :here, :, :sampled] = part["lines"].to(device)
        coil_maps[rows, :here] = part["coil_maps"].to(device)
        place[rows] = _places(part["columns"].long(), part["mask"], length)
        keys += [f"{name}/{i}" for i in part["slice"].tolist()]
        start = rows.stop
    small = {n: torch.cat([p[n] for _, p in parts]).to(device) for n in ("noise_std", "scale")}
    return ResidentScans(lines, place.to(device), coil_maps, small["noise_std"], small["scale"], tuple(keys))


def load_images(folder: Path, device: torch.device | str) -> ResidentImages:
    """The reference images of a folder that :func:`simulation.simulate` filled, in the order of its scans."""
    parts = [(p.stem, torch.load(p, weights_only=True)) for p in _files(folder / "references")]
    keys = tuple(f"{name}/{i}" for name, part in parts for i in part["slice"].tolist())
    return ResidentImages(torch.cat([part["images"] for _, part in parts]).to(device), keys)


def _files(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.glob("*.pt") if not p.name.startswith("."))
    require(bool(found), f"{folder} holds no scan: run the phase 'simulate' first.", DataError)
    return found


def _places(columns: Tensor, mask: Tensor, none: int) -> Tensor:
    """(n, W): position in ``columns`` of every sampled column, ``none`` elsewhere."""
    place = torch.zeros(mask.shape, dtype=torch.int64)
    place.scatter_(1, columns, torch.arange(columns.shape[1]).expand_as(columns))
    return torch.where(mask, place, none)


def _index(items: Sequence[int], device: torch.device) -> Tensor:
    """Item numbers on the device; from pinned memory, so that the host need not wait for the copy."""
    index = torch.tensor(items, dtype=torch.int64)
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)


class _Loader:
    """Batches of given items; what Lightning iterates over. Its place follows from the sampler's start alone."""

    def __init__(self, data: ResidentScans | ResidentImages, batches: StepSampler | list[list[int]]) -> None:
        self.data, self.batches = data, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return (self.data.batch(items) for items in self.batches)


class ResidentData(pl.LightningDataModule):
    """Loaders over resident data, with the batches that :class:`StepSampler` gives at every step.

    Args:
        train: Training set.
        val: Held-out set.
        batch_size: Rows a step.
        seed: Training seed.
        val_items: At most this many held-out rows, evenly spaced.
    """

    def __init__(
        self,
        train: ResidentScans | ResidentImages,
        val: ResidentScans | ResidentImages,
        *,
        batch_size: int,
        seed: int,
        val_items: int = 64,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.batch_size, self.seed, self.val_items = batch_size, seed, val_items

    def sampler(self, start: int) -> StepSampler:
        """Which rows every step trains on, from step ``start``."""
        return StepSampler(self.train.sizes, self.batch_size, LONGEST, self.seed, start=start)

    def train_dataloader(self) -> _Loader:
        """Batches from the trainer's step on."""
        return _Loader(self.train, self.sampler(self.trainer.global_step if self.trainer else 0))

    def val_dataloader(self) -> _Loader:
        """The same held-out rows at every validation."""
        chosen = evenly(len(self.val), self.val_items)
        size = min(self.batch_size, 64)
        return _Loader(self.val, [chosen[i : i + size] for i in range(0, len(chosen), size)])
