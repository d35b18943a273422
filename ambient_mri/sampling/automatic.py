r"""The number of steps from the noise of the data and the prior's own error: no constant for each scan.

    L(noise_std) = ln( r(sigma_max) / r(sigma_min) )          r: posterior_std, the prior's error curve where it has one

A step is as long as the share of the prior's uncertainty that it takes away. Every sampler's default number of steps
belongs to data with noise_std = sd / 25 and an image model without a curve, L_0; other data and priors get as many as
keep that length: fewer where the data are noisier and the ladder ends earlier, more where a prior is better than the
model. The ladder itself, lam_t and the tolerance of the data step follow from the same two quantities
(:mod:`ambient_mri.sampling.base`, :func:`~ambient_mri.sampling.data_step.relative_tolerance`).
"""

from __future__ import annotations

import copy
import math

import torch

from ambient_mri._checks import check_option
from ambient_mri.denoiser import ConditionalDenoiser, Denoiser
from ambient_mri.sampling.base import Sampler

__all__ = ["given_steps", "with_automatic_steps"]

# noise_std over sd of the data that the default numbers of steps were chosen on, and how far from them it may lead.
_REFERENCE, _FEWEST, _MOST = 1 / 25, 0.4, 2.0


def given_steps(steps: int | str | None) -> int | None:
    """The number of steps to make a sampler with: with ``"auto"`` its own, until the data are known.

    Raises:
        AmbientMRIError: For another word.
    """
    if isinstance(steps, str):
        check_option("steps", steps, ("auto",))
        return None
    return steps


def with_automatic_steps(sampler: Sampler, denoiser: Denoiser | ConditionalDenoiser, noise_std: float) -> Sampler:
    """The sampler with the number of steps that suits the data, between 0.4 and 2 times its own.

    Args:
        sampler: Its ``steps`` are those for the reference (module docstring); it is not changed.
        denoiser: The prior; with an ambient network, whose error is that of another question, the sampler is returned
            as it is.
        noise_std: Of the data, per real part, in the units of the prior.
    """
    if not isinstance(denoiser, Denoiser) or not sampler.stochastic:
        return sampler
    high, low = sampler.sigma_range(denoiser, noise_std)
    reference_high, reference_low = sampler.sigma_range(denoiser, _REFERENCE * denoiser.sd)
    edges = torch.tensor([high, low], device=denoiser.error_sigmas.device)
    uncertainty = denoiser.posterior_std(edges).tolist()
    expected = [sigma * denoiser.sd / math.hypot(sigma, denoiser.sd) for sigma in (reference_high, reference_low)]
    ratio = math.log(uncertainty[0] / uncertainty[1]) / math.log(expected[0] / expected[1])
    changed = copy.copy(sampler)
    changed.steps = max(1, math.ceil(sampler.steps * min(max(ratio, _FEWEST), _MOST)))
    return changed
