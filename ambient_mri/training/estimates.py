r"""sd, the rms of a real channel of the images, estimated from measurements alone.

With normalised maps ||F S x||^2 = ||x||^2. Each location of k-space is sampled with the law's marginal probability p,
so

    ||x||^2  is estimated without bias by   sum over sampled locations of ( |y|^2 - 2 C noise_std^2 ) / p

(Horvitz & Thompson 1952), C coils, 2 noise_std^2 the noise energy of a complex number. sd^2 is this over 2 H W,
averaged over scans. No reconstruction is needed, and no fully sampled image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.data.datasets import ImageDataset, ScanDataset
from ambient_mri.masks import SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.tensors import to_channels

__all__ = ["evenly_spaced", "image_energy", "sd_of_images", "sd_of_scans"]


def image_energy(m: Measurement, inclusion: Tensor) -> Tensor:
    """Estimate of ||x||^2 / (2 H W) for each row, (b,).

    Args:
        m: Scaled measurements.
        inclusion: Pr(sampled), broadcastable to the mask.
    """
    probability = inclusion.to(m.y.device, torch.float32).clamp_min(1e-3)
    coils = (
        1 if m.coil_maps is None else (m.coil_maps.abs().amax(dim=(2, 3), keepdim=True) > 0).sum(dim=1, keepdim=True)
    )
    energy = m.y.abs().square().sum(dim=1, keepdim=True) - 2 * coils * m.noise_std.square()[:, None, None, None]
    height, width = m.image_shape
    return (energy * m.mask / probability).sum(dim=(1, 2, 3)) / (2 * height * width)


def sd_of_scans(scans: ScanDataset, law: SamplingLaw, *, count: int = 256) -> float:
    """sd from at most ``count`` slices, evenly spaced over the set.

    Raises:
        AmbientMRIError: If the estimate is not positive: the scans hold nothing but noise.
    """
    chosen = [scans[i] for i in evenly_spaced(len(scans), count)]
    energies = [image_energy(m, _inclusion(law, m)) for m in chosen]
    value = float(torch.cat(energies).double().mean())
    require(value > 0, "the scans hold no more energy than their noise_std explains; check noise_std.", AmbientMRIError)
    return math.sqrt(value)


def sd_of_images(images: ImageDataset, *, count: int = 1024) -> float:
    """sd from at most ``count`` images, evenly spaced over the set."""
    parts = [to_channels(images[i].images).double().square().mean() for i in evenly_spaced(len(images), count)]
    return math.sqrt(float(torch.stack(parts).mean()))


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most ``count`` of the numbers below ``length``, evenly spaced."""
    return [int(i * length / min(count, length)) for i in range(min(count, length))]


def _inclusion(law: SamplingLaw, m: Measurement) -> Tensor:
    inclusion = law.inclusion_probability(m.image_shape)
    # A fully sampled scan among undersampled ones shows all of its energy.
    return torch.ones_like(inclusion) if m.is_complete else inclusion
