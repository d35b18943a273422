"""Raw k-space files to prepared scans, one a volume, resumable: what is done stays, what fails is named and skipped.

    read -> (undersample by a law, where fully sampled) -> coil maps from the ACS -> noise level -> scale -> schema
    version 1

Everything comes from the undersampled scan: maps, noise level and scale are what a user of such a scan would have.
The mask of a fully sampled volume is drawn once, keyed by (data seed, volume), and serves all of its slices.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ambient_mri._checks import AmbientMRIError, DataError, require
from ambient_mri.coil_maps import estimate_coil_maps
from ambient_mri.data.normalize import estimate_noise_std, measured_scale
from ambient_mri.data.readers import RawScan, read_scan
from ambient_mri.data.schema import PreparedScan, read_prepared, write_prepared
from ambient_mri.masks import SamplingLaw
from ambient_mri.tensors import keyed_generator

__all__ = ["Preparation", "PreparationSummary", "is_prepared", "prepare_file", "prepare_files", "prepare_scan"]

log = logging.getLogger(__name__)

# Slices whose coil maps are estimated together.
_BATCH = 8


@dataclass(frozen=True)
class Preparation:
    """Settings of a preparation; recorded in every file.

    Attributes:
        seed: Data seed: with the volume's name it decides the mask of a fully sampled volume.
        maps_backend: Of :func:`~ambient_mri.coil_maps.estimate_coil_maps`.
        calib: Calibration lines used for the maps, at most.
        absorb_phase: Move the image's smooth phase into the maps.
        noise_std: Noise level per real part in raw units, where it is known; estimated when None.
        slices: First and one past the last slice to use; all when None.
    """

    seed: int = 0
    maps_backend: str = "torch"
    calib: int = 24
    absorb_phase: bool = True
    noise_std: float | None = None
    slices: tuple[int, int] | None = None


@dataclass(frozen=True)
class PreparationSummary:
    """Outcome of :func:`prepare_files`.

    Attributes:
        done: Prepared files, in the order of their sources.
        kept: How many of them were there already.
        failed: (source, reason) of every file that could not be prepared.
    """

    done: tuple[Path, ...]
    kept: int
    failed: tuple[tuple[Path, str], ...] = field(default=())


def prepare_scan(raw: RawScan, law: SamplingLaw | None, settings: Preparation) -> PreparedScan:
    """One raw volume as a prepared scan.

    Args:
        raw: The volume.
        law: Undersamples a fully sampled volume; None, or a volume with its own mask: the scan is taken as it is.
        settings: Settings.

    Raises:
        AmbientMRIError: If the volume cannot be used: nothing measured, no signal, a law that does not fit its matrix.
    """
    drawn = law if law is not None and raw.fully_sampled else None
    mask = raw.mask if drawn is None else raw.mask & _draw(drawn, raw, settings.seed)
    kspace = np.where(mask, raw.kspace, np.complex64(0))
    noise_std, noise_source = _noise(raw, kspace, mask, settings)
    if raw.coil_maps is None:
        maps, method, warnings = _coil_maps(kspace, mask, noise_std, settings)
    else:
        maps, method, warnings = raw.coil_maps, "from the file", []
    preparation: dict[str, Any] = {
        **asdict(settings),
        "maps": method,
        "noise_source": noise_source,
        "retrospective": drawn is not None,
        "notes": [*raw.notes, *warnings],
    }
    return PreparedScan(
        kspace=kspace.astype(np.complex64, copy=False),
        mask=mask,
        coil_maps=maps,
        noise_std=noise_std,
        scale=measured_scale(kspace, mask),
        source=raw.name,
        source_sha256=raw.sha256,
        acquisition=raw.acquisition,
        acquired_extent=raw.acquired_extent,
        recon_shape=raw.recon_shape,
        affine=raw.affine,
        phase_absorbed=settings.absorb_phase and raw.coil_maps is None,
        sampling_law={} if drawn is None else drawn.describe(),
        preparation=preparation,
    )


def prepare_file(
    source: str | Path, target: str | Path, *, law: SamplingLaw | None = None, settings: Preparation | None = None
) -> Path:
    """Prepare one file; an existing target is kept.

    Args:
        source: Any file that :func:`~ambient_mri.data.readers.read_scan` reads.
        target: The prepared file, written atomically.
        law: See :func:`prepare_scan`.
        settings: Settings; the defaults when None.

    Returns:
        ``target``.

    Raises:
        AmbientMRIError: Naming the file and what is wrong with it.
    """
    settings = Preparation() if settings is None else settings
    source, target = Path(source), Path(target)
    if is_prepared(target):
        return target
    raw = read_scan(source, None if settings.slices is None else slice(*settings.slices))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        scan = prepare_scan(raw, law, settings)
    except DataError:
        raise
    except AmbientMRIError as error:
        raise DataError(f"{source}: {error}") from error
    write_prepared(target, scan)
    return target


def prepare_files(
    sources: Sequence[str | Path],
    folder: str | Path,
    *,
    law: SamplingLaw | None = None,
    settings: Preparation | None = None,
    progress: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> PreparationSummary:
    """Prepare many files into ``folder``, one ``<name>.h5`` each. A file that fails is reported by name and skipped.

    Safe to interrupt, and to run in several processes at once: a file appears when it is complete.

    Args:
        sources: Raw files, of different names.
        folder: Made if missing.
        law: See :func:`prepare_scan`.
        settings: Settings.
        progress: Wraps the list of sources, such as tqdm.

    Raises:
        DataError: If two sources have one name, or none could be prepared.
    """
    paths = [Path(s) for s in sources]
    names = [p.stem for p in paths]
    twice = sorted({n for n in names if names.count(n) > 1})
    require(not twice, f"two source files share the name {twice[:1]}: their prepared files would collide.", DataError)
    targets = {path: Path(folder) / f"{path.stem}.h5" for path in paths}
    kept = sum(is_prepared(target) for target in targets.values())
    failed: dict[Path, str] = {}
    # Each process begins elsewhere and skips what is there by then: several at once share the work.
    start = os.getpid() % max(len(paths), 1)
    for path in progress([*paths[start:], *paths[:start]]):
        try:
            prepare_file(path, targets[path], law=law, settings=settings)
        except AmbientMRIError as error:
            failed[path] = str(error)
            log.warning("skipped %s", error)
    done = tuple(targets[path] for path in paths if path not in failed)
    reason = f" The first: {next(iter(failed.values()))}" if failed else ""
    require(bool(done), f"none of the {len(paths)} files could be prepared.{reason}", DataError)
    return PreparationSummary(done, kept, tuple((path, failed[path]) for path in paths if path in failed))


def is_prepared(path: str | Path) -> bool:
    """Whether ``path`` is a complete prepared scan of this schema version."""
    if not Path(path).is_file():
        return False
    try:
        read_prepared(path, slices=0)
    except DataError:
        return False
    return True


def _draw(law: SamplingLaw, raw: RawScan, seed: int) -> np.ndarray:
    """The volume's mask, (1, 1, H or 1, W or 1), along its phase-encode axis.

    It is drawn on the whole matrix, as fastMRI does: the ACS is centred on the zero frequency, and what falls on zero
    padding is not sampled.
    """
    height, width = raw.shape
    generator = keyed_generator(seed, raw.name, "mask")
    if raw.phase_encode_axis == -2:
        return law.draw((width, height), generator).numpy().swapaxes(-2, -1)
    return law.draw((height, width), generator).numpy()


def _coil_maps(
    kspace: np.ndarray, mask: np.ndarray, noise_std: np.ndarray, settings: Preparation
) -> tuple[np.ndarray, str, list[str]]:
    """Maps of every slice, how they were made, and what a user should know of them."""
    parts, method, warnings = [], "", []
    for start in range(0, len(kspace), _BATCH):
        rows = slice(start, start + _BATCH)
        found = estimate_coil_maps(
            torch.from_numpy(kspace[rows]),
            torch.from_numpy(mask[rows] if len(mask) > 1 else mask),
            backend=settings.maps_backend,
            calib=settings.calib,
            noise_std=torch.from_numpy(noise_std[rows]),
            absorb=settings.absorb_phase,
        )
        parts.append(found.maps.numpy())
        method = found.method
        warnings += [text for text in found.warnings if text not in warnings]
    return np.concatenate(parts), method, warnings


def _noise(raw: RawScan, kspace: np.ndarray, mask: np.ndarray, settings: Preparation) -> tuple[np.ndarray, str]:
    if settings.noise_std is not None:
        return np.full(len(raw), settings.noise_std, dtype=np.float32), "given"
    if raw.noise_std is not None:
        return np.asarray(raw.noise_std, dtype=np.float32), "from the file"
    value, source = estimate_noise_std(kspace, mask, raw.acquired_extent)
    return np.full(len(raw), value, dtype=np.float32), source
