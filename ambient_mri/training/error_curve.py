"""The denoising-error curve of a clean prior: the rms of D(x0 + sigma n) - x0 per real part, for each sigma.

Samplers use it as r_t, the posterior standard deviation of x0 given x_t. On held-out posterior samples of an EM prior
it is self-consistent: it says how well the prior knows the images it would make, and nothing of how true these are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ambient_mri.data.datasets import ImageDataset
from ambient_mri.denoiser import CleanDenoiser, Denoiser
from ambient_mri.tensors import keyed_generator, per_row, randn_like_rows, to_channels
from ambient_mri.training.estimates import evenly_spaced

__all__ = ["error_curve", "learned_curve"]


@torch.no_grad()
def error_curve(
    model: Denoiser, images: ImageDataset, *, levels: int = 17, count: int = 16, batch_size: int = 8
) -> tuple[Tensor, Tensor]:
    """sigmas (levels,), ascending, and the rms error per real part at each of them.

    Args:
        model: A clean denoiser.
        images: Held-out images, in scaled units.
        levels: Noise levels, geometric over the model's range.
        count: Images to average over, evenly spaced over the set.
        batch_size: Images at a time.
    """
    device = next(model.parameters()).device
    picked = [images[i].images for i in evenly_spaced(len(images), count)]
    sigmas = torch.logspace(
        torch.tensor(model.sigma_min).log10().item(), torch.tensor(model.sigma_max).log10().item(), levels
    )
    errors = []
    for index, sigma in enumerate(sigmas):
        squared = []
        for start in range(0, len(picked), batch_size):
            rows = picked[start : start + batch_size]
            noise = [keyed_generator("error curve", index, start + i) for i in range(len(rows))]
            for image, generator in zip(_same_size(rows), _same_size_lists(rows, noise), strict=True):
                x0 = image.to(device)
                level = torch.full((len(x0),), float(sigma), device=device)
                x_t = x0 + per_row(level, x0) * randn_like_rows(x0, generator)
                squared.append(to_channels(model(x_t, level) - x0).double().square().mean().repeat(len(x0)))
        errors.append(torch.cat(squared).mean().sqrt())
    return sigmas, torch.stack(errors).float().cpu()


@torch.no_grad()
def learned_curve(model: CleanDenoiser, *, levels: int = 17) -> tuple[Tensor, Tensor]:
    """sigmas (levels,), ascending, and the error that the model's head has learned from the training images."""
    ends = torch.tensor([model.sigma_min, model.sigma_max]).log10()
    sigmas = torch.logspace(float(ends[0]), float(ends[1]), levels)
    device = next(model.parameters()).device
    return sigmas, model.learned_error(sigmas.to(device)).float().cpu()


def _same_size(rows: list[Tensor]) -> list[Tensor]:
    """Images of one size side by side, the others one by one."""
    if len({tuple(r.shape[-2:]) for r in rows}) == 1:
        return [torch.cat(rows)]
    return rows


def _same_size_lists(rows: list[Tensor], values: list[torch.Generator]) -> list[list[torch.Generator]]:
    if len({tuple(r.shape[-2:]) for r in rows}) == 1:
        return [values]
    return [[v] for v in values]
