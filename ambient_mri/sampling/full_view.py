"""An ambient network of images as a clean denoiser, by showing it a full mask.

This is what a network that was trained on complete, noisy images is made for (corruption=noise, or pixels at
probability 1): E[x0 | x_t] at every level that its objective supervised. A network trained on sparse masks has never
seen a full one; refine it by EM, or wrap it with ``model.as_denoiser``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ambient_mri.denoiser import ConditionalDenoiser, Denoiser
from ambient_mri.operators.masking import Mask

__all__ = ["FullView", "whole_image_model"]


class FullView(Denoiser):
    """D(x_t, sigma) = h(x_t, sigma, A_tilde = I) (module docstring).

    Args:
        model: A network trained with pixels missing nowhere, or nearly so.
    """

    def __init__(self, model: ConditionalDenoiser) -> None:
        super().__init__(model.sd, model.sigma_min, model.sigma_max)
        self.model = model

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        kept = torch.ones(len(x_t), 1, *x_t.shape[-2:], dtype=torch.bool, device=x_t.device)
        return self.model(x_t, sigma, Mask(kept), kept)


def whole_image_model(model: Denoiser | ConditionalDenoiser, card: Mapping[str, Any]) -> Denoiser | ConditionalDenoiser:
    """``model``, or its full view where the card of its prior says that it learned from noisy images with no pixel
    missing: a clean denoiser then.
    """
    law = (card.get("sampling_law") or {}).get("law")
    return FullView(model) if isinstance(model, ConditionalDenoiser) and law == "AdditiveNoise" else model
