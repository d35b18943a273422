"""One training run, from a resolved configuration to an exported prior.

run folder: config.yaml provenance.json scans.json architecture.json metrics.csv tensorboard/ checkpoints/ samples/
            prior/
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger

from ambient_mri._checks import require
from ambient_mri._files import write_atomically
from ambient_mri.corruption import ImageCorruption
from ambient_mri.data.datasets import ImageDataset
from ambient_mri.denoiser import CleanDenoiser, ConditionalDenoiser, Denoiser
from ambient_mri.measurement import Measurement
from ambient_mri.objectives import UncertaintyObjective
from ambient_mri.prior import build_model
from ambient_mri.training import callbacks as cb
from ambient_mri.training.draws import draw_of, draws_of_card, second_draws
from ambient_mri.training.error_curve import ambient_error_curve, error_curve, learned_curve, while_sampling
from ambient_mri.training.export import export_prior, newest_checkpoint, warm_start
from ambient_mri.training.loggers import MetricsFile
from ambient_mri.training.module import TrainingModule
from ambient_mri.training.natural import ImageSplit
from ambient_mri.training.provenance import provenance, write_json
from ambient_mri.training.setup import Setup, architecture, build, check_devices, check_numbers, require_chain, set_up
from ambient_mri.training.shared_work import EXPECTED_WARNINGS, is_first

__all__ = ["IDENTITY", "check_same_run", "train", "write_configuration"]

log = logging.getLogger(__name__)

# What makes a run the run it is: a folder that holds another one is never written to.
IDENTITY = (
    *("data", "corruption", "network", "model", "objective", "training", "augmentation", "seed", "ema_half_life"),
    *("loader.batch_size", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val"),
)
# Where files lie, and how they are read, on the machine that trains: no part of a run's identity, never in a prior.
_PLACES = ("root", "cache", "split", "workers")
# A class that moved to another module still gives the same scans; scans.json holds them. Compiled is only faster.
_NOT_IDENTITY = ("data._target_", "training.compile")
# Lightning's advice that does not apply here, and why.
_EXPECTED_WARNINGS = (
    *EXPECTED_WARNINGS,
    "Checkpoint directory .* exists and is not empty.*",  # that is what resuming means
    "The number of training batches .* is smaller than the logging interval.*",  # a short run
)


def train(cfg: DictConfig) -> Path:
    """Train as configured, or go on where the run folder stopped.

    Args:
        cfg: The configuration (``configs/train.yaml``).

    Returns:
        The prior folder.

    Raises:
        AmbientMRIError: For data, a law or a configuration that cannot be trained on; one clear line.
        KeyboardInterrupt: If the user stops it; the same call goes on from the last checkpoint.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    run_dir = Path(cfg.run_dir or f"runs/{cfg.data.name}_{_objective_name(cfg)}")
    check_devices(cfg.trainer)
    check_numbers(cfg)
    checkpoint = _open_run(cfg, run_dir)
    setup = set_up(cfg, run_dir)
    chain = require_chain(cfg, draw_of(setup.scans.manifest), run_dir)
    plan = architecture(cfg, setup, run_dir / "architecture.json", resuming=checkpoint is not None)
    card = provenance(cfg.seed, {k: v for k, v in setup.scans.manifest.items() if k != "draw"})
    card["draws"] = [d.plain() for d in chain]
    write_json(run_dir / "provenance.json", card)
    module = _module(cfg, setup, plan, warm=checkpoint is None)
    export = _Exporter(plan, _metadata(cfg, setup, card), run_dir / "prior", cfg.loader.batch_size, setup)
    trainer = _trainer(cfg, run_dir, setup, export)
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        try:
            trainer.fit(module, setup.data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stopped:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from stopped
        finally:
            torch.compiler.set_stance("default")  # validation that failed leaves its own
    if trainer.is_global_zero and trainer.global_step > 0:
        _finish(module, trainer, export)
    return run_dir / "prior"


def _objective_name(cfg: DictConfig) -> str:
    return str(cfg.objective._target_).rsplit(".", 1)[-1].removesuffix("Objective").lower()


def _open_run(cfg: DictConfig, run_dir: Path) -> Path | None:
    """The checkpoint to go on from, once the run folder is known to hold this run or none."""
    found = newest_checkpoint(run_dir / "checkpoints")
    stored = run_dir / "config.yaml"
    if found is not None:
        known = f"{run_dir} holds a run already: choose another run_dir, or resume=true to go on with it."
        require(bool(cfg.resume), known)
        check_same_run(run_dir, cfg)
        _check_same_root(stored, cfg)
        log.info("going on from %s", found)
    elif stored.is_file() and is_first() and OmegaConf.select(cfg, "em.round") is None:
        (run_dir / "scans.json").unlink(missing_ok=True)  # a start that failed keeps no claim on the folder
    write_configuration(cfg, stored)
    return found


def write_configuration(cfg: DictConfig, path: Path) -> None:
    """Write ``config.yaml``, atomically."""
    write_atomically(path, OmegaConf.to_yaml(cfg, resolve=True).encode())


def check_same_run(run_dir: Path, cfg: DictConfig, identity: Collection[str] = IDENTITY) -> None:
    """Raise if the folder was begun with another configuration: keys of ``identity`` that both have, other values.

    Raises:
        AmbientMRIError: Naming the keys.
    """
    stored = run_dir / "config.yaml"
    if not stored.is_file():
        return
    before, now = (OmegaConf.to_container(c, resolve=True) for c in (OmegaConf.load(stored), cfg))
    # Folders may be given otherwise than they were; what was given alike is alike, wherever a run goes on.
    differing = set(_differing(before, now)) & set(_differing(_with_whole_paths(before), _with_whole_paths(now)))
    found = [key for key in differing if any(_within(key, part) for part in identity)]
    changed = sorted(k for k in found if k not in _NOT_IDENTITY and k.split(".")[-1] not in _PLACES)
    require(
        not changed,
        f"{run_dir} holds another run: it differs in {', '.join(changed[:4])}. Choose another run_dir.",
    )


def _with_whole_paths(settings: Any) -> Any:
    """The settings with the folders that tell one run from another written in full, however they were given."""
    for part, name in ((settings, "init"), (settings.get("data") or {}, "references")):
        if isinstance(part.get(name), str):
            part[name] = str(Path(part[name]).expanduser().resolve())
    return settings


def _differing(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """Keys that both have and whose values differ; of a value and a mapping, the key of the mapping."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in (k for k in before if k in now):
            yield from _differing(before[name], now[name], f"{key}.{name}" if key else str(name))
    elif before != now:
        yield key


def _within(key: str, part: str) -> bool:
    return key == part or key.startswith(f"{part}.")


def _root(cfg: Any) -> str | None:
    given = OmegaConf.select(cfg, "data.root")
    return None if given is None else str(Path(str(given)).expanduser().resolve())


def _check_same_root(stored: Path, cfg: DictConfig) -> None:
    """Raise if the run's scans come from another folder than the one that is given now."""
    if not (stored.parent / "scans.json").is_file():  # a set of images is known by its content
        return
    before, now = _root(OmegaConf.load(stored)), _root(cfg)
    require(
        before is None or now is None or before == now,
        f"{stored.parent} was begun with data.root={before}; now it is {now}. Choose another run_dir.",
    )


def _module(cfg: DictConfig, setup: Setup, plan: dict[str, Any], *, warm: bool) -> TrainingModule:
    with torch.random.fork_rng(devices=[]):  # initial weights come from torch's own stream, which is left as it was
        torch.manual_seed(cfg.seed)
        model = build_model(plan)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    data = setup.data
    held_out = 0 if data.val is None else len(data.val)
    log.info(
        "%.2f M parameters, sd %.4f, %d training and %d held-out slices", count, model.sd, len(data.train), held_out
    )
    if cfg.init and warm:
        log.info(warm_start(model, cfg.init))
    augmentation = build(cfg.augmentation) if cfg.augmentation else None
    return TrainingModule(
        model,
        setup.objective,
        max_steps=cfg.trainer.max_steps,
        seed=cfg.seed,
        augmentation=augmentation,
        **cfg.training,
    )


def _metadata(cfg: DictConfig, setup: Setup, card: dict[str, Any]) -> dict[str, Any]:
    """What the prior's card says beside its architecture."""
    manifest = card["data"]
    second = second_draws(draws_of_card(card))
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    settings["data"] = {k: v for k, v in settings["data"].items() if k not in (*_PLACES, "references")}
    for name in ("run_dir", "init", "resume", "hydra"):
        settings.pop(name, None)
    return {
        "sampling_law": setup.corruption.describe(),
        "image_shape": _image_shape(setup),
        "error_curve_of": _error_curve_of(setup),
        "scale_rule": "images in [-1, 1]"
        if isinstance(setup.corruption, ImageCorruption)
        else "ambient_mri.data.normalize.measured_scale: one per volume, from the measured central core",
        "noise_std": manifest.get("noise_std"),
        "data": manifest,
        "licence": manifest.get("licence", ""),
        "simulated": bool(manifest.get("simulated")),
        "training": settings,
        "draws": card["draws"],
        **({"allow_second_draw": True, "second_draws": second} if second else {}),
        **{k: card[k] for k in ("git", "versions", "machine", "created", "seed")},
    }


def _error_curve_of(setup: Setup) -> str | None:
    """What the error curve was measured on."""
    if setup.objective.kind != "clean":
        return None
    if setup.data.val is None and isinstance(setup.objective, UncertaintyObjective):
        return "training images, learned while training"
    return "held-out images of the kind that it was trained on"


def _image_shape(setup: Setup) -> list[int]:
    """Rows and columns of the first training item."""
    if isinstance(setup.scans, ImageSplit):
        return list(setup.scans.images.shape[1:])
    first: Any = setup.data.train[0]
    return [int(n) for n in (first.y if isinstance(first, Measurement) else first.images).shape[-2:]]


@dataclass(frozen=True)
class _Exporter:
    architecture: dict[str, Any]
    metadata: dict[str, Any]
    folder: Path
    batch_size: int
    setup: Setup

    def __call__(self, module: TrainingModule, step: int) -> None:
        """Write the weights that the module holds now, with the error curve on what was held out."""
        model: Any = module.model
        processes = module.trainer.world_size
        images = step * self.batch_size * module.trainer.accumulate_grad_batches
        progress: dict[str, Any] = {"steps": step, "images_seen": images, "processes": processes}
        name = self.folder.parent.resolve().name
        before = model.error_sigmas, model.error_values
        if isinstance(model, CleanDenoiser) and model.error_head is not None:
            learned = learned_curve(model)
            model.set_error_curve(*learned)
            progress["learned_error_curve"] = {"sigma": learned[0].tolist(), "error": learned[1].tolist()}
        held_out = self.setup.data.val
        if isinstance(model, Denoiser) and isinstance(held_out, ImageDataset):
            model.set_error_curve(*error_curve(model, held_out))
        elif isinstance(model, ConditionalDenoiser) and held_out is not None:
            progress |= self._ambient_curve(model, held_out)
        export_prior(model, self.architecture, {**self.metadata, **progress}, self.folder, name)
        # The averaged weights are swapped buffer by buffer: the model in training keeps its shapes.
        model.error_sigmas, model.error_values = before

    def _ambient_curve(self, model: ConditionalDenoiser, held_out: Any) -> dict[str, Any]:
        """Set the curve of an ambient network where B removes lines (or pixels); what the card says of it."""
        corruption = while_sampling(self.setup.corruption)
        if corruption is None or model.kind != "ambient" or model.noise_domain != "kspace":
            return {}
        sigmas, errors = ambient_error_curve(model, held_out, corruption)
        if len(sigmas) < 2:
            log.info("no error curve: the held-out scans say nothing of the lines that they lack")
            return {}
        model.set_error_curve(sigmas, errors)
        weights = "exact" if corruption.law.exact else "approximate"
        return {"error_curve_of": f"held-out corrupted scans, given a further mask of a sampler; {weights} weights"}


def _trainer(cfg: DictConfig, run_dir: Path, setup: Setup, export: _Exporter) -> pl.Trainer:
    bar = cb.progress_bar()
    references = setup.scans.val_references() if setup.objective.kind != "clean" else ()
    known = ImageDataset(references).by_key() if references else {}
    # What looks at the model after a validation stands before EMA, which then puts the raw weights back.
    callbacks: list[pl.Callback] = [bar, cb.Throughput()]
    callbacks += [cb.OneStepQuality(known)] if known else []
    callbacks += [cb.SampleSheets(run_dir / "samples", known), cb.PeriodicExport(export), cb.EMA(cfg.ema_half_life)]
    callbacks += [cb.checkpoints(run_dir / "checkpoints", cfg.checkpoint_every)]
    settings: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    # Lightning counts batches here, and steps there.
    batches = settings["max_steps"] * settings.get("accumulate_grad_batches", 1)
    settings["val_check_interval"] = min(settings["val_check_interval"], batches)
    trainer: pl.Trainer = build(
        settings,
        callbacks=callbacks,
        logger=[MetricsFile(run_dir / "metrics.csv"), TensorBoardLogger(run_dir, name="tensorboard", version="")],
        default_root_dir=str(run_dir),
        enable_progress_bar=not isinstance(bar, cb.ProgressLines),
    )
    return trainer


def _finish(module: TrainingModule, trainer: pl.Trainer, export: _Exporter) -> None:
    """Export the averaged weights, which the module holds after training, as they are used: without dropout."""
    if not module.trained:
        log.info("this run was complete: nothing to train")
        next(c for c in trainer.callbacks if isinstance(c, cb.EMA)).restore(module)  # type: ignore[attr-defined]
    module.eval()
    module.to(trainer.strategy.root_device)  # Lightning has taken it to the processor, and error curves are long
    with torch.compiler.set_stance("force_eager"):  # as in validation
        export(module, trainer.global_step)
    log.info("prior: %s", export.folder)
