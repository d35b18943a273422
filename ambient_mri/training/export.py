"""From a training run to a prior folder: averaged weights, architecture, and where all of it comes from."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ambient_mri._checks import PriorError, require
from ambient_mri.prior import Prior, build_model, load_prior
from ambient_mri.training.module import load_matching

__all__ = ["export_checkpoint", "export_prior", "find_prior", "newest_checkpoint", "warm_start"]

log = logging.getLogger(__name__)


def export_prior(
    model: nn.Module, architecture: Mapping[str, Any], metadata: Mapping[str, Any], folder: Path, name: str
) -> Path:
    """Write ``model`` as a prior folder; its weights are the ones it holds now."""
    settings = dict(architecture)
    prior = Prior(model, settings["kind"], settings, dict(metadata), name)  # type: ignore[arg-type]
    return prior.save(folder)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step in ``folder``, or None.

    A run shorter than the interval between checkpoints leaves ``last.ckpt`` alone. A file that is cut short is passed
    over, for the one before.

    Raises:
        AmbientMRIError: If no checkpoint is whole.
    """
    found = sorted(folder.glob("step*.ckpt")) or [p for p in (folder / "last.ckpt",) if p.is_file()]
    whole = [path for path in found if zipfile.is_zipfile(path)]
    for path in (p for p in found if p not in whole):
        log.warning("%s is cut short: passed over.", path)
    require(
        bool(whole) or not found, f"no checkpoint in {folder} is whole: delete the folder, and the run begins again."
    )
    return whole[-1] if whole else None


def export_checkpoint(
    checkpoint: Path, architecture: Mapping[str, Any], folder: Path, metadata: Mapping[str, Any]
) -> Path:
    """Write the averaged weights of a checkpoint as a prior folder: for a run that was stopped before its end.

    Raises:
        PriorError: If the checkpoint's weights do not fit the architecture.
    """
    model = build_model(architecture)
    weights = _model_weights(checkpoint)
    _, missing = load_matching(model, weights)
    require(not missing, f"{checkpoint} does not fit the architecture: it lacks {', '.join(missing[:3])}.", PriorError)
    return export_prior(model, architecture, metadata, folder, folder.parent.name)


def find_prior(source: str | Path) -> str | Path:
    """What :func:`~ambient_mri.prior.load_prior` is to be given for a prior folder, a run folder, or a shipped name."""
    path = Path(source).expanduser()
    if (path / "prior" / "prior.json").is_file():
        return path / "prior"
    return path if (path / "prior.json").is_file() else str(source)


def warm_start(model: nn.Module, source: str | Path) -> str:
    """Take over what fits, by name and shape, from a prior folder, a shipped prior, a run folder, or a checkpoint.

    Returns:
        A sentence on what was taken over and what was not.

    Raises:
        PriorError: If there is no such prior or nothing fits.
    """
    path = Path(source).expanduser()
    weights = _model_weights(path) if path.suffix == ".ckpt" else load_prior(find_prior(source)).model.state_dict()
    taken, fresh = load_matching(model, weights)
    require(
        bool(taken), f"nothing in {source} fits the network: choose the same network, or leave out init.", PriorError
    )
    text = f"init={source}: {len(taken)} of {len(taken) + len(fresh)} tensors taken over"
    return text if not fresh else f"{text}; fresh: {', '.join(fresh[:6])}{' ...' if len(fresh) > 6 else ''}"


def _model_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Averaged weights of the model in a checkpoint; plain tensors, no pickled code is run."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}
