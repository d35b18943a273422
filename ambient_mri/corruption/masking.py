"""Missing pixels: P keeps pixels independently, or by the law of given masks; B thins P.

It goes with noise as it is: ``noise_std`` belongs to the measurement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ambient_mri._checks import check_option, require
from ambient_mri.corruption.base import ImageCorruption, Learnability
from ambient_mri.corruption.thinning import ThinnedMasks
from ambient_mri.masks import IndependentPixels, SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.masking import Mask
from ambient_mri.tensors import keyed_generator

__all__ = ["PixelMasking"]

# By how much the share of known pixels may differ from its probability.
_SHARE_TOLERANCE = 0.03
# Correlation of neighbours up to which pixels count as missing by themselves.
_CORRELATED = 0.1
# Further masks that the learnability check tries.
_CASES = 4


class PixelMasking(ThinnedMasks, ImageCorruption):
    """Missing pixels, A = P on the image (inpainting): every pixel of a training image is present with a known
    probability. At probability 1 it is noise alone, with B removing pixels (whose noise the network has not seen).

    Args:
        probability: Pr(a pixel is present).
        keep: Range of q.
        weight_cap: As for :class:`~ambient_mri.corruption.Undersampling`.
        per: ``"pixel"`` (all colours of a pixel together) or ``"colour"`` (each by itself).
        law: Law of the masks in place of independent pixels, such as :class:`~ambient_mri.masks.ObservedMasks` of your
            own images; its weights are used.
    """

    def __init__(
        self,
        probability: float = 0.5,
        *,
        keep: tuple[float, float] = (0.5, 0.9),
        weight_cap: float | None = None,
        per: str = "pixel",
        law: SamplingLaw | None = None,
    ) -> None:
        check_option("per", per, ("pixel", "colour"))
        law = IndependentPixels(probability) if law is None else law
        super().__init__(law, core=0, keep=keep, always_removal=1.0, weight_cap=weight_cap)
        self.per = per

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """A mask a colour, or one for all."""
        count = shape[0] if self.per == "colour" else 1
        return torch.cat([self.law.draw(shape[1:], generator) for _ in range(count)], dim=1), None

    def inclusion(self, m: Measurement) -> Tensor:
        """The law's marginal probability."""
        return self.law.inclusion_probability(m.image_shape).float().clamp_min(1e-3)

    def learnability(self, image_shape: tuple[int, int]) -> Learnability:
        """Every pixel must be present in some images."""
        inclusion = self.law.inclusion_probability(image_shape)
        never = int((inclusion <= 0).sum())
        require(
            never == 0,
            f"{never} of the {inclusion.numel()} pixels are missing in every image: what belongs there cannot be "
            "learned. The mask must vary from image to image; with one fixed mask, crop the images to what it shows.",
        )
        smallest = min(self._smallest_probability(image_shape, case) for case in range(_CASES))
        require(
            smallest > 1e-5,
            "what a further mask keeps of an image tells which of a few masks it had, and with that, which pixels are "
            f"missing: {type(self.law).__name__} never shows these pixels together, and how they go together cannot be "
            "learned. Masks that vary from image to image are needed.",
        )
        return Learnability(smallest, exact_weights=self.law.exact)

    def _smallest_probability(self, image_shape: tuple[int, int], case: int) -> float:
        """Of a pixel that B P lacks to have been measured, the smallest; B P is one of its draws."""
        generator = keyed_generator("learnability", case)
        mask = self.law.draw(image_shape, generator)
        q = torch.tensor([0.5 * sum(self.keep)])
        kept = mask & (torch.rand(mask.shape, generator=generator) < q)
        if bool((kept == mask).all()):  # B removed nothing: there is no weighted term to look at
            return 1.0
        return float(self.law.probability_sampled(mask, kept, q)[~kept.expand_as(mask)].min())

    def check_masks(self, masks: Tensor) -> None:
        """As many planes as ``per`` says, and as many pixels as independent ones of ``probability`` would leave."""
        own = "colour" if masks.shape[1] > 1 else "pixel"
        require(
            own == self.per,
            f"the images have a mask for {'each colour' if own == 'colour' else 'all colours'}: give "
            f"corruption.per={own}.",
        )
        if not isinstance(self.law, IndependentPixels):
            return
        share, expected = float(masks.float().mean()), self.law.probability
        centred = masks.float() - share
        together = [(centred.roll(1, dims=d) * centred).mean() / max(share * (1 - share), 1e-12) for d in (-1, -2)]
        require(
            abs(share - expected) < _SHARE_TOLERANCE,
            f"{share:.1%} of the pixels are known, but corruption.probability is {expected:g}: the weights of the loss "
            f"would be wrong. Give corruption.probability={share:.3g} where each pixel is missing by itself, or "
            "corruption=observed_pixels.",
        )
        require(
            float(max(together)) < _CORRELATED,
            "neighbouring pixels are missing together, and corruption=pixels takes each pixel for missing by itself: "
            "the weights of the loss would be wrong. Choose corruption=observed_pixels.",
        )

    def _operator(self, m: Measurement, mask: Tensor) -> LinearOperator:
        return Mask(mask)
