"""Whether a network is worth compiling on this machine, measured once."""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ambient_mri._checks import reason_of
from ambient_mri.data.datasets import ImageBatch
from ambient_mri.prior import build_model
from ambient_mri.tensors import RowStreams
from ambient_mri.training.provenance import write_json

__all__ = ["faster_compiled", "synchronize"]

log = logging.getLogger(__name__)


def faster_compiled(
    architecture: dict[str, Any], objective: Any, batch: Any, stored: Path, *, timed_steps: int = 10
) -> bool:
    """Whether training steps are faster with the network compiled; measured once, ``False`` where compiling fails.

    Args:
        architecture: Plain data that builds the model.
        objective: The loss.
        batch: On the device.
        stored: File that keeps the answer and both speeds.
        timed_steps: Steps that are timed.
    """
    if stored.is_file():
        return bool(json.loads(stored.read_text())["compiled"])
    images = batch.images if isinstance(batch, ImageBatch) else batch
    device = images.device if isinstance(images, Tensor) else images.y.device
    model = build_model(architecture).to(device)
    speeds: dict[str, Any] = {"eager": _steps_per_second(model, objective, images, timed_steps) * len(batch)}
    start = time.monotonic()
    try:
        candidate: Any = copy.deepcopy(model)
        candidate.network.compile()
        speeds["compiled_images"] = _steps_per_second(candidate, objective, images, timed_steps) * len(batch)
    except Exception as error:  # whatever a compiler may say, training goes on without it
        log.warning("torch.compile does not work here, going on without: %s", reason_of(error)[:200])
    speeds["compile_seconds"] = time.monotonic() - start
    compiled = speeds.get("compiled_images", 0.0) > 1.05 * speeds["eager"]
    write_json(stored, {**speeds, "compiled": compiled})
    log.info(
        "training step: eager %.0f images/s, compiled %.0f", speeds["eager"], speeds.get("compiled_images", math.nan)
    )
    return compiled


def _steps_per_second(model: nn.Module, objective: Any, batch: Any, count: int) -> float:
    device = next(model.parameters()).device
    for index in range(count + 3):
        if index == 3:
            synchronize(device)
            start = time.monotonic()
        generators = RowStreams("speed", index, rows=range(len(batch)), device=device)  # as in training on a GPU
        objective(model, batch, generators).value.backward()
        model.zero_grad(set_to_none=True)
    synchronize(device)
    return count / (time.monotonic() - start)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
