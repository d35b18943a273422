"""Training stages that fit their time: ambient, the M-steps of expectation-maximisation, supervised; and the E-steps.

A training stage is the package's own stack (TrainingModule, EMA, checkpoints, MetricsFile, PeriodicExport;
``trainer=gpu``) on resident data. During its first seconds, the warm-up of the learning rate, it measures images per
second; then it fixes its number of steps so that the cosine ends inside the time it was given. From then on it is an
ordinary run: killed or out of time, the same command goes on from the newest checkpoint.

    stage folder: plan.json architecture.json metrics.csv checkpoints/ prior/ done.json
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from compiling import synchronize
from omegaconf import DictConfig, OmegaConf
from resident import LONGEST, ResidentData, ResidentImages, ResidentScans
from torch import Tensor

from ambient_mri.prior import Prior, build_model, load_prior
from ambient_mri.sampling import make_sampler
from ambient_mri.training import callbacks as cb
from ambient_mri.training.draws import Draw, second_draws
from ambient_mri.training.em import FRESH_NOISE, reconstruct_rows
from ambient_mri.training.error_curve import error_curve
from ambient_mri.training.export import export_prior, newest_checkpoint, warm_start
from ambient_mri.training.loggers import MetricsFile
from ambient_mri.training.module import TrainingModule
from ambient_mri.training.provenance import provenance, write_json
from ambient_mri.training.setup import build

__all__ = ["Stage", "expectation", "train_stage"]

log = logging.getLogger(__name__)

# The length of a run that is not planned yet.
UNPLANNED = LONGEST
# Share of the planned steps that counts as all of them.
NEARLY = 0.97
# Steps that are not timed: memory is allocated, kernels are chosen and compiled.
_UNTIMED = 5


@dataclass(frozen=True)
class Stage:
    """What one training stage is.

    Attributes:
        name: "ambient", "em1", "em2", ..., "supervised".
        folder: Of the stage.
        minutes: Time to plan for.
        deadline: ``time.monotonic()`` at which the command must stop training, whatever was planned.
        max_steps: Upper bound on the steps, for rehearsals.
        init: Prior folder to start from.
        lr: Highest learning rate.
        compiled: Compile the network.
    """

    name: str
    folder: Path
    minutes: float
    deadline: float
    max_steps: int = UNPLANNED
    init: Path | None = None
    lr: float = 1e-2
    compiled: bool = False

    @property
    def kind(self) -> str:
        """Of the objective and the model."""
        return "ambient" if self.name == "ambient" else "clean"

    @property
    def finished(self) -> bool:
        """Whether the planned steps were taken and the prior exported."""
        return (self.folder / "done.json").is_file()


class Length(pl.Callback):
    """Measures the speed, fixes the length of the run, and stops it at the deadline with a checkpoint.

    Args:
        stage: Time and deadline.
        batch_size: For the record.
        measure: Seconds to measure over.
    """

    def __init__(self, stage: Stage, batch_size: int, measure: float = 20.0) -> None:
        self.stage, self.batch_size = stage, batch_size
        self.seconds = min(60 * stage.minutes, stage.deadline - time.monotonic())
        self.measure = min(measure, 0.2 * self.seconds)
        self.plan_file = stage.folder / "plan.json"
        self._begin = time.monotonic()
        self._since: tuple[int, float] | None = None
        self._first = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        taken = trainer.global_step - self._first
        if not self.plan_file.is_file():
            self._time(trainer, pl_module, taken)
        if time.monotonic() > self.stage.deadline and not trainer.should_stop:
            log.info("%s: out of time at step %d of %d", self.stage.name, trainer.global_step, trainer.max_steps)
            trainer.save_checkpoint(self.stage.folder / "checkpoints" / f"step{trainer.global_step:08d}.ckpt")
            trainer.should_stop = True

    def _time(self, trainer: pl.Trainer, module: Any, taken: int) -> None:
        if taken == _UNTIMED:
            synchronize(module.device)
            self._since = (trainer.global_step, time.monotonic())
        enough = taken >= 2 * _UNTIMED and self._since is not None and time.monotonic() - self._since[1] >= self.measure
        if not enough or self._since is None:
            return
        synchronize(module.device)
        now = time.monotonic()
        rate = (trainer.global_step - self._since[0]) / (now - self._since[1])
        left = max(self.seconds - (now - self._begin), 0.0)
        # Validations, exports and checkpoints take their share, too.
        steps = trainer.global_step + max(int(0.95 * rate * left), _UNTIMED)
        set_length(trainer, module, min(steps, self.stage.max_steps))
        plan = {
            "max_steps": module.max_steps,
            "warmup_steps": module.warmup_steps,
            "batch_size": self.batch_size,
            "images_per_second": rate * self.batch_size,
            "minutes": self.stage.minutes,
        }
        write_json(self.plan_file, plan)
        log.info("%s: %.0f images/s, %d steps planned", self.stage.name, plan["images_per_second"], module.max_steps)


def set_length(trainer: pl.Trainer, module: Any, steps: int) -> None:
    """Fix the length of a running fit; the learning rate's cosine reads it from the module."""
    module.max_steps = steps
    module.warmup_steps = max(1, min(module.warmup_steps, steps // 10))
    trainer.fit_loop.epoch_loop.max_steps = steps


def train_stage(
    stage: Stage,
    cfg: DictConfig,
    objective: Any,
    data: ResidentData,
    *,
    architecture: dict[str, Any],
    metadata: dict[str, Any],
    references: dict[str, Tensor],
) -> bool:
    """Train, or go on; export the prior with the averaged weights.

    Args:
        stage: What and how long.
        cfg: The package's configuration; ``training``, ``augmentation``, ``trainer``, ``ema_half_life`` are read.
        objective: The loss.
        data: Loaders.
        architecture: Plain data that builds the model.
        metadata: For the prior's card.
        references: Of held-out scans, for one-step PSNR of an ambient network.

    Returns:
        Whether the stage is finished.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    stage.folder.mkdir(parents=True, exist_ok=True)
    plan = _read(stage.folder / "plan.json")
    checkpoint = newest_checkpoint(stage.folder / "checkpoints")
    module = _module(stage, cfg, objective, architecture, plan)
    if stage.init is not None and checkpoint is None:
        log.info("%s: %s", stage.name, warm_start(module.model, stage.init))

    def export(trained: Any, step: int) -> Path:
        progress = {"steps": step, "images_seen": step * data.batch_size, "planned_steps": trained.max_steps}
        return export_prior(trained.model, architecture, {**metadata, **progress}, stage.folder / "prior", stage.name)

    trainer = _trainer(stage, cfg, data, export, references, module.max_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders, logging and checkpoint folders
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    # The last steps of a cosine change next to nothing: a run that the deadline cuts there is finished.
    complete = trainer.global_step >= NEARLY * module.max_steps
    if complete and checkpoint is not None and checkpoint.stem == f"step{trainer.global_step:08d}":
        next(c for c in trainer.callbacks if isinstance(c, cb.EMA)).restore(module)  # type: ignore[attr-defined]
    export(module, trainer.global_step)
    if complete and stage.kind == "clean":
        _add_error_curve(stage.folder / "prior", data.val)
    if complete:
        write_json(stage.folder / "done.json", {"steps": trainer.global_step, "minutes": stage.minutes})
    return complete


def _module(
    stage: Stage, cfg: DictConfig, objective: Any, architecture: dict[str, Any], plan: dict[str, Any]
) -> TrainingModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        model = build_model(architecture)
    settings: Any = OmegaConf.to_container(cfg.training, resolve=True)
    settings |= {"lr": stage.lr, "compile": stage.compiled}
    augmentation = build(cfg.augmentation)
    steps = int(plan.get("max_steps", min(UNPLANNED, stage.max_steps)))
    module = TrainingModule(model, objective, max_steps=steps, seed=cfg.seed, augmentation=augmentation, **settings)
    # What the plan was made with: the schedule must not change when the run goes on.
    module.warmup_steps = int(plan.get("warmup_steps", module.warmup_steps))
    return module


def _trainer(
    stage: Stage,
    cfg: DictConfig,
    data: ResidentData,
    export: Callable[[Any, int], Path],
    references: dict[str, Tensor],
    steps: int,
) -> pl.Trainer:
    callbacks: list[pl.Callback] = [cb.ProgressLines(15), cb.Throughput()]
    callbacks += [cb.OneStepQuality(references)] if references and stage.kind == "ambient" else []
    # What looks at the averaged weights after a validation stands before EMA.
    callbacks += [cb.PeriodicExport(export), cb.EMA(cfg.ema_half_life), Length(stage, data.batch_size)]
    callbacks += [cb.checkpoints(stage.folder / "checkpoints", cfg.checkpoint_every)]
    settings: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    settings |= {"max_steps": steps, "val_check_interval": min(settings["val_check_interval"], steps), "devices": 1}
    trainer: pl.Trainer = build(
        settings,
        callbacks=callbacks,
        logger=[MetricsFile(stage.folder / "metrics.csv")],
        default_root_dir=str(stage.folder),
        enable_progress_bar=False,
    )
    return trainer


def _add_error_curve(folder: Path, images: Any) -> None:
    """Measure the clean prior's error on held-out images, where they are, and store it: samplers read it as r_t."""
    prior = load_prior(folder, device=images.images.device)  # the module's is the processor: Lightning took it there
    model: Any = prior.model
    model.set_error_curve(*error_curve(model, images, count=min(64, len(images)), batch_size=32))
    prior.save(folder)


def expectation(
    prior: Prior,
    scans: ResidentScans,
    folder: Path,
    *,
    steps: int,
    start_sd: float | None = None,
    batch_size: int = 256,
    seed: int = 0,
    average: int = 1,
    deadline: float = float("inf"),
) -> ResidentImages | None:
    """The E-step over resident scans: one-step reconstructions of an ambient prior; samples of a clean one, or means.

    Args:
        prior: On the device.
        scans: What to reconstruct.
        folder: Receives one file a batch; files that are there are kept, unless they were made otherwise.
        steps: Noise levels of split Gibbs.
        start_sd: First of them in units of the prior's sd, where not the sampler's own.
        batch_size: Slices at a time.
        seed: Random streams are keyed by (seed, slice).
        average: Samples of a slice whose mean is its image; an ambient prior has one reconstruction alone.
        deadline: ``time.monotonic()`` at which to stop.

    Returns:
        The images, or None where time ran out.
    """
    device = scans.lines.device
    ambient = prior.kind == "ambient"
    made_by = {"weights": prior.weights_hash(), "slices": len(scans), "rows": batch_size, "seed": seed}
    made_by |= {} if ambient else {"steps": steps, "start_sd": start_sd, "average": average}
    _only_made_by(folder, made_by)
    first = None if start_sd is None else start_sd * prior.model.sd
    ladder = {"steps": steps, "sigma_max": first, "eta": FRESH_NOISE}
    sampler = make_sampler("one_step") if ambient else make_sampler("split_gibbs", **ladder)
    parts = []
    for number, start in enumerate(range(0, len(scans), batch_size)):
        path = folder / f"{number:04d}.pt"
        if not path.is_file():
            if time.monotonic() > deadline:
                return None
            items = range(start, min(start + batch_size, len(scans)))
            images = reconstruct_rows(prior, scans.batch(items), sampler, seed, 1 if ambient else average).cpu()
            torch.save(images, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
        parts.append(torch.load(path, weights_only=True).to(device))
    return ResidentImages(torch.cat(parts), scans.key)


def _only_made_by(folder: Path, made_by: dict[str, Any]) -> None:
    """Empty the folder of images unless they were made like this: a batch is told from others by its number alone."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / "made_by.json"
    if _read(stored) == made_by:
        return
    stale = sorted(folder.glob("*.pt"))
    for path in stale:
        path.unlink()
    if stale:
        log.warning("%s: %d files were made by another prior or with other settings; anew", folder, len(stale))
    write_json(stored, made_by)


def card_of(cfg: DictConfig, manifest: dict[str, Any], chain: Sequence[Draw]) -> dict[str, Any]:
    """What a prior's card says beside its architecture.

    Args:
        cfg: The package's configuration.
        manifest: Of the scans.
        chain: Every draw that the stage and its start learn from.
    """
    card, second = provenance(cfg.seed, {k: v for k, v in manifest.items() if k != "draw"}), second_draws(chain)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    for name in ("run_dir", "init", "resume", "hydra"):
        settings.pop(name, None)
    for name in ("root", "cache", "references"):
        settings["data"].pop(name, None)
    return {
        "sampling_law": manifest["sampling_law"],
        "scale_rule": "ambient_mri.data.normalize.measured_scale: one per volume, from the measured central core",
        "noise_std": manifest.get("noise_std"),
        "data": card["data"],
        "licence": manifest.get("licence", ""),
        "simulated": True,
        "training": settings,
        "draws": [draw.plain() for draw in chain],
        **({"allow_second_draw": True, "second_draws": second} if second else {}),
        **{k: card[k] for k in ("git", "versions", "machine", "created", "seed")},
    }


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}
