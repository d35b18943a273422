r"""Corruption: the seam through which every use enters - what A a measurement has, and how it is corrupted further.

    A = corruption.forward_operator(m);   B = corruption.further(m, ...);   A_tilde = B A

P, the scan's own mask, is fixed for ever. B, the further corruption, is fresh at every training step: it keeps each
location of P with probability q, q itself uniform in ``keep``; a core around the zero frequency is always kept, and
the rest of the ACS is subject to removal now and then only (a line that is never removed is never supervised beyond
its own noise).

Inverse-probability weights: W = 1 where B kept a location, W = 1 / Pr(P_j = 1 | B P, q) where P has it
and B removed it, 0 elsewhere. Then E[W P | A_tilde] = I and the ambient loss estimates the supervised one without
bias.

Reference: Daras et al. 2023, arXiv:2305.19256, section 3; weights as in Millard & Chiew 2023 (arXiv:2206.05029), per
line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, check_option, require
from ambient_mri.masks import IndependentPixels, SamplingLaw, always_on, centre_on
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.masking import Mask
from ambient_mri.operators.sense import sense
from ambient_mri.tensors import RowGenerators, keyed_generator, rand_rows

__all__ = ["Corruption", "Further", "Learnability", "PixelMasking", "Undersampling", "check_learnable"]


@dataclass(frozen=True)
class Further:
    """A further corruption, drawn for one batch.

    Attributes:
        operator: A_tilde = B A.
        kept: The locations of y that B keeps, bool, broadcastable to y.
        weights: W, float, broadcastable to y; zero where y was not measured.
        rate: Share of the k-space (or pixels) that A_tilde sees, (b,).
    """

    operator: LinearOperator
    kept: Tensor
    weights: Tensor
    rate: Tensor


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


class _Masking(Corruption):
    """What undersampling and pixel masking share: a mask from a law, thinned by B, with that law's weights."""

    def __init__(
        self,
        law: SamplingLaw,
        *,
        core: int,
        keep: tuple[float, float],
        always_removal: float,
        weight_cap: float | None,
    ) -> None:
        low, high = keep
        require(
            0 <= low <= high < 1,
            f"keep must satisfy 0 <= low <= high < 1; got {tuple(keep)}. At 1 nothing is removed and the weights "
            "diverge.",
        )
        require(core >= 0, f"core must not be negative; got {core}.")
        require(
            weight_cap is None or weight_cap >= 1, f"weight_cap must be at least 1, or null for none; got {weight_cap}."
        )
        self.law, self.core, self.keep = law, core, (float(low), float(high))
        self.always_removal, self.weight_cap = always_removal, weight_cap

    @abstractmethod
    def _operator(self, m: Measurement, mask: Tensor) -> LinearOperator:
        """The operator of the rows of ``m`` with ``mask`` in place of their own."""

    def forward_operator(self, m: Measurement) -> LinearOperator:
        return self._operator(m, m.mask)

    def further(self, m: Measurement, generators: RowGenerators) -> Further:
        mask = m.mask.expand(len(m), *m.mask.shape[1:])
        uniform = rand_rows(generators, mask.shape[-2] * mask.shape[-1] + 2, device=mask.device)
        keep = self.keep[0] + (self.keep[1] - self.keep[0]) * uniform[:, 0]
        chosen = uniform[:, 2:].reshape(mask.shape) < keep.reshape(-1, 1, 1, 1)
        always = always_on(self.law, m.image_shape, mask.device)
        spared = always & (uniform[:, 1].reshape(-1, 1, 1, 1) >= self.always_removal)
        kept = mask & (chosen | spared | self._core(mask))
        inverse = 1 / self.law.probability_sampled(mask, kept, keep).clamp_min(1e-6)
        if self.weight_cap is not None:
            inverse = inverse.clamp_max(self.weight_cap)
        weights = torch.where(kept, torch.ones_like(inverse), inverse) * mask
        rate = kept.float().mean(dim=(1, 2, 3))
        return Further(operator=self._operator(m, kept), kept=kept, weights=weights, rate=rate)

    def _core(self, mask: Tensor) -> Tensor:
        columns = centre_on(mask.shape[-1], self.core, mask.device)
        if mask.shape[-2] == 1:
            return columns[None, None, None]
        return (centre_on(mask.shape[-2], self.core, mask.device)[:, None] & columns[None])[None, None]


class Undersampling(_Masking):
    """k-space undersampling of multi-coil (or single-coil) MRI, A = P F S.

    Args:
        law: The law that the scans' masks were drawn from.
        core: Central lines (1-D laws) or side of the central square (2-D laws) that B never removes.
        keep: Range of q.
        acs_removal: How often the ACS beyond the core is subject to removal as well.
        weight_cap: Upper bound on W; None for none. A cap trades variance for bias, it does not move the minimiser.
        backend: Of :func:`~ambient_mri.operators.sense.sense`.
    """

    def __init__(
        self,
        law: SamplingLaw,
        *,
        core: int = 6,
        keep: tuple[float, float] = (0.2, 0.9),
        acs_removal: float = 0.25,
        weight_cap: float | None = None,
        backend: str = "torch",
    ) -> None:
        super().__init__(law, core=core, keep=keep, always_removal=acs_removal, weight_cap=weight_cap)
        check_option("backend", backend, ("torch", "sigpy"))
        self.backend = backend

    def simplified(self, m: Measurement) -> Measurement:
        """Hybrid space, where the readout is not transformed; sigpy's operator transforms both axes."""
        return m.cancel_readout() if self.backend == "torch" else m

    def _operator(self, m: Measurement, mask: Tensor) -> LinearOperator:
        require(m.coil_maps is not None, "undersampled k-space needs coil_maps (ones for a single coil); got None.")
        return sense(m.coil_maps, mask, axes=m.axes, backend=self.backend)  # type: ignore[arg-type]


class PixelMasking(_Masking):
    """Missing pixels, A = P on the image (inpainting): every pixel of a training image is present with a known
    probability.

    Args:
        probability: Pr(a pixel is present).
        keep: Range of q.
        weight_cap: As for :class:`Undersampling`.
    """

    def __init__(
        self, probability: float = 0.5, *, keep: tuple[float, float] = (0.5, 0.9), weight_cap: float | None = None
    ) -> None:
        law = IndependentPixels(probability)
        super().__init__(law, core=0, keep=keep, always_removal=1.0, weight_cap=weight_cap)

    def _operator(self, m: Measurement, mask: Tensor) -> LinearOperator:
        return Mask(mask)


@dataclass(frozen=True)
class Learnability:
    """Outcome of the learnability check.

    Attributes:
        smallest_eigenvalue: Of E[A^H A | A_tilde], coils included, over the simulated cases.
        holes: Locations (or lines) inside the sampled region that no scan samples.
        rim: Number of lines or locations at the edge that no scan samples: normal, but the resolution is lower there.
        exact_weights: Whether the law's weights are exact.
    """

    smallest_eigenvalue: float
    holes: tuple[int, ...]
    rim: int
    exact_weights: bool


def check_learnable(
    corruption: Undersampling, m: Measurement, *, cases: int = 4, rows: int = 3, threshold: float = 1e-3
) -> Learnability:
    """Check by simulation that the clean distribution can be learned from scans like ``m``.

    The ambient loss has E[x0 | A_tilde x_t, A_tilde] as its unique minimiser if and only if E[A^H A | A_tilde] has
    full rank
    (Daras et al. 2023, theorem 4.2). For a 1-D mask this matrix splits into one W x W block per readout position.

    Args:
        corruption: The corruption that training will use.
        m: A few representative scans.
        cases: Further masks to try.
        rows: Readout positions to look at in each case.
        threshold: Smallest eigenvalue that counts as full rank.

    Raises:
        AmbientMRIError: If the law leaves a hole inside the sampled region, or the smallest eigenvalue is below
            ``threshold``.
    """
    inclusion = corruption.law.inclusion_probability(m.image_shape)
    holes, rim = _holes(inclusion)
    require(
        not holes,
        f"the sampling law never samples k-space {'lines' if inclusion.shape[-2] == 1 else 'locations'} "
        f"{list(holes[:8])}, inside the sampled region: what lies there cannot be learned. "
        "Let the masks vary from scan to scan, or use a law that covers the centre.",
    )
    smallest = 1.0
    if m.mask.shape[-2] == 1:
        smallest = min(_smallest_eigenvalue(corruption, m, case, rows) for case in range(cases))
        require(
            smallest >= threshold or rim > 0,
            f"E[A^H A | A_tilde] has the eigenvalue {smallest:.1e}: given what a further mask keeps, the law "
            "determines which lines were sampled, and the coils do not fill in the rest. Use randomly placed lines, "
            "more coils, or a lower acceleration.",
        )
    return Learnability(smallest, holes, rim, corruption.law.exact)


def _holes(inclusion: Tensor) -> tuple[tuple[int, ...], int]:
    """Never-sampled locations, split into holes inside the sampled region and a rim around it."""
    profile = inclusion[0, 0].amax(dim=0) > 0 if inclusion.shape[-2] > 1 else inclusion[0, 0, 0] > 0
    require(bool(profile.any()), "the sampling law never samples anything.", AmbientMRIError)
    sampled = profile.nonzero()[:, 0]
    first, last = int(sampled[0]), int(sampled[-1])
    holes = tuple(i for i in range(first, last + 1) if not bool(profile[i]))
    return holes, len(profile) - (last - first + 1)


def _smallest_eigenvalue(corruption: Undersampling, m: Measurement, case: int, rows: int) -> float:
    index = case % len(m)
    item = replace(m[index], mask=m[index].mask[:1])
    further = corruption.further(item, [keyed_generator("learnability", case)])
    if bool((further.kept == item.mask).all()):  # B removed nothing: there is no weighted term to look at
        return 1.0
    q = torch.tensor([0.5 * sum(corruption.keep)])
    probability = corruption.law.probability_sampled(item.mask, further.kept, q)
    diagonal = torch.where(further.kept, torch.ones_like(probability), probability)[0, 0, 0].double()
    width = diagonal.shape[0]
    frequency = torch.arange(width, dtype=torch.float64) - width // 2
    basis = torch.exp(-2j * torch.pi * frequency[:, None] * frequency[None] / width) / width**0.5
    maps = item.coil_maps[0].to(torch.complex128)  # type: ignore[index]
    positions = torch.linspace(maps.shape[1] * 0.25, maps.shape[1] * 0.75, rows).long()
    smallest = 1.0
    for position in positions:
        encode = (basis[None] * maps[:, position][:, None, :]).reshape(-1, width)  # (coils * W, W)
        normal = encode.mH @ (diagonal.repeat(maps.shape[0])[:, None] * encode)
        smallest = min(smallest, float(torch.linalg.eigvalsh(normal)[0]))
    return smallest
