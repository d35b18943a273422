"""Simulated scans in parallel, stored compactly: a file a volume and part, for :mod:`resident` to load onto a device.

A file holds the sampled columns of k-space (hybrid space: the readout is an image axis already, see
``Measurement.cancel_readout``), where they belong, coil maps, noise level and scale. Reference images lie in files of
their own. Lightning is not imported here: many processes are started for this alone.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import DataError, require
from ambient_mri.data.simulate import Simulation, simulate_scan
from ambient_mri.masks import SamplingLaw

__all__ = ["Task", "evenly", "simulate"]


@dataclass(frozen=True)
class Task:
    """One volume to simulate.

    Attributes:
        name: Of the volume; with ``seed`` it decides everything that is drawn.
        images: (slices, H, W).
        law: What the mask is drawn from.
        seed: Data seed.
        scanner: Of the simulation.
        mask_per: "volume" or "slice".
        slices: Keep at most this many slices, evenly spaced; 0 for all.
        folder: Receives ``scans/NAME.pt`` and ``references/NAME.pt``.
    """

    name: str
    images: np.ndarray
    law: SamplingLaw
    seed: int
    scanner: Simulation
    mask_per: str
    slices: int
    folder: Path

    @property
    def target(self) -> Path:
        """The file that is written last."""
        return self.folder / "scans" / f"{self.name}.pt"


def simulate(tasks: Sequence[Task], *, processes: int = 0, deadline: float = float("inf")) -> bool:
    """Simulate what is missing, in parallel.

    Args:
        tasks: The volumes.
        processes: 0 for one a core; 1 works in this process.
        deadline: ``time.monotonic()`` at which to stop; volumes that are finished stay.

    Returns:
        Whether everything is there.
    """
    missing = [t for t in tasks if not t.target.is_file()]
    for folder in {t.folder for t in missing}:
        for part in ("scans", "references"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    workers = min(processes or len(os.sched_getaffinity(0)), len(missing))
    if workers <= 1:
        for task in missing:
            if time.monotonic() > deadline:
                return False
            _simulate_one(task)
        return True
    # Spawned, not forked: threads and an initialised GPU do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.imap_unordered(_simulate_one, missing):
            if time.monotonic() > deadline:
                return False
    return True


def _simulate_one(task: Task) -> str:
    found = simulate_scan(
        task.images, law=task.law, seed=task.seed, scan_id=task.name, settings=task.scanner, mask_per=task.mask_per
    )
    keep = evenly(len(found.scan), task.slices)
    m = found.scan.measurement()
    require(m.mask.shape[-2] == 1, f"{task.name}: masks must vary along the columns alone.", DataError)
    masks = m.mask.expand(len(m), 1, 1, -1)[keep, 0, 0]  # (slices, W)
    count = int(masks.sum(dim=1).max())
    # Sampled columns first, in order; slices with fewer of them are filled up with columns that hold zeros.
    order = masks.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    hybrid = m.cancel_readout().y[keep]
    index = order[:, None, None, :].expand(*hybrid.shape[:3], count)
    content = {
        "lines": hybrid.gather(3, index).contiguous(),
        "columns": order.to(torch.int16),
        "mask": masks,
        "coil_maps": m.coil_maps[keep].contiguous(),  # type: ignore[index]
        "noise_std": m.noise_std[keep],
        "scale": m.scale[keep],
        "slice": torch.tensor(keep),
    }
    references = torch.from_numpy(found.images[keep] / np.float32(found.scan.scale))
    _save({"images": references, "slice": torch.tensor(keep)}, task.folder / "references" / f"{task.name}.pt")
    _save(content, task.target)
    return task.name


def _save(content: dict[str, Tensor], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(content, temporary)
    os.replace(temporary, path)


def evenly(count: int, wanted: int) -> list[int]:
    """``wanted`` of the numbers below ``count``, evenly spaced; all of them where ``wanted`` is 0."""
    if wanted <= 0 or wanted >= count:
        return list(range(count))
    return [int((i + 0.5) * count / wanted) for i in range(wanted)]
