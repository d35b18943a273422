"""The E-step under Lightning: volumes shared among the processes of ``Trainer.predict``, one image file a volume.

Process r of w takes every w-th volume from the r-th on. What is written already is skipped, so an interrupted E-step
goes on where it was, with any number of processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ambient_mri.prior import Prior
from ambient_mri.sampling.base import Sampler
from ambient_mri.training.em import METHODS, Reconstruct, reconstruct_rows, reconstruct_volume

__all__ = ["Reconstruction", "by_method", "by_prior"]

log = logging.getLogger(__name__)

_SAY_EVERY = 30.0


class Reconstruction(pl.LightningModule):
    """What ``Trainer.predict`` runs: each step reconstructs one volume and writes it.

    Args:
        reconstruct: See :data:`~ambient_mri.training.em.Reconstruct`; rows come on the process's device.
        scans: Prepared files, the same list in every process.
        folder: Where the image files go, under the names of the scans.
        made_by: Recorded in the files.
        batch_size: Slices at a time.
        model: The network, so that it is moved to the process's device; None where there is none.
    """

    def __init__(
        self,
        reconstruct: Reconstruct,
        scans: Sequence[Path],
        folder: Path,
        *,
        made_by: str,
        batch_size: int = 8,
        model: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.reconstruct, self.scans, self.folder = reconstruct, list(scans), folder
        self.made_by, self.slices_at_a_time = made_by, batch_size
        self.model = torch.nn.Identity() if model is None else model
        self._said = time.monotonic()

    def predict_dataloader(self) -> DataLoader[Any]:
        """The numbers of this process's volumes."""
        mine = range(self.trainer.global_rank, len(self.scans), self.trainer.world_size)
        return DataLoader(list(mine), batch_size=None)  # type: ignore[arg-type]

    def predict_step(self, index: int, batch_idx: int) -> str:
        """Reconstruct and write one volume; its name."""
        path = self.scans[index]
        reconstruct_volume(
            lambda m: self.reconstruct(m.to(self.device)),
            path,
            self.folder / path.name,
            made_by=self.made_by,
            batch_size=self.slices_at_a_time,
        )
        if time.monotonic() - self._said > _SAY_EVERY and self.trainer.is_global_zero:
            self._said = time.monotonic()
            log.info("E-step: volume %d of %d", index + 1, len(self.scans))
        return path.name

    def on_predict_end(self) -> None:
        """Every process goes on when the last volume is written."""
        self.trainer.strategy.barrier("e-step")


def by_prior(
    prior: Prior, sampler: Sampler, seed: int, scans: Sequence[Path], folder: Path, *, batch_size: int
) -> Reconstruction:
    """The E-step under a prior: its posterior samples, or the one-step reconstructions of an ambient network."""
    return Reconstruction(
        lambda m: reconstruct_rows(prior, m, sampler, seed),
        scans,
        folder,
        made_by=f"E-step, {sampler.name}, prior {prior.name}",
        batch_size=batch_size,
        model=prior.model,
    )


def by_method(method: str, scans: Sequence[Path], folder: Path, *, batch_size: int) -> Reconstruction:
    """The E-step by a baseline that needs no prior, one of :data:`~ambient_mri.training.em.METHODS`."""
    return Reconstruction(METHODS[method], scans, folder, made_by=f"E-step, {method}", batch_size=batch_size)
