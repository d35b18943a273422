"""What ``priors.py`` measures: reconstructions of held-out simulated scans, and unconditional samples of clean priors.

Coil maps, noise level and scale are those of the simulation, the same for every method: what differs is the prior.
Images are compared by magnitude, one slice at a time (a slice's maximum is its data range), without any fit.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ambient_mri import baselines, metrics
from ambient_mri.data.datasets import ImageDataset, ScanDataset
from ambient_mri.measurement import Measurement
from ambient_mri.operators import sense
from ambient_mri.prior import Prior
from ambient_mri.report.records import ci95_of_mean
from ambient_mri.sampling import Sampler, ambient_denoiser, make_sampler, unconditional
from ambient_mri.tensors import keyed_generator
from ambient_mri.training.estimates import evenly_spaced

__all__ = [
    "ADPS_SAMPLES",
    "SHOWN",
    "HeldOut",
    "adps_weight",
    "held_out",
    "mean_row",
    "methods_of",
    "rows_of",
    "split_by_subject",
    "unconditional_samples",
]

# l of A-DPS, tuned on subjects that are not scored: wide enough that the best is none of the ends.
ADPS_WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# A-DPS takes 500 steps with a gradient each: two samples are what a table can afford.
ADPS_SAMPLES = 2
# Of split Gibbs: priors are compared by the Gibbs sampler, which all of their records were made with.
ETA = 1.0
# MSM evaluates the network with four masks a step.
MSM_SAMPLES = 4

# Slices of which the reconstructions are kept for figures.
SHOWN = 2

# (slice) -> (K, H, W) complex estimates: K posterior samples, or one point.
Method = Callable[[Measurement], Tensor]


@dataclass(frozen=True)
class HeldOut:
    """Slices of held-out subjects at one acceleration and noise level.

    Attributes:
        scored: Slices that methods are scored on, and their reference images (H, W).
        tuning: Slices of other subjects, for what is tuned.
        acs_lines: Of the sampling law.
    """

    scored: list[tuple[Measurement, Tensor]]
    tuning: list[tuple[Measurement, Tensor]]
    acs_lines: int


def held_out(scans: Sequence[Path], references: Sequence[Path], *, slices: int, tuning: int, acs_lines: int) -> HeldOut:
    """``slices`` of held-out subjects to score, and ``tuning`` of other held-out subjects, evenly spaced."""
    images = ImageDataset(references).by_key()
    parts = []
    for paths, count in zip(split_by_subject(scans), (slices, tuning), strict=True):
        data = ScanDataset(paths, in_memory=False)
        rows = [data[i] for i in evenly_spaced(len(data), count)]
        parts.append([(m, images[m.key[0]][0, 0]) for m in rows])
    return HeldOut(parts[0], parts[1], acs_lines)


def split_by_subject(scans: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files to score and files to tune on: a fifth of the subjects (the last part of a file's name), one at least."""
    subject = lambda path: path.stem.rsplit("_", 1)[-1]  # noqa: E731
    subjects = sorted({subject(path) for path in scans})
    if len(subjects) < 2:
        raise SystemExit(f"tuning and scoring need different subjects; got {subjects}.")
    apart = {subjects[i] for i in evenly_spaced(len(subjects), max(1, len(subjects) // 5))}
    return [p for p in scans if subject(p) not in apart], [p for p in scans if subject(p) in apart]


def methods_of(
    objective: str, prior: Prior, *, samples: int, steps: int, adps: dict[str, tuple[Sampler, float]] | None
) -> dict[str, Method]:
    """Every way to reconstruct with a prior, by its record name; a method of K samples is named by their mean.

    Args:
        objective: What the prior was trained with.
        prior: The prior.
        samples: K of split Gibbs.
        steps: Noise levels of split Gibbs and DDS.
        adps: For a published ambient network, by name: sampler, and the share of outer lines that its further mask
            keeps.
    """
    if prior.kind == "feedforward":
        return {objective: _posterior(prior, make_sampler("one_step"), 1)}
    if adps is not None:
        return {
            f"{objective}/{name}/mean{ADPS_SAMPLES}": _posterior(prior, sampler, ADPS_SAMPLES, keep=(q, q))
            for name, (sampler, q) in adps.items()
        }
    found = {
        f"{objective}/split_gibbs/mean{samples}": _posterior(
            prior, make_sampler("split_gibbs", steps=steps, eta=ETA), samples
        ),
        f"{objective}/dds/point": _posterior(prior, make_sampler("dds", steps=steps), 1),
    }
    if prior.kind == "ambient":
        found[f"{objective}/one_step/point"] = _posterior(prior, make_sampler("one_step"), 1)
        count = min(MSM_SAMPLES, samples)
        found[f"{objective}/msm/mean{count}"] = _posterior(prior, make_sampler("msm", steps=steps), count)
    return found


def baseline_methods() -> dict[str, Method]:
    """Baselines with their default weights, which no reference image has a say in."""
    return {
        "zero_filled": lambda m: baselines.zero_filled(m)[:, 0],
        "cg_sense": lambda m: baselines.cg_sense(m)[:, 0],
        "l1_wavelet": lambda m: baselines.l1_wavelet(m)[:, 0],
    }


def adps_weight(prior: Prior, cases: HeldOut, *, name: str, steps: int) -> tuple[Sampler, float]:
    """``adps`` or ``adps_fixed`` with the l of :data:`ADPS_WEIGHTS` that is best on the tuning subjects, judged with
    their references: a generous opponent. It is climbed to from 1, in either direction. Also q, the share of outer
    lines that makes R into R + 1, as in training.
    """
    mask = cases.scored[0][0].mask
    lines, total = int(mask.sum()), mask.numel()
    outer = max(lines - cases.acs_lines, 1)
    q = min(max((total / (total / lines + 1) - cases.acs_lines) / outer, 0.1), 0.99)
    tried: dict[int, float] = {}

    def value(index: int) -> float:
        # A weight that is too large makes the iterate diverge: that is a result, and not the best one.
        if index not in tried:
            sampler = make_sampler(name, steps=steps, likelihood_weight=ADPS_WEIGHTS[index])
            method = _posterior(prior, sampler, 1, keep=(q, q))
            tried[index] = statistics.fmean(_scored(truth, method(m)[0]) for m, truth in cases.tuning)
        return tried[index]

    best = ADPS_WEIGHTS.index(1.0)
    while best > 0 and value(best - 1) >= value(best):
        best -= 1
    while best + 1 < len(ADPS_WEIGHTS) and value(best + 1) > value(best):
        best += 1
    return make_sampler(name, steps=steps, likelihood_weight=ADPS_WEIGHTS[best]), q


def rows_of(
    name: str,
    method: Method,
    cases: HeldOut,
    factors: dict[str, Any],
    shown: dict[str, list[Tensor]] | None = None,
) -> list[dict[str, Any]]:
    """Mean over slices of PSNR, SSIM and NRMSE; of several samples also of the first, and their coverage.

    Args:
        name: Of the method, in the records.
        method: Reconstructs a slice.
        cases: Slices.
        factors: Of every row.
        shown: Filled with the magnitudes of the first :data:`SHOWN` slices, by method.
    """
    values: dict[tuple[str, str], list[float]] = {}
    drawn, began = 1, time.perf_counter()
    for number, (m, truth) in enumerate(cases.scored):
        images = method(m).cpu()
        reference, drawn = truth.abs().numpy(), len(images)
        estimates = {name: images.mean(0)}
        if drawn > 1:
            estimates[_single(name)] = images[0]
        for label, image in estimates.items():
            if shown is not None and number < SHOWN:
                shown.setdefault(label, []).append(image.abs())
            for metric in ("psnr", "ssim", "nrmse"):
                value = getattr(metrics, metric)(reference, image.abs().numpy())
                values.setdefault((label, metric), []).append(value)
        if drawn >= metrics.MINIMUM_COVERAGE_SAMPLES:
            values.setdefault((name, "coverage90"), []).append(metrics.coverage(images.abs(), truth.abs()))
    seconds = (time.perf_counter() - began) / len(cases.scored)
    return [
        {
            **factors,
            "method": label,
            "metric": metric,
            **mean_row(found),
            "seconds": seconds / (drawn if label != name else 1),
        }
        for (label, metric), found in values.items()
    ]


def _single(name: str) -> str:
    """The record name of one sample, from that of their mean."""
    return f"{name.rsplit('/', 1)[0]}/sample"


def unconditional_samples(prior: Prior, count: int, size: int, *, steps: int, seed: int = 0, batch: int = 16) -> Tensor:
    """(count, 1, size, size) samples of a clean prior by Heun's method."""
    parts = []
    model: Any = prior.model
    device = next(model.parameters()).device
    for start in range(0, count, batch):
        numbers = range(start, min(start + batch, count))
        generators = [keyed_generator(seed, "unconditional", i, device=device) for i in numbers]
        parts.append(unconditional(model, (1, size, size), generators, steps=steps).cpu())
    return torch.cat(parts)


def mean_row(values: list[float]) -> dict[str, Any]:
    """The measured entries of a row: the mean of some numbers, its confidence interval, and the numbers themselves."""
    return {"value": statistics.fmean(values), "values": values, "n": len(values), "ci95": ci95_of_mean(values)}


def _scored(truth: Tensor, image: Tensor) -> float:
    finite = bool(torch.isfinite(image.abs()).all())
    return metrics.psnr(truth.abs().numpy(), image.abs().cpu().numpy()) if finite else -math.inf


def _posterior(prior: Prior, sampler: Sampler, samples: int, keep: tuple[float, float] | None = None) -> Method:
    """Samples of one slice; the streams belong to the slice, and are the same for every prior."""

    def reconstruct(m: Measurement) -> Tensor:
        model: Any = prior.model
        device = next(model.parameters()).device
        m = m.to(device).cancel_readout()
        generators = [keyed_generator("priors", m.key[0], k, device=device) for k in range(samples)]
        denoiser = model
        if prior.kind != "clean":
            rows = replace(
                m,
                y=m.y.expand(samples, -1, -1, -1),
                mask=m.mask.expand(samples, -1, -1, -1),
                coil_maps=m.coil_maps.expand(samples, -1, -1, -1),  # type: ignore[union-attr]
                noise_std=m.noise_std.expand(samples),
                scale=m.scale.expand(samples),
                key=tuple(f"{m.key[0]}/{k}" for k in range(samples)),
            )
            denoiser = ambient_denoiser(model, rows, generators, **({} if keep is None else {"keep": keep}))
        operator = sense(m.coil_maps, m.mask, axes=m.axes)  # type: ignore[arg-type]
        return sampler.sample(denoiser, operator, m.y, m.noise_std, generators=generators).x[:, 0].cpu()

    return reconstruct
