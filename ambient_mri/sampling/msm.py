r"""Measurement score model (MSM): a denoiser of whole images from a network that only ever sees partial measurements.

K random masks B_k, each with the scan's ACS and as many other locations as the scan has, drawn anywhere. With h_k the
ambient network's estimate from B_k F S x_t, z_k = F S h_k its k-space, and C = sum_k B_k, at every location:

    D = S^H F^H ( sum_k B_k z_k / C  where C > 0,   mean of z_k elsewhere )

Each network call speaks for the locations that it was given, weighted by how often they were; together the masks cover
what the scan never sampled. Then, as in DDS, ( A^H A + lam_t I ) x' = A^H y + lam_t D and fresh noise:

    x_next = x' + sigma_next ( sqrt(1 - eta^2) (x_t - D) / sigma + eta e )

Reference: Park et al. 2025, arXiv:2505.11853, section 3 (coverage-weighted partial scores, a random few a step).
Differs: 1. the data step is the linear solve that all samplers share instead of a gradient. 2. locations that no mask
of the step covers take the mean instead of being left out. 3. lam_t with the ambient network's own error.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.measurement import Measurement
from ambient_mri.sampling.ambient import OneScan, ambient_of
from ambient_mri.sampling.dds import DDS
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import RowGenerators, rand_rows

__all__ = ["MSM", "random_masks"]


class MSM(DDS):
    """Measurement score model (module docstring): :class:`DDS` with another denoiser.

    Args:
        steps: Number of noise levels.
        masks: K, random masks a step, each one evaluation.
        eta: Share of fresh noise, 0 to 1.
        options: Of :class:`~ambient_mri.sampling.base.Sampler`.
    """

    name: ClassVar[str] = "msm"
    accepts: ClassVar[tuple[str, ...]] = ("ambient",)
    refusal: ClassVar[str] = (
        "it averages a network that is trained on partial measurements over random masks; a clean denoiser takes no "
        "mask. Use split_gibbs or dds."
    )

    def __init__(self, steps: int = 50, *, masks: int = 4, eta: float = 0.85, **options: Any) -> None:
        super().__init__(steps, eta=eta, error="white", **options)
        require(masks >= 1, f"masks must be at least 1; got {masks}.")
        self.masks = masks

    def _denoised(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        """D of the module docstring."""
        ambient = ambient_of(self, problem)
        m, corruption = ambient.measurement, ambient.corruption
        full = corruption.forward_operator(replace(m, mask=torch.ones_like(m.mask)))
        mean, spoken = torch.zeros_like(x_t), torch.zeros_like(problem.y)
        coverage = torch.zeros(1, dtype=mean.real.dtype, device=mean.device)
        for _ in range(self.masks):
            kept = random_masks(m, problem.generators)
            partial = corruption.forward_operator(replace(m, mask=kept))
            estimate = ambient.denoise_partial(x_t, level.sigma, partial, kept)
            mean = mean + estimate / self.masks
            spoken, coverage = spoken + full.forward(estimate) * kept, coverage + kept
            problem.evaluations += 1
        covered = coverage > 0
        correction = (spoken / coverage.clamp_min(1) - full.forward(mean)) * covered
        return mean + full.adjoint(correction)


def random_masks(m: Measurement, generators: RowGenerators) -> Tensor:
    """Masks (b, 1, H or 1, W or 1) like the scan's: its ACS, and as many other locations, drawn uniformly.

    Args:
        m: Of the b rows, or one row for all of them.
        generators: One a row.
    """
    always = OneScan(m.mask, m.image_shape).always(m.image_shape).flatten(1)
    count = m.mask.flatten(1).sum(dim=1)
    order = rand_rows(generators, always.shape[1], device=m.mask.device).masked_fill(always, -1.0)
    rank = order.argsort(dim=1).argsort(dim=1)
    kept = rank < count.expand(len(generators))[:, None]
    return kept.reshape(len(generators), *m.mask.shape[1:])
