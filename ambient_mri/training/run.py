"""One training run, from a resolved configuration to an exported prior.

    run folder: config.yaml  provenance.json  architecture.json  metrics.csv  tensorboard/  checkpoints/  samples/  prior/
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.corruption import Undersampling, check_learnable
from ambient_mri.data.datasets import ImageDataset, ScanDataset
from ambient_mri.masks import ObservedMasks
from ambient_mri.measurement import Measurement
from ambient_mri.objectives import Objective
from ambient_mri.prior import build_model
from ambient_mri.training import callbacks as cb
from ambient_mri.training.datamodule import TrainingData
from ambient_mri.training.estimates import evenly_spaced, sd_of_images, sd_of_scans
from ambient_mri.training.export import export_prior, newest_checkpoint, warm_start
from ambient_mri.training.loggers import MetricsFile
from ambient_mri.training.module import TrainingModule
from ambient_mri.training.provenance import provenance, write_json
from ambient_mri.training.sources import ScanSet

__all__ = ["train"]

log = logging.getLogger(__name__)

# What makes a run the run it is: a folder that holds another one is never written to.
IDENTITY = ("data", "corruption", "network", "model", "objective", "training", "augmentation", "seed", "init")
# Where files lie, and how long a run is, may change between a run and its continuation.
NOT_IDENTITY = ("root", "cache", "jobs")


@dataclass(frozen=True)
class _Setup:
    corruption: Undersampling
    objective: Objective
    scans: ScanSet
    data: TrainingData


def train(cfg: DictConfig) -> Path:
    """Train as configured, or go on where the run folder stopped.

    Args:
        cfg: The resolved configuration (``configs/train.yaml``).

    Returns:
        The prior folder.

    Raises:
        AmbientMRIError: For data, a law or a configuration that cannot be trained on; one clear line.
    """
    run_dir = Path(cfg.run_dir or f"runs/{cfg.data.name}_{cfg.objective._target_.split('.')[-1].removesuffix('Objective').lower()}")
    checkpoint = _open_run(cfg, run_dir)
    setup = _set_up(cfg)
    architecture = _architecture(cfg, setup, run_dir)
    card = provenance(cfg.seed, setup.scans.manifest)
    write_json(run_dir / "provenance.json", card)
    with torch.random.fork_rng(devices=[]):  # initial weights come from torch's own stream; leave it as it was
        torch.manual_seed(cfg.seed)
        model = build_model(architecture)
    count = sum(p.numel() for p in model.parameters())
    log.info("%.2f M parameters, sd %.4f, %d training and %d held-out slices", count / 1e6, model.sd, len(setup.data.train),
             0 if setup.data.val is None else len(setup.data.val))  # fmt: skip
    if cfg.init and checkpoint is None:
        log.info(warm_start(model, cfg.init))
    augmentation = instantiate(cfg.augmentation) if cfg.augmentation else None
    module = TrainingModule(
        model, setup.objective, max_steps=cfg.trainer.max_steps, seed=cfg.seed, augmentation=augmentation, **cfg.training
    )
    export = _Exporter(architecture, _metadata(cfg, setup, card), run_dir / "prior", run_dir.name, cfg.loader.batch_size)
    trainer = _trainer(cfg, run_dir, setup, export)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        _quiet(warnings)
        trainer.fit(module, setup.data, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if trainer.is_global_zero:
        export(module, trainer.global_step)
        log.info("prior: %s", run_dir / "prior")
    return run_dir / "prior"


def _open_run(cfg: DictConfig, run_dir: Path) -> Path | None:
    """The checkpoint to go on from, once the run folder is known to hold this run or none."""
    found = newest_checkpoint(run_dir / "checkpoints")
    stored = run_dir / "config.yaml"
    if found is not None:
        require(
            bool(cfg.resume), f"{run_dir} holds a run already: choose another run_dir, or resume=true to go on with it."
        )
        if stored.is_file():
            changed = _differences(OmegaConf.load(stored), cfg)
            require(
                not changed,
                f"{run_dir} holds another run: it differs in {', '.join(changed[:4])}. Choose another run_dir.",
            )
        log.info("going on from %s", found)
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, stored, resolve=True)
    return found


def _differences(old: Any, new: DictConfig) -> list[str]:
    flat_old, flat_new = (_flatten(OmegaConf.to_container(c, resolve=True)) for c in (old, new))
    keys = [k for k in {**flat_old, **flat_new} if k.split(".")[0] in IDENTITY and k.split(".")[-1] not in NOT_IDENTITY]
    return sorted(k for k in keys if flat_old.get(k) != flat_new.get(k))


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def _set_up(cfg: DictConfig) -> _Setup:
    """Data, corruption and objective, checked against each other."""
    observed = cfg.corruption.law == "observed"
    law = None if observed else instantiate(cfg.corruption.law)
    source = instantiate(cfg.data, _convert_="all")
    scans = source.prepare(law)
    memory = {"in_memory": cfg.loader.in_memory, "memory_gb": cfg.loader.memory_gb}
    clean = instantiate(cfg.objective, _partial_=True).func.kind == "clean"
    measured = ScanDataset(scans.train, in_memory=cfg.loader.in_memory and not clean, memory_gb=cfg.loader.memory_gb)
    if observed:
        law = ObservedMasks([measured[i].mask for i in evenly_spaced(len(measured), 512)])
    corruption = instantiate(cfg.corruption, law=law)
    _check_law(corruption, scans, measured)
    extra = {"corruption": corruption} if "corruption" in cfg.objective else {}
    objective: Objective = instantiate(cfg.objective, **extra)
    train_set: Any = measured
    val_set: Any = ScanDataset(scans.val, **memory) if scans.val else None
    if clean:
        train_set, val_set = ImageDataset(scans.train_references()), ImageDataset(scans.val_references())
    loader = {k: v for k, v in cfg.loader.items() if k not in memory}
    data = TrainingData(train_set, val_set, max_steps=cfg.trainer.max_steps, seed=cfg.seed, **loader)
    return _Setup(corruption, objective, scans, data)


def _check_law(corruption: Undersampling, scans: ScanSet, measured: ScanDataset) -> None:
    """The configured law is the one the scans were drawn from, and the clean distribution can be learned under it."""
    law = corruption.law.describe()
    recorded = scans.manifest.get("sampling_law") or {}
    require(
        not recorded or recorded == law or law.get("law") == "ObservedMasks",
        f"the scans were undersampled by {recorded}, but corruption.law is {law}: the weights of the loss would be wrong. "
        "Choose the same law, or corruption.law=observed.",
    )
    few = Measurement.collate([measured[0]])
    always = corruption.law.always(few.image_shape)
    require(
        bool((few.mask | ~always).all()),
        f"the first scan does not sample lines that {law} always samples. Choose another law, or corruption.law=observed.",
    )
    result = check_learnable(corruption, few)
    log.info(
        "learnable: smallest eigenvalue of E[A^H A | A~] %.2g%s%s", result.smallest_eigenvalue,
        f", {result.rim} lines at the rim never sampled" if result.rim else "",
        "" if result.exact_weights else ", weights approximate (marginal)",
    )  # fmt: skip


def _architecture(cfg: DictConfig, setup: _Setup, run_dir: Path) -> dict[str, Any]:
    """Plain data that builds the model; sd is measured once a run."""
    stored = run_dir / "architecture.json"
    if stored.is_file() and newest_checkpoint(run_dir / "checkpoints"):
        import json

        return dict(json.loads(stored.read_text()))
    model: Any = OmegaConf.to_container(cfg.model, resolve=True)
    data = setup.data.train
    if model["sd"] is None:
        images = isinstance(data, ImageDataset)
        model["sd"] = sd_of_images(data) if images else sd_of_scans(data, setup.corruption.law)
    noise = setup.objective.noise  # type: ignore[attr-defined]
    model["sigma_min"] = model["sigma_min"] or noise.sigma_min * model["sd"]
    model["sigma_max"] = model["sigma_max"] or noise.sigma_max * model["sd"]
    if setup.objective.kind == "clean":
        model = {k: v for k, v in model.items() if k not in ("e0", "cg_iterations")}
    network = OmegaConf.to_container(cfg.network, resolve=True)
    architecture = {"kind": setup.objective.kind, "network": network, **model}
    write_json(stored, architecture)
    return architecture


def _metadata(cfg: DictConfig, setup: _Setup, card: dict[str, Any]) -> dict[str, Any]:
    manifest = setup.scans.manifest
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    # Paths belong to the machine that trained, not to the prior.
    settings["data"] = {k: v for k, v in settings["data"].items() if k not in NOT_IDENTITY}
    for name in ("run_dir", "init", "resume"):
        settings.pop(name)
    return {
        "sampling_law": setup.corruption.law.describe(),
        "scale_rule": "ambient_mri.data.normalize.measured_scale: one per volume, from the measured central core",
        "noise_std": manifest.get("noise_std"),
        "data": manifest,
        "licence": manifest.get("licence", ""),
        "simulated": bool(manifest.get("simulated")),
        "training": settings,
        **{k: card[k] for k in ("git", "versions", "machine", "created", "seed")},
    }


@dataclass(frozen=True)
class _Exporter:
    architecture: dict[str, Any]
    metadata: dict[str, Any]
    folder: Path
    name: str
    batch_size: int

    def __call__(self, module: TrainingModule, step: int) -> None:
        """Write the weights that the module holds now."""
        progress = {"steps": step, "images_seen": step * self.batch_size}
        export_prior(module.model, self.architecture, {**self.metadata, **progress}, self.folder, self.name)


def _trainer(cfg: DictConfig, run_dir: Path, setup: _Setup, export: _Exporter) -> pl.Trainer:
    bar = cb.progress_bar()
    callbacks: list[pl.Callback] = [bar, cb.Throughput()]
    references = setup.scans.val_references() if setup.objective.kind == "ambient" else ()
    if references:
        known = ImageDataset(references).by_key()
        callbacks.append(cb.OneStepQuality(known, setup.corruption.forward_operator))
    callbacks += [cb.PeriodicExport(export), cb.EMA(cfg.ema_half_life), cb.checkpoints(run_dir / "checkpoints", cfg.checkpoint_every)]
    loggers = [MetricsFile(run_dir / "metrics.csv"), TensorBoardLogger(run_dir, name="tensorboard", version="")]
    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    settings["val_check_interval"] = min(settings["val_check_interval"], settings["max_steps"])  # type: ignore[index,call-overload]
    return instantiate(
        settings,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=str(run_dir),
        enable_progress_bar=not isinstance(bar, cb.ProgressLines),
    )


def _quiet(filters: Any) -> None:
    """Lightning's advice that does not apply here."""
    filters.filterwarnings("ignore", message=".*does not have many workers.*")  # volumes are in memory
    filters.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # that is what resuming means
    filters.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.` is deprecated.*")
    filters.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval.*")
    filters.filterwarnings("ignore", message="GPU available but not used.*")
