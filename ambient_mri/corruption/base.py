"""What a corruption is: the operator A of a measurement, a further corruption B of it, and the weights of the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import LinearOperator
from ambient_mri.tensors import RowGenerators, complex_randn, per_row, randn_like_rows

__all__ = ["Corruption", "Further", "ImageCorruption", "Learnability"]


@dataclass(frozen=True)
class Further:
    """A further corruption, drawn for one batch.

    Attributes:
        operator: A_tilde = B A.
        kept: The locations of y that B keeps, bool, broadcastable to y.
        weights: W, float, broadcastable to y; zero where y was not measured.
        rate: :meth:`Corruption.rate` of A_tilde, (b,).
    """

    operator: LinearOperator
    kept: Tensor
    weights: Tensor
    rate: Tensor


@dataclass(frozen=True)
class Learnability:
    """Outcome of the learnability check.

    Attributes:
        smallest_eigenvalue: Of E[A^H A | A_tilde], coils included, over the simulated cases; NaN for masks along both
            axes, where it is not computed.
        holes: Locations (or lines) inside the sampled region that no scan samples.
        rim: Number of lines or locations at the edge that no scan samples: normal, but the resolution is lower there.
        exact_weights: Whether the law's weights are exact.
        notes: Sentences on what the law leaves out.
    """

    smallest_eigenvalue: float
    holes: tuple[int, ...] = ()
    rim: int = 0
    exact_weights: bool = True
    notes: tuple[str, ...] = ()


class Corruption(ABC):
    """What a measurement is a corruption of: gives A, draws B, and knows the weights."""

    @abstractmethod
    def forward_operator(self, m: Measurement) -> LinearOperator:
        """A, for the rows of ``m``."""

    def simplified(self, m: Measurement) -> Measurement:
        """The same measurement in the form in which A is cheapest; training calls it once a batch."""
        return m

    @abstractmethod
    def further(self, m: Measurement, generators: RowGenerators) -> Further:
        """A fresh B for every row, row ``i`` drawn from ``generators[i]``."""

    def rate(self, m: Measurement, kept: Tensor) -> Tensor:
        """Share of an image that A sees where only ``kept`` is left of y: trace(A_tilde^H A_tilde) / n, (b,)."""
        return kept.float().mean(dim=(1, 2, 3))

    def describe(self) -> dict[str, Any]:
        """The law of A as plain data, for provenance."""
        plain = {k: v for k, v in vars(self).items() if isinstance(v, int | float | str | tuple)}
        return {"law": type(self).__name__, **{k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}}

    def lift(
        self, m: Measurement, x_t: Tensor, sigma: Tensor, operator: LinearOperator, generators: RowGenerators
    ) -> Tensor:
        """A_tilde x_t with its image noise completed to white noise of variance sigma^2 in the space of y.

        With A_full, A without missing locations, A_full A_full^H must be a projection (normalised coil maps, an
        orthonormal transform): what it leaves out is added as fresh noise.

        Args:
            m: The measurement; its rows are those of ``x_t``, or one row for all of them.
            x_t: Noisy images (b, c, H, W).
            sigma: Their noise per real part, (b,).
            operator: A_tilde.
            generators: One a row of ``x_t``.
        """
        clean = operator.forward(x_t)
        white = randn_like_rows(m.y.expand(len(x_t), *m.y.shape[1:]), generators)
        full = self.forward_operator(replace(m, mask=torch.ones_like(m.mask)))
        return clean + per_row(sigma, x_t) * (white - full.forward(full.adjoint(white)))


class ImageCorruption(Corruption):
    """A corruption of images without coils: it also knows how the world draws A, so that images can be corrupted.

    What belongs to an image (mask, bandwidth, projection, noise) is drawn once, by :meth:`measure` with a generator
    that is keyed by the image; B alone is fresh at every step.

    Attributes:
        aligned: Whether the locations of y are those of the pixels, so that a network may be shown the mask.
    """

    aligned: ClassVar[bool] = True

    @abstractmethod
    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """The mask (1, c or 1, H, W) and the further parameters (1, p) of A for one image of ``shape`` (c, H, W)."""

    @abstractmethod
    def learnability(self, image_shape: tuple[int, int]) -> Learnability:
        """Whether the clean distribution can be learned from images corrupted by this law.

        Raises:
            AmbientMRIError: If not: the reason, and what to change.
        """

    @abstractmethod
    def inclusion(self, m: Measurement) -> Tensor:
        """Pr(a location of y is measured), broadcastable to y."""

    def check_masks(self, masks: Tensor) -> None:
        """Check that images which are corrupted already can be of this law, by their masks (n, c or 1, H, W) bool.

        Raises:
            AmbientMRIError: If not: what to choose instead.
        """
        raise AmbientMRIError(
            f"what {type(self).__name__} measures is no image: images that are corrupted already have missing pixels "
            "(corruption=observed_pixels, pixels, boxes, patches) or noise (corruption=noise). Give clean images, so "
            "that it is simulated."
        )

    def measure(self, image: Tensor, *, noise_std: float, key: str, generator: torch.Generator) -> Measurement:
        """One image as the world would show it: y = A x + noise.

        Args:
            image: (1, c, H, W), real or complex.
            noise_std: Noise per real part.
            key: Identity of the image.
            generator: On the CPU; everything that belongs to the image comes from it.
        """
        channels, height, width = image.shape[1:]
        mask, parameters = self.draw((channels, height, width), generator)
        level = torch.tensor([noise_std], dtype=torch.float32)
        m = Measurement(image, mask, None, level, torch.ones(1), (key,), axes=(), parameters=parameters)
        clean = self.forward_operator(m).forward(image)
        noise = complex_randn(clean.shape, generator=generator) if clean.is_complex() else _randn(clean, generator)
        return replace(m, y=clean + noise_std * noise.to(clean) * mask)

    def image_power(self, m: Measurement) -> Tensor:
        """Unbiased estimate of the mean square of a real channel of each image, (b,) (Horvitz & Thompson 1952)."""
        parts = 2 if m.y.is_complex() else 1
        energy = m.y.abs().square() - parts * per_row(m.noise_std, m.y).square()
        return (energy * m.mask / self.inclusion(m).to(m.y.device)).flatten(1).mean(1) / parts


def _randn(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)
