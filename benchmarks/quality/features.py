"""The feature space of the Frechet distance: the bottleneck of a small autoencoder of magnitude images, trained here.

    encoder: convolutions of stride 2, 16 -> 32 -> 64 -> 64 channels, SiLU, to 4 x 4 pixels, then linear to 32 numbers
    decoder: a linear layer to 4 x 4 x 64, then transposed convolutions back to the size of the images

trained on the reference images of the training subjects (squared error, Adam, fixed seed), with flips and shifts.
It is not Inception: distances compare priors within one benchmark, never with numbers published elsewhere.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from feature_training import trained_once
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri.tensors import keyed_generator

__all__ = ["DIMENSION", "Autoencoder", "feature_space"]

DIMENSION = 32


class Autoencoder(nn.Module):
    """The autoencoder (module docstring).

    Args:
        size: Rows and columns, a power of two from 16 on.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        widths = [1, 16, 32, *[64] * (size.bit_length() - 5)]
        pairs = list(pairwise(widths))
        down = [m for a, b in pairs for m in (nn.Conv2d(a, b, 4, stride=2, padding=1), nn.SiLU())]
        up = [m for a, b in reversed(pairs) for m in (nn.SiLU(), nn.ConvTranspose2d(b, a, 4, stride=2, padding=1))]
        self.side = size // 2 ** len(pairs)
        self.width = widths[-1]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(self.width * self.side**2, DIMENSION))
        self.start = nn.Linear(DIMENSION, self.width * self.side**2)
        self.decoder = nn.Sequential(*up)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 1, H, W) magnitudes -> the same, through the bottleneck."""
        seed = self.start(self.encoder(images)).reshape(len(images), self.width, self.side, self.side)
        return self.decoder(seed)

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """(n, 1, H, W) images, complex or magnitude -> (n, 32)."""
        device = self.start.weight.device
        return torch.cat([self.encoder(part.abs().to(device)).cpu() for part in images.split(batch_size)])


def feature_space(images: Tensor, path: Path, *, steps: int, seed: int = 0, device: str = "cpu") -> Autoencoder:
    """The trained autoencoder, read from ``path`` where it is there.

    Args:
        images: (n, 1, H, W) reference images of training subjects.
        path: Where its weights are kept.
        steps: Batches of 32.
        seed: Of weights and batches.
        device: Where it is trained.
    """

    def loss(model: Autoencoder, step: int) -> Tensor:
        generator = keyed_generator(seed, "features", step)
        batch = images[torch.randint(len(images), (32,), generator=generator)].abs()
        shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
        flips = [axis for axis in (-2, -1) if torch.rand(1, generator=generator) < 0.5]
        batch = batch.roll(shift, dims=(-2, -1)).flip(flips).to(device)
        return functional.mse_loss(model(batch), batch)

    make = lambda: Autoencoder(int(images.shape[-1]))  # noqa: E731
    adam = lambda model: torch.optim.Adam(model.parameters(), lr=1e-3)  # noqa: E731
    return trained_once(make, loss, path, steps=steps, optimiser=adam, seed=seed, device=device)
