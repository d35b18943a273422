"""What a run trains on and with: scans, corruption, objective, architecture, checked against each other at start-up."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.corruption import AdditiveNoise, ImageCorruption, Undersampling, check_learnable
from ambient_mri.data.datasets import ImageDataset, ScanDataset
from ambient_mri.masks import ObservedMasks, SamplingLaw
from ambient_mri.objectives import Objective
from ambient_mri.operators import Identity, Mask
from ambient_mri.tensors import keyed_generator
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
    "check_law",
    "image_split",
    "record_scans",
    "require_chain",
    "scan_corruption",
    "scan_set",
    "set_up",
]

log = logging.getLogger(__name__)

_SCANS_TO_CHECK = 32
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


def build(node: Any, **arguments: Any) -> Any:
    """The object that a configuration node names.

    Raises:
        AmbientMRIError: What its class says about its arguments, in one line.
    """
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, AmbientMRIError):
            raise error.__cause__ from None
        reason = str(error.__cause__ or error).splitlines()[0]
        raise AmbientMRIError(f"{node.get('_target_', 'the configuration')} cannot be made: {reason}.") from error


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


def scan_corruption(cfg: DictConfig, measured: ScanDataset) -> Undersampling:
    """The corruption of scans: as configured, or with the law of their own masks."""
    law = _law(cfg) or ObservedMasks([measured[i].mask for i in evenly_spaced(len(measured), 512)])
    found: Undersampling = build(cfg.corruption, law=law)
    return found


def scan_set(cfg: DictConfig, run_dir: Path) -> ScanSet:
    """The scans of a run: those in its ``scans.json``, else those that the configuration names, recorded there."""
    scans = _recorded_scans(run_dir)
    if scans is None:
        source = build({k: v for k, v in cfg.data.items() if k != "references"})
        law = _law(cfg)
        if isinstance(source, SimulatedSet):  # hours of simulation are not to end in a refusal
            require_chain(cfg, source.draw(law), run_dir)
        scans = source.prepare(law)
        if cfg.data.get("references"):
            scans = scans.with_references(Path(cfg.data.references).expanduser().resolve())
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


def check_law(corruption: Undersampling, scans: ScanSet, measured: ScanDataset) -> None:
    """Check that the scans follow the configured law, and that the clean distribution can be learned under it.

    Raises:
        AmbientMRIError: If another law is recorded in the scans, if their masks contradict it, or if it leaves a hole.
    """
    law = corruption.law.describe()
    observed = isinstance(corruption.law, ObservedMasks)
    recorded = scans.manifest.get("sampling_law") or {}
    require(
        not recorded or observed or recorded == law,
        f"the scans were undersampled by {recorded}, but corruption.law is {law}: the weights of the loss would be "
        "wrong. Choose the same law, or corruption=observed.",
    )
    masks: dict[str, Tensor] = {}
    for index in evenly_spaced(len(measured), _SCANS_TO_CHECK):
        scan = measured[index]
        masks[scan.key[0]] = scan.mask
        across = scan.mask.shape[-1] == 1 and scan.mask.shape[-2] > 1
        require(
            not across,
            f"scan {scan.key[0]} is phase-encoded along the rows; training expects the phase-encode axis last, as in "
            "fastMRI files. Swap the two image axes of the k-space and prepare it again.",
        )
        always = corruption.law.always(scan.image_shape)
        require(
            bool((scan.mask | ~always).all()),
            f"scan {scan.key[0]} does not sample lines that {', '.join(f'{k}={v}' for k, v in law.items())} always "
            "samples: it follows another law. Name it (corruption=..., corruption.law.acceleration=, "
            "corruption.law.acs_lines=), or corruption=observed, which estimates it from many scans.",
        )
    _check_masks_differ(list(masks.values()), law)
    result = check_learnable(corruption, measured[0])
    notes = [f"smallest eigenvalue of E[A^H A | A~] {result.smallest_eigenvalue:.2g}"]
    notes += [f"{result.rim} lines at the rim are never sampled: lower resolution"] if result.rim else []
    notes += [] if result.exact_weights else ["weights of this law are approximate (marginal)"]
    log.info("learnable: %s", ", ".join(notes))


def _check_masks_differ(masks: Sequence[Tensor], law: dict[str, Any]) -> None:
    """Many masks that a random law drew are not all the same; few of them may be, of equispaced lines."""
    first = masks[0]
    fixed = len(masks) >= 12 and not bool(first.all()) and all(torch.equal(mask, first) for mask in masks[1:])
    require(
        not fixed,
        f"all of {len(masks)} volumes have the same mask, which {law} does not draw: what it leaves out is never "
        "measured, and no prior can be learned of it. Scans with different masks are needed.",
    )


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


def _law(cfg: DictConfig) -> SamplingLaw | None:
    """The configured law; None where it is to be estimated from the scans' masks."""
    return None if cfg.corruption.law == "observed" else build(cfg.corruption.law)


def _plain(scans: ScanSet) -> dict[str, Any]:
    found = asdict(scans)
    found["references"] = None if scans.references is None else str(scans.references)
    return found | {part: [str(p) for p in found[part]] for part in ("train", "val")}


def _recorded_scans(run_dir: Path) -> ScanSet | None:
    """The scans that the run was started with, if all of them are still there."""
    path = run_dir / "scans.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    train, val = (tuple(Path(p) for p in found[part]) for part in ("train", "val"))
    references = None if found["references"] is None else Path(found["references"])
    if not all(p.is_file() for p in (*train, *val)):
        return None
    return ScanSet(train, val, references, found["manifest"])
