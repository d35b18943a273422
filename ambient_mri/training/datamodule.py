"""Loaders for Lightning: batches of one matrix size whose content is a function of (seed, step).

The whole run is one pass over the sampler, ``max_steps`` batches long; data epochs exist inside the sampler only. A
resumed run starts the sampler at the step it had reached, so that nothing is read twice to catch up.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import pytorch_lightning as pl
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from ambient_mri._checks import require
from ambient_mri.data.datasets import ImageBatch, ImageDataset, ScanDataset, StepSampler
from ambient_mri.measurement import Measurement
from ambient_mri.tensors import keyed_generator
from ambient_mri.training.natural import CorruptedImages

__all__ = ["ResumableLoader", "TrainingData"]

TrainingSet: TypeAlias = ScanDataset | ImageDataset | CorruptedImages


class ResumableLoader(DataLoader[Any]):
    """A loader whose place in the data follows from the sampler's start alone: it has no state of its own to save."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the trainer's step says it all."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class TrainingData(pl.LightningDataModule):
    """Training and validation loaders.

    Args:
        train: Training set.
        val: Held-out set, another split by subject; None for no validation.
        max_steps: Optimiser steps of the whole run.
        batch_size: Items a step, all processes together.
        seed: Training seed.
        num_workers: Loader processes; 0 loads in the training process, best where volumes are in memory.
        val_items: At most this many held-out items, evenly spaced.
    """

    def __init__(
        self,
        train: TrainingSet,
        val: TrainingSet | None,
        *,
        max_steps: int,
        batch_size: int = 16,
        seed: int = 0,
        num_workers: int = 0,
        val_items: int = 64,
    ) -> None:
        super().__init__()
        require(max_steps > 0, f"max_steps must be positive; got {max_steps}.")
        self.train, self.val, self.max_steps = train, val, max_steps
        self.batch_size, self.seed, self.num_workers, self.val_items = batch_size, seed, num_workers, val_items

    def train_dataloader(self) -> ResumableLoader:
        """The batches from the present step to the last."""
        trainer = self.trainer
        require(trainer is not None, "TrainingData is used through a Trainer.")
        accumulate = trainer.accumulate_grad_batches  # type: ignore[union-attr]
        sampler = StepSampler(
            self.train.sizes,
            self.batch_size,
            self.max_steps * accumulate,
            self.seed,
            start=trainer.global_step * accumulate,  # type: ignore[union-attr]
            rank=trainer.global_rank,  # type: ignore[union-attr]
            world_size=trainer.world_size,  # type: ignore[union-attr]
        )
        return self._loader(self.train, sampler)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Held-out batches, one matrix size each, always the same."""
        if self.val is None:
            return []
        step = max(1, -(-len(self.val) // max(self.val_items, 1)))
        chosen = range(0, len(self.val), step)
        sizes = self.val.sizes
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches: list[list[int]] = []
        for size in sorted({sizes[i] for i in chosen}):
            group = [i for i in chosen if sizes[i] == size]
            batches.extend(group[j : j + self.batch_size] for j in range(0, len(group), self.batch_size))
        # Every process validates the same number of batches, or the collective calls of logging would wait for ever.
        shared = batches[rank::world_size][: max(1, len(batches) // world_size)] or batches[:1]
        return self._loader(self.val, _FixedBatches(shared))

    def _loader(self, items: TrainingSet, sampler: Any) -> ResumableLoader:
        collate = ImageDataset.collate if isinstance(items, ImageDataset) else Measurement.collate
        return ResumableLoader(
            items,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=keyed_generator(self.seed, "loader"),  # else the loader draws from torch's own stream
        )


class _FixedBatches(BatchSampler):
    """Batches given in advance."""

    def __init__(self, batches: list[list[int]]) -> None:
        super().__init__(SequentialSampler(range(len(batches))), 1, False)
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


BatchType: TypeAlias = Measurement | ImageBatch
