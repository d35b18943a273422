r"""Expectation-maximisation on natural images: the E-step, the files between E-step and M-step, and the assessment.

    first round    x_i = one-step restoration of training image i by the ambient network
    later rounds   x_i ~ p(x | y_i), split Gibbs under the clean prior, on the image's own operator A_i

An image that nothing but noise was added to has no location that was not seen: its one-step restoration is D(y) at the
noise level of the data, without a data-consistency solve that would give the noise back. ``objective=em`` runs the
rounds (:mod:`ambient_mri.training.rounds`); the M-step alone is

    python -m ambient_mri.train objective=supervised data.references=RUN/round_1/reconstructions ...

Files that are there (:mod:`ambient_mri.training.restored`) are never made again.

Held-out error, without a clean image: B hides measured locations, which the posterior mean, of several samples and
without the bias of their number, predicts from the rest. Where B hides
nothing (noise alone) y is split into y + a e and y - e / a, e as strong as the noise: their noises are independent,
the first is restored, the second compared with (Pang et al. 2021, arXiv:2102.02234). Power spectrum and
denoising-error curve are those of :mod:`ambient_mri.training.assess`; PSNR against the images is added where they are
known, and nothing is decided by it.

Reference: Rozet et al. 2024, arXiv:2405.13712, algorithm 1.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_mri._files import write_atomically
from ambient_mri.corruption import AdditiveNoise, ImageCorruption
from ambient_mri.denoiser import ConditionalDenoiser, Denoiser
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import LinearOperator
from ambient_mri.prior import Prior
from ambient_mri.sampling.base import Sampler
from ambient_mri.sampling.full_view import FullView
from ambient_mri.tensors import keyed_generator, per_row, randn_like_rows
from ambient_mri.training.assess import (
    Assessment,
    Settings,
    curve_entry,
    power_entry,
    radial_power,
    references_entry,
    squared_error_of_mean,
)
from ambient_mri.training.em import mean_of
from ambient_mri.training.estimates import evenly_spaced
from ambient_mri.training.natural import CorruptedImages
from ambient_mri.training.shared_work import SharedWork

__all__ = ["assess_images", "restoration", "restore_rows"]

_IMAGES_A_FILE = 256
# a of the split of noisy data: the part that is restored is 12 % noisier than y.
_SPLIT = 0.5


@torch.no_grad()
def restore_rows(
    prior: Prior, m: Measurement, corruption: ImageCorruption, sampler: Sampler, seed: int, average: int = 1
) -> Tensor:
    """One restoration a row of ``m``, (b, c, H, W): of an ambient network in one step, else a posterior sample.

    Args:
        prior: Ambient, or clean.
        m: Measurements on the prior's device.
        corruption: The law of A.
        sampler: ``one_step`` for an ambient network.
        seed: Random streams are keyed by (seed, image): the result does not depend on batches.
        average: Restorations of an image whose mean is returned.
    """
    return _solve(prior.model, m, corruption, None, sampler, seed, average)


def _solve(
    model: Denoiser | ConditionalDenoiser,
    m: Measurement,
    corruption: ImageCorruption,
    operator: LinearOperator | None,
    sampler: Sampler,
    seed: int,
    average: int = 1,
) -> Tensor:
    """Restoration under ``operator``, A where it is None."""
    if isinstance(model, ConditionalDenoiser) and isinstance(corruption, AdditiveNoise):
        return FullView(model)(m.y, m.noise_std.clamp(model.sigma_min, model.sigma_max))
    m = corruption.simplified(m)
    generators = [keyed_generator(seed, "e-step", key, device=m.y.device) for key in m.key]
    denoiser = model.as_denoiser(corruption, m, generators) if isinstance(model, ConditionalDenoiser) else model
    forward = corruption.forward_operator(m) if operator is None else operator
    return mean_of(lambda: sampler.sample(denoiser, forward, m.y, m.noise_std, generators=generators).x, average)


def restoration(
    prior: Prior,
    sampler: Sampler,
    seed: int,
    data: Sequence[CorruptedImages],
    *,
    folder: Path,
    batch_size: int,
    average: int = 1,
) -> SharedWork:
    """The E-step on images: each file holds the restorations of some of them.

    Args:
        prior: See :func:`restore_rows`, as are the next two.
        sampler: As said.
        seed: As said.
        data: Sets of measurements, one after the other.
        folder: Where the files go.
        batch_size: Images at a time.
        average: See :func:`restore_rows`.
    """
    items = [(part, i) for part in data for i in range(len(part))]
    groups = [items[start : start + _IMAGES_A_FILE] for start in range(0, len(items), _IMAGES_A_FILE)]
    files = [folder / f"images_{index:05d}.npz" for index in range(len(groups))]

    def make(index: int, device: torch.device) -> None:
        found = []
        for start in range(0, len(groups[index]), batch_size):
            rows = [part[i] for part, i in groups[index][start : start + batch_size]]
            m = Measurement.collate(rows).to(device)
            found.append(restore_rows(prior, m, data[0].corruption, sampler, seed, average).cpu())
        content = io.BytesIO()
        numbers = np.array([part.numbers[i] for part, i in groups[index]])
        np.savez(content, images=torch.cat(found).float().numpy(), numbers=numbers)
        write_atomically(files[index], content.getvalue())

    return SharedWork("E-step", files, make, [prior.model])


@torch.no_grad()
def assess_images(
    prior: Prior,
    data: CorruptedImages,
    *,
    sampler: Sampler,
    settings: Settings,
    references: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Assessment:
    """Judge a prior by held-out images, without a clean one (module docstring).

    Args:
        prior: Clean, or ambient with the sampler ``one_step``.
        data: Measurements of held-out images.
        sampler: Draws the posterior samples.
        settings: ``slices`` images, ``samples`` of each. What is held out follows from the corruption's B.
        references: The images themselves, (1, c, H, W) by key, for PSNR; may be empty.
        seed: The same draws for every prior that is assessed with it, so that rounds compare.
    """
    model, corruption = prior.model, data.corruption
    device = next(model.parameters()).device
    count = settings.samples if sampler.stochastic and isinstance(model, Denoiser) else 1
    rows = [data[i] for i in evenly_spaced(len(data), settings.slices)]
    m = Measurement.collate(rows).to(device)
    samples = torch.stack([restore_rows(prior, m, corruption, sampler, seed + k) for k in range(count)])
    error, energy = _held_out(model, m, corruption, sampler, seed, count)
    std = float(samples.var(dim=0).mean().sqrt()) / model.sd if count > 1 else None
    values = {
        "kind": prior.kind,
        "sampler": sampler.name,
        "slices": len(m),
        "samples": count,
        "data_residual": _residual(m, corruption, samples),
        "held_out_error": (max(error, 0.0) / max(energy, 1e-12)) ** 0.5,
        "sample_std": std,
        "power": power_entry(radial_power(samples.flatten(0, 1), settings.rings)),
        "error_curve": curve_entry(model),
        "with_references": _with_references(m, samples, references or {}),
    }
    back = corruption.forward_operator(m).adjoint(m.y)
    shown = [back, samples[0], *([samples.mean(0)] if count > 1 else [])]
    pictures = [image[i].mean(0).cpu() / 2 + 0.5 for i in range(min(4, len(m))) for image in shown]
    return Assessment(values, pictures, ["back-projected", "sample", f"mean of {count}"][: len(shown)])


def _held_out(
    model: Denoiser | ConditionalDenoiser,
    m: Measurement,
    corruption: ImageCorruption,
    sampler: Sampler,
    seed: int,
    count: int,
) -> tuple[float, float]:
    """Squared error of what was hidden and predicted by the mean of samples, and its energy, the noise taken off both.

    ``count`` samples are drawn; the error is that of the mean of infinitely many.
    """
    generators = [keyed_generator(seed, "held out", key, device=m.y.device) for key in m.key]
    noise = per_row(m.noise_std, m.y)
    if isinstance(corruption, AdditiveNoise):
        extra = noise * randn_like_rows(m.y, generators)
        target = m.y - extra / _SPLIT
        seen = replace(m, y=m.y + _SPLIT * extra, noise_std=m.noise_std * (1 + _SPLIT**2) ** 0.5)
        predicted = torch.stack([_solve(model, seen, corruption, None, sampler, seed + k) for k in range(count)])
        floor = float((noise.square() * (1 + _SPLIT**-2)).expand_as(target).sum())
        return squared_error_of_mean(predicted, target) - floor, float(target.square().sum()) - floor
    further = corruption.further(m, generators)
    hidden = ((further.weights > 0) & ~further.kept).expand_as(m.y)
    kept = further.kept.expand(len(m), *further.kept.shape[1:])
    given, operator = replace(m, y=m.y * kept, mask=kept), corruption.forward_operator(m)
    restored = (_solve(model, given, corruption, further.operator, sampler, seed + k) for k in range(count))
    predicted = torch.stack([operator.forward(x) * hidden for x in restored])
    floor, target = float((noise.square() * hidden).sum()), m.y * hidden
    return squared_error_of_mean(predicted, target) - floor, float(target.square().sum()) - floor


def _with_references(m: Measurement, samples: Tensor, references: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """PSNR of images in [-1, 1], 10 log10(4 / mean squared error), where all of them are known."""
    if not all(key in references for key in m.key):
        return None
    truth = torch.cat([references[key] for key in m.key]).to(samples)
    images = torch.stack([samples.mean(0), samples[0]])
    decibel = 10 * torch.log10(4 / (images - truth).square().flatten(2).mean(2))
    return references_entry(*decibel.mean(1).tolist())


def _residual(m: Measurement, corruption: ImageCorruption, samples: Tensor) -> float:
    """Rms of y - A x at measured locations, in units of noise_std (of 1e-3 where there is no noise)."""
    operator, level = corruption.forward_operator(m), per_row(m.noise_std.clamp_min(1e-3), m.y)
    gaps = [((m.y - operator.forward(x)) / level * m.mask).square().sum() for x in samples]
    return float(torch.stack(gaps).mean() / m.mask.expand_as(m.y).sum()) ** 0.5
