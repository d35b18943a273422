r"""From a scan and a prior to a reconstruction, and from any linear measurement and a prior to a solution.

    read -> mask, coil maps with the phase in them, scale, noise level (what is not given comes from the scan alone)
         -> (slice, sample) pairs in batches -> posterior sampler -> mean, std, samples, residual, in raw units

The noise level that the sampler uses is the larger of the scan's noise and the effective level that the residual of the
calibration lines shows (:mod:`ambient_mri.sampling.calibration`). A reference image is neither asked for nor read.

Every random stream is keyed by (seed, slice, sample): a result does not depend on the batch size.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import PriorError, check_option, require
from ambient_mri.denoiser import AmbientDenoiser, ConditionalDenoiser, Denoiser
from ambient_mri.measurement import Measurement
from ambient_mri.operators import LinearOperator, sense
from ambient_mri.prior import Prior, load_prior
from ambient_mri.reconstruct.result import Reconstruction, ReconstructionWarning, Solution
from ambient_mri.reconstruct.volume import ArrayLike, Chunk, Volume, read_raw
from ambient_mri.sampling import Sampler, ambient_denoiser, make_sampler
from ambient_mri.sampling.data_step import EXACT_MEMORY, DataStep, MeasurementNoise, repeat_rows
from ambient_mri.tensors import keyed_generator

if TYPE_CHECKING:
    from ambient_mri.data.files import SliceSelection
    from ambient_mri.data.readers import RawScan

__all__ = ["reconstruct", "solve"]

# Pixels of images, and of coil images, in one batch.
_PIXELS = {"cpu": (2**17, 2**24), "cuda": (2**22, 2**27)}


@dataclass(frozen=True)
class _Drawn:
    """Samples (n, K, ...) and chi^2 (n, K), on the CPU, and how the first batch went."""

    samples: Tensor
    residual: Tensor
    status: dict[str, Any]


def reconstruct(
    scan: str | os.PathLike[str] | ArrayLike | RawScan,
    *,
    prior: str | os.PathLike[str] | Prior | Denoiser,
    mask: ArrayLike | None = None,
    coil_maps: ArrayLike | None = None,
    noise_std: float | ArrayLike | None = None,
    samples: int = 8,
    sampler: str | Sampler = "split_gibbs",
    steps: int | None = None,
    slices: SliceSelection = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    batch_size: int | str = "auto",
    progress: bool = True,
) -> Reconstruction:
    """Reconstruct a scan: draw samples of p(image | scan) under a prior.

    Args:
        scan: A file (fastMRI HDF5, prepared scan, .npy, .npz), or complex k-space (H, W), (coils, H, W) or
            (slices, coils, H, W) with the zero frequency at n//2.
        prior: A name, a prior folder, a Prior, or a Denoiser.
        mask: Sampled locations; inferred from the file or from exact zeros when None. Data outside it are ignored.
        coil_maps: (coils, H, W) or (slices or 1, coils, H, W) complex; from the file, or estimated from the scan's ACS.
        noise_std: Noise per real and per imaginary part, raw units, a number or one a slice; from the file, or
            estimated.
        samples: Samples a slice; a sampler that makes a point estimate (``one_step``) makes one.
        sampler: ``"split_gibbs"``, ``"dds"``, ``"one_step"`` or a Sampler.
        steps: Number of noise levels; the sampler's own default when None.
        slices: Which slices; all when None. Scale and noise are measured on these slices.
        seed: Of the samples.
        device: ``"auto"`` takes a GPU where there is one.
        batch_size: (slice, sample) pairs at a time; ``"auto"`` goes by their size. The result does not depend on it.
        progress: Show a progress bar, in a terminal.

    Raises:
        DataError: If the scan cannot be read or used; one line that names file, dataset and fix.
        PriorError: If there is no such prior, or the sampler is not valid for its kind.
        AmbientMRIError: If an argument does not fit the others.

    Warns:
        ReconstructionWarning: If coil maps rest on few ACS lines or none, or the scan's size is far from the prior's.
        DataWarning: If the file contradicts itself.
    """
    started = time.perf_counter()
    method, where = make_sampler(sampler, steps), _device(device)
    loaded = _as_prior(prior, where)
    method.check_kind(loaded.kind)
    count = _sample_count(method, samples)
    volume = Volume.measure(raw := read_raw(scan, mask, coil_maps, slices), noise_std)
    # An ambient network knows aliasing along the axis of its training masks, the last one.
    transpose = loaded.kind == "ambient" and raw.mask.shape[-1] == 1 < raw.mask.shape[-2]
    rows = _rows_per_batch(batch_size, raw.shape, raw.num_coils, where)
    batch = _slices_per_batch(rows, count, raw.shape)
    starts = range(0, len(raw), batch)
    results: dict[str, list[np.ndarray]] = {}
    noted, found = _size_warning(loaded, raw.shape), dict[str, Any]()
    with _bar(progress, len(raw) * count * method.steps) as bar:
        for start in starts:
            chunk = volume.chunk(slice(start, min(start + batch, len(raw))), where, transpose=transpose)
            drawn = _draw_chunk(chunk.measurement, loaded.model, method, count, rows, seed, bar)
            for key, value in _raw_units(chunk, drawn, volume.scale, transpose).items():
                results.setdefault(key, []).append(value)
            noted += [text for text in chunk.warnings if text not in noted]
            found = found or {"coil_maps": chunk.maps_method, "run": drawn.status}
    for text in noted:
        warnings.warn(f"{raw.name}: {text}", ReconstructionWarning, stacklevel=2)
    arrays = {key: np.concatenate(values) for key, values in results.items()}
    levels = {key: arrays.pop(key).tolist() for key in ("noise_std_scaled", "effective_noise_std_scaled")}
    settings = {**_describe(loaded, method, count, seed, where), **volume.settings(), **found, **levels}
    settings |= {"warnings": noted, "seconds": round(time.perf_counter() - started, 2)}
    return Reconstruction(
        **arrays,
        mean=arrays["samples"].mean(axis=1),
        std=arrays["samples"].std(axis=1, ddof=1) if count > 1 else None,
        mask=raw.mask,
        scale=volume.scale,
        recon_shape=raw.recon_shape,
        affine=raw.affine,
        name=raw.name,
        settings=settings,
    )


def solve(
    y: Tensor,
    operator: LinearOperator,
    prior: str | os.PathLike[str] | Prior | Denoiser,
    *,
    noise_std: float | Tensor,
    samples: int = 4,
    sampler: str | Sampler = "split_gibbs",
    steps: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Solution:
    """Draw samples of p(x | y = A x + noise) for any linear operator: inpainting, denoising, deblurring, ...

    Args:
        y: (b, ...) data, in units in which x has those of the prior.
        operator: A, on ``device``, for the b rows of ``y``.
        prior: A clean prior: a name, a prior folder, a Prior, or a Denoiser.
        noise_std: Noise of y per real part (and per imaginary part, where complex): a number or (b,).
        samples: Samples for each row of ``y``.
        sampler: As for :func:`reconstruct`.
        steps: Number of noise levels; the sampler's own default when None.
        seed: Of the samples.
        device: That of ``y`` when None.
        batch_size: Rows times samples at a time, by their size when None; all rows of ``y`` are solved side by side, so
            that it is at least b.
        progress: Show a progress bar, in a terminal.

    Raises:
        PriorError: If there is no such prior, or it is an ambient one.
        AmbientMRIError: If shapes or values do not fit.
    """
    where = y.device if device is None else _device(device)
    method, loaded = make_sampler(sampler, steps), _as_prior(prior, where)
    require(
        loaded.kind == "clean",
        "solve() needs a clean prior: an ambient network must know which measurements are missing. Use reconstruct().",
        PriorError,
    )
    method.check_kind("clean")
    count = _sample_count(method, samples)
    y = y.to(where)
    shape = (int(y.shape[-2]), int(y.shape[-1]))
    rows = _rows_per_batch("auto" if batch_size is None else batch_size, shape, 1 if y.ndim < 4 else y.shape[1], where)
    levels = torch.as_tensor(noise_std, dtype=torch.float32, device=where).expand(len(y))
    keys = [("solve", seed, row) for row in range(len(y))]
    data_step = method.make_data_step(operator, slices=len(y), samples=count, device=where)

    def denoiser(generators: Sequence[torch.Generator], repeats: int) -> Denoiser:
        return loaded.model  # type: ignore[return-value]

    with _bar(progress, len(y) * count * method.steps) as bar:
        drawn = _draw(method, denoiser, operator, y, levels, data_step, keys, count, rows, bar)
    settings = {**_describe(loaded, method, count, seed, where), "operator": repr(operator), "run": drawn.status}
    return Solution(
        mean=drawn.samples.mean(dim=1),
        std=_complex_std(drawn.samples) if count > 1 else None,
        samples=drawn.samples,
        residual=drawn.residual.mean(dim=1),
        settings=settings,
    )


def _draw_chunk(
    m: Measurement,
    model: Denoiser | ConditionalDenoiser,
    method: Sampler,
    count: int,
    rows: int,
    seed: int,
    bar: Any,
) -> _Drawn:
    operator = sense(m.coil_maps, m.mask, axes=m.axes)  # type: ignore[arg-type]
    data_step = method.make_data_step(operator, slices=len(m), samples=count, device=m.y.device)
    if len(m) > 1 and data_step.name != "exact":
        # An iterative solver stops all rows of a batch at one tolerance; a slice's must not depend on its neighbours.
        return _joined([_draw_chunk(m[i], model, method, count, rows, seed, bar) for i in range(len(m))])

    def denoiser(generators: Sequence[torch.Generator], repeats: int) -> Denoiser:
        if isinstance(model, Denoiser):
            return model
        return ambient_denoiser(model, _repeated(m, repeats), generators)

    keys = [("reconstruct", seed, key) for key in m.key]
    return _draw(method, denoiser, operator, m.y, m.noise_std, data_step, keys, count, rows, bar)


def _draw(
    method: Sampler,
    denoiser: Callable[[Sequence[torch.Generator], int], Denoiser],
    operator: LinearOperator,
    y: Tensor,
    noise_std: Tensor,
    data_step: DataStep,
    keys: Sequence[tuple[int | str, ...]],
    count: int,
    rows: int,
    bar: Any,
) -> _Drawn:
    """``count`` samples for each of the n rows of ``y``, about ``rows`` (row, sample) pairs at a time."""
    images, residuals, status = [], [], dict[str, Any]()
    size = max(1, rows // len(y))
    for first in range(0, count, size):
        picked = range(first, min(first + size, count))
        generators = [keyed_generator(*key, k, device=y.device) for key in keys for k in picked]
        result = method.sample(
            denoiser(generators, len(picked)),
            operator,
            y,
            noise_std,
            generators=generators,
            data_step=data_step,
            callback=lambda level, x: bar.update(len(x)),
        )
        status = status or result.status
        chi2 = _chi2(operator, y, result.x, noise_std, len(picked))
        images.append(result.x.reshape(len(y), len(picked), *result.x.shape[1:]).cpu())
        residuals.append(chi2.reshape(len(y), len(picked)).cpu())
    return _Drawn(torch.cat(images, dim=1), torch.cat(residuals, dim=1), status)


def _joined(parts: Sequence[_Drawn]) -> _Drawn:
    """Slices one after the other."""
    return _Drawn(torch.cat([p.samples for p in parts]), torch.cat([p.residual for p in parts]), parts[0].status)


def _chi2(operator: LinearOperator, y: Tensor, x: Tensor, noise_std: Tensor, repeats: int) -> Tensor:
    """||y - A x||^2 / (m noise_std^2) of every sample, (n * repeats,); NaN without noise."""
    expanded = operator.repeat_interleave(repeats) if repeats > 1 else operator
    data = repeat_rows(y, repeats)
    energy = (data - expanded.forward(x)).abs().square().flatten(1).sum(dim=1)
    measured = torch.tensor(MeasurementNoise(expanded, data).real_numbers(), device=x.device)
    level = repeat_rows(noise_std, repeats) if len(noise_std) > 1 else noise_std
    chi2 = energy / (measured * level.square())
    return torch.where(level > 0, chi2, torch.full_like(chi2, math.nan))


def _raw_units(chunk: Chunk, drawn: _Drawn, scale: float, transpose: bool) -> dict[str, np.ndarray]:
    """The chunk's part of every array of a Reconstruction, phase and scale restored."""
    m = chunk.measurement
    rotation = torch.polar(torch.full_like(chunk.phase, scale), chunk.phase) * chunk.support
    zero_filled = sense(m.coil_maps, m.mask, axes=m.axes).adjoint(m.y)  # type: ignore[arg-type]
    images, zero_filled = (x.mT if transpose else x for x in (drawn.samples, zero_filled))
    return {
        "samples": (images * rotation.cpu()[:, None])[:, :, 0].numpy(),
        "zero_filled": (zero_filled * rotation)[:, 0].cpu().numpy(),
        "phase": chunk.phase[:, 0].cpu().numpy(),
        "residual": drawn.residual.mean(dim=1).numpy(),
        "noise_std": (m.noise_std * scale).cpu().numpy(),
        "noise_std_scaled": chunk.noise_std.cpu().numpy(),
        "effective_noise_std_scaled": chunk.effective.cpu().numpy(),
    }


def _repeated(m: Measurement, repeats: int) -> Measurement:
    """Every row of ``m`` ``repeats`` times, side by side: one for each sample."""
    many = lambda t: t.repeat_interleave(repeats, dim=0)  # noqa: E731
    return replace(
        m,
        y=many(m.y),
        mask=m.mask if len(m.mask) == 1 else many(m.mask),
        coil_maps=None if m.coil_maps is None else many(m.coil_maps),
        noise_std=many(m.noise_std),
        scale=many(m.scale),
        key=tuple(f"{key}/{k}" for key in m.key for k in range(repeats)),
    )


def _as_prior(prior: str | os.PathLike[str] | Prior | Denoiser, device: torch.device) -> Prior:
    if isinstance(prior, Denoiser | ConditionalDenoiser):
        require(
            not isinstance(prior, AmbientDenoiser),
            "this denoiser is bound to another scan; pass the Prior of the ambient network.",
            PriorError,
        )
        kind = "clean" if isinstance(prior, Denoiser) else "ambient"
        return Prior(prior.to(device).eval(), kind, {}, name=type(prior).__name__)
    return load_prior(os.fspath(prior) if isinstance(prior, os.PathLike) else prior, device=device)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _sample_count(method: Sampler, samples: int) -> int:
    require(samples >= 1, f"samples must be at least 1; got {samples}.")
    return samples if method.stochastic else 1


def _rows_per_batch(batch_size: int | str, shape: tuple[int, int], coils: int, device: torch.device) -> int:
    """(slice, sample) pairs at a time."""
    if isinstance(batch_size, str):
        check_option("batch_size", batch_size, ("auto",))
        images, coil_images = _PIXELS.get(device.type, _PIXELS["cpu"])
        pixels = shape[0] * shape[1]
        return max(1, min(images // pixels, coil_images // (pixels * max(coils, 1))))
    require(batch_size >= 1, f"batch_size must be at least 1, or 'auto'; got {batch_size}.")
    return batch_size


def _slices_per_batch(rows: int, samples: int, shape: tuple[int, int]) -> int:
    """Slices whose samples fit one batch, and whose exact data step would fit its memory."""
    table = shape[0] * shape[1] * max(shape) * 8
    return max(1, min(rows // samples, EXACT_MEMORY // table))


def _size_warning(prior: Prior, shape: tuple[int, int]) -> list[str]:
    trained = prior.metadata.get("image_shape")
    if not trained:
        return []
    ratio = shape[0] * shape[1] / (trained[0] * trained[1])
    if 0.5 <= ratio <= 2:
        return []
    return [
        f"this scan has {shape[0]} x {shape[1]} pixels, the prior {prior.name!r} was trained on {trained[0]} x "
        f"{trained[1]}: structures have another size in pixels than it knows."
    ]


def _describe(prior: Prior, method: Sampler, samples: int, seed: int, device: torch.device) -> dict[str, Any]:
    return {
        "prior": prior.name,
        "prior_kind": prior.kind,
        "sampler": method.describe(),
        "samples": samples,
        "seed": seed,
        "device": str(device),
    }


def _complex_std(samples: Tensor) -> Tensor:
    """Standard deviation over axis 1, both parts of a complex number together."""
    centred = samples - samples.mean(dim=1, keepdim=True)
    return (centred.abs().square().sum(dim=1) / (samples.shape[1] - 1)).sqrt()


def _bar(progress: bool, total: int) -> Any:
    from tqdm.auto import tqdm

    # None: shown in a terminal only.
    return tqdm(total=total, desc="sampling", unit="step", leave=False, disable=None if progress else True)
