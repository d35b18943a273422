"""Restorations of natural images on disk: what an E-step leaves for the M-step.

A folder holds files of 256 images, ``images_00000.npz``: ``images`` (n, c, H, W) float32, not clipped to [-1, 1], and
``numbers`` (n,), their numbers in the set; and ``made_by.json``.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ambient_mri._checks import DataError, require
from ambient_mri.data.datasets import ImageDataset

__all__ = ["RestoredImages", "made_by", "stored_numbers"]


class RestoredImages(ImageDataset):
    """Images that an E-step wrote, in memory, (1, c, H, W) an item.

    Args:
        folder: Of a :func:`~ambient_mri.training.natural_em.restoration`.
        numbers: The images that are wanted, in this order.
        name: Of the set, for the keys.

    Raises:
        DataError: If the folder holds no restorations, a file is damaged, or images are missing.
    """

    def __init__(self, folder: Path, numbers: Sequence[int], name: str) -> None:
        found = _read(folder)
        missing = [n for n in numbers if n not in found]
        require(
            not missing,
            f"{folder} holds {len(found)} restorations and lacks {len(missing)} of the {len(numbers)} images, the "
            f"first is image {(missing or [0])[0]}. Run the E-step to its end, on the same data.",
            DataError,
        )
        self._images = [torch.from_numpy(np.stack([found[n] for n in numbers]))]
        self._keys = [tuple(f"{name}/{n}" for n in numbers)]
        self.files = sorted(folder.glob("images_*.npz"))
        self._starts = np.array([0, len(numbers)])


def stored_numbers(folder: Path) -> frozenset[int]:
    """Which images a folder of restorations holds."""
    return frozenset(_read(folder))


def made_by(folder: Path) -> dict[str, Any]:
    """What :func:`~ambient_mri.training.em.claim` recorded on the restorations; empty where there is no record."""
    stored = folder / "made_by.json"
    return dict(json.loads(stored.read_text())) if stored.is_file() else {}


def _read(folder: Path) -> dict[int, np.ndarray]:
    files = sorted(folder.glob("images_*.npz"))
    require(
        len(files) > 0,
        f"data.references={folder} holds no images_*.npz: for natural images it is the folder of an E-step, "
        "RUN/round_<k>/reconstructions of an objective=em run.",
        DataError,
    )
    found: dict[int, np.ndarray] = {}
    for file in files:
        try:
            with file.open("rb") as handle, np.load(handle, allow_pickle=False) as loaded:
                found |= dict(zip(loaded["numbers"].tolist(), loaded["images"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{file}: cannot be read ({error}). Delete it and run the E-step again.") from error
    return found
