"""Posterior samplers: each a file with its reference; see :mod:`ambient_mri.sampling.base` for what they share."""

from __future__ import annotations

from typing import Any

from ambient_mri._checks import AmbientMRIError, check_option
from ambient_mri.sampling.adps import ADPS, ADPSFixed
from ambient_mri.sampling.ambient import ambient_denoiser
from ambient_mri.sampling.ambient_generation import AmbientGeneration
from ambient_mri.sampling.base import Callback, Sampler, SamplerResult
from ambient_mri.sampling.daps import DAPS
from ambient_mri.sampling.dds import DDS
from ambient_mri.sampling.diffpir import DiffPIR
from ambient_mri.sampling.dps import DPS
from ambient_mri.sampling.full_view import FullView
from ambient_mri.sampling.heun import Heun, unconditional
from ambient_mri.sampling.langevin import Langevin
from ambient_mri.sampling.mmps import MMPS
from ambient_mri.sampling.msm import MSM
from ambient_mri.sampling.one_step import OneStep
from ambient_mri.sampling.pigdm import PiGDM
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.sampling.pula import PULA
from ambient_mri.sampling.split_gibbs import SplitGibbs

__all__ = [
    "ADPS",
    "ADPSFixed",
    "AmbientGeneration",
    "Callback",
    "DAPS",
    "DDS",
    "DPS",
    "DiffPIR",
    "FullView",
    "Heun",
    "Langevin",
    "Level",
    "MMPS",
    "MSM",
    "OneStep",
    "PULA",
    "PiGDM",
    "Problem",
    "SAMPLERS",
    "Sampler",
    "SamplerResult",
    "SplitGibbs",
    "ambient_denoiser",
    "make_sampler",
    "unconditional",
]

_CLASSES: tuple[type[Sampler], ...] = (
    SplitGibbs,
    DDS,
    OneStep,
    MMPS,
    DPS,
    PiGDM,
    DiffPIR,
    DAPS,
    PULA,
    Langevin,
    MSM,
    ADPS,
    ADPSFixed,
    Heun,
)
SAMPLERS: dict[str, type[Sampler]] = {cls.name: cls for cls in _CLASSES}


def make_sampler(sampler: str | Sampler, steps: int | None = None, **options: Any) -> Sampler:
    """A sampler by name, or the instance itself.

    Args:
        sampler: One of :data:`SAMPLERS`, or a :class:`Sampler`.
        steps: Number of noise levels; the sampler's own default when None.
        options: Further arguments of the sampler.

    Raises:
        AmbientMRIError: If the name is unknown, an option does not exist, or options come with an instance.
    """
    given = options if steps is None else {"steps": steps, **options}
    if isinstance(sampler, Sampler):
        if given:
            raise AmbientMRIError(f"{', '.join(given)} cannot be changed on a Sampler: set it where it is made.")
        return sampler
    check_option("sampler", sampler, SAMPLERS)
    try:
        return SAMPLERS[sampler](**given)
    except TypeError as error:
        raise AmbientMRIError(f"sampler {sampler!r} does not take these options: {error}.") from error
