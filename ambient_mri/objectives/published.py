r"""Ambient training as published, to compare with: what :mod:`ambient_mri.objectives.ambient` changes is left out.

    J = E  lambda(sigma) || A^H ( A D(z, sigma, A_tilde) - y ) ||^2 ,   z = B ( y + sigma A n ) = A_tilde (x0 + sigma n)

One further mask for each scan, drawn once and for ever (acceleration R + 1 for a scan of R; calibration lines stay), no
weights, a residual in the image, EDM's lambda and preconditioning
(:class:`~ambient_mri.comparators.ProjectedNoiseDenoiser`), noise of the image that is then projected, y taken as
noise-free.

Reference: Aali et al. 2025, arXiv:2403.08728; Daras et al. 2023, arXiv:2305.19256.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import check_positive, require
from ambient_mri.corruption import Undersampling
from ambient_mri.denoiser import ConditionalDenoiser
from ambient_mri.masks import SamplingLaw, always_on
from ambient_mri.measurement import Measurement
from ambient_mri.noise import TrainingNoise
from ambient_mri.objectives.base import Loss
from ambient_mri.tensors import RowGenerators, keyed_generator, per_row, randn_like_rows

__all__ = ["PublishedAmbientObjective", "frozen_further_mask"]


class PublishedAmbientObjective:
    """The published ambient objective (module docstring).

    Args:
        corruption: Gives A; its own B is not used.
        noise: Law of sigma.
        added_acceleration: What the further mask adds to R.
        seed: With a scan's key it decides that scan's further mask.
    """

    kind: ClassVar[str] = "ambient"
    architecture: ClassVar[dict[str, Any]] = {"preconditioning": "edm"}

    def __init__(
        self,
        corruption: Undersampling,
        noise: TrainingNoise | None = None,
        *,
        added_acceleration: float = 1.0,
        seed: int = 0,
    ) -> None:
        require(
            isinstance(corruption, Undersampling),
            f"the published objective is that of undersampled k-space; {type(corruption).__name__} is no such "
            "corruption. For images, choose objective=ambient.",
        )
        check_positive("added_acceleration", added_acceleration)
        self.corruption, self.noise = corruption, TrainingNoise() if noise is None else noise
        self.added_acceleration, self.seed = added_acceleration, seed

    def __call__(self, model: ConditionalDenoiser, batch: Measurement, generators: RowGenerators) -> Loss:
        kept = frozen_further_mask(batch, self.corruption.law, self.added_acceleration, self.seed)
        batch = self.corruption.simplified(batch)
        operator = self.corruption.forward_operator(batch)
        further = self.corruption.forward_operator(replace(batch, mask=kept))
        sigma = self.noise.draw(model.sd, generators).to(batch.noise_std)
        image = operator.adjoint(batch.y)
        noise = per_row(sigma, image) * randn_like_rows(image, generators)
        z = (batch.y + operator.forward(noise)) * kept
        residual = operator.adjoint(operator.forward(model(z, sigma, further, kept)) - batch.y)
        parts = 2 if residual.is_complex() else 1
        energy = residual.abs().square().mean(dim=(1, 2, 3)) / parts
        weight = model.loss_weight(sigma, torch.ones_like(sigma))
        return Loss((weight * energy).mean(), {"residual": energy.mean().sqrt()})


def frozen_further_mask(m: Measurement, law: SamplingLaw, added_acceleration: float, seed: int) -> Tensor:
    """B P of every row, bool in the shape of the masks: a function of (seed, scan), whenever the scan comes.

    Of the locations outside those that the law always samples, as many are kept, chosen uniformly, as make the
    acceleration R + ``added_acceleration``.

    Args:
        m: Scans.
        law: Their sampling law; which locations it always samples is all that is used.
        added_acceleration: Added to the R of each scan's own mask.
        seed: Of the choice.
    """
    mask = m.mask.expand(len(m), *m.mask.shape[1:])
    always = always_on(law, m.image_shape, mask.device) & mask
    candidates = mask & ~always
    count = lambda t: t.flatten(1).sum(dim=1)  # noqa: E731
    total = mask[0].numel()
    wanted = total / (total / count(mask).clamp_min(1) + added_acceleration) - count(always)
    keys = [keyed_generator(seed, "frozen further mask", key) for key in m.key]
    draws = torch.stack([torch.rand(mask.shape[1:], generator=g) for g in keys]).to(mask.device)
    order = draws.masked_fill(~candidates, 2.0).flatten(1).argsort(dim=1).argsort(dim=1).reshape(mask.shape)
    keep = wanted.round().clamp_min(0).reshape(-1, 1, 1, 1)
    return always | (candidates & (order < keep))
