"""One volume: from raw k-space to everything that a training or a reconstruction reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from warnings import warn

import numpy as np
import torch

from ambient_mri._checks import DataError, require
from ambient_mri.coil_maps import estimate_coil_maps, likely_noise_std
from ambient_mri.coil_maps.noise_likelihood import FEWEST_COILS
from ambient_mri.data.coil_compression import coil_compression
from ambient_mri.data.fastmri_masks import FastMRIMask
from ambient_mri.data.normalize import PERIPHERY, estimate_noise_std, measured_scale, noise_warnings
from ambient_mri.data.oversampling import remove_readout_oversampling
from ambient_mri.data.readers import DataWarning, RawScan
from ambient_mri.data.schema import PreparedScan
from ambient_mri.data.whitening import noise_covariance, periphery_covariance, read_noise_scan, whitening
from ambient_mri.masks import SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.prepare.settings import Preparation
from ambient_mri.tensors import keyed_generator

__all__ = ["Conditioned", "condition", "prepare_scan"]

# Slices whose coil maps are estimated together.
_BATCH = 8
# Periphery over noise level: estimates of white noise alone differ by a few per cent.
_SIGNAL_IN_PERIPHERY = 1.15


@dataclass(frozen=True)
class Conditioned:
    """A scan after the linear steps of its preparation.

    Attributes:
        raw: The scan: undersampled, whitened, compressed, without readout oversampling, as the settings say.
        record: What was done, as plain data.
        noise: Noise per real part, raw units, where a step knows it, and where it comes from.
    """

    raw: RawScan
    record: dict[str, Any]
    noise: tuple[float, str] | None = None


def prepare_scan(
    raw: RawScan, law: SamplingLaw | None, settings: Preparation, device: torch.device | str = "cpu"
) -> PreparedScan:
    """One raw volume as a prepared scan.

    Args:
        raw: The volume.
        law: Undersamples a fully sampled volume; None, or a volume with its own mask: the scan is taken as it is.
        settings: Settings.
        device: Where the coil maps are estimated.

    Raises:
        AmbientMRIError: If the volume cannot be used: nothing measured, no signal, a law that does not fit its matrix.
    """
    done = condition(raw, law, settings)
    scan, retrospective = done.raw, bool(done.record["retrospective"])
    noise_std, noise_source = _noise(done, settings)
    if scan.coil_maps is None:
        maps, method, warnings = _coil_maps(scan, noise_std, settings, torch.device(device))
    else:
        maps, method, warnings = scan.coil_maps, str(scan.attrs.get("maps") or "from the file"), []
    warnings = warnings + noise_warnings(noise_source, scan.num_coils)
    if noise_source.startswith(PERIPHERY) and scan.num_coils >= FEWEST_COILS:
        noise_std, noise_source = _lowered(scan, maps, noise_std), f"{noise_source}; at most, as the coils agree"
    preparation: dict[str, Any] = {
        **settings.describe(),
        **done.record,
        "acceleration": scan.acceleration,
        "num_slices": len(scan),
        "first_slice": raw.volume_slices[0],
        "maps": method,
        "noise_source": noise_source,
        "notes": [*scan.notes, *warnings],
    }
    return PreparedScan(
        kspace=scan.kspace.astype(np.complex64, copy=False),
        mask=scan.mask,
        coil_maps=maps,
        noise_std=noise_std,
        scale=measured_scale(scan.kspace, scan.mask),
        source=scan.name,
        source_sha256=raw.sha256,
        acquisition=scan.acquisition,
        acquired_extent=scan.acquired_extent,
        recon_shape=scan.recon_shape,
        affine=scan.affine,
        phase_absorbed=settings.absorb_phase if scan.coil_maps is None else bool(scan.attrs.get("phase_absorbed")),
        sampling_law=law.describe() if law is not None and retrospective else {},
        preparation=preparation,
    )


def condition(raw: RawScan, law: SamplingLaw | None, settings: Preparation) -> Conditioned:
    """The linear steps: readout oversampling, undersampling, whitening, coil compression.

    Args:
        raw: The volume.
        law: See :func:`prepare_scan`.
        settings: Settings.

    Raises:
        AmbientMRIError: If a step cannot be done with this scan.
    """
    scan = remove_readout_oversampling(raw) if settings.crop_readout else raw
    drawn = law if law is not None and scan.fully_sampled else None
    if drawn is not None:
        mask = scan.mask & _draw(drawn, scan, settings.seed)
        require(
            bool(mask.any()),
            f"{scan.name}: the sampling law selects no line of the acquired extent {scan.acquired_extent}.",
            DataError,
        )
        # Maps and a noise level that were estimated from all of the data would tell what is left out now.
        scan = replace(scan, coil_maps=None, noise_std=None) if scan.estimated_maps else scan
        scan = replace(scan, mask=mask)
    # What was not measured is not looked at by any step below.
    scan = replace(scan, kspace=np.where(scan.mask, scan.kspace, np.complex64(0)))
    record: dict[str, Any] = {"retrospective": drawn is not None}
    own = settings.whiten is not None or settings.coils is not None
    require(
        raw.coil_maps is None or not own,
        f"{raw.name}: the file brings coil maps, which whitening and coil compression would put out of step. "
        "Leave these steps out, or prepare the raw file.",
        DataError,
    )
    noise: tuple[float, str] | None = None
    if settings.whiten is not None:
        scan, record["whitening"], noise = _whitened(scan, settings.whiten)
    if settings.coils is not None:
        scan, record["coil_compression"] = _compressed(scan, settings)
    return Conditioned(scan, record, noise)


def _whitened(scan: RawScan, source: str) -> tuple[RawScan, dict[str, Any], tuple[float, str] | None]:
    if source == "periphery":
        covariance = periphery_covariance(scan.kspace, scan.mask, scan.acquired_extent)
    else:
        covariance = noise_covariance(read_noise_scan(source), source)
    count = len(covariance)
    fits = count == scan.num_coils
    require(fits, f"{scan.name}: the noise scan has {count} coils, the scan {scan.num_coils}.", DataError)
    found = whitening(covariance)
    # The periphery may hold signal and filtered edges: it tells how the noise is mixed, not how strong it is.
    noise = None if source == "periphery" else (found.noise_std, "noise scan")
    record = {"source": "periphery" if source == "periphery" else "noise scan", **found.describe()}
    if source == "periphery":
        level, _ = estimate_noise_std(scan.kspace, scan.mask, scan.acquired_extent)
        if found.noise_std > _SIGNAL_IN_PERIPHERY * level:
            text = (
                f"{scan.name}: the periphery of k-space is {found.noise_std / level:.2g} times as strong as the noise: "
                "whitening by it takes image for noise. Whiten by a noise scan, or not at all."
            )
            warn(text, DataWarning, stacklevel=2)
            scan = replace(scan, notes=(*scan.notes, text))
    return replace(scan, kspace=found.apply(scan.kspace)), record, noise


def _compressed(scan: RawScan, settings: Preparation) -> tuple[RawScan, dict[str, Any]]:
    wanted = float(settings.coils or 0)
    if wanted >= 1:
        wanted = min(wanted, scan.num_coils)  # a set holds scans of many coil numbers
    axis = -2 if scan.phase_encode_axis in (-1, None) else -1
    found = coil_compression(scan.kspace, scan.mask, wanted, method=settings.compression, readout_axis=axis)
    kspace = np.where(scan.mask, found.apply(scan.kspace), np.complex64(0))
    return replace(scan, kspace=kspace), found.describe()


def _draw(law: SamplingLaw, raw: RawScan, seed: int) -> np.ndarray:
    """The volume's mask, (1, 1, H or 1, W or 1), along its phase-encode axis.

    It is drawn on the whole matrix, as fastMRI does: the ACS is centred on the zero frequency, and what falls on zero
    padding is not sampled.
    """
    height, width = raw.shape
    shape = (width, height) if raw.phase_encode_axis == -2 else (height, width)
    if isinstance(law, FastMRIMask) and law.by_name:
        mask = law.draw_for_file(shape, "array" if raw.source is None else raw.source.name).numpy()
    else:
        mask = law.draw(shape, keyed_generator(seed, raw.name, "mask")).numpy()
    return mask.swapaxes(-2, -1) if raw.phase_encode_axis == -2 else mask


def _coil_maps(
    scan: RawScan, noise_std: np.ndarray, settings: Preparation, device: torch.device
) -> tuple[np.ndarray, str, list[str]]:
    """Maps of every slice, how they were made, and what a user should know of them."""
    kspace, mask = scan.kspace, scan.mask
    to: Callable[[np.ndarray], torch.Tensor] = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(device)  # noqa: E731
    # A slice that holds nothing but zeros keeps maps that are the same for every coil.
    maps = np.full(kspace.shape, kspace.shape[1] ** -0.5, dtype=np.complex64)
    held = [i for i, part in enumerate(kspace) if part.any()]
    methods, warnings = list[str](), list[str]()
    for start in range(0, len(held), _BATCH):
        rows = held[start : start + _BATCH]
        found = estimate_coil_maps(
            to(kspace[rows]),
            to(mask[rows] if len(mask) > 1 else mask),
            backend=settings.maps_backend,
            calib=settings.calib,
            noise_std=to(noise_std[rows]),
            absorb=settings.absorb_phase,
        )
        maps[rows] = found.maps.cpu().numpy()
        methods += [source.method for source in found.sources]
        warnings += found.warnings
    empty = [index for i, index in enumerate(scan.slice_indices) if i not in held]
    if empty:
        warnings.append(f"slices {empty} hold nothing but zeros: their coil maps are flat, the same for every coil.")
    return maps, ", ".join(dict.fromkeys(methods)), list(dict.fromkeys(warnings))


def _lowered(scan: RawScan, maps: np.ndarray, noise_std: np.ndarray) -> np.ndarray:
    """The level of every slice, lowered to what its coils agree on."""
    levels = []
    for i, bound in enumerate(torch.from_numpy(noise_std)):
        y, one = torch.from_numpy(scan.kspace[i : i + 1]), torch.ones(1)
        mask = torch.from_numpy(np.ascontiguousarray(scan.mask[i : i + 1] if len(scan.mask) > 1 else scan.mask))
        m = Measurement(
            y, mask, torch.from_numpy(maps[i : i + 1] if len(maps) > 1 else maps), bound[None], one, (str(i),)
        )
        levels.append(likely_noise_std(m, bound[None]))
    return torch.cat(levels).numpy()


def _noise(done: Conditioned, settings: Preparation) -> tuple[np.ndarray, str]:
    scan = done.raw
    if settings.noise_std is not None:
        return np.full(len(scan), settings.noise_std, dtype=np.float32), "given"
    if done.noise is not None:
        return np.full(len(scan), done.noise[0], dtype=np.float32), done.noise[1]
    if scan.noise_std is not None:
        return np.asarray(scan.noise_std, dtype=np.float32), "from the file"
    value, source = estimate_noise_std(scan.kspace, scan.mask, scan.acquired_extent)
    return np.full(len(scan), value, dtype=np.float32), source
