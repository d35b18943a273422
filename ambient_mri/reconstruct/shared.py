"""A slice that is reconstructed several times, by other priors and samplers: its coil maps are estimated once.

Maps that are estimated together with the image depend on the prior: once for each. A slice without any signal, which
a volume leaves out, is zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ambient_mri.prior import Prior
from ambient_mri.reconstruct.read import read_raw
from ambient_mri.reconstruct.result import Reconstruction
from ambient_mri.reconstruct.run import reconstruct_volume
from ambient_mri.reconstruct.volume import Chunk, Volume
from ambient_mri.sampling import Sampler
from ambient_mri.sampling.draw import describe_draw, sample_count

__all__ = ["SharedSlice"]


class _Once:
    """Results by name, each made once.

    Attributes:
        saved: Seconds that making them again would have taken.
    """

    def __init__(self) -> None:
        self.saved = 0.0
        self._known: dict[Hashable, tuple[Any, float]] = {}

    def get(self, name: Hashable, make: Callable[[], Chunk]) -> Chunk:
        """The result of that name."""
        if name in self._known:
            self.saved += self._known[name][1]
        else:
            started = time.perf_counter()
            self._known[name] = make(), time.perf_counter() - started
        return self._known[name][0]


@dataclass(frozen=True)
class _SharedChunk(Chunk):
    once: _Once = field(default_factory=_Once)

    def with_joint_maps(self, prior: Prior, seed: int, rows: Sequence[int], **options: Any) -> Chunk:
        make, name = super().with_joint_maps, ("joint", prior.name, seed, tuple(rows), str(self.phase.device))
        return self.once.get(name, lambda: make(prior, seed, rows, **options))


@dataclass(frozen=True)
class SharedSlice(Volume):
    """One slice of a volume, with the volume's scale and its own noise level.

    Attributes:
        once: What was estimated already.
    """

    once: _Once = field(default_factory=_Once)

    @classmethod
    def of(cls, volume: Volume, index: int) -> SharedSlice:
        """The slice at position ``index``."""
        raw, level = read_raw(volume.raw, slices=[index]), volume.noise_std[index : index + 1]
        return cls(raw, volume.scale, level, volume.noise_source, (0,) if index in volume.held else ())

    def chunk(self, rows: slice, device: torch.device, *, transpose: bool = False) -> Chunk:
        """As that of a volume, whose ``rows`` are all there are."""
        make = super().chunk
        found = self.once.get((str(device), transpose), lambda: make(rows, device, transpose=transpose))
        return _SharedChunk(**vars(found), once=self.once)

    def reconstruct(
        self, prior: Prior, method: Sampler, *, samples: int, seed: int, device: torch.device
    ) -> Reconstruction:
        """Mean, standard deviation and residual; ``settings["seconds"]`` as if nothing had been estimated before.

        Args:
            prior: On ``device``, of a kind that the sampler takes.
            method: The sampler.
            samples: Samples of the slice.
            seed: Of the samples.
            device: Where it is computed.
        """
        if not len(self):
            return self._zero(prior, method, sample_count(method, samples), seed, device)
        self.once.saved = 0.0
        options: dict[str, Any] = {"samples": samples, "seed": seed, "device": device}
        made = reconstruct_volume(self, prior, method, maps=None, keep_samples=False, **options)
        made.settings["seconds"] = round(made.settings["seconds"] + self.once.saved, 2)
        return made

    def _zero(self, prior: Prior, method: Sampler, count: int, seed: int, device: torch.device) -> Reconstruction:
        raw, zero = self.raw, np.zeros((1, *self.raw.shape), dtype=np.float32)
        settings = {**describe_draw(prior, method, count, seed, device), **self.settings()}
        return Reconstruction(
            mean=zero.astype(np.complex64),
            std=zero if count > 1 else None,
            samples=None,
            residual=np.full(1, np.nan, dtype=np.float32),
            zero_filled=zero.astype(np.complex64),
            mask=raw.mask,
            phase=zero,
            scale=self.scale,
            noise_std=self.noise_std.numpy() * self.scale,
            recon_shape=raw.recon_shape,
            affine=raw.affine,
            name=raw.name,
            settings=settings | {"warnings": self.warnings(), "run": {"evaluations": 0}, "seconds": 0.0},
            magnitude_spread=zero if count > 1 else None,
        )
