"""The calibration region of a mask, and what its lines say at low resolution: coil images and image phase."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.operators import sense, solve_regularized
from ambient_mri.operators.fourier import fft, ifft

__all__ = ["AcsRegion", "absorb_phase", "find_acs", "low_resolution_images", "rows_by_mask"]

#: Fewer lines carry no phase worth the name by themselves.
MIN_PHASE_LINES = 4
# Of the SENSE solution that stands in for them, at the norm of A, which is one: below it the coils tell little.
_SENSE_LAM = 1e-2
#: Lines a side of a low-resolution image.
LOW_RESOLUTION = 24


@dataclass(frozen=True)
class AcsRegion:
    """A fully sampled rectangle of k-space that holds the zero frequency.

    Attributes:
        rows: First row and one past the last.
        cols: First column and one past the last.
        image_shape: Rows and columns of the whole k-space; its zero frequency is at n//2.
    """

    rows: tuple[int, int]
    cols: tuple[int, int]
    image_shape: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the region."""
        return self.rows[1] - self.rows[0], self.cols[1] - self.cols[0]

    @property
    def num_lines(self) -> int:
        """Lines along the shorter side: the number that limits the maps."""
        return min(self.shape)

    def crop(self, kspace: Tensor) -> Tensor:
        """The region of a k-space (..., H, W)."""
        return kspace[..., slice(*self.rows), slice(*self.cols)]

    @classmethod
    def central(cls, image_shape: tuple[int, int], size: int) -> AcsRegion:
        """``size`` lines a side around the zero frequency, or what there is."""
        rows, cols = (_around_centre((0, n), n, size) for n in image_shape)
        return cls(rows, cols, image_shape)

    def limited(self, size: int) -> AcsRegion:
        """At most ``size`` lines a side around the zero frequency; twice that where the other side is shorter.

        Longer calibration lines make up a little for there being few of them; beyond twice the size they hold noise.
        """
        height, width = self.shape
        rows = _around_centre(self.rows, self.image_shape[0], size if width >= size else 2 * size)
        cols = _around_centre(self.cols, self.image_shape[1], size if height >= size else 2 * size)
        return AcsRegion(rows, cols, self.image_shape)


def find_acs(mask: Tensor, image_shape: tuple[int, int] | None = None) -> AcsRegion | None:
    """The largest fully sampled rectangle that holds the zero frequency.

    Args:
        mask: bool (batch or 1, 1, H or 1, W or 1): lines along either axis, 2-D laws with a calibration square or
            disc, or full sampling. A location counts when every row of the batch has it.
        image_shape: (H, W) of the k-space; needed where the mask is broadcast along an axis, else taken from the mask.

    Returns:
        The region, or None when the zero frequency itself is not sampled.

    Raises:
        AmbientMRIError: If ``mask`` is not 4-D bool, or does not broadcast to ``image_shape``.
    """
    require(
        mask.ndim == 4 and mask.dtype == torch.bool and mask.shape[1] == 1,
        f"mask must be bool (batch or 1, 1, H or 1, W or 1); got {mask.dtype} {tuple(mask.shape)}.",
    )
    height, width = (int(mask.shape[-2]), int(mask.shape[-1])) if image_shape is None else image_shape
    fits = mask.shape[-2] in (1, height) and mask.shape[-1] in (1, width)
    require(fits, f"mask {tuple(mask.shape)} does not broadcast to an image of shape {(height, width)}.")
    sampled = mask.all(dim=0)[0].expand(height, width).cpu().numpy()
    row, col = height // 2, width // 2
    if not sampled[row, col]:
        return None
    # Reach of the unbroken run through the centre column, row by row; a row that misses the centre ends the rectangle.
    left, right = _run_length(sampled[:, : col + 1][:, ::-1]), _run_length(sampled[:, col:])
    up = [np.minimum.accumulate(reach[row::-1]) for reach in (left, right)]
    down = [np.minimum.accumulate(reach[row:]) for reach in (left, right)]
    reach_left, reach_right = np.minimum.outer(up[0], down[0]), np.minimum.outer(up[1], down[1])
    rows = np.add.outer(np.arange(len(up[0])), np.arange(len(down[0]))) + 1
    area = np.where(reach_left > 0, rows * (reach_left + reach_right - 1), 0)
    above, below = np.unravel_index(int(area.argmax()), area.shape)
    return AcsRegion(
        rows=(row - int(above), row + int(below) + 1),
        cols=(col - int(reach_left[above, below]) + 1, col + int(reach_right[above, below])),
        image_shape=(height, width),
    )


def rows_by_mask(mask: Tensor, batch: int) -> list[list[int]]:
    """Rows of a batch that have the same mask, in the order in which the masks come up.

    What is computed from a calibration region is computed for each of these groups by itself: nothing that comes out
    for a row may depend on which other rows share its batch.

    Args:
        mask: bool (batch or 1, 1, H or 1, W or 1).
        batch: Number of rows.
    """
    if len(mask) == 1:
        return [list(range(batch))]
    groups: dict[bytes, list[int]] = {}
    for row, own in enumerate(mask.cpu().numpy()):
        groups.setdefault(own.tobytes(), []).append(row)
    return list(groups.values())


def absorb_phase(coil_maps: Tensor, kspace: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the low-resolution phase of the scan into its maps.

        phase = angle( sum_c conj(S_c) F^H ( window * y_c ) ),    S_c -> S_c exp(i phase),    x -> x exp(-i phase)

    The window is a Hann window over the ACS, at most 24 lines a side, centred on the zero frequency: the phase keeps
    the resolution at which it was measured. The new maps do not depend on the pixel-wise phase of ``coil_maps``.

    With fewer than 4 ACS lines, y in this formula is F S x_sense, x_sense = argmin || A x - y ||^2 + lam || x ||^2: the
    coils say what the central lines would have been. A prior of nearly real images is misled by a phase that was left
    in x, by up to 10 dB on real heads.

    Args:
        coil_maps: (batch, coils, H, W) complex.
        kspace: (batch, coils, H, W) complex, any units, zero where not sampled.
        mask: bool, (batch or 1, 1, H or 1, W or 1); rows with masks of their own have calibration regions of their own.

    Returns:
        Maps with the phase in them, and the phase (batch, 1, H, W) in radians; zero phase and unchanged maps where a
        scan of a single coil has fewer than 4 ACS lines, or a row no signal.
    """
    groups = rows_by_mask(mask, len(kspace))
    if len(groups) > 1:
        own = coil_maps.expand_as(kspace)
        parts = [absorb_phase(own[rows], kspace[rows], mask[rows[:1]]) for rows in groups]
        order = torch.tensor([row for rows in groups for row in rows]).argsort()
        return torch.cat([part[0] for part in parts])[order], torch.cat([part[1] for part in parts])[order]
    image_shape = (int(kspace.shape[-2]), int(kspace.shape[-1]))
    acs = find_acs(mask[:1], image_shape)
    if acs is None or acs.num_lines < min(MIN_PHASE_LINES, *image_shape):
        if kspace.shape[1] == 1:
            return coil_maps, torch.zeros_like(kspace.real[:, :1])
        kspace, acs = _completed(coil_maps, kspace, mask), AcsRegion.central(image_shape, LOW_RESOLUTION)
    combined = (coil_maps.conj() * low_resolution_images(kspace, acs)).sum(dim=1, keepdim=True)
    phase = combined.angle()
    return coil_maps * torch.polar(torch.ones_like(phase), phase), phase


def _completed(coil_maps: Tensor, kspace: Tensor, mask: Tensor) -> Tensor:
    """The k-space of all coils that the SENSE solution predicts."""
    operator = sense(coil_maps, mask)
    rhs = operator.adjoint(torch.where(mask, kspace, 0))
    image = solve_regularized(operator, rhs, _SENSE_LAM, max_iterations=50, rtol=1e-3).x
    return fft(coil_maps * image)


def low_resolution_images(kspace: Tensor, region: AcsRegion) -> Tensor:
    """Coil images of ``region`` under a Hann window, symmetric about the zero frequency, at most 24 lines a side."""
    windows = []
    for (start, stop), length in zip((region.rows, region.cols), region.image_shape, strict=True):
        offset = (torch.arange(length, device=kspace.device) - length // 2).abs()
        reach = min(length // 2 - start, stop - 1 - length // 2, LOW_RESOLUTION // 2)
        hann = 0.5 + 0.5 * torch.cos(math.pi * offset.to(kspace.real.dtype) / (reach + 1))
        windows.append(hann * (offset <= reach))
    return ifft(kspace * windows[0][:, None] * windows[1])


def _around_centre(extent: tuple[int, int], length: int, size: int) -> tuple[int, int]:
    first = length // 2 - size // 2
    return max(extent[0], first), min(extent[1], first + size)


def _run_length(sampled: np.ndarray) -> np.ndarray:
    """Length of the run of True values that starts each row."""
    return np.logical_and.accumulate(sampled, axis=1).sum(axis=1)
