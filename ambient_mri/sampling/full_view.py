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
    """``model``, or its full view where it is a clean denoiser by it, as the card of its prior says: it learned from
    noisy images with no pixel missing, and by the consistency objective, without which nothing is known below their
    noise.
    """
    law = (card.get("sampling_law") or {}).get("law")
    objective = ((card.get("training") or {}).get("objective") or {}).get("_target_", "")
    clean = law == "AdditiveNoise" and objective.endswith(".ConsistentAmbientObjective")
    return FullView(model) if clean and isinstance(model, ConditionalDenoiser) else model
