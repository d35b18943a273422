"""What a run trains on and with: scans, corruption, objective, architecture, checked against each other at start-up."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from ambient_mri._checks import DataError, require
from ambient_mri.corruption import AdditiveNoise, ImageCorruption, Undersampling
from ambient_mri.data.datasets import ImageDataset, ScanDataset
from ambient_mri.masks import ObservedMasks
from ambient_mri.objectives import Objective
from ambient_mri.operators import Identity, Mask
from ambient_mri.tensors import keyed_generator
from ambient_mri.training.build import build
from ambient_mri.training.datamodule import TrainingData
from ambient_mri.training.draws import (
    Draw,
    draws_of_card,
    draws_of_prior,
    draws_of_references,
    merged,
    require_one_draw,
)
from ambient_mri.training.estimates import evenly_spaced, sd_of_images, sd_of_scans
from ambient_mri.training.export import newest_checkpoint
from ambient_mri.training.laws import check_law, configured_law, scan_corruption
from ambient_mri.training.natural import (
    CorruptedImages,
    ImageFolder,
    ImageSplit,
    covariance_of_images,
    covariance_of_measurements,
    sd_of_measurements,
)
from ambient_mri.training.provenance import write_json
from ambient_mri.training.simulated import SimulatedSet
from ambient_mri.training.sources import ScanSet

__all__ = [
    "Setup",
    "architecture",
    "build",
    "check_devices",
    "check_numbers",
    "image_split",
    "record_scans",
    "require_chain",
    "scan_set",
    "set_up",
]

log = logging.getLogger(__name__)

# Masks that the law of images which are corrupted already is estimated from, at most.
_MASKS_OF_A_LAW = 4096
# Arguments of models that measurements are needed for.
_AMBIENT_ONLY = ("e0", "cg_iterations")


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs beside the model.

    Attributes:
        corruption: Gives A and draws B.
        objective: The loss.
        scans: The files (or images), and where they come from.
        data: The loaders.
    """

    corruption: Undersampling | ImageCorruption
    objective: Objective
    scans: ScanSet | ImageSplit
    data: TrainingData


def check_numbers(cfg: DictConfig) -> None:
    """Check what would only be found wrong once data are prepared, or not at all.

    Raises:
        AmbientMRIError: Naming the setting and what to choose instead.
    """
    whole = ("loader.batch_size", "checkpoint_every", "trainer.log_every_n_steps", "trainer.val_check_interval")
    for key, integral in {**dict.fromkeys(whole, True), "ema_half_life": False, "training.lr": False}.items():
        value = OmegaConf.select(cfg, key)
        good = isinstance(value, int | float) and not isinstance(value, bool) and value >= (1 if integral else 0)
        kind = "a whole number of at least 1" if integral else "a number, not negative"
        require(good and (not integral or float(value).is_integer()), f"{key} must be {kind}; got {value}.")
    require(
        str(cfg.trainer.precision) in ("32-true", "32"),
        f"trainer.precision must be 32-true; got {cfg.trainer.precision}. Physics and optimiser compute in float32; "
        "the network's own precision is model.precision (bf16 or fp32).",
    )


def check_devices(trainer: DictConfig) -> None:
    """Check that the GPUs that the configuration asks for are there, before any data are read.

    Args:
        trainer: ``cfg.trainer``.

    Raises:
        AmbientMRIError: Naming the cause and what to choose instead.
    """
    if trainer.accelerator not in ("gpu", "cuda"):
        return
    known, devices = torch.cuda.device_count(), trainer.devices
    if known == 0:
        apple = trainer.accelerator == "gpu" and torch.backends.mps.is_available()
        built = "this PyTorch was built without CUDA: install a CUDA build (https://pytorch.org)"
        driver = "PyTorch finds none: see that `nvidia-smi` lists one and CUDA_VISIBLE_DEVICES does not hide it"
        reason = built if torch.version.cuda is None else driver
        require(apple, f"trainer.accelerator={trainer.accelerator} needs a GPU; {reason}, or choose trainer=cpu.")
        return
    wanted = devices if isinstance(devices, int) else 1
    fix = f"choose trainer.devices={known}, or auto"
    require(wanted <= known, f"trainer.devices={wanted}, but PyTorch sees {known} GPU(s): {fix}.")


def set_up(cfg: DictConfig, run_dir: Path) -> Setup:
    """Data, corruption and objective as configured.

    The files of a run are recorded in ``scans.json``: a run that goes on reads the same ones, whatever changed
    meanwhile.

    Raises:
        AmbientMRIError: For data that are missing or damaged, or a law that is not theirs or cannot be learned from.
    """
    if issubclass(get_class(cfg.data._target_), ImageFolder):
        return _set_up_images(cfg, run_dir)
    scans = scan_set(cfg, run_dir)
    kind: str = getattr(get_class(cfg.objective._target_), "kind", "")
    clean = kind == "clean"
    # Masks alone are looked at where images are trained on.
    in_memory = cfg.loader.in_memory and not clean
    measured = ScanDataset(scans.train, in_memory=in_memory, memory_gb=cfg.loader.memory_gb)
    corruption = scan_corruption(cfg, measured)
    check_law(corruption, scans, measured)
    extra = {"corruption": corruption} if "corruption" in cfg.objective else {}
    objective: Objective = build(cfg.objective, **extra)
    if clean:
        train: Any = ImageDataset(scans.train_references())
        held_out = scans.val_references()
        val: Any = ImageDataset(held_out) if held_out else None
    else:
        train, val = measured, ScanDataset(scans.val, in_memory=False) if scans.val else None
    loader = {k: v for k, v in cfg.loader.items() if k not in ("in_memory", "memory_gb")}
    data = TrainingData(train, val, max_steps=cfg.trainer.max_steps, seed=cfg.seed, **loader)
    return Setup(corruption, objective, scans, data)


def _set_up_images(cfg: DictConfig, run_dir: Path) -> Setup:
    """The same for images, corrupted as they are read or before; a run that goes on must find the same images."""
    require(
        issubclass(get_class(cfg.corruption._target_), ImageCorruption),
        f"data={cfg.data.name} are images: choose a corruption of images, such as corruption=pixels; "
        f"{get_class(cfg.corruption._target_).__name__} is one of k-space.",
    )
    require(
        cfg.augmentation is None,
        f"the augmentation of k-space does not commute with corruptions of images: data={cfg.data.name} needs "
        "augmentation=null (or +images=base, which says so among other things).",
    )
    split = image_split(cfg)
    corruption: Any = split.corruption
    require(
        not isinstance(corruption, AdditiveNoise) or max(split.noise_std) > 0,
        "corruption=noise without noise leaves the images clean: give data.noise_std, such as data.noise_std=0.1.",
    )
    stored = run_dir / "images.json"
    known = json.loads(stored.read_text())["hash"] if stored.is_file() else split.manifest["hash"]
    require(known == split.manifest["hash"], f"{run_dir} was begun with other images. Choose another run_dir.")
    result = corruption.learnability(split.images.shape[1:])
    log.info("learnable: %s", "; ".join([f"smallest eigenvalue {result.smallest_eigenvalue:.2g}", *result.notes]))
    extra = {"corruption": corruption} if "corruption" in cfg.objective else {}
    objective: Objective = build(cfg.objective, **extra)
    pick = split.clean if objective.kind == "clean" else split.corrupted
    loader = {k: v for k, v in cfg.loader.items() if k not in ("in_memory", "memory_gb")}
    train: Any = pick("train")
    data = TrainingData(train, pick("val"), max_steps=cfg.trainer.max_steps, seed=cfg.seed, **loader)
    write_json(stored, split.manifest)
    return Setup(corruption, objective, split, data)


def image_split(cfg: DictConfig) -> ImageSplit:
    """The images of a run under their corruption: as configured, or with the law of their own masks.

    Raises:
        AmbientMRIError: For images that are missing or damaged, or whose masks are not those of the configured law.
    """
    split: ImageSplit = build(cfg.data).load()
    own, images = cfg.corruption.get("law") == "observed", split.images
    require(
        images.corrupted or not own,
        f"corruption.law=observed is that of images that are corrupted already; {images.name} brings no `mask`. Choose "
        "corruption=pixels, or another corruption to simulate.",
    )
    picked = [images.train[i] for i in evenly_spaced(len(images.train), _MASKS_OF_A_LAW)] if images.corrupted else []
    masks = [images.known(i) for i in picked]
    law = {"law": ObservedMasks([plane[None, None] for mask in masks for plane in mask[0]])} if own else {}
    corruption: ImageCorruption = build(cfg.corruption, **law)
    if masks:
        corruption.check_masks(torch.cat(masks))
    return split.drawn_by(corruption)


def scan_set(cfg: DictConfig, run_dir: Path) -> ScanSet:
    """The scans of a run: those in its ``scans.json``, else those that the configuration names, recorded there.

    Raises:
        DataError: If a run that has begun lacks some of its scans, and they cannot be prepared or simulated again: a
            new list would hold other subjects out.
    """
    recorded = _recorded_scans(run_dir)
    if recorded is not None and not _missing(recorded):
        return recorded
    source = build({k: v for k, v in cfg.data.items() if k != "references"})
    law = configured_law(cfg)
    if isinstance(source, SimulatedSet):  # hours of simulation are not to end in a refusal
        require_chain(cfg, source.draw(law), run_dir)
    scans = source.prepare(law)
    if cfg.data.get("references"):
        scans = scans.with_references(Path(cfg.data.references).expanduser().resolve())
    begun = newest_checkpoint(run_dir / "checkpoints") is not None or (run_dir / "round_1").is_dir()
    if recorded is not None and begun:
        missing = _missing(recorded)
        require(
            not missing,
            f"{len(missing)} of the scans that {run_dir} was begun with are gone, the first is "
            f"{(missing or [run_dir])[0]}: put them back, or choose another run_dir for those that are left.",
            DataError,
        )
        return recorded
    record_scans(scans, run_dir)
    return scans


def require_chain(cfg: DictConfig, now: Draw | None, run_dir: Path) -> list[Draw]:
    """Check that a run adds no second draw of subjects that its start has seen.

    A run that goes on keeps what it began with.

    Args:
        cfg: The configuration: ``init``, ``data.references``, ``allow_second_draw``.
        now: What the run reads, where that is known.
        run_dir: Of the run.

    Returns:
        The draws of the whole chain, this run's with them.

    Raises:
        AmbientMRIError: If there would be two draws of a subject.
    """
    stored = run_dir / "provenance.json"
    if newest_checkpoint(run_dir / "checkpoints") is not None and stored.is_file():
        return merged([*draws_of_card(json.loads(stored.read_text())), *([] if now is None else [now])])
    references = cfg.data.get("references")
    before = {f"init={cfg.init}": draws_of_prior(cfg.init) if cfg.init else []}
    if references:
        before[f"what made data.references={references}"] = draws_of_references(Path(references).expanduser())
    for source, draws in before.items():
        require_one_draw(now, draws, source=source, allowed=bool(cfg.get("allow_second_draw", False)))
    if cfg.init and not before[f"init={cfg.init}"]:
        log.warning("init=%s does not record which scans it learned from: see that they are these.", cfg.init)
    return merged([*(d for draws in before.values() for d in draws), *([] if now is None else [now])])


def record_scans(scans: ScanSet, run_dir: Path) -> None:
    """Write ``scans.json``: what a run in ``run_dir`` reads from now on."""
    write_json(run_dir / "scans.json", _plain(scans))


def architecture(cfg: DictConfig, setup: Setup, stored: Path, *, resuming: bool) -> dict[str, Any]:
    """Plain data that builds the model; sd is measured once a run and kept in ``stored``.

    Args:
        cfg: The configuration.
        setup: Data and objective.
        stored: ``architecture.json`` of the run.
        resuming: Read it instead of measuring again.
    """
    if resuming and stored.is_file():
        return dict(json.loads(stored.read_text()))
    model: Any = OmegaConf.to_container(cfg.model, resolve=True)
    noise = setup.objective.noise  # type: ignore[attr-defined]
    if model["sd"] is None:
        model["sd"] = _measured_sd(setup)
    model["sigma_min"] = model["sigma_min"] or noise.sigma_min * model["sd"]
    model["sigma_max"] = model["sigma_max"] or noise.sigma_max * model["sd"]
    if setup.objective.kind == "clean":
        model = {k: v for k, v in model.items() if k not in _AMBIENT_ONLY}
    if isinstance(setup.scans, ImageSplit) and isinstance(setup.corruption, ImageCorruption):
        model["image_channels"] = setup.scans.images.shape[0]
        if setup.corruption.aligned:
            mask, _ = setup.corruption.draw(setup.scans.images.shape, keyed_generator("mask channels"))
            model["mask_channels"] = mask.shape[1]
    if model.get("covariance") == "measured":
        model["covariance"] = _measured_covariance(setup)
    if model.get("covariance") is None:
        model.pop("covariance", None)
    found = {"kind": setup.objective.kind, "network": OmegaConf.to_container(cfg.network, resolve=True), **model}
    found |= getattr(setup.objective, "architecture", {})
    write_json(stored, found)
    return found


def _measured_sd(setup: Setup) -> float:
    data = setup.data.train
    if isinstance(data, ImageDataset):
        return sd_of_images(data)
    if isinstance(data, CorruptedImages):
        return sd_of_measurements(data)
    return sd_of_scans(data, setup.corruption.law)  # type: ignore[union-attr]


def _measured_covariance(setup: Setup) -> dict[str, Any] | None:
    """Arguments of the stationary model of the images; None where the locations of y are no pixels."""
    data = setup.data.train
    if isinstance(data, ImageDataset) and isinstance(setup.scans, ImageSplit):
        return covariance_of_images(data)
    if isinstance(data, CorruptedImages) and isinstance(data.corruption.forward_operator(data[0]), Mask | Identity):
        return covariance_of_measurements(data)
    return None


def _plain(scans: ScanSet) -> dict[str, Any]:
    found = asdict(scans)
    found["references"] = None if scans.references is None else str(scans.references)
    return found | {part: [str(p) for p in found[part]] for part in ("train", "val")}


def _recorded_scans(run_dir: Path) -> ScanSet | None:
    """The scans that the run was started with; None where none are recorded."""
    path = run_dir / "scans.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    train, val = (tuple(Path(p) for p in found[part]) for part in ("train", "val"))
    references = None if found["references"] is None else Path(found["references"])
    return ScanSet(train, val, references, found["manifest"])


def _missing(scans: ScanSet) -> list[Path]:
    return [path for path in (*scans.train, *scans.val) if not path.is_file()]
