r"""Simulated scans: images become multi-coil k-space, noisy and undersampled, once and for ever.

    y = P ( F S x + noise ),     x = magnitude * exp(i smooth phase), moved and turned in the scanner

Whatever belongs to a scan - mask, noise, coils, phase, position - is a pure function of (data seed, scan id): the same
in every epoch, worker and run. Redrawing any of it would show a network more of k-space than the scanner measured.

The coil maps are those of circular loops around the object. By reciprocity a coil receives with the transverse field
that a unit current in it would make, B_x - i B_y, here by the law of Biot and Savart

    B(r) = sum over the wire of  dl x (r - s) / ( |r - s|^2 + w^2 )^(3/2) ,        w: half width of the conductor,

and maps are normalised to sum |S|^2 = 1. The *true* maps are stored, and recorded as such; the phase of the calibration
image, computed from the undersampled noisy scan alone, is absorbed into them.

k-space made here is simulated, and a number computed from it says so (Shimron et al. 2022, "implicit data crimes").

Lengths are in half fields of view (half of the longer side).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ambient_mri._checks import check_finite, check_option, check_positive, require
from ambient_mri.coil_maps import absorb_phase
from ambient_mri.data.normalize import measured_scale
from ambient_mri.data.schema import PreparedScan
from ambient_mri.masks import SamplingLaw
from ambient_mri.operators.fourier import fft
from ambient_mri.tensors import complex_randn, keyed_generator

__all__ = [
    "CoilArray",
    "SimulatedScan",
    "Simulation",
    "loop_field",
    "simulate_coil_maps",
    "simulate_scan",
    "smooth_phase",
]

_CONDUCTOR = 0.12
_SEGMENTS = 32
_GRID_STEP = 0.04
_SLICE_SPACING = 0.04


@dataclass(frozen=True)
class Simulation:
    """What the simulated scanner does. Ranges are drawn uniformly (noise: log-uniformly) for each scan.

    Attributes:
        coils: Fewest and most coils.
        noise_std: Lowest and highest noise per real and imaginary part, or one number for both, where the brightest
            pixels of the volume are 1.
        phase: Rms of the smooth phase that magnitude images get, in radians; complex images keep their own.
        zoom: Size of the object in the field of view, relative to the image, (smallest, largest).
        shift: Largest displacement of the object, as a share of the field of view.
        turn: Whether an object may lie mirrored or turned by 90 degrees (other than square images: 180).
        absorb_phase: Whether the phase of the calibration image is absorbed into the maps.
    """

    coils: tuple[int, int] = (4, 8)
    noise_std: tuple[float, float] = (0.005, 0.02)
    phase: float = 1.0
    zoom: tuple[float, float] = (0.85, 1.1)
    shift: float = 0.03
    turn: bool = True
    absorb_phase: bool = True

    def __post_init__(self) -> None:
        """Check every range, so that a typing error costs no simulation."""
        require(1 <= self.coils[0] <= self.coils[1], f"coils must be a range (fewest, most) from 1; got {self.coils}.")
        if isinstance(self.noise_std, int | float):
            object.__setattr__(self, "noise_std", (float(self.noise_std),) * 2)
        low, high = self.noise_std
        require(0 <= low <= high, f"noise_std must be a number or a range (lowest, highest); got {self.noise_std}.")
        check_positive("zoom", self.zoom[0])
        require(self.zoom[0] <= self.zoom[1], f"zoom must be a range (smallest, largest); got {self.zoom}.")
        check_positive("phase", self.phase, allow_zero=True)
        require(0 <= self.shift < 0.5, f"shift is a share of the field of view, from 0 to 0.5; got {self.shift}.")


@dataclass(frozen=True)
class SimulatedScan:
    """A simulated volume.

    Attributes:
        scan: What the scanner gives: the only part that training reads.
        images: The true images in the phase convention of the maps, (slices, 1, H, W) complex64, raw units: without
            noise kspace = mask * F(coil_maps * images). They live in a file of their own.
    """

    scan: PreparedScan
    images: np.ndarray


def simulate_scan(
    images: np.ndarray,
    *,
    law: SamplingLaw,
    seed: int,
    scan_id: str,
    settings: Simulation | None = None,
    mask_per: str = "volume",
) -> SimulatedScan:
    """Measure a volume. Raw units: the brightest pixels of the volume are 1.

    Args:
        images: (slices, H, W), magnitude (real, non-negative) or complex.
        law: What the mask is drawn from.
        seed: Data seed.
        scan_id: Names the volume; with ``seed`` it decides everything that is drawn.
        settings: Of the scanner.
        mask_per: "volume": the slices are neighbours in one scan. "slice": every slice is a scan of its own, with its
            own mask, coils (their number apart), position, phase and noise level, keyed by its number as well.

    Raises:
        AmbientMRIError: If ``images`` is not 3-D, holds NaN, infinity or negative magnitudes, or nothing but zeros.
    """
    settings = Simulation() if settings is None else settings
    check_option("mask_per", mask_per, ("volume", "slice"))
    x = _normalised(images, scan_id)
    num_coils = _uniform_int(settings.coils, keyed_generator(seed, scan_id, "coils"))
    measure = lambda slices, *key: _measure(slices, num_coils, law, (seed, scan_id, *key), settings)  # noqa: E731
    parts = [measure(x)] if mask_per == "volume" else [measure(x[i : i + 1], i) for i in range(len(x))]
    kspace, mask, maps, images_out = (torch.cat([getattr(p, f) for p in parts]) for f in _Measured.TENSORS)
    scan = PreparedScan(
        kspace=kspace.numpy(),
        mask=mask.numpy(),
        coil_maps=maps.numpy(),
        noise_std=np.concatenate([np.full(len(p.kspace), p.noise_std, np.float32) for p in parts]),
        scale=measured_scale(kspace, mask),
        source=scan_id,
        acquisition="simulated",
        phase_absorbed=settings.absorb_phase,
        sampling_law=law.describe(),
        preparation=_provenance(settings, seed, num_coils, mask_per),
    )
    return SimulatedScan(scan, images_out.numpy())


@dataclass(frozen=True)
class _Measured:
    """One scan as tensors: the slices of a volume, or a single slice."""

    TENSORS = ("kspace", "mask", "coil_maps", "images")
    kspace: Tensor
    mask: Tensor
    coil_maps: Tensor
    images: Tensor
    noise_std: float


def _measure(
    x: Tensor, num_coils: int, law: SamplingLaw, key: tuple[int | str, ...], settings: Simulation
) -> _Measured:
    """Place, phase, encode, add noise and undersample slices (slices, H, W) as one scan, all draws keyed by ``key``."""
    draw = lambda *purpose: keyed_generator(*key, *purpose)  # noqa: E731
    x = _place(x, settings, draw("position"))
    shape = (x.shape[-2], x.shape[-1])
    heights = [_SLICE_SPACING * (i - (len(x) - 1) / 2) for i in range(len(x))]
    if not x.is_complex():
        phases = [smooth_phase(shape, draw("phase"), settings.phase, position=h) for h in heights]
        x = torch.polar(x, torch.stack(phases))
    x = x[:, None]
    array = CoilArray.draw(num_coils, draw("loops"))
    maps = torch.stack([array.maps(shape, h) for h in heights])
    mask = law.draw(shape, draw("mask"))
    noise_std = _log_uniform(settings.noise_std, draw("noise level"))
    # A stream for every slice, so that no slice's noise depends on how many others there are.
    noise = [complex_randn(maps.shape[1:], generator=draw("noise", i)) for i in range(len(x))]
    kspace = torch.where(mask, fft(maps * x) + noise_std * torch.stack(noise), 0)
    if settings.absorb_phase:
        maps, phase = absorb_phase(maps, kspace, mask)
        x = x * torch.polar(torch.ones_like(phase), -phase)
    return _Measured(kspace, mask, maps, x, noise_std)


def _normalised(images: np.ndarray, scan_id: str) -> Tensor:
    """The volume with its brightest pixels at 1, float32 or complex64."""
    require(images.ndim == 3 and len(images) > 0, f"images must be (slices, H, W); got {images.shape}.")
    x = torch.as_tensor(np.array(images, np.complex64 if np.iscomplexobj(images) else np.float32))
    check_finite(f"images of scan {scan_id!r}", x)
    require(
        x.is_complex() or float(x.min()) >= 0,
        f"magnitude images must not be negative; scan {scan_id!r} holds {float(x.real.min()):.3g}. "
        "Pass complex images where the sign means something.",
    )
    top = float(np.quantile(x.abs().numpy(), 0.999))
    top = top if top > 0 else float(x.abs().max())
    require(top > 0, f"the images of scan {scan_id!r} are nothing but zeros.")
    return x / top


@dataclass(frozen=True)
class CoilArray:
    """Circular loops around the object, each facing the axis of the scanner; one coil alone is a birdcage.

    Attributes:
        centre: (coils, 3), x along rows, y along columns, z across slices.
        normal: (coils, 3), unit vectors.
        radius: (coils,).
        phase: (coils,), of the receiver chain, radians.
    """

    centre: Tensor
    normal: Tensor
    radius: Tensor
    phase: Tensor

    @classmethod
    def draw(cls, num_coils: int, generator: torch.Generator) -> CoilArray:
        """Loops that about touch, in one ring, or in two above 8 coils; position, size and tilt are jittered.

        Args:
            num_coils: Number of coils.
            generator: On the CPU.
        """
        require(num_coils >= 1, f"num_coils must be at least 1; got {num_coils}.")
        uniform = lambda low, high: low + (high - low) * torch.rand(num_coils, generator=generator)  # noqa: E731
        common = torch.rand(3, generator=generator)
        number = torch.arange(num_coils)
        rings = 1 if num_coils <= 8 else 2
        in_ring = torch.where(number % rings == 0, -(-num_coils // rings), num_coils // rings)
        turn = number // rings + 0.5 * (number % rings) + common[0] * num_coils
        angle = 2 * torch.pi * (turn + uniform(-0.15, 0.15)) / in_ring
        distance = 1.25 + 0.3 * common[1] + uniform(-0.08, 0.08)
        radius = (torch.pi * distance / in_ring * uniform(0.85, 1.15)).clamp(0.3, 0.9)
        height = 0.3 * (common[2] - 0.5) + uniform(-0.1, 0.1) + (rings - 1) * 0.9 * (number % rings - 0.5)
        outward = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=-1)
        centre = distance[:, None] * outward + height[:, None] * torch.tensor([0.0, 0.0, 1.0])
        tilt = torch.stack([uniform(-0.2, 0.2) for _ in range(3)], dim=-1)
        normal = functional.normalize(tilt - outward, dim=-1)
        return cls(centre, normal, radius, uniform(0, 2 * torch.pi))

    def maps(self, shape: tuple[int, int], height: float = 0.0) -> Tensor:
        """Sensitivities in the plane at ``height``, (coils, H, W) complex64 with sum |S|^2 = 1 at every pixel.

        The field is computed on a coarse grid, on which it is smooth, and interpolated.
        """
        receiver = torch.polar(torch.ones_like(self.phase), self.phase)[:, None, None]
        if len(self.radius) == 1:
            return receiver.expand(1, *shape).clone()
        half = [n / max(shape) for n in shape]
        axes = [torch.linspace(-h, h, max(8, int(2 * h / _GRID_STEP) + 1)) for h in half]
        rows, columns = torch.meshgrid(*axes, indexing="ij")
        points = torch.stack([rows, columns, torch.full_like(rows, height)], dim=-1)
        field = loop_field(points.reshape(-1, 3), self.centre, self.normal, self.radius, conductor=_CONDUCTOR)
        field = field.reshape(-1, *rows.shape, 3)
        down, across = (_spline(n, len(axis)) for n, axis in zip(shape, axes, strict=True))
        real, imaginary = (down @ part @ across.T for part in (field[..., 0], -field[..., 1]))  # B_x - i B_y
        norm = (real.square() + imaginary.square()).sum(dim=0, keepdim=True).rsqrt()
        return torch.complex(real * norm, imaginary * norm) * receiver


@lru_cache(maxsize=16)
def _spline(size: int, nodes: int) -> Tensor:
    """The matrix (size, nodes) of cubic-spline interpolation from equispaced nodes, both ends included."""
    from scipy.interpolate import make_interp_spline

    spline = make_interp_spline(np.linspace(0, 1, nodes), np.eye(nodes))
    return torch.from_numpy(spline(np.linspace(0, 1, size)).astype(np.float32))


def loop_field(points: Tensor, centre: Tensor, normal: Tensor, radius: Tensor, *, conductor: float = 0.0) -> Tensor:
    r"""Magnetic field of circular loops that carry unit current, in units of mu_0 / (4 pi).

    Args:
        points: (points, 3).
        centre: (coils, 3).
        normal: (coils, 3), unit vectors, right-handed with the current.
        radius: (coils,).
        conductor: Half width of the wire, which bounds the field near it.

    Returns:
        (coils, points, 3).

    Source: the law of Biot and Savart, by the trapezoidal rule around the loop.
    """
    helper = torch.eye(3, dtype=normal.dtype)[normal.abs().argmin(dim=-1)]
    first = functional.normalize(torch.linalg.cross(helper, normal), dim=-1)
    second = torch.linalg.cross(normal, first)
    angle = 2 * torch.pi * torch.arange(_SEGMENTS, dtype=normal.dtype) / _SEGMENTS
    cos, sin = angle.cos()[None, :, None], angle.sin()[None, :, None]
    size = radius[:, None, None]
    wire = centre[:, None] + size * (cos * first[:, None] + sin * second[:, None])  # (coils, segments, 3)
    step = size * (2 * torch.pi / _SEGMENTS) * (cos * second[:, None] - sin * first[:, None])
    # |r - s|^2 + w^2 by one matrix product, (coils, points, segments)
    squares = points.square().sum(dim=-1)[None, :, None] + (wire.square().sum(dim=-1) + conductor**2)[:, None]
    inverse = torch.baddbmm(squares, points.expand(len(radius), -1, -1), wire.mT, alpha=-2).rsqrt()
    weight = inverse * inverse * inverse
    # sum of w dl x (r - s) = (sum of w dl) x r - sum of w (dl x s)
    sums = weight @ torch.cat([step, torch.linalg.cross(step, wire)], dim=-1)
    return torch.linalg.cross(sums[..., :3], points[None].expand_as(sums[..., :3])) - sums[..., 3:]


def simulate_coil_maps(
    shape: tuple[int, int], num_coils: int, generator: torch.Generator, *, height: float = 0.0
) -> Tensor:
    """Sensitivities of a random array of loops around the object, (coils, H, W) complex64 with sum |S|^2 = 1.

    Args:
        shape: Rows and columns.
        num_coils: Number of coils.
        generator: On the CPU; the same state gives the same array.
        height: Of the slice above the middle of the array, in half fields of view.
    """
    return CoilArray.draw(num_coils, generator).maps(shape, height)


def smooth_phase(
    shape: tuple[int, int], generator: torch.Generator, rms: float = 1.0, *, order: int = 3, position: float = 0.0
) -> Tensor:
    """A smooth random phase (H, W) in radians: cosines up to ``order`` half periods a side, falling with frequency.

    Args:
        shape: Rows and columns.
        generator: On the CPU.
        rms: Of the phase over the field of view, its constant part apart.
        order: Half periods a side.
        position: Of the slice, in half fields of view: close positions have similar phases, for one generator state.
    """
    index = torch.arange(order + 1, dtype=torch.float32)
    decay = torch.exp(-(index[:, None] ** 2 + index[None] ** 2) / order)
    two = torch.randn(2, order + 1, order + 1, generator=generator) * decay
    coefficients = float(np.cos(position)) * two[0] + float(np.sin(position)) * two[1]
    rows, columns = (torch.cos(torch.pi * index[:, None] * (torch.arange(n) + 0.5)[None] / n) for n in shape)
    phase = rows.T @ coefficients @ columns
    varying = phase - phase.mean()
    offset = 2 * torch.pi * float(torch.rand(1, generator=generator))
    return varying * (rms / varying.square().mean().sqrt().clamp_min(1e-6)) + offset


def _place(x: Tensor, settings: Simulation, generator: torch.Generator) -> Tensor:
    """Zoom, shift, mirror and turn the object, all slices of a scan alike, before it is measured once and for ever."""
    u = torch.rand(5, generator=generator)
    if settings.turn:
        x = x.flip(-1) if u[0] < 0.5 else x
        turns = int(4 * u[1])
        square = x.shape[-1] == x.shape[-2]
        x = torch.rot90(x, turns if square else 2 * (turns // 2), dims=(-2, -1))
    zoom = settings.zoom[0] + (settings.zoom[1] - settings.zoom[0]) * float(u[2])
    shift = settings.shift * (2 * u[3:5] - 1) * 2  # affine_grid's unit is half the field of view
    if zoom == 1 and not bool(shift.any()):
        return x.contiguous()
    theta = torch.tensor([[1 / zoom, 0, float(shift[0])], [0, 1 / zoom, float(shift[1])]]).expand(len(x), 2, 3)
    parts = torch.view_as_real(x).movedim(-1, 1) if x.is_complex() else x[:, None]
    grid = functional.affine_grid(theta, list(parts.shape), align_corners=False)
    parts = functional.grid_sample(parts, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    if x.is_complex():
        return torch.complex(parts[:, 0].contiguous(), parts[:, 1].contiguous())
    return parts[:, 0].clamp_min(0)  # bicubic interpolation undershoots at edges


def _uniform_int(bounds: tuple[int, int], generator: torch.Generator) -> int:
    return int(torch.randint(bounds[0], bounds[1] + 1, (1,), generator=generator))


def _log_uniform(bounds: tuple[float, float], generator: torch.Generator) -> float:
    low, high = bounds
    u = float(torch.rand(1, generator=generator))
    return float(low * (high / low) ** u) if 0 < low < high else float(low + (high - low) * u)


def _provenance(settings: Simulation, seed: int, coils: int, mask_per: str) -> dict[str, Any]:
    drawn = {"num_coils": coils, "data_seed": seed, "mask_per": mask_per}
    return {"simulated": True, "coil_maps": "true", **drawn, "scanner": asdict(settings)}
