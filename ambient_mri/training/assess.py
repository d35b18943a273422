r"""How good a prior is, without a reference image: what a round of expectation-maximisation is judged by.

On held-out scans (other subjects than those of training), with x^(1..K) posterior samples:

    data_residual    sqrt( ||y - A x^(k)||^2 / (m noise_std^2) ),  m real numbers measured: 1 for an honest sample
    held_out_error   some outer lines of y are left out, the posterior mean given the rest predicts them:
                     sqrt( (E - N) / (||y_out||^2 - N) ),  N = 2 noise_std^2 a sampled number. E = ||y_out - A_out x||^2
                     of the mean x of infinitely many samples, from K: the error of their mean less their variance / K.
                     (One sample's error, or that of a few, would favour a prior that says too little of its doubt.)
    sample_std       rms over pixels of the samples' standard deviation, in units of sd; 0: the prior has collapsed
    power            mean |F x^(k)|^2 / 2 on rings of k-space, in the units of the scaled images

and the denoising-error curve that the prior carries. PSNR against reference images is added where a simulated set has
them; it is marked, and nothing is decided by it.

Reference: Yaman et al. 2022 (arXiv:2102.07737): held-out lines as a validation without references.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ambient_mri._checks import check_positive, require
from ambient_mri.data.datasets import ScanDataset
from ambient_mri.denoiser import ConditionalDenoiser, Denoiser
from ambient_mri.measurement import Measurement
from ambient_mri.metrics import chi2_residual, psnr
from ambient_mri.operators import fft, sense
from ambient_mri.prior import Prior
from ambient_mri.sampling.ambient import OneScan
from ambient_mri.sampling.base import Sampler
from ambient_mri.tensors import keyed_generator
from ambient_mri.training.em import reconstruct_rows
from ambient_mri.training.estimates import evenly_spaced

__all__ = [
    "Assessment",
    "Settings",
    "assess",
    "curve_entry",
    "held_out_lines",
    "power_entry",
    "radial_power",
    "references_entry",
    "squared_error_of_mean",
]


@dataclass(frozen=True)
class Settings:
    """How much work an assessment is.

    Attributes:
        slices: Slices of held-out scans, evenly spaced.
        samples: Posterior samples of each; one for a sampler without randomness.
        held_out: Share of the sampled locations outside the calibration lines that is left out.
        rings: Rings of the power spectrum.
    """

    slices: int = 16
    samples: int = 4
    held_out: float = 0.1
    rings: int = 12

    def __post_init__(self) -> None:
        require(self.slices >= 1 and self.samples >= 1, "an assessment needs at least one slice and one sample.")
        check_positive("held_out", self.held_out)
        require(self.held_out < 1, f"held_out must be below 1; got {self.held_out}.")


@dataclass(frozen=True)
class Assessment:
    """Outcome of an assessment.

    Attributes:
        values: Plain data, for a JSON file.
        pictures: (slice, column) images (H, W) for a sample sheet, row by row, only of the first matrix size.
        columns: Names of the columns.
    """

    values: dict[str, Any]
    pictures: list[Tensor]
    columns: list[str]


def assess(
    prior: Prior,
    scans: Sequence[Path],
    *,
    sampler: Sampler,
    settings: Settings,
    references: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Assessment:
    """Assess a prior on held-out scans.

    Args:
        prior: Clean, or ambient with the sampler ``one_step``.
        scans: Prepared files of subjects that training does not see.
        sampler: Draws the posterior samples.
        settings: How many of what.
        references: Scaled reference images (1, 1, H, W) by key, for PSNR; may be empty.
        seed: The same draws for every prior that is assessed with it, so that rounds compare.
    """
    data = ScanDataset(scans, in_memory=False)
    device = next(prior.model.parameters()).device
    known, count = references or {}, settings.samples if sampler.stochastic else 1
    sums: dict[str, list[float]] = {}
    spectra: list[Tensor] = []
    pictures: list[list[Tensor]] = []
    chosen = evenly_spaced(len(data), settings.slices)
    # Of a fully sampled scan among undersampled ones nothing can be left out as a scan of the law leaves it out.
    for index in [i for i in chosen if int(_candidates(data[i]).sum()) > 1] or chosen:
        m = data[index].to(device)
        samples = _samples(prior, m, sampler, count, seed)
        found = {"residual": _residual(m, samples), **_predict(prior, m, sampler, settings, seed)}
        if count > 1:
            found["variance"] = float(samples.var(dim=0, correction=1).mean() / 2)
        reference = known.get(m.key[0])
        if reference is not None:
            truth = reference[0, 0].abs()
            found["psnr_mean"] = psnr(truth, samples.mean(0)[0].abs().cpu())
            found["psnr_sample"] = psnr(truth, samples[0, 0].abs().cpu())
        for name, value in found.items():
            sums.setdefault(name, []).append(value)
        spectra.append(radial_power(samples, settings.rings).cpu())
        pictures.append(_row(m, samples, reference))
    values = _summary(prior, sampler, sums, torch.stack(spectra).mean(0), settings, count)
    same = [row for row in pictures if len(row) == len(pictures[0]) and row[0].shape == pictures[0][0].shape][:4]
    columns = ["back-projected", "sample", f"mean of {count}", "reference"][: len(pictures[0])]
    return Assessment(values, [image for row in same for image in row], columns)


def held_out_lines(m: Measurement, share: float, seed: int) -> Tensor:
    """Sampled locations to leave out, in the shape of the mask: at least one, none of the calibration lines.

    Args:
        m: One row.
        share: Share of the candidates.
        seed: With the row's key it decides which.
    """
    candidates = _candidates(m)
    require(
        int(candidates.sum()) > 1,
        f"scan {m.key[0]} has no line outside its calibration lines that could be left out.",
    )
    draw = torch.rand(m.mask.shape, generator=keyed_generator(seed, "held out", m.key[0])).to(m.mask.device)
    chosen = max(1, round(share * int(candidates.sum())))
    threshold = draw.masked_fill(~candidates, 2.0).flatten().sort().values[chosen - 1]
    return candidates & (draw <= threshold)


def _candidates(m: Measurement) -> Tensor:
    """Sampled locations outside the calibration lines, in the shape of the mask."""
    return m.mask & ~OneScan(m.mask, m.image_shape).always(m.image_shape)


def radial_power(images: Tensor, rings: int) -> Tensor:
    """Mean |F x|^2 a real channel on ``rings`` rings of equal width up to half a cycle a pixel, without the corners.

    Args:
        images: (b, c, H, W), complex (two real channels each) or real.
        rings: Number of rings.
    """
    rows, columns = ((torch.arange(n, device=images.device) - n // 2) / n for n in images.shape[-2:])
    radius = (rows[:, None].square() + columns[None].square()).sqrt()
    ring = (radius * 2 * rings).long()
    inside = ring < rings
    parts = 2 if images.is_complex() else 1
    power = (fft(images).abs().square() / parts).mean(dim=(0, 1))[inside]
    total = torch.zeros(rings, device=images.device).index_add_(0, ring[inside], power)
    return total / torch.bincount(ring[inside], minlength=rings).clamp_min(1)


def squared_error_of_mean(samples: Tensor, target: Tensor) -> float:
    """||E[x] - target||^2 from K independent samples, without bias: that of their mean less their variance over K.

    Args:
        samples: (K, ...); with K = 1 the error of the one.
        target: (...) or (1, ...).
    """
    error = (samples.mean(0) - target).abs().square().sum()
    if len(samples) > 1:
        error = error - samples.var(dim=0).sum() / len(samples)
    return float(error)


def _samples(prior: Prior, m: Measurement, sampler: Sampler, count: int, seed: int) -> Tensor:
    """(count, 1, H, W) samples of one slice."""
    many = lambda t: t.expand(count, *t.shape[1:])  # noqa: E731
    rows = Measurement(
        y=many(m.y),
        mask=m.mask,
        coil_maps=None if m.coil_maps is None else many(m.coil_maps),
        noise_std=many(m.noise_std),
        scale=many(m.scale),
        key=tuple(f"{m.key[0]}/{k}" for k in range(count)),
        axes=m.axes,
    )
    return reconstruct_rows(prior, rows, sampler, seed)


def _predict(prior: Prior, m: Measurement, sampler: Sampler, settings: Settings, seed: int) -> dict[str, float]:
    """Squared error and energy of the lines that were left out, the noise's share taken off."""
    out = held_out_lines(m, settings.held_out, seed)
    given = replace(m, mask=m.mask & ~out, y=m.y * ~out)
    count = settings.samples if sampler.stochastic else 1
    samples = _samples(prior, given, sampler, count, seed)
    operator, target = sense(m.coil_maps, out), m.y * out  # type: ignore[arg-type]
    predicted = torch.cat([operator.forward(sample) for sample in samples[:, None]])
    # Coils that were added to fill a batch hold neither signal nor noise.
    numbers = int(((m.coil_maps.abs().amax(dim=(2, 3), keepdim=True) > 0) & out.expand_as(m.y[:, :1])).sum())  # type: ignore[union-attr]
    noise = 2 * float(m.noise_std) ** 2 * numbers
    error, energy = squared_error_of_mean(predicted, target), float(target.abs().square().sum())
    return {"held_out_squared": error - noise, "held_out_energy": energy - noise}


def _residual(m: Measurement, samples: Tensor) -> float:
    """chi^2 of the samples' data residual."""
    predicted = sense(m.coil_maps, m.mask).forward(samples)  # type: ignore[arg-type]
    residual = (m.y - predicted).cpu()
    mask = m.mask.cpu().expand(1, 1, *m.image_shape).expand(residual.shape)
    std = max(float(m.noise_std), 1e-12)
    return chi2_residual(residual.numpy(), std, mask.numpy())


def _row(m: Measurement, samples: Tensor, reference: Tensor | None) -> list[Tensor]:
    back = sense(m.coil_maps, m.mask).adjoint(m.y)  # type: ignore[arg-type]
    images = [back[0, 0], samples[0, 0], samples.mean(0)[0], *([] if reference is None else [reference[0, 0]])]
    return [image.abs().cpu() for image in images]


def _summary(
    prior: Prior, sampler: Sampler, sums: Mapping[str, list[float]], power: Tensor, settings: Settings, count: int
) -> dict[str, Any]:
    mean = {name: sum(values) / len(values) for name, values in sums.items()}
    model = prior.model
    error = max(mean["held_out_squared"], 0.0) / max(mean["held_out_energy"], 1e-12)
    known = "psnr_mean" in mean
    return {
        "kind": prior.kind,
        "sampler": sampler.name,
        "slices": len(sums["residual"]),
        "samples": count,
        "held_out_share": settings.held_out,
        "data_residual": mean["residual"] ** 0.5,
        "held_out_error": error**0.5,
        "sample_std": (mean["variance"] ** 0.5 / model.sd) if "variance" in mean else None,
        "power": power_entry(power),
        "error_curve": curve_entry(model),
        "with_references": references_entry(mean["psnr_mean"], mean["psnr_sample"]) if known else None,
    }


def power_entry(power: Tensor) -> dict[str, list[float]]:
    """A spectrum of :func:`radial_power` as plain data."""
    rings = len(power)
    return {"cycles_per_pixel": [(i + 0.5) / (2 * rings) for i in range(rings)], "mean": power.tolist()}


def curve_entry(model: Denoiser | ConditionalDenoiser) -> dict[str, list[float]] | None:
    """The denoising-error curve that a clean prior carries, as plain data; None where there is none."""
    if not isinstance(model, Denoiser) or not model.error_sigmas.numel():
        return None
    return {"sigma": model.error_sigmas.tolist(), "error": model.error_values.tolist()}


def references_entry(psnr_mean: float, psnr_sample: float) -> dict[str, Any]:
    """PSNR of the samples' mean and of one sample, marked as what it is."""
    note = "evaluation against reference images of simulated scans; no decision rests on it"
    return {"note": note, "psnr_mean": psnr_mean, "psnr_sample": psnr_sample}
