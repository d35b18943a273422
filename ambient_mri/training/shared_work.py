"""Work shared among the processes of ``Trainer.predict``: many pieces, each of which leaves one file.

What is there is never made again. The pieces that are missing are counted once, by the first process, and dealt out in
turn: interrupted work goes on where it was, with any number of processes, and each of them has as much left to do.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import nn
from torch.utils.data import DataLoader

from ambient_mri._checks import AmbientMRIError, require

__all__ = ["EXPECTED_WARNINGS", "SharedWork", "is_first", "processes_on", "share"]

log = logging.getLogger(__name__)

_SAY_EVERY = 30.0
# One process waits for the others until their last file is written: longer than Lightning's half an hour.
_PATIENCE = timedelta(days=1)
# Lightning's advice that does not apply here, and why.
EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # what it loads is in memory
    ".*across ranks is zero.*",  # nothing is left to do, or there are no held-out scans
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # between Lightning and torch
    "GPU available but not used.*",  # the CPU was asked for
)


class SharedWork(pl.LightningModule):
    """What ``Trainer.predict`` runs: each step makes one file.

    Args:
        name: Of the work, for the log.
        files: What is to be made, the same list in every process.
        make: (index, device) -> None: write ``files[index]``, whole or not at all.
        models: Networks that ``make`` uses, so that they are moved to the process's device.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        make: Callable[[int, torch.device], object],
        models: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.name, self.files, self.make = name, list(files), make
        self.models = nn.ModuleList(models)
        # Fewer pieces than processes: some have nothing to do.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._said = time.monotonic()

    def predict_dataloader(self) -> DataLoader[Any]:
        """The numbers of this process's files."""
        trainer = self.trainer
        missing = [i for i, file in enumerate(self.files) if not file.is_file()]
        # The first process's list for all of them: a quick one may have written a file before a slow one looks.
        missing = trainer.strategy.broadcast(missing)
        return DataLoader(missing[trainer.global_rank :: trainer.world_size], batch_size=None)  # type: ignore[arg-type]

    def predict_step(self, index: int, batch_idx: int) -> int:
        """Make one file; its number.

        Raises:
            SIGTERMException: If the process was asked to end, which Lightning notes and looks for in training alone.
        """
        if self.trainer.received_sigterm:
            raise SIGTERMException
        self.make(index, self.device)
        if time.monotonic() - self._said > _SAY_EVERY and self.trainer.is_global_zero:
            self._said = time.monotonic()
            log.info("%s: file %d of %d", self.name, index + 1, len(self.files))
        return index


def share(work: SharedWork, trainer: pl.Trainer) -> None:
    """Make the files that are missing; every process goes on when the last one is written."""
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        trainer.predict(work, return_predictions=False)
    trainer.strategy.barrier(work.name)


def processes_on(device: torch.device, count: int) -> pl.Trainer:
    """A trainer of ``count`` processes on this machine, one a GPU, or all on the CPU.

    Lightning starts them by the command line of this one; under torchrun they are there already.

    Raises:
        AmbientMRIError: If there are not as many GPUs, or one of them was named.
    """
    if device.type == "cuda":
        known = torch.cuda.device_count()
        require(count <= known, f"{count} processes need as many GPUs; PyTorch sees {known}.")
        if device.index is not None:
            raise AmbientMRIError(f"{device} is one GPU, and {count} processes take one each: say cuda.")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=count,
        strategy=DDPStrategy(timeout=_PATIENCE),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,  # samplers that differentiate the network need more than that allows
    )


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0
