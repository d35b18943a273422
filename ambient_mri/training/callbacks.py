"""Lightning callbacks: averaged weights, throughput, progress in a log file, one-step quality, pictures, export."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar, WeightAveraging
from torch import Tensor

from ambient_mri._checks import check_positive
from ambient_mri.corruption import Corruption, ImageCorruption
from ambient_mri.data.datasets import ImageBatch
from ambient_mri.denoiser import ConditionalDenoiser
from ambient_mri.measurement import Measurement
from ambient_mri.metrics import psnr
from ambient_mri.operators import LinearOperator, sense
from ambient_mri.sampling import OneStep, ambient_denoiser
from ambient_mri.tensors import keyed_generator, per_row, randn_like_rows

__all__ = [
    "EMA",
    "OneStepQuality",
    "PeriodicExport",
    "ProgressLines",
    "SampleSheets",
    "Throughput",
    "checkpoints",
    "one_step",
    "progress_bar",
]

log = logging.getLogger(__name__)


class EMA(WeightAveraging):
    """Exponential moving average of the weights whose half-life is a share of the steps taken so far.

        decay at step n = (1/2)^(1 / (half_life n)),         so that the half-life is half_life n at every n

    The average warms up by itself and does not depend on the planned length of the run. Validation, checkpoints (under
    ``state_dict``; the raw weights are kept beside them) and the exported prior use the averaged weights.

    Args:
        half_life: Share of the run.

    Source: Karras et al. 2024, arXiv:2312.02696, section 3.1 (power-function averaging: a half-life in step with the
    run).
    """

    def __init__(self, half_life: float = 0.05) -> None:
        check_positive("half_life", half_life)
        self.half_life = half_life
        super().__init__(use_buffers=False, multi_avg_fn=self._average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average where the model is going to be: at this point it is still on the CPU."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average after every optimiser step. The count is the trainer's: torch's own, on the GPU, is waited for."""
        step = trainer.global_step
        if step <= self._latest_update_step or self._average_model is None:
            return
        averaged = [p.detach() for p in self._average_model.module.parameters()]
        current = [p.detach() for p in pl_module.parameters()]
        if step == 1:
            torch._foreach_copy_(averaged, current)
        else:
            self._average(averaged, current, step - 1)
        self._average_model.n_averaged += 1
        self._latest_update_step = step

    @torch.no_grad()
    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        decay = 0.5 ** (1 / (self.half_life * max(int(count), 1)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - decay)

    def restore(self, module: pl.LightningModule) -> None:
        """Give ``module`` the averaged weights."""
        self._copy_average_to_current(module)


class Throughput(pl.Callback):
    """Logs ``train/images_per_second`` over the steps since the last log, and the learning rate."""

    def __init__(self) -> None:
        self._since, self._images = time.perf_counter(), 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since, self._images = time.perf_counter(), 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since, self._images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch) * trainer.world_size
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        now = time.perf_counter()
        rate = self._images / max(now - self._since, 1e-9)
        pl_module.log("train/images_per_second", rate, rank_zero_only=True)
        pl_module.log("train/lr", trainer.optimizers[0].param_groups[0]["lr"], rank_zero_only=True)
        self._since, self._images = now, 0


class ProgressLines(pl.Callback):
    """One line of progress every ``seconds``, for logs that no terminal shows."""

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds, self._last, self._first = seconds, 0.0, (0, 0.0)
        self._mean = _RunningMean()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last, self._first = time.monotonic(), (trainer.global_step, time.monotonic())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._mean.add(outputs["loss"].detach() if isinstance(outputs, Mapping) else outputs.detach())
        now = time.monotonic()
        if now - self._last < self.seconds and trainer.global_step < trainer.max_steps:
            return
        self._last = now
        start, since = self._first
        per_step = (now - since) / max(trainer.global_step - start, 1)
        left = per_step * (trainer.max_steps - trainer.global_step)
        rate = len(batch) * trainer.world_size * trainer.accumulate_grad_batches / per_step
        text = "step %d of %d | mean loss %.4g | %.1f images/s | %d min left"
        log.info(text, trainer.global_step, trainer.max_steps, self._mean.take(), rate, left / 60)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        if values and not trainer.sanity_checking:
            log.info("step %d | %s", trainer.global_step, " | ".join(f"{k} {v:.4g}" for k, v in sorted(values.items())))


class OneStepQuality(pl.Callback):
    """Logs ``val/one_step_psnr`` of an ambient network, against references that training never sees.

    PSNR of the magnitude, the reference slice's maximum as data range.

    Args:
        references: Scaled reference images (1, 1, H, W) by key, of simulated sets.
    """

    def __init__(self, references: Mapping[str, Tensor]) -> None:
        self.references = references

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        model = pl_module.model
        if not isinstance(model, ConditionalDenoiser) or not all(k in self.references for k in batch.key):
            return
        pairs = zip(one_step(model, batch).abs().cpu(), (self.references[k][0].abs() for k in batch.key), strict=True)
        values = [psnr(reference, estimate) for estimate, reference in pairs]
        pl_module.log("val/one_step_psnr", sum(values) / len(values), batch_size=len(batch), sync_dist=True)


class SampleSheets(pl.Callback):
    """Pictures of held-out slices after every validation, ``samples/step00001000.png``; must stand before :class:`EMA`.

    Ambient networks: back-projection, one-step reconstruction, and the reference where there is one. Clean denoisers:
    image, noisy image, denoised image.

    Args:
        folder: Where the pictures go.
        references: As for :class:`OneStepQuality`; may be empty.
        count: Slices in a picture.
    """

    def __init__(self, folder: Path, references: Mapping[str, Tensor], count: int = 4) -> None:
        self.folder, self.references, self.count = folder, references, count
        self._batch: Measurement | ImageBatch | None = None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:
            self._batch = batch

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._batch is None or not trainer.is_global_zero or trainer.sanity_checking:
            return
        from ambient_mri.report.plots import sample_sheet

        rows, columns = self._rows(pl_module.model, self._batch, getattr(pl_module.objective, "corruption", None))
        self._batch = None
        self.folder.mkdir(parents=True, exist_ok=True)
        pictures = [image for row in zip(*rows, strict=True) for image in row]
        path = self.folder / f"step{trainer.global_step:08d}.png"
        names = [columns[i % len(columns)] for i in range(len(pictures))]
        sample_sheet(
            pictures, path, names=names, num_columns=len(columns), title=f"held-out slices, step {trainer.global_step}"
        )

    def _rows(
        self, model: Any, batch: Measurement | ImageBatch, corruption: Corruption | None
    ) -> tuple[list[Tensor], list[str]]:
        """One tensor (n, H, W) a column, and the columns' names."""
        if isinstance(batch, ImageBatch):
            images = batch.images[: self.count]
            sigma = torch.full((len(images),), 0.5 * model.sd, device=images.device)
            generators = [keyed_generator("sheet", i) for i in range(len(images))]
            noisy = images + per_row(sigma, images) * randn_like_rows(images, generators)
            columns = {"image": images, "sigma = sd/2": noisy, "denoised": model(noisy, sigma)}
        else:
            m = batch[: self.count]
            columns = {
                "back-projected": _operator(m, corruption).adjoint(m.y),
                "one step": one_step(model, m, corruption),
            }
            if all(k in self.references for k in m.key):
                columns["reference"] = torch.cat([self.references[k] for k in m.key])
        return [_shown(c) for c in columns.values()], list(columns)


class PeriodicExport(pl.Callback):
    """Exports the prior after every validation, with the averaged weights; must stand before :class:`EMA` in the list.

    Args:
        export: Called with the module and the number of steps taken.
    """

    def __init__(self, export: Callable[[Any, int], object]) -> None:
        self.export = export

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking and trainer.global_step > 0:
            self.export(pl_module, trainer.global_step)


def checkpoints(folder: Path, every: int) -> ModelCheckpoint:
    """The newest checkpoint, written atomically every ``every`` steps, and ``last.ckpt`` as a link to it."""
    return ModelCheckpoint(
        dirpath=folder,
        filename="step{step:08d}",
        auto_insert_metric_name=False,
        every_n_train_steps=every,
        save_top_k=1,
        save_last="link",
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )


def progress_bar() -> pl.Callback:
    """Rich in a terminal, tqdm where rich is missing, lines in a log file."""
    if not sys.stderr.isatty():
        return ProgressLines()
    try:
        return RichProgressBar(leave=True)
    except ModuleNotFoundError:
        return TQDMProgressBar()


@torch.no_grad()
def one_step(model: ConditionalDenoiser, m: Measurement, corruption: Corruption | None = None) -> Tensor:
    """One-step reconstructions (b, c, H, W) of scans, or of images under their ``corruption``, by an ambient network.

    One that was trained with noise of the image has no input for measured noise: it gets y as noise-free, at its lowest
    sigma, as published.
    """
    if model.noise_domain == "image":
        lowest = torch.full((len(m),), model.sigma_min, device=m.y.device)
        return model(m.y, lowest, _operator(m, corruption), m.mask.expand(len(m), *m.mask.shape[1:]))
    generators = [keyed_generator("one step", key) for key in m.key]
    if isinstance(corruption, ImageCorruption):
        denoiser = model.as_denoiser(corruption, m, generators)
    else:
        denoiser = ambient_denoiser(model, m, generators)
    return OneStep().sample(denoiser, _operator(m, corruption), m.y, m.noise_std, generators=generators).x


def _operator(m: Measurement, corruption: Corruption | None) -> LinearOperator:
    if isinstance(corruption, ImageCorruption):
        return corruption.forward_operator(m)
    return sense(m.coil_maps, m.mask, axes=m.axes)  # type: ignore[arg-type]


def _shown(images: Tensor) -> Tensor:
    """What a grey picture shows, (n, H, W): the magnitude, or the brightness of a real image in [-1, 1]."""
    if images.is_complex():
        return images[:, 0].abs().cpu()
    return ((images.mean(dim=1) + 1) / 2).clamp(0, 1).cpu()


class _RunningMean:
    """Mean of the losses since it was last taken."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, value: Tensor) -> None:
        self.total, self.count = self.total + value, self.count + 1

    def take(self) -> float:
        mean = float(self.total) / max(self.count, 1)
        self.total, self.count = 0.0, 0
        return mean
