"""What a run trains on and with: scans, corruption, objective, architecture, checked against each other at start-up."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.corruption import Undersampling, check_learnable
from ambient_mri.data.datasets import ImageDataset, ScanDataset
from ambient_mri.masks import ObservedMasks, SamplingLaw
from ambient_mri.objectives import Objective
from ambient_mri.training.datamodule import TrainingData
from ambient_mri.training.estimates import evenly_spaced, sd_of_images, sd_of_scans
from ambient_mri.training.provenance import write_json
from ambient_mri.training.sources import ScanSet

__all__ = ["Setup", "architecture", "build", "check_law", "set_up"]

log = logging.getLogger(__name__)

_SCANS_TO_CHECK = 32
# Arguments of models that measurements are needed for.
_AMBIENT_ONLY = ("e0", "cg_iterations")


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs beside the model.

    Attributes:
        corruption: Gives A and draws B.
        objective: The loss.
        scans: The files, and where they come from.
        data: The loaders.
    """

    corruption: Undersampling
    objective: Objective
    scans: ScanSet
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


def set_up(cfg: DictConfig, run_dir: Path) -> Setup:
    """Data, corruption and objective as configured.

    The files of a run are recorded in ``scans.json``: a run that goes on reads the same ones, whatever changed
    meanwhile.

    Raises:
        AmbientMRIError: For data that are missing or damaged, or a law that is not theirs or cannot be learned from.
    """
    observed = cfg.corruption.law == "observed"
    law: SamplingLaw | None = None if observed else build(cfg.corruption.law)
    scans = _recorded_scans(run_dir)
    if scans is None:
        source = {k: v for k, v in cfg.data.items() if k != "references"}
        scans = build(source).prepare(law)
        if cfg.data.get("references"):
            scans = scans.with_references(Path(cfg.data.references).expanduser().resolve())
        write_json(run_dir / "scans.json", _plain(scans))
    kind: str = getattr(get_class(cfg.objective._target_), "kind", "")
    clean = kind == "clean"
    # Masks alone are looked at where images are trained on.
    in_memory = cfg.loader.in_memory and not clean
    measured = ScanDataset(scans.train, in_memory=in_memory, memory_gb=cfg.loader.memory_gb)
    if law is None:
        law = ObservedMasks([measured[i].mask for i in evenly_spaced(len(measured), 512)])
    corruption = build(cfg.corruption, law=law)
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
    for index in evenly_spaced(len(measured), _SCANS_TO_CHECK):
        scan = measured[index]
        across = scan.mask.shape[-1] == 1 and scan.mask.shape[-2] > 1
        require(
            not across,
            f"scan {scan.key[0]} is phase-encoded along the rows; training expects the phase-encode axis last, as in "
            "fastMRI files. Swap the two image axes of the k-space and prepare it again.",
        )
        always = corruption.law.always(scan.image_shape)
        require(
            bool((scan.mask | ~always).all()),
            f"scan {scan.key[0]} does not sample lines that {law} always samples: it follows another law. Choose that, "
            "or corruption=observed.",
        )
    result = check_learnable(corruption, measured[0])
    notes = [f"smallest eigenvalue of E[A^H A | A~] {result.smallest_eigenvalue:.2g}"]
    notes += [f"{result.rim} lines at the rim are never sampled: lower resolution"] if result.rim else []
    notes += [] if result.exact_weights else ["weights of this law are approximate (marginal)"]
    log.info("learnable: %s", ", ".join(notes))


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
    data, noise = setup.data.train, setup.objective.noise  # type: ignore[attr-defined]
    if model["sd"] is None:
        law = setup.corruption.law
        model["sd"] = sd_of_images(data) if isinstance(data, ImageDataset) else sd_of_scans(data, law)
    model["sigma_min"] = model["sigma_min"] or noise.sigma_min * model["sd"]
    model["sigma_max"] = model["sigma_max"] or noise.sigma_max * model["sd"]
    if setup.objective.kind == "clean":
        model = {k: v for k, v in model.items() if k not in _AMBIENT_ONLY}
    found = {"kind": setup.objective.kind, "network": OmegaConf.to_container(cfg.network, resolve=True), **model}
    write_json(stored, found)
    return found


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
