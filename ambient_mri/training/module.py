"""The LightningModule around a model and an objective: optimiser, learning rate, random streams, finite losses.

Row i of batch s draws its augmentation, further mask and noise from one generator keyed by (seed, s, place in the
batch): the same for any worker, rank or resumed run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ambient_mri._checks import AmbientMRIError, check_option
from ambient_mri.data.augment import Augmentation
from ambient_mri.data.datasets import ImageBatch
from ambient_mri.measurement import Measurement
from ambient_mri.networks.compiled import compile_network
from ambient_mri.objectives import Loss, Objective
from ambient_mri.prior import KINDS
from ambient_mri.tensors import RowGenerators, RowStreams, keyed_generator

__all__ = ["NonFiniteLossError", "TrainingModule", "learning_rate_factor"]

# On a GPU, reading a loss waits for the device; it is read this many batches at a time.
_CHECK_EVERY = 16


class NonFiniteLossError(AmbientMRIError):
    """The loss became NaN or infinite; the message names the batch."""


class TrainingModule(pl.LightningModule):
    """Train a model with an objective.

    Args:
        model: A Denoiser (objective of kind "clean") or a ConditionalDenoiser (any other kind).
        objective: Callable (model, batch, generators) -> Loss.
        max_steps: Optimiser steps of the whole run; the learning rate ends at zero there.
        seed: Training seed.
        augmentation: Law of the augmentations; None for none.
        lr: Highest learning rate.
        betas: Of Adam.
        weight_decay: Decoupled weight decay (AdamW).
        warmup_steps: Steps of linear warm-up; at most a tenth of the run.
        compile: Compile the network (:func:`~ambient_mri.networks.compiled.compile_network`).
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        max_steps: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        warmup_steps: int = 200,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_option("objective.kind", objective.kind, KINDS)
        self.model, self.objective, self.augmentation = model, objective, augmentation
        self.max_steps, self.seed = max_steps, seed
        self.lr, self.betas, self.weight_decay = lr, (float(betas[0]), float(betas[1])), weight_decay
        self.warmup_steps = max(1, min(warmup_steps, max_steps // 10))
        self.trained = False
        self._pending: list[tuple[Tensor, tuple[str, ...], int]] = []
        if compile:
            compile_network(self.model.network)  # type: ignore[arg-type]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Bring the weights of a network that has a normal form back to it; what it computes stays the same."""
        normalize = getattr(getattr(self.model, "network", None), "normalize_", None)
        if normalize is not None:
            normalize()

    def training_step(self, batch: Measurement | ImageBatch, batch_idx: int) -> Tensor:
        """One loss, logged under ``train/``."""
        self.trained = True
        loss = self._loss(batch, self.generators(batch_idx, len(batch)), self.augmentation)
        self._pending.append((loss.value.detach(), batch.key, batch_idx))
        if self.device.type == "cpu" or len(self._pending) >= _CHECK_EVERY:
            self.check_losses()
        logs = {"loss": loss.value.detach(), **{k: v.detach() for k, v in loss.logs.items()}}
        self.log_dict({f"train/{k}": v for k, v in logs.items()}, batch_size=len(batch))
        self.log("train/loss_now", loss.value.detach(), prog_bar=True, logger=False, batch_size=len(batch))
        return loss.value

    def validation_step(self, batch: Measurement | ImageBatch, batch_idx: int) -> None:
        """The objective on held-out scans, the same draws at every validation, logged as what it is."""
        generators = [keyed_generator(self.seed, "validation", key, device=self.device) for key in batch.key]
        loss = self._loss(batch, generators, None)
        logs = {"objective": loss.value, **loss.logs}
        named = {f"val/{self.objective.kind}_{k}": v for k, v in logs.items()}
        self.log_dict(named, batch_size=len(batch), sync_dist=True)

    def on_validation_start(self) -> None:
        """Run uncompiled until all callbacks are done: a second graph would take longer than the few scans."""
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self) -> None:
        torch.compiler.set_stance("default")

    def check_losses(self) -> None:
        """Raise if a loss since the last check is not finite.

        Raises:
            NonFiniteLossError: Naming the step and the scans of the batch.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        finite = torch.isfinite(torch.stack([loss for loss, _, _ in pending])).tolist()
        for good, (loss, keys, batch_idx) in zip(finite, pending, strict=True):
            if not good:
                raise NonFiniteLossError(
                    f"the loss became {float(loss)} at batch {batch_idx}, on the scans {', '.join(keys)}. Training "
                    "stopped; the last checkpoint is from before. Look at these scans (scale, noise_std), or lower lr."
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Never save weights that came after a non-finite loss."""
        self.check_losses()

    def on_train_end(self) -> None:
        self.check_losses()

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up, cosine to zero."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, self.max_steps, self.warmup_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def generators(self, batch_idx: int, rows: int) -> RowGenerators:
        """One random stream a row of this process's part of a training batch, on the device of the model."""
        rank, world_size = self.global_rank, self.trainer.world_size
        places = range(rank, rank + world_size * rows, world_size)
        if self.device.type != "cpu":  # one kernel a draw, not one a row
            return RowStreams(self.seed, "train", batch_idx, rows=places, device=self.device)
        return [keyed_generator(self.seed, "train", batch_idx, place) for place in places]

    def _loss(
        self,
        batch: Measurement | ImageBatch,
        generators: RowGenerators,
        augmentation: Augmentation | None,
    ) -> Loss:
        if isinstance(batch, ImageBatch):
            images = batch.images if augmentation is None else augmentation.images(batch.images, generators)
            return self.objective(self.model, images, generators)
        if augmentation is not None:
            batch = augmentation.measurements(batch, generators)
        return self.objective(self.model, batch, generators)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advance the schedule."""
        scheduler.step()


def learning_rate_factor(step: int, max_steps: int, warmup_steps: int) -> float:
    """Linear from 1/warmup to one, then a half cosine to zero at ``max_steps``."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
    return 0.5 * (1 + math.cos(math.pi * progress))


def load_matching(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Take over the weights that fit ``model`` by name and shape.

    Returns:
        Names taken over, and names of the model that kept their fresh initialisation.
    """
    own = model.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    return sorted(fitting), sorted(set(own) - set(fitting))
