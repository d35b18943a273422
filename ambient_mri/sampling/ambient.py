"""An ambient network as the denoiser of one scan: its further masks are drawn from the lines that the scan has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ambient_mri._checks import PriorError
from ambient_mri.coil_maps import find_acs
from ambient_mri.corruption import Undersampling
from ambient_mri.denoiser import AmbientDenoiser, ConditionalDenoiser
from ambient_mri.masks import SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.sampling.base import Sampler
from ambient_mri.sampling.problem import Problem

__all__ = ["SAMPLING_KEEP", "OneScan", "ambient_denoiser", "ambient_of"]

# Range of the share of a scan's own lines that a further mask keeps while sampling.
SAMPLING_KEEP = (0.5, 0.9)


class OneScan(SamplingLaw):
    """The law of a single scan, as far as it shows: its mask is the only draw, its ACS is always there.

    It carries no information on what other scans sample, so its weights are one; a sampler needs none.

    Args:
        mask: (rows, 1, H or 1, W or 1) bool.
        image_shape: H and W.
    """

    exact = weighted = False

    def __init__(self, mask: Tensor, image_shape: tuple[int, int]) -> None:
        self.mask = mask
        self._always = torch.zeros_like(mask[:1])
        acs = find_acs(mask, image_shape)
        if acs is not None:
            rows = slice(None) if mask.shape[-2] == 1 else slice(*acs.rows)
            columns = slice(None) if mask.shape[-1] == 1 else slice(*acs.cols)
            self._always[..., rows, columns] = True

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """The scan's own mask."""
        return self.mask[:1]

    def always(self, shape: tuple[int, int]) -> Tensor:
        """The scan's ACS, in the shape of its mask."""
        return self._always

    def probability_sampled(self, mask: Tensor, kept: Tensor, keep: Tensor, acquired: Tensor | None = None) -> Tensor:
        """One everywhere."""
        return torch.ones(mask.shape, device=mask.device)


def ambient_denoiser(
    model: ConditionalDenoiser,
    measurement: Measurement,
    generators: Sequence[torch.Generator],
    *,
    keep: tuple[float, float] = SAMPLING_KEEP,
    masks: int = 1,
) -> AmbientDenoiser:
    """The network as a denoiser of x_t for the rows of ``measurement``, with a fresh further mask at every call.

    Args:
        model: The ambient network.
        measurement: One row for each generator.
        generators: One a row.
        keep: Range of the share of the scan's own lines that a further mask keeps: the dense part of what training
            drew, because a denoiser should see as much of x_t as it can.
        masks: Further masks to average over at every call.
    """
    law = OneScan(measurement.mask, measurement.image_shape)
    return model.as_denoiser(Undersampling(law, keep=keep), measurement, generators, masks)


def ambient_of(sampler: Sampler, problem: Problem) -> AmbientDenoiser:
    """The problem's denoiser, for a sampler that is made for ambient networks alone.

    Raises:
        PriorError: If it is a clean one, with the sampler's reason.
    """
    if not isinstance(problem.denoiser, AmbientDenoiser):
        raise PriorError(f"{sampler.name} needs an ambient network: {sampler.refusal}")
    return problem.denoiser
