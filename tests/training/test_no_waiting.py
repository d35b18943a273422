"""A training step on an accelerator never waits for it: no value is read back, and nothing is copied between devices.

The meta device stands for the accelerator: whatever reads a value raises there; a dispatch mode sees the copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ambient_mri.corruption import Undersampling
from ambient_mri.data.augment import Augmentation
from ambient_mri.masks import RandomLines
from ambient_mri.measurement import Measurement
from ambient_mri.objectives import AmbientObjective, SupervisedObjective
from ambient_mri.prior import build_model
from ambient_mri.tensors import RowStreams, keyed_generator

SIZE, ROWS = 32, 3


class Copies(TorchDispatchMode):
    """Counts copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "copy" in str(func):
            devices = {a.device.type for a in args if isinstance(a, torch.Tensor)}
            given = kwargs.get("device")
            self.count += len(devices | ({torch.device(given).type} if given is not None else set())) > 1
        return func(*args, **kwargs)


@pytest.mark.parametrize("kind", ["ambient", "clean"])
def test_a_training_step_never_waits_for_the_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **settings: contextlib.nullcontext())  # unknown to meta
    step = ambient_step() if kind == "ambient" else clean_step()
    step(0)  # constants travel once
    with Copies() as copies:
        step(1)
    assert copies.count == 0


def model(kind: str) -> Any:
    network = {"name": "UNet", "channels": 8, "multipliers": [1, 2]}
    return build_model({"kind": kind, "network": network, "sd": 0.3, "sigma_min": 0.01, "sigma_max": 10.0}).to("meta")


def ambient_step() -> Callable[[int], None]:
    law = RandomLines(4, 6)
    mask = torch.cat([law.draw((SIZE, SIZE), keyed_generator(i)) for i in range(ROWS)]).to("meta")
    kspace = torch.zeros(ROWS, 2, SIZE, SIZE, dtype=torch.complex64, device="meta")
    level = torch.ones(ROWS, device="meta")
    m = Measurement(y=kspace, mask=mask, coil_maps=kspace, noise_std=level, scale=level, key=("a", "b", "c"))
    network, objective, augmentation = model("ambient"), AmbientObjective(Undersampling(law)), Augmentation()

    def step(index: int) -> None:
        streams = RowStreams(0, index, rows=range(ROWS), device="meta")
        objective(network, augmentation.measurements(m, streams), streams).value.backward()

    return step


def clean_step() -> Callable[[int], None]:
    images = torch.zeros(ROWS, 1, SIZE, SIZE, dtype=torch.complex64, device="meta")
    network, objective, augmentation = model("clean"), SupervisedObjective(), Augmentation()

    def step(index: int) -> None:
        streams = RowStreams(0, index, rows=range(ROWS), device="meta")
        objective(network, augmentation.images(images, streams), streams).value.backward()

    return step
