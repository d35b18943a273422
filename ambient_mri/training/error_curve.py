r"""The denoising-error curve of a prior: the rms error of its denoiser per real part, for each sigma.

Samplers use it as r_t, the posterior standard deviation of x0 given x_t (of an ambient network on request, see
:class:`~ambient_mri.denoiser.AmbientDenoiser`).

    clean      rms of D(x0 + sigma n) - x0, on held-out images. On posterior samples of an EM prior it is
               self-consistent: it says how well the prior knows the images it would make, nothing of how true they are
    ambient    rms of h(z, A_tilde) - x0, on held-out corrupted scans alone; no clean image is seen

The second one, e^2 = E || h - x0 ||^2 / (2 H W). With normalised maps || h - x0 ||^2 = sum_j | A_full (h - x0) |_j^2
over all locations j of k-space and coils. With a = (sigma^2 - noise_std^2) / sigma^2,
z = B ( y + sqrt(sigma^2 - noise_std^2) eta ), and W the inverse-probability weights of B,

    removed by B:   W_j     ( | A h - y |_j^2                 -   2 noise_std^2 )
    kept by B:      (1/a^2) ( | a A h + (1 - a) z - y |_j^2   - 2 a noise_std^2 )

summed over the locations of y estimate it without bias, for any network h:
1. the noise of y on a removed line is independent of z, and so of h: it adds its own variance, which is subtracted;
2. E[W P | A_tilde] = 1 on every location that B did not keep: what the scan sampled there stands for what it did not;
3. on a kept line, y - (1 - a) z is a A x0 with noise that is independent of z, of variance a noise_std^2 per real part
   (:func:`~ambient_mri.objectives.ambient.noise_aware_residual`). The removed lines alone would leave out what the
   network gets wrong on the lines that it is given, the central ones most of the time.

Source: the ambient objective's own residual (Daras et al. 2023, arXiv:2305.19256; weights as in Millard & Chiew 2023,
arXiv:2205.10278), minus its noise; a Horvitz-Thompson estimate.
"""

from __future__ import annotations

import copy
import math
from typing import Protocol

import torch
from torch import Tensor

from ambient_mri.corruption import Corruption, Undersampling
from ambient_mri.corruption.thinning import ThinnedMasks
from ambient_mri.data.datasets import ImageDataset
from ambient_mri.denoiser import CleanDenoiser, ConditionalDenoiser, Denoiser
from ambient_mri.measurement import Measurement
from ambient_mri.objectives.ambient import noise_aware_residual
from ambient_mri.objectives.energy import data_energy
from ambient_mri.sampling.ambient import SAMPLING_KEEP
from ambient_mri.tensors import (
    RowGenerators,
    add_scaled,
    keyed_generator,
    per_row,
    randn_like_rows,
    to_channels,
)
from ambient_mri.training.estimates import evenly_spaced

__all__ = [
    "CorruptedScans",
    "ambient_error_curve",
    "ambient_squared_error",
    "error_curve",
    "learned_curve",
    "while_sampling",
]

# Lowest sigma over noise_std, as in training: 1/a^2 is 11 there and diverges at 1.
_ABOVE_NOISE = 1.2


class CorruptedScans(Protocol):
    """Measurements of one row each."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Measurement: ...


@torch.no_grad()
def error_curve(
    model: Denoiser, images: ImageDataset, *, levels: int = 17, count: int = 16, batch_size: int = 8
) -> tuple[Tensor, Tensor]:
    """sigmas (levels,), ascending, and the rms error per real part at each of them.

    Args:
        model: A clean denoiser.
        images: Held-out images, in scaled units.
        levels: Noise levels, geometric over the model's range.
        count: Images to average over, evenly spaced over the set.
        batch_size: Images at a time.
    """
    device = next(model.parameters()).device
    picked = [images[i].images for i in evenly_spaced(len(images), count)]
    sigmas = torch.logspace(
        torch.tensor(model.sigma_min).log10().item(), torch.tensor(model.sigma_max).log10().item(), levels
    )
    errors = []
    for index, sigma in enumerate(sigmas):
        squared = []
        for start in range(0, len(picked), batch_size):
            rows = picked[start : start + batch_size]
            noise = [keyed_generator("error curve", index, start + i) for i in range(len(rows))]
            for image, generator in zip(_same_size(rows), _same_size_lists(rows, noise), strict=True):
                x0 = image.to(device)
                level = torch.full((len(x0),), float(sigma), device=device)
                x_t = x0 + per_row(level, x0) * randn_like_rows(x0, generator)
                squared.append(to_channels(model(x_t, level) - x0).double().square().mean().repeat(len(x0)))
        errors.append(torch.cat(squared).mean().sqrt())
    return sigmas, torch.stack(errors).float().cpu()


@torch.no_grad()
def learned_curve(model: CleanDenoiser, *, levels: int = 17) -> tuple[Tensor, Tensor]:
    """sigmas (levels,), ascending, and the error that the model's head has learned from the training images."""
    ends = torch.tensor([model.sigma_min, model.sigma_max]).log10()
    sigmas = torch.logspace(float(ends[0]), float(ends[1]), levels)
    device = next(model.parameters()).device
    return sigmas, model.learned_error(sigmas.to(device)).float().cpu()


@torch.no_grad()
def ambient_error_curve(
    model: ConditionalDenoiser,
    scans: CorruptedScans,
    corruption: ThinnedMasks,
    *,
    levels: int = 17,
    count: int = 32,
    batch_size: int = 8,
) -> tuple[Tensor, Tensor]:
    r"""sigmas (up to levels,), ascending, and the ambient network's rms error per real part at each of them.

    The error given A_tilde = B A, for A of the held-out scans and B at the further rates of ``corruption``, averaged
    over both; in the units of the scaled images; module docstring. From corrupted scans alone, without bias where the
    weights are exact (``corruption.law.exact``, no weight_cap), noise_std is right, and the maps are normalised. What
    no scan ever samples (an unsampled rim) is left out.

    Args:
        model: An ambient network with noise in k-space (``noise_domain``) or, for masked pixels, in the pixels.
        scans: Held-out scans, in scaled units.
        corruption: Gives A and draws B, without a weight_cap; :func:`while_sampling` of the training's, for r_t.
        levels: Noise levels, geometric from the lowest that the scans can make, 1.2 times the highest noise_std, to the
            model's highest.
        count: Scans to average over, evenly spaced over the set. Fully sampled ones among others are passed over, and
            draws of B that leave nothing to judge the missing lines by.
        batch_size: Levels of one scan at a time.

    Returns:
        Both empty where no draw of B counts; a level is left out where the estimate, an unbiased one, is not positive.
    """
    device = next(model.parameters()).device
    numbers = evenly_spaced(len(scans), count)
    noise = max(float(scans[i].noise_std.max()) for i in numbers)
    low, high = max(model.sigma_min, _ABOVE_NOISE * noise), model.sigma_max
    if low >= high:
        return torch.empty(0), torch.empty(0)
    sigmas = torch.logspace(math.log10(low), math.log10(high), levels)
    total, counted = torch.zeros(levels, dtype=torch.float64), torch.zeros(levels, dtype=torch.float64)
    for number in numbers:
        scan = scans[number].to(device)
        if _fully_sampled_among_others(scan, corruption):
            continue
        for start in range(0, levels, batch_size):
            part = slice(start, min(start + batch_size, levels))
            generators = [keyed_generator("ambient error curve", k, number) for k in range(part.start, part.stop)]
            energy, counts = ambient_squared_error(
                model, Measurement.collate([scan] * len(generators)), corruption, sigmas[part].to(device), generators
            )
            total[part] += torch.where(counts, energy, torch.zeros_like(energy)).double().cpu()
            counted[part] += counts.double().cpu()
    mean = total / counted.clamp_min(1)
    good = mean > 0
    return sigmas[good], mean[good].sqrt().float()


@torch.no_grad()
def ambient_squared_error(
    model: ConditionalDenoiser, m: Measurement, corruption: ThinnedMasks, sigma: Tensor, generators: RowGenerators
) -> tuple[Tensor, Tensor]:
    """Unbiased estimate of || h - x0 ||^2 per real number of the image, for every row (module docstring).

    Args:
        model: h.
        m: Scans.
        corruption: Gives A and draws B.
        sigma: Noise per real part of the network's input, above ``m.noise_std``, (b,).
        generators: One a row.

    Returns:
        The estimate, (b,), squared units of the scaled images, which may be negative; and whether the row counts, (b,)
        bool: not where B removed nothing that could tell of the lines that the scan lacks. Whether it does depends on
        A_tilde and the number of lines alone, so that the mean over the others is unbiased for them.
    """
    m = corruption.simplified(m)
    sigma = sigma.to(m.noise_std)
    variance, square = m.noise_std.square(), sigma.square()
    further = corruption.further(m, generators)
    added = (square - variance).sqrt()
    z = add_scaled(m.y, per_row(added, m.y), randn_like_rows(m.y, generators)).mul_(further.kept)
    x_hat = model(z, sigma, further.operator, further.kept)
    gain, target, weights = noise_aware_residual(z, m.y, further, 1 - variance / square, math.inf)
    energy = data_energy(x_hat, m, corruption, target=target, weights=weights, gain=gain)
    # The noise of g A x0 - t: g noise_std^2 per real part, none in the empty coils of a padded scan.
    coils = 1.0 if m.coil_maps is None else (m.coil_maps.abs().amax(dim=(2, 3), keepdim=True) > 0).float()
    numbers = ((gain * weights).expand(m.y.shape) * coils).sum(dim=(1, 2, 3)) * (2 if m.y.is_complex() else 1)
    real_numbers = x_hat[0].numel() * (2 if x_hat.is_complex() else 1)
    return (energy - variance * numbers) / real_numbers, _can_be_judged(corruption, m, further.kept)


def while_sampling(corruption: Corruption) -> ThinnedMasks | None:
    """The further masks that samplers draw, with the weights of the training scans' law; None where B removes no lines.

    Samplers keep more of a scan than training does on average (``SAMPLING_KEEP``); the error is wanted there. The
    weights are those of the law, uncapped: a cap would bias the estimate.
    """
    if not isinstance(corruption, ThinnedMasks):
        return None
    found = copy.copy(corruption)
    found.weight_cap = None
    if isinstance(corruption, Undersampling):
        found.keep = SAMPLING_KEEP
    return found


def _can_be_judged(corruption: ThinnedMasks, m: Measurement, kept: Tensor) -> Tensor:
    """(b,) bool: whether every location that scans may sample was kept, or has a chance to be in P given B P."""
    law = corruption.law
    keep = torch.full((len(kept),), 0.5, device=kept.device)  # which chances are zero does not depend on q
    chance = law.probability_sampled(m.mask.expand(kept.shape), kept, keep, m.acquired)
    possible = law.inclusion_probability(m.image_shape).to(kept.device) > 0
    possible = possible if m.acquired is None else possible & m.acquired
    return ~(possible & ~kept & (chance <= 0)).flatten(1).any(dim=1)


def _fully_sampled_among_others(m: Measurement, corruption: ThinnedMasks) -> bool:
    """Whether a scan shows what the law seldom does: neither its A_tilde nor its weights are those of the others."""
    return m.is_complete and float(corruption.law.inclusion_probability(m.image_shape).min()) < 1


def _same_size(rows: list[Tensor]) -> list[Tensor]:
    """Images of one size side by side, the others one by one."""
    if len({tuple(r.shape[-2:]) for r in rows}) == 1:
        return [torch.cat(rows)]
    return rows


def _same_size_lists(rows: list[Tensor], values: list[torch.Generator]) -> list[list[torch.Generator]]:
    if len({tuple(r.shape[-2:]) for r in rows}) == 1:
        return [values]
    return [[v] for v in values]
