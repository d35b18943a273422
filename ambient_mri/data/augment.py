r"""Augmentations that commute with the physics: the augmented measurement is the measurement of the augmented image.

    y = P F S x.     shift by s pixels:   F x_s = ramp_s F x,  ramp_s[j] = exp(-2 pi i (j - n//2) s / n),  S shifted too
                     reflection about the centre pixel:  commutes with the centred F, axis by axis; S reflected too
                     phase, intensity:    y and noise_std are multiplied, S stays

Clean images (references, or the reconstructions of an E-step) may be zoomed and rotated as well; a measurement may not:
its mask would have to be interpolated.

P stays what it was: measurements are reflected along an axis only where the mask does not vary along it, and shifted
without touching the mask. Axes that are not Fourier-transformed (hybrid space, ``Measurement.axes``) are shifted as
images are. All draws come from one generator a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ambient_mri._checks import require
from ambient_mri.measurement import Measurement
from ambient_mri.tensors import RowGenerators, rand_rows

__all__ = ["Augmentation", "Transform", "apply_to_images", "apply_to_measurement", "zoom_and_rotate"]


@dataclass(frozen=True)
class Transform:
    """What happens to each row.

    Attributes:
        flip: (b, 2) bool, reflection about the centre pixel n//2 along rows and columns.
        shift: (b, 2) int64, cyclic shift in whole pixels, after the reflection.
        factor: (b,) complex64, global phase and intensity.
    """

    flip: Tensor
    shift: Tensor
    factor: Tensor


@dataclass(frozen=True)
class Augmentation:
    """The law of the augmentations.

    Attributes:
        flip: Reflect with probability 1/2: measurements along the readout, images along both axes.
        shift: Largest shift, as a share of the matrix size.
        phase: Random global phase.
        intensity: Range of the intensity factor, log-uniform.
        zoom: Of images alone: range of the size of the object in the field of view, log-uniform. What is moved out of
            the field of view is cut off, so that a prior does not take a closed outline for granted.
        rotate: Of images alone: largest rotation, in degrees, either way.
    """

    flip: bool = True
    shift: float = 0.06
    phase: bool = True
    intensity: tuple[float, float] = (0.7, 1.4)
    zoom: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.intensity
        require(
            0 < low <= high, f"intensity must be two positive numbers, the smaller first; got {tuple(self.intensity)}."
        )
        require(0 <= self.shift < 0.5, f"shift must be a share of the matrix size in [0, 0.5); got {self.shift}.")
        near, far = self.zoom
        require(0 < near <= far, f"zoom must be two positive numbers, the smaller first; got {tuple(self.zoom)}.")
        require(0 <= self.rotate <= 180, f"rotate must lie between 0 and 180 degrees; got {self.rotate}.")

    def draw(self, size: tuple[int, int], flip_axes: Sequence[int], generators: RowGenerators) -> Transform:
        """One transform a row, for images of ``size``; only axes in ``flip_axes`` (-2, -1) are reflected."""
        uniform = rand_rows(generators, 6)
        # Column by column, with Python numbers: a tensor made from a list would be copied to the GPU and waited for.
        flips = [(uniform[:, i] < 0.5) & (self.flip and axis in flip_axes) for i, axis in enumerate((-2, -1))]
        reaches = [math.floor(self.shift * n) for n in size]
        shifts = [torch.floor(uniform[:, 2 + i] * (2 * n + 1)).long() - n for i, n in enumerate(reaches)]
        low, high = math.log(self.intensity[0]), math.log(self.intensity[1])
        modulus = torch.exp(low + (high - low) * uniform[:, 4])
        angle = 2 * math.pi * uniform[:, 5] * self.phase
        return Transform(
            flip=torch.stack(flips, dim=1),
            shift=torch.stack(shifts, dim=1),
            factor=torch.polar(modulus, angle),
        )

    def measurements(self, m: Measurement, generators: RowGenerators) -> Measurement:
        """A batch of measurements, augmented."""
        readout = [axis for axis in (-2, -1) if m.mask.shape[axis] == 1]
        return _apply(m, self.draw(m.image_shape, readout, generators))

    def images(self, images: Tensor, generators: RowGenerators) -> Tensor:
        """A batch of complex images (b, c, H, W), augmented."""
        moved = apply_to_images(images, self.draw((images.shape[-2], images.shape[-1]), (-2, -1), generators))
        if self.rotate == 0 and tuple(self.zoom) == (1.0, 1.0):
            return moved
        uniform = rand_rows(generators, 2)
        low, high = math.log(self.zoom[0]), math.log(self.zoom[1])
        zoom = torch.exp(low + (high - low) * uniform[:, 0])
        angle = math.radians(self.rotate) * (2 * uniform[:, 1] - 1)
        return zoom_and_rotate(moved, zoom, angle)


def apply_to_images(images: Tensor, transform: Transform) -> Tensor:
    """Images (b, c, H, W) reflected, shifted and multiplied, row by row."""
    return _move(images, transform) * transform.factor.to(images.device)[:, None, None, None]


def zoom_and_rotate(images: Tensor, zoom: Tensor, angle: Tensor) -> Tensor:
    """Images with the object ``zoom`` times as large, turned by ``angle``; bicubic, zero where nothing was measured.

    Args:
        images: (b, c, H, W), complex or real.
        zoom: (b,), above 1 enlarges.
        angle: (b,), radians, about the centre, from rows towards columns.
    """
    height, width = images.shape[-2:]
    cos, sin, zero = angle.cos() / zoom, angle.sin() / zoom, torch.zeros_like(zoom)
    # affine_grid measures each axis in half its length; the ratio keeps a rotation rigid on images that are not square.
    rows = [cos, -sin * (height / width), zero, sin * (width / height), cos, zero]
    theta = torch.stack(rows, dim=1).reshape(-1, 2, 3).to(images.device)
    parts = torch.cat([images.real, images.imag], dim=1) if images.is_complex() else images
    grid = functional.affine_grid(theta, list(parts.shape), align_corners=False).to(parts.dtype)
    parts = functional.grid_sample(parts, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    if not images.is_complex():
        return parts
    real, imaginary = parts.chunk(2, dim=1)
    return torch.complex(real.contiguous(), imaginary.contiguous())


def apply_to_measurement(m: Measurement, transform: Transform) -> Measurement:
    """The measurement of the transformed image.

    Raises:
        AmbientMRIError: If a row is to be reflected along an axis that its mask varies along.
    """
    for axis in (-2, -1):
        constant = m.mask.shape[axis] == 1
        require(
            constant or not bool(transform.flip[:, axis].any()),
            f"the mask {tuple(m.mask.shape)} varies along axis {axis}: its measurement cannot be reflected there.",
        )
    return _apply(m, transform)


def _apply(m: Measurement, transform: Transform) -> Measurement:
    """The measurement of the transformed image, for reflections that are known to be allowed."""
    y = m.y
    for axis in (-2, -1):
        size = y.shape[axis]
        flip, shift = transform.flip[:, axis], transform.shift[:, axis]
        if axis in m.axes:
            if m.mask.shape[axis] == 1:
                y = _gather(y, axis, flip, torch.zeros_like(shift))
            y = y * _ramp(shift, size, axis, y)
        else:
            y = _gather(y, axis, flip, shift)
    factor = transform.factor.to(y.device)
    modulus = factor.abs()
    return replace(
        m,
        y=y * factor[:, None, None, None],
        coil_maps=None if m.coil_maps is None else _move(m.coil_maps, transform),
        noise_std=m.noise_std * modulus,
        scale=m.scale / modulus,
    )


def _move(x: Tensor, transform: Transform) -> Tensor:
    for axis in (-2, -1):
        x = _gather(x, axis, transform.flip[:, axis], transform.shift[:, axis])
    return x


def _gather(x: Tensor, axis: int, flip: Tensor, shift: Tensor) -> Tensor:
    """x[i] -> x[ (2c - (i - s)) mod n ] where flipped, x[ (i - s) mod n ] elsewhere, c = n//2, one (flip, s) a row."""
    # On a GPU the work costs less than to wait for the answer.
    if flip.device.type == "cpu" and not bool(flip.any()) and not bool(shift.any()):
        return x
    size = x.shape[axis]
    position = torch.arange(size, device=flip.device)[None] - shift[:, None]
    position = torch.where(flip[:, None], 2 * (size // 2) - position, position) % size
    shape = [len(x), *([1] * (x.ndim - 1))]
    shape[axis] = size
    return x.gather(x.ndim + axis, position.to(x.device).reshape(shape).expand_as(x))


def _ramp(shift: Tensor, size: int, axis: int, like: Tensor) -> Tensor:
    """exp(-2 pi i (j - n//2) s / n) along ``axis``, (b, 1, n, 1) or (b, 1, 1, n)."""
    frequency = torch.arange(size, dtype=torch.float64, device=shift.device) - size // 2
    turns = torch.remainder(frequency[None] * shift[:, None].double(), size) / size
    ramp = torch.polar(torch.ones_like(turns), -2 * math.pi * turns).to(like.device, like.dtype)
    return ramp[:, None, :, None] if axis == -2 else ramp[:, None, None, :]
