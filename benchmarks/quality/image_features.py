"""The feature space of distances between sets of natural images: a small classifier, trained here on the labels.

    convolutions 3 x 3 with group norm and SiLU, 32 -> 64 -> 64 -> 64 channels, three of them of stride 2, mean over
    positions: 64 features, and a linear layer to the classes

It is not Inception: distances compare priors within one benchmark, never with numbers published elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import torch
from feature_training import trained_once
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri.tensors import keyed_generator

__all__ = ["DIMENSION", "Classifier", "trained_classifier"]

DIMENSION = 64


class Classifier(nn.Module):
    """The classifier (module docstring).

    Args:
        channels: Of the images.
        classes: Number of labels.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = [channels, 32, 64, 64, DIMENSION]
        layers: list[nn.Module] = []
        for i, stride in enumerate((1, 2, 2, 2)):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 3, stride=stride, padding=1)]
            layers += [nn.GroupNorm(8, widths[i + 1]), nn.SiLU()]
        self.trunk, self.head = nn.Sequential(*layers), nn.Linear(DIMENSION, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(b, c, H, W) in [-1, 1] -> (b, classes)."""
        return self.head(self.trunk(images).mean(dim=(2, 3)))

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 128) -> Tensor:
        """(n, c, H, W), clipped to [-1, 1] -> (n, 64)."""
        device = self.head.weight.device
        parts = [self.trunk(p.clamp(-1, 1).to(device)).mean(dim=(2, 3)).cpu() for p in images.split(batch_size)]
        return torch.cat(parts)

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of images that get their label."""
        device = self.head.weight.device
        found = torch.cat([self(p.to(device)).argmax(1).cpu() for p in images.split(128)])
        return float((found == labels).float().mean())


def trained_classifier(images: Tensor, labels: Tensor, path: Path, *, steps: int, device: str = "cpu") -> Classifier:
    """The trained classifier, read from ``path`` where it is there.

    Args:
        images: (n, c, H, W) training images.
        labels: (n,) int64.
        path: Where its weights are kept.
        steps: Batches of 64.
        device: Where it is trained.
    """

    def loss(model: Classifier, step: int) -> Tensor:
        generator = keyed_generator("classifier", step)
        rows = torch.randint(len(images), (64,), generator=generator)
        batch, shift = images[rows], torch.randint(-3, 4, (2,), generator=generator).tolist()
        batch = batch.roll(shift, dims=(-2, -1))
        batch = batch.flip(-1) if torch.rand(1, generator=generator) < 0.5 else batch
        return functional.cross_entropy(model(batch.to(device)), labels[rows].to(device))

    return trained_once(
        lambda: Classifier(images.shape[1], int(labels.max()) + 1),
        loss,
        path,
        steps=steps,
        optimiser=lambda model: torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05),
        schedule=lambda optimiser: torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps),
        device=device,
    )
