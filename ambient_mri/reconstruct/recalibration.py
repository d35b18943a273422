"""The factor of the standard deviation, measured on scans whose truth is known and stored with the prior.

    prior.json:  "recalibration": {"<sampler>": {"factor": ..., "level": ..., "coverage": ..., "samples": ..., ...}}

:func:`~ambient_mri.reconstruct.reconstruct` applies it to the standard deviation that it returns, and says so in the
settings. The mathematics is that of :mod:`ambient_mri.uncertainty`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri._files import write_atomically
from ambient_mri.metrics import fit_scale
from ambient_mri.reconstruct.result import Reconstruction
from ambient_mri.uncertainty import CALIBRATION_LEVEL, Recalibration, recalibrate

__all__ = ["measure_recalibration", "store_recalibration"]

# Of a reference's maximum: the pixels inside the object, where a standard deviation means something.
_OBJECT = 0.05


def measure_recalibration(
    results: Iterable[tuple[Reconstruction, np.ndarray]], *, level: float = CALIBRATION_LEVEL
) -> Recalibration:
    """The factor of the standard deviation from reconstructions and their references.

    Magnitudes are compared inside the object, after one least-squares factor a volume. The reference is taken to be the
    fully sampled scan, whose noise on the sampled 1 / R is that of the reconstruction's own data: the rest of it,
    noise_std sqrt(1 - 1 / R), adds to the error. A factor that the reconstructions contain already is taken out first.

    Args:
        results: Reconstruction and magnitude reference (slices, *recon_shape) of every validation scan; all with the
            same number of samples.
        level: Share of the pixels that the interval is to cover.

    Raises:
        AmbientMRIError: If shapes differ, or there are too few samples or scans.
    """
    cases, noise, counts = [], [], set()
    for found, reference in results:
        spread, image = found.magnitude_std, found.magnitude
        if spread is None:
            raise AmbientMRIError(f"{found.name}: one sample has no standard deviation; draw eight or more.")
        require(
            image.shape == reference.shape,
            f"{found.name}: the reconstruction has shape {image.shape}, its reference {reference.shape}. Do they "
            "belong to one scan?",
        )
        counts.add(found.num_samples)
        factor, plain = fit_scale(image, reference), np.asarray(spread / found.recalibration_factor)
        inside = reference > _OBJECT * reference.max()
        unshared = math.sqrt(max(1 - 1 / found.settings.get("acceleration", math.inf), 0))
        for i in range(len(image)):
            cases.append((factor * image[i] - reference[i], factor * plain[i], inside[i]))
            noise.append(factor * unshared * float(found.noise_std[i]))
    require(len(counts) <= 1, f"all reconstructions must have the same number of samples; got {sorted(counts)}.")
    return recalibrate(cases, counts.pop() if counts else 0, level=level, noise_std=noise)


def prior_folder(source: str | os.PathLike[str]) -> Path:
    """The folder whose ``prior.json`` a factor is written to: a prior folder, or that of a run folder.

    Raises:
        AmbientMRIError: If there is none: a prior that ships, or a Hub's, is saved to a folder first.
    """
    path = Path(source).expanduser()
    found = next((folder for folder in (path, path / "prior") if (folder / "prior.json").is_file()), None)
    if found is None:
        raise AmbientMRIError(
            f"{source} is not a prior folder: it has no prior.json. Training writes one at RUN/prior; of a prior that "
            f"ships, make one of your own first: load_prior({str(source)!r}).save('my_prior')."
        )
    return found


def store_recalibration(folder: str | os.PathLike[str], sampler: str, found: Recalibration, **about: Any) -> Path:
    """Write the factor of ``sampler`` into the prior folder's ``prior.json``; those of other samplers stay.

    Args:
        folder: A prior folder.
        sampler: Name of the sampler that it was measured with.
        found: The factor.
        about: What else belongs to it: steps, scans, date; plain data.

    Raises:
        AmbientMRIError: If the folder has no ``prior.json``.
    """
    path = prior_folder(folder) / "prior.json"
    card = json.loads(path.read_text())
    card.setdefault("recalibration", {})[sampler] = {**found.describe(), **about}
    return write_atomically(path, json.dumps(card, indent=2).encode())
