"""From a scan and a prior to a reconstruction.

    read -> mask, coil maps with the phase in them, scale, noise level (what is not given comes from the scan alone)
         -> (slice, sample) pairs in batches -> posterior sampler -> mean, std, samples, residual, in raw units

The noise level that the sampler uses is the scan's noise and, on top of it, the errors of the coil maps that the
residual of the calibration lines shows (:mod:`ambient_mri.sampling.calibration`). A reference image is neither asked
for nor read.

Every random stream is keyed by (seed, slice, sample): a result does not depend on the batch size.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ambient_mri._checks import AmbientMRIError, check_option
from ambient_mri.coil_maps import MapSource
from ambient_mri.denoiser import ConditionalDenoiser, Denoiser
from ambient_mri.measurement import Measurement
from ambient_mri.operators import sense
from ambient_mri.prior import Prior
from ambient_mri.reconstruct.notes import (
    misfit,
    nothing_but_noise,
    nothing_missing,
    other_size,
    too_little_noise,
    too_much_noise,
)
from ambient_mri.reconstruct.read import ArrayLike, levels_of_slices, read_raw
from ambient_mri.reconstruct.result import Reconstruction, ReconstructionWarning
from ambient_mri.reconstruct.volume import Chunk, Volume
from ambient_mri.sampling import Sampler, ambient_denoiser, make_sampler
from ambient_mri.sampling.automatic import given_steps, with_automatic_steps
from ambient_mri.sampling.batching import free_memory, out_of_memory, rows_per_batch
from ambient_mri.sampling.data_step_choice import EXACT_MEMORY
from ambient_mri.sampling.draw import (
    Drawn,
    as_prior,
    describe_draw,
    draw,
    joined,
    progress_bar,
    sample_count,
)
from ambient_mri.tensors import choose_device
from ambient_mri.uncertainty import recalibration_factor

if TYPE_CHECKING:
    from ambient_mri.data.files import SliceSelection
    from ambient_mri.data.readers import RawScan

__all__ = ["reconstruct", "reconstruct_volume"]


def reconstruct(
    scan: str | os.PathLike[str] | ArrayLike | RawScan,
    *,
    prior: str | os.PathLike[str] | Prior | Denoiser,
    mask: ArrayLike | None = None,
    coil_maps: ArrayLike | str | None = None,
    noise_std: float | ArrayLike | None = None,
    scale: float | None = None,
    samples: int = 8,
    sampler: str | Sampler = "split_gibbs",
    steps: int | str | None = None,
    slices: SliceSelection = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    batch_size: int | str = "auto",
    keep_samples: bool = True,
    progress: bool = True,
) -> Reconstruction:
    """Reconstruct a scan: draw samples of p(image | scan) under a prior.

    Args:
        scan: A file (fastMRI HDF5, prepared scan, .npy, .npz), or complex k-space (H, W), (coils, H, W) or
            (slices, coils, H, W) with the zero frequency at n//2.
        prior: A name, a prior folder, a Prior, or a Denoiser.
        mask: Sampled locations; inferred from the file or from exact zeros when None. Data outside it are ignored.
        coil_maps: (coils, H, W) or (slices or 1, coils, H, W) complex; or how to find them: ``"espirit"``, from the
            scan's ACS; ``"joint"``, from there on together with the image
            (:func:`~ambient_mri.sampling.joint_maps.joint_coil_maps`; needs a clean prior, and the time of four more
            samples of 25 levels, with three data steps a level). None: ``"joint"`` below 6 ACS lines where the prior
            is a clean one, else from the file or ``"espirit"``; maps that a preparation did not estimate are always
            taken as they are.
        noise_std: Noise per real and per imaginary part, raw units, a number or one a slice; from the file, or
            estimated.
        scale: Raw units per unit of the prior, for slices of a volume that are reconstructed one by one; measured on
            the slices given when None.
        samples: Samples a slice; a sampler that makes a point estimate (``one_step``) makes one.
        sampler: A name, one of :data:`~ambient_mri.sampling.SAMPLERS` (``"split_gibbs"``, ``"dds"``, ``"one_step"``,
            ``"mmps"``, ...), or a Sampler.
        steps: Number of noise levels; the sampler's own default when None. ``"auto"``: by the scan's noise level and
            the prior's error curve (:mod:`ambient_mri.sampling.automatic`).
        slices: Which slices; all when None. Scale and noise are measured on these slices.
        seed: Of the samples.
        device: ``"auto"`` takes a GPU where there is one.
        batch_size: (slice, sample) pairs at a time; ``"auto"`` goes by their size and the memory that is available. The
            result does not depend on it.
        keep_samples: Whether every sample is returned. Mean, standard deviations and residual are running ones: without
            the samples, a thousand need no more memory than a batch.
        progress: Show a progress bar, in a terminal.

    Raises:
        DataError: If the scan cannot be read or used; one line that names file, dataset and fix.
        PriorError: If there is no such prior, or the sampler is not valid for its kind.
        AmbientMRIError: If an argument does not fit the others.

    Warns:
        ReconstructionWarning: If coil maps rest on few ACS lines or none, ``"joint"`` is asked for where they are
            plenty, a given noise_std is too high or too low for them, given maps do not explain them, the images do not
            fit the data, a slice holds nothing but zeros (so do its image and std then), or the scan's size is far from
            the prior's.
        DataWarning: If the file contradicts itself.
    """
    started = time.perf_counter()
    method, where = make_sampler(sampler, given_steps(steps)), choose_device(device)
    loaded = as_prior(prior, where)
    method.check_kind(loaded.kind)
    sample_count(method, samples)
    how, given = _maps_choice(coil_maps)
    raw = read_raw(scan, mask, given, slices)
    raw = replace(raw, coil_maps=None) if how else raw
    levels = noise_std if slices is None else levels_of_slices(noise_std, scan, raw)
    volume = Volume.measure(raw, levels, scale)
    if steps == "auto":
        level = float(volume.noise_std[list(volume.held)].median())
        method = with_automatic_steps(method, loaded.model, level)
    made = reconstruct_volume(
        volume,
        loaded,
        method,
        maps=how,
        samples=samples,
        seed=seed,
        device=where,
        batch_size=batch_size,
        keep_samples=keep_samples,
        progress=progress,
    )
    for text in made.settings["warnings"]:
        warnings.warn(f"{raw.name}: {text}", ReconstructionWarning, stacklevel=2)
    made.settings["seconds"] = round(time.perf_counter() - started, 2)
    return made


def reconstruct_volume(
    volume: Volume,
    prior: Prior,
    method: Sampler,
    *,
    maps: str | None,
    samples: int,
    seed: int,
    device: torch.device,
    batch_size: int | str = "auto",
    keep_samples: bool = True,
    progress: bool = False,
) -> Reconstruction:
    """:func:`reconstruct` from where scale and noise level are known; warnings are in the settings alone.

    Args:
        volume: A scan, read and measured.
        prior: On ``device``, of a kind that the sampler takes.
        method: The sampler.
        maps: ``"espirit"``, ``"joint"``, or None for the one that suits the scan.
        samples: As for :func:`reconstruct`.
        seed: Of the samples.
        device: Where the batches are computed.
        batch_size: As for :func:`reconstruct`.
        keep_samples: As for :func:`reconstruct`.
        progress: Show a progress bar, in a terminal.
    """
    started, raw, count = time.perf_counter(), volume.raw, sample_count(method, samples)
    # An ambient network knows aliasing along the axis of its training masks, the last one.
    transpose = prior.kind != "clean" and raw.mask.shape[-1] == 1 < raw.mask.shape[-2]
    rows = rows_per_batch(batch_size, raw.shape, raw.num_coils, device)
    batch = _slices_per_batch(rows, count, raw.shape)
    results: dict[str, list[np.ndarray]] = {}
    noted = (
        other_size(prior, raw) + nothing_missing(raw) + nothing_but_noise(volume.noise_std.numpy()) + volume.warnings()
    )
    status, sources = dict[str, Any](), list[MapSource]()
    with progress_bar(progress, len(volume) * count * method.steps) as bar:
        drawing = _Drawing(prior.model, method, count, rows, seed, keep_samples, bar)
        for start in range(0, len(volume), batch):
            chunk = volume.chunk(slice(start, start + batch), device, transpose=transpose)
            if maps == "joint":
                chunk = chunk.with_joint_maps(prior, seed, range(len(chunk.sources)), batch_size=rows, bar=bar)
            elif maps is None and prior.kind == "clean":
                chunk = chunk.with_joint_maps(prior, seed, chunk.poor_rows, batch_size=rows, bar=bar)
            drawn = drawing.samples(chunk.measurement)
            for key, value in _raw_units(chunk, drawn, volume.scale, transpose).items():
                results.setdefault(key, []).append(value)
            sources += chunk.sources
            status = status or drawn.status
    noted += dict.fromkeys(text for source in sources for text in source.warnings)
    found = {"coil_maps": ", ".join(dict.fromkeys(source.method for source in sources)), "run": status}
    contradiction = too_little_noise(results, volume.noise_source, raw.coil_maps is not None)
    noted += contradiction or misfit(np.concatenate(results["residual"]))
    noted += too_much_noise(np.concatenate(results.pop("calibration_chi2")), volume.noise_source)
    arrays: dict[str, Any] = {key: volume.restored(key, np.concatenate(values)) for key, values in results.items()}
    levels = {key: arrays.pop(key).tolist() for key in ("noise_std_scaled", "effective_noise_std_scaled")}
    settings = {**describe_draw(prior, method, count, seed, device), **volume.settings(), **found, **levels}
    settings |= {"warnings": noted, "seconds": round(time.perf_counter() - started, 2)}
    optional = {name: arrays.pop(name, None) for name in ("samples", "std", "magnitude_spread")}
    if optional["std"] is not None:
        optional["std"] *= np.float32(recalibration_factor(settings))
    return Reconstruction(
        **arrays,
        **optional,
        mask=raw.mask,
        scale=volume.scale,
        recon_shape=raw.recon_shape,
        affine=raw.affine,
        name=raw.name,
        settings=settings,
    )


def _maps_choice(coil_maps: ArrayLike | str | None) -> tuple[str | None, ArrayLike | None]:
    """The method that was asked for, and the maps that were given."""
    if isinstance(coil_maps, str):
        check_option("coil_maps", coil_maps, ("espirit", "joint"))
        return coil_maps, None
    return None, coil_maps


@dataclass(frozen=True)
class _Drawing:
    """How the slices of a scan are drawn from.

    Attributes:
        model: The denoiser.
        method: The sampler.
        count: Samples a slice.
        rows: (slice, sample) pairs at a time.
        seed: Of the samples.
        keep: Every sample, and not only the moments.
        bar: The progress bar.
    """

    model: Denoiser | ConditionalDenoiser
    method: Sampler
    count: int
    rows: int
    seed: int
    keep: bool
    bar: Any

    def samples(self, m: Measurement) -> Drawn:
        """The samples of some slices; half of the slices at a time where memory does not suffice for all."""
        try:
            return self._together(m)
        except (RuntimeError, MemoryError, AmbientMRIError) as error:
            if len(m) == 1 or not out_of_memory(error):
                raise
        free_memory(m.y.device)
        halves = (m[: len(m) // 2], m[len(m) // 2 :])
        return joined([self.samples(half) for half in halves])

    def _together(self, m: Measurement) -> Drawn:
        operator = sense(m.coil_maps, m.mask, axes=m.axes)  # type: ignore[arg-type]
        ambient, device = not isinstance(self.model, Denoiser), m.y.device
        if len(m) > 1 and len(m.mask) > 1 and ambient:
            # Further masks are drawn for a batch, from the calibration lines that all of its rows have.
            return joined([self.samples(m[i]) for i in range(len(m))])
        data_step = self.method.make_data_step(
            operator, slices=len(m), samples=self.count, device=device, ambient=ambient
        )

        def denoiser(generators: Sequence[torch.Generator], repeats: int) -> Denoiser:
            if isinstance(self.model, Denoiser):
                return self.model
            return ambient_denoiser(self.model, _repeated(m, repeats), generators)

        return draw(
            self.method,
            denoiser,
            operator,
            m.y,
            m.noise_std,
            data_step=data_step,
            keys=[("reconstruct", self.seed, key) for key in m.key],
            count=self.count,
            rows=self.rows,
            keep=self.keep,
            progress=self.bar.update,
        )


def _raw_units(chunk: Chunk, drawn: Drawn, scale: float, transpose: bool) -> dict[str, np.ndarray]:
    """The chunk's part of every array of a Reconstruction, phase and scale restored."""
    m = chunk.measurement
    rotation = torch.polar(torch.full_like(chunk.phase, scale), chunk.phase) * chunk.support
    zero_filled = sense(m.coil_maps, m.mask, axes=m.axes).adjoint(m.y)  # type: ignore[arg-type]
    turn, size = rotation.cpu(), rotation.abs().cpu()
    upright = lambda x: x.mT if transpose else x  # noqa: E731
    found = {
        "samples": None if drawn.samples is None else (upright(drawn.samples) * turn[:, None])[:, :, 0],
        "std": None if drawn.std is None else (upright(drawn.std) * size)[:, 0],
        "magnitude_spread": None if drawn.magnitude_std is None else (upright(drawn.magnitude_std) * size)[:, 0],
    }
    return {key: x.numpy() for key, x in found.items() if x is not None} | {
        "mean": (upright(drawn.mean) * turn)[:, 0].numpy(),
        "zero_filled": (upright(zero_filled) * rotation)[:, 0].cpu().numpy(),
        "phase": chunk.phase[:, 0].cpu().numpy(),
        "residual": drawn.residual.mean(dim=1).numpy(),
        "noise_std": (chunk.noise_std * scale).cpu().numpy(),
        "noise_std_scaled": chunk.noise_std.cpu().numpy(),
        "effective_noise_std_scaled": m.noise_std.cpu().numpy(),
        "calibration_chi2": chunk.effective.agreement.cpu().numpy(),
        "calibration_noise_std": chunk.effective.of_calibration.cpu().numpy(),
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


def _slices_per_batch(rows: int, samples: int, shape: tuple[int, int]) -> int:
    """Slices whose samples fit one batch, and whose exact data step would fit its memory."""
    table = shape[0] * shape[1] * max(shape) * 8
    return max(1, min(rows // samples, EXACT_MEMORY // table))
