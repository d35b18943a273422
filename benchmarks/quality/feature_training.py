"""Small networks whose features distances between sets of images are measured in: trained once, then read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ambient_mri._files import atomic_path

__all__ = ["trained_once"]

Network = TypeVar("Network", bound=nn.Module)


def trained_once(
    make: Callable[[], Network],
    loss: Callable[[Network, int], Tensor],
    path: Path,
    *,
    steps: int,
    optimiser: Callable[[nn.Module], Optimizer],
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Network:
    """The trained network, read from ``path`` where it is there; in evaluation mode on ``device``.

    Args:
        make: Builds the network; its initial weights follow from ``seed``.
        loss: (network, step) -> what that step's batch makes smaller; batches are keyed by the step.
        path: Where the weights are kept.
        steps: Batches to train on.
        optimiser: Of the network's parameters.
        schedule: Of the learning rate; constant when None.
        seed: Of the weights.
        device: Where it is trained.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.to(device).eval()
    model.to(device)
    descent = optimiser(model)
    rates = None if schedule is None else schedule(descent)
    for step in range(steps):
        descent.zero_grad()
        loss(model, step).backward()
        descent.step()
        if rates is not None:
            rates.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save(model.cpu().state_dict(), temporary)
    return model.to(device).eval()
