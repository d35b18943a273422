"""k-space undersampling of MRI, and the check that a sampling law and the coils together can be learned from."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ambient_mri._checks import AmbientMRIError, check_option, require
from ambient_mri.corruption.base import ImageCorruption, Learnability
from ambient_mri.corruption.thinning import ThinnedMasks
from ambient_mri.masks import SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.sense import sense
from ambient_mri.tensors import keyed_generator

__all__ = ["Undersampling", "check_learnable"]

_NOTHING = "the sampling law never samples anything."


class Undersampling(ThinnedMasks):
    """k-space undersampling of multi-coil (or single-coil) MRI, A = P F S; with noise where ``noise_std`` is not zero.

    Args:
        law: The law that the scans' masks were drawn from.
        core: Central lines (1-D laws) or side of the central square (2-D laws) that B never removes, as far as every
            scan has them.
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


def check_learnable(
    corruption: Undersampling | ImageCorruption,
    m: Measurement,
    *,
    cases: int = 4,
    rows: int = 3,
    threshold: float = 1e-3,
) -> Learnability:
    """Check by simulation that the clean distribution can be learned from scans like ``m``.

    The ambient loss has E[x0 | A_tilde x_t, A_tilde] as its unique minimiser if and only if E[A^H A | A_tilde] has
    full rank
    (Daras et al. 2023, theorem 4.2). For a 1-D mask this matrix splits into one W x W block per readout position.
    Image corruptions have checks of their own, in closed form (:meth:`ImageCorruption.learnability`).

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
    if isinstance(corruption, ImageCorruption):
        image = corruption.forward_operator(m[0]).adjoint(m.y[:1])
        return corruption.learnability((image.shape[-2], image.shape[-1]))
    inclusion = corruption.law.inclusion_probability(m.image_shape)
    if m.acquired is not None:
        inclusion = inclusion * m.acquired.any(dim=0, keepdim=True).to(inclusion.device)
    lines = inclusion.shape[-2] == 1
    holes, rim = _holes(inclusion) if lines else _holes_of_planes(inclusion, m.num_coils)
    found = list(holes[:8]) if lines else [divmod(i, inclusion.shape[-1]) for i in holes[:8]]
    require(
        not holes,
        f"the sampling law never samples k-space {'lines' if lines else 'locations (row, column)'} {found}, inside "
        "the sampled region: what lies there cannot be learned. "
        f"Let the masks vary from scan to scan, or use a law that covers the centre.{_few_masks(corruption.law)}",
    )
    smallest = math.nan
    if m.mask.shape[-2] == 1:
        smallest = min(_smallest_eigenvalue(corruption, m, case, rows) for case in range(cases))
        require(
            smallest >= threshold or rim > 0,
            f"E[A^H A | A_tilde] has the eigenvalue {smallest:.1e}: given what a further mask keeps, the law "
            "determines which lines were sampled, and the coils do not fill in the rest. Use randomly placed lines, "
            f"more coils, or a lower acceleration.{_few_masks(corruption.law)}",
        )
    return Learnability(smallest, holes, rim, corruption.law.exact)


def _few_masks(law: SamplingLaw) -> str:
    masks = getattr(law, "masks", None)
    if masks is None:
        return ""
    return (
        f" The law was estimated from {len(masks)} masks: with so few, lines are missed by chance; add scans, or name "
        "the law that they were drawn from, such as corruption=random_lines corruption.law.acceleration=4 "
        "corruption.law.acs_lines=12."
    )


def _holes(inclusion: Tensor) -> tuple[tuple[int, ...], int]:
    """Never-sampled lines, split into holes inside the sampled region and a rim around it."""
    profile = inclusion[0, 0, 0] > 0
    require(bool(profile.any()), _NOTHING, AmbientMRIError)
    sampled = profile.nonzero()[:, 0]
    first, last = int(sampled[0]), int(sampled[-1])
    holes = tuple(i for i in range(first, last + 1) if not bool(profile[i]))
    return holes, len(profile) - (last - first + 1)


def _holes_of_planes(inclusion: Tensor, coils: int) -> tuple[tuple[int, ...], int]:
    """As :func:`_holes` for masks along both axes; a location as its number, row by row.

    Inside is what has sampled locations before and after it, in its row and in its column. Coils make up for a
    location by its neighbours: with several of them a hole is one of which none of the 3 x 3 around it is ever sampled.
    """
    sampled = inclusion[0, 0] > 0
    require(bool(sampled.any()), _NOTHING, AmbientMRIError)
    along = [(_seen_before(sampled, d), _seen_before(sampled.flip(d), d).flip(d)) for d in (0, 1)]
    inside = along[0][0] & along[0][1] & along[1][0] & along[1][1]
    near = sampled
    if coils > 1:
        near = functional.max_pool2d(sampled[None].float(), 3, stride=1, padding=1)[0] > 0
    holes = (inside & ~near).flatten().nonzero()[:, 0].tolist()
    return tuple(holes), int((~inside & ~sampled).sum())


def _seen_before(sampled: Tensor, dim: int) -> Tensor:
    """Whether a location or one before it along ``dim`` is sampled."""
    return sampled.cumsum(dim) > 0


def _smallest_eigenvalue(corruption: Undersampling, m: Measurement, case: int, rows: int) -> float:
    index = case % len(m)
    item = replace(m[index], mask=m[index].mask[:1])
    further = corruption.further(item, [keyed_generator("learnability", case)])
    removed = item.mask & ~further.kept & ~corruption.law.always(item.image_shape).to(item.mask.device)
    if not bool(removed.any()):  # B removed no line that the law draws: it says nothing of the weights
        return 1.0
    q = torch.tensor([0.5 * sum(corruption.keep)])
    probability = corruption.law.probability_sampled(item.mask, further.kept, q, item.acquired)
    probability = probability if item.acquired is None else probability * item.acquired
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
