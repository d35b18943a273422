"""The noise that is left in natural images, measured blind: are samples less noisy than any image of the training set?

    level = median |d| / 0.6745 ,    d the finest diagonal wavelet coefficients (db2) of a colour; mean over colours

Donoho & Johnstone 1994; `skimage.restoration.estimate_sigma`. Fine texture counts as noise: a clean image has a level
above zero, which is why clean images stand beside the samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_mri.report.records import ci95_of_mean

__all__ = ["noise_levels", "noise_rows"]


def noise_levels(images: Tensor) -> Tensor:
    """Level of each image (module docstring): (n, c, H, W) -> (n,)."""
    from skimage.restoration import estimate_sigma

    stored = np.moveaxis(images.detach().cpu().double().numpy(), 1, -1)
    return torch.tensor([float(estimate_sigma(image, average_sigmas=True, channel_axis=-1)) for image in stored])


def noise_rows(base: Mapping[str, Any], images: Tensor, training: Tensor | None = None) -> list[dict[str, Any]]:
    """Rows of ``noise_level`` and, where there is something to compare with, of ``quieter``.

    Args:
        base: Case, method and factors of the rows.
        images: (n, c, H, W) in [-1, 1].
        training: Levels of all noisy training images.
    """
    levels = noise_levels(images)
    count = len(levels)
    half = ci95_of_mean(levels.tolist())
    rows = [{**base, "metric": "noise_level", "value": float(levels.mean()), "n": count, "ci95": half}]
    if training is not None:
        share = float((levels < training.min()).float().mean())
        rows.append({**base, "metric": "quieter", "value": share, "n": count, "ci95": None})
    return rows
