r"""ESPIRiT in torch, batched over slices.

The k-space patches of all coils span a space with projector P. In the image it acts point by point,

    W(r)_cc' = 1/K  sum_{q,q'}  P_{cq,c'q'}  exp(2 pi i r (q - q')),      K = number of kernel positions q,

and the map S(r) is the eigenvector of the Hermitian matrix W(r) with the largest eigenvalue (1 inside the object).
W(r) is a trigonometric polynomial of degree (kernel - 1): it is built from the autocorrelation of P by two small matrix
products, never from full-size kernels, and its eigenvectors start from those of a coarse grid.

Source: Uecker et al. 2014, "ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI", MRM 71:990-1001.
Differs: 1. one set of maps, never cropped; 2. rectangular calibration regions; 3. the kernel shrinks along an axis with
few calibration lines, to a third of them (at least 2): on real heads this takes a third or more off the error of maps
from 8 lines; 4. with a known noise level, what counts as noise is bounded below by the largest singular value of noise
alone, sqrt(2) noise_std (sqrt(rows) + sqrt(columns)) (Marchenko & Pastur 1967): without it the noise of a noisy scan
fills the whole space, and the maps are arbitrary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, check_finite, require
from ambient_mri.coil_maps.acs import AcsRegion, find_acs

__all__ = [
    "CALIBRATION_LINES",
    "NOT_FINITE",
    "espirit",
    "kernel_size",
    "noise_aware_thresholds",
    "noise_per_slice",
    "require_signal",
]

#: What to do about k-space that holds NaN or infinity.
NOT_FINITE = "Set these samples to 0 and take them out of the mask, or read the file again."
#: Calibration lines a side that are usual: more of them hold noise rather than maps.
CALIBRATION_LINES = 24

#: Matrix entries W(r) in memory at a time: what a cache holds, or what fills a GPU.
_TILE_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}


def espirit(
    kspace: Tensor,
    acs: AcsRegion | Tensor | int,
    *,
    kernel: int | tuple[int, int] = 6,
    threshold: float = 0.02,
    noise_std: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """ESPIRiT maps, batched over slices, on the device of ``kspace``.

    Args:
        kspace: (batch, coils, H, W) complex; only the region ``acs`` is read.
        acs: Calibration region, used whole (see :meth:`AcsRegion.limited`); or the number of its samples a side, around
            the zero frequency; or the mask of all rows, whose region is then used up to 24 lines a side.
        kernel: Kernel size. An int is an upper bound, reduced along an axis to a third of its calibration lines (at
            least 2); a pair is taken as it is.
        threshold: Singular values of the calibration matrix below ``threshold`` times the largest count as noise.
        noise_std: Noise per real and imaginary part, in the units of ``kspace``, (batch,) or one number; singular
            values that noise alone could give count as noise too. 0: not known.

    Returns:
        maps (batch, coils, H, W) of unit norm at every pixel, their phase relative to the principal virtual coil, and
        the eigenvalue (batch, 1, H, W).

    Raises:
        AmbientMRIError: If there is no such region, it is smaller than the kernel, holds NaN or infinity, or no signal.
    """
    require(
        kspace.ndim == 4 and kspace.is_complex(),
        f"kspace must be complex (batch, coils, H, W); got {kspace.dtype} {tuple(kspace.shape)}.",
    )
    acs = _calibration_region(acs, (int(kspace.shape[-2]), int(kspace.shape[-1])))
    calibration = acs.crop(kspace)
    if not bool(torch.isfinite(calibration).all()):
        # Of the whole, so that the place it names is one in the caller's array.
        check_finite("kspace", kspace, NOT_FINITE)
    size = kernel_size(acs.shape, kernel) if isinstance(kernel, int) else kernel
    fits = all(k <= n for k, n in zip(size, acs.shape, strict=True))
    require(fits, f"the ESPIRiT kernel {size} is larger than the calibration region {acs.shape}.")
    require_signal(calibration, range(len(kspace)))
    with torch.no_grad():
        noise = noise_per_slice(noise_std, len(kspace))
        rows = [_signal_autocorrelation(*row, size, threshold) for row in zip(calibration, noise, strict=True)]
        kernels = torch.stack(rows).to(kspace.dtype)
        elements = _TILE_ELEMENTS.get(kspace.device.type, _TILE_ELEMENTS["cpu"])
        slices = max(1, elements // (kspace.shape[1] ** 2 * kspace.shape[3]))
        parts = [_pointwise_eigenvectors(part, acs.image_shape, size, elements) for part in kernels.split(slices)]
        maps, eigenvalue = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        # The virtual coil with the most signal has no zeros inside the object: a safer phase reference than coil 1.
        flat = calibration.flatten(2)
        reference = torch.linalg.eigh(flat @ flat.mH)[1][..., -1]
        angle = torch.einsum("bc,bchw->bhw", reference.conj(), maps).angle().unsqueeze(1)
        return maps * torch.polar(torch.ones_like(angle), -angle), eigenvalue


def require_signal(calibration: Tensor, rows: Sequence[int]) -> None:
    """Raise unless every row of a calibration region (b, C, h, w) holds signal; ``rows`` are their numbers."""
    holds = (calibration != 0).flatten(1).any(dim=1).tolist()
    empty = [row for row, signal in zip(rows, holds, strict=True) if not signal]
    require(not empty, f"no signal in the calibration region of slices {empty}. Is the k-space empty, or not centred?")


def _calibration_region(acs: AcsRegion | Tensor | int, image_shape: tuple[int, int]) -> AcsRegion:
    """The region that ``acs`` names (:func:`espirit`)."""
    if isinstance(acs, Tensor):
        found = find_acs(acs, image_shape)
        require(
            found is not None, "the mask passed as acs leaves out the zero frequency: it has no calibration region."
        )
        return found.limited(CALIBRATION_LINES)  # type: ignore[union-attr]
    if isinstance(acs, int) and not isinstance(acs, bool):
        require(acs >= 1, f"acs must be at least 1 sample a side; got {acs}.")
        return AcsRegion.central(image_shape, acs)
    if not isinstance(acs, AcsRegion):
        raise AmbientMRIError(
            "acs must be a calibration region (find_acs(mask)), a bool mask tensor, or the number of samples a side; "
            f"got {type(acs).__name__}."
        )
    require(
        acs.image_shape == image_shape,
        f"acs is a region of k-space of shape {acs.image_shape}, but kspace has {image_shape}. Use find_acs(mask).",
    )
    return acs


def kernel_size(shape: tuple[int, int], kernel: int) -> tuple[int, int]:
    """``kernel`` along each axis of a calibration region, or a third of its lines (at least 2) where there are few."""
    rows, cols = (min(kernel, max(2, math.ceil(n / 3)), n) for n in shape)
    return rows, cols


def noise_aware_thresholds(
    calibration: Tensor, noise_std: Tensor | float, size: tuple[int, int], threshold: float
) -> list[float]:
    """``threshold`` of every slice (b, C, h, w), raised to the noise edge: for programs that know nothing of noise."""
    levels = []
    for slice_, noise in zip(calibration, noise_per_slice(noise_std, len(calibration)), strict=True):
        patches = _patches(slice_, size)
        edge = _noise_edge(patches, noise) / float(torch.linalg.matrix_norm(patches, 2))
        levels.append(max(threshold, min(edge, 0.999)))
    return levels


def _signal_autocorrelation(calibration: Tensor, noise_std: float, size: tuple[int, int], threshold: float) -> Tensor:
    """Autocorrelation over kernel offsets of the projector P of one slice, (C, C, 2Ky-1, 2Kx-1), complex128.

    The singular vectors of the patch matrix come from the smaller of its two Gram matrices, in double precision because
    a Gram matrix squares the singular values.
    """
    coils, (ky, kx) = calibration.shape[0], size
    patches = _patches(calibration, size)
    wide = patches.shape[0] < patches.shape[1]
    energy, vectors = torch.linalg.eigh(patches @ patches.mH if wide else patches.mH @ patches)
    # The largest stays even where all is noise: there are always maps, and their eigenvalue tells what they are worth.
    floor = max(threshold**2 * float(energy[-1]), _noise_edge(patches, noise_std) ** 2)
    keep = energy > min(floor, 0.999 * float(energy[-1]))
    basis = patches.mH @ (vectors[:, keep] / energy[keep].sqrt()) if wide else vectors[:, keep]
    # The rows of the patch matrix are spanned by conj(basis).
    projector = (basis @ basis.mH).conj().reshape(coils, ky, kx, coils, ky, kx)
    result = projector.new_zeros(coils, coils, 2 * ky - 1, 2 * kx - 1)
    for i in range(ky):
        for j in range(kx):
            result[..., i : i + ky, j : j + kx] += projector[:, i, j].flip(-2, -1)
    return result / (ky * kx)


def _patches(calibration: Tensor, size: tuple[int, int]) -> Tensor:
    """The calibration matrix: every patch of one slice (C, h, w) as a row, (patches, C*Ky*Kx) complex128."""
    blocks = calibration.to(torch.complex128).unfold(1, size[0], 1).unfold(2, size[1], 1)
    return blocks.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)


def _noise_edge(patches: Tensor, noise_std: float) -> float:
    """Largest singular value of a matrix of this shape that holds noise alone."""
    return math.sqrt(2) * noise_std * (math.sqrt(patches.shape[0]) + math.sqrt(patches.shape[1]))


def noise_per_slice(value: Tensor | float, batch: int) -> list[float]:
    """One noise level a slice, from one number or one a slice.

    Raises:
        AmbientMRIError: If there are neither one nor ``batch`` of them.
    """
    numbers = torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
    require(len(numbers) in (1, batch), f"noise_std must be one number or ({batch},), one a slice; got {len(numbers)}.")
    return numbers * batch if len(numbers) == 1 else numbers


def _pointwise_eigenvectors(
    autocorrelation: Tensor, image_shape: tuple[int, int], size: tuple[int, int], elements: int
) -> tuple[Tensor, Tensor]:
    """Dominant eigenvector (b, C, H, W) and eigenvalue (b, 1, H, W) of W(r), ``elements`` matrix entries at a time."""
    batch, coils = autocorrelation.shape[:2]
    height, width = image_shape
    rows_basis, cols_basis = (_harmonics(n, k, autocorrelation) for n, k in zip(image_shape, size, strict=True))
    # (b, 2Ky-1, W, C*C): the columns are interpolated once, the rows tile by tile.
    half = torch.einsum("bcdij,xj->bixcd", autocorrelation, cols_basis).contiguous()

    def matrices(rows: Tensor | slice, cols: Tensor | slice = slice(None)) -> Tensor:
        return (rows_basis[rows] @ half[:, :, cols].flatten(2)).reshape(-1, coils, coils)

    # Eight points a kernel width: neighbours on this grid differ little where the eigenvalues are apart.
    ys, near_y = _coarse_grid(height, 8 * size[0], rows_basis.device)
    xs, near_x = _coarse_grid(width, 8 * size[1], rows_basis.device)
    coarse = _dominant_by_squaring(matrices(ys, xs)).reshape(batch, len(ys), len(xs), coils)
    start = coarse[:, :, near_x]
    maps = autocorrelation.new_empty(batch, height, width, coils)
    eigenvalue = rows_basis.real.new_empty(batch, height, width)
    step = max(1, elements // (batch * width * coils * coils))
    for first in range(0, height, step):
        rows = slice(first, first + step)
        vectors, values = _dominant_eigenvector(matrices(rows), start[:, near_y[rows]].reshape(-1, coils, 1))
        maps[:, rows] = vectors.reshape(batch, -1, width, coils)
        eigenvalue[:, rows] = values.reshape(batch, -1, width)
    return maps.permute(0, 3, 1, 2).contiguous(), eigenvalue.unsqueeze(1)


def _dominant_eigenvector(matrices: Tensor, start: Tensor, iterations: int = 8) -> tuple[Tensor, Tensor]:
    """Power iteration on (n, C, C) from ``start`` (n, C, 1); what has not converged is done again by squaring."""
    vectors = start
    for _ in range(iterations // 2):
        vectors = _unit(matrices @ (matrices @ vectors))
    image = matrices @ vectors
    values = _length(image)
    slow = (_length(image - values * vectors) > 1e-3 * values).flatten().nonzero().flatten()
    if len(slow):
        vectors[slow] = _dominant_by_squaring(matrices[slow])
        values[slow] = _length(matrices[slow] @ vectors[slow])
    return vectors, values


def _dominant_by_squaring(matrices: Tensor, doublings: int = 10) -> Tensor:
    """Dominant eigenvector (n, C, 1) of positive semi-definite (n, C, C): the largest column of W^(2^doublings)."""
    power = matrices
    for _ in range(doublings):
        power = power @ power
        trace = power.diagonal(dim1=-2, dim2=-1).real.sum(dim=-1)
        power = power / trace.clamp_min(1e-30)[:, None, None]
    largest = power.diagonal(dim1=-2, dim2=-1).real.argmax(dim=-1)
    return _unit(power.gather(-1, largest[:, None, None].expand(-1, power.shape[-1], 1)))


def _length(vectors: Tensor) -> Tensor:
    """Norm of complex (n, C, 1) over coils, (n, 1, 1); through the real view, since a strided complex norm is slow."""
    return torch.view_as_real(vectors).flatten(1).norm(dim=1)[:, None, None]


def _unit(vectors: Tensor) -> Tensor:
    return vectors / _length(vectors).clamp_min(1e-30)


def _harmonics(length: int, size: int, like: Tensor) -> Tensor:
    """exp(2 pi i r d / n) for positions r = -n//2.. and offsets d = -(size-1)..size-1: (n, 2 size - 1)."""
    position = torch.arange(length, dtype=torch.float64, device=like.device) - length // 2
    offset = torch.arange(1 - size, size, dtype=torch.float64, device=like.device)
    angle = 2 * math.pi / length * torch.outer(position, offset)
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)


def _coarse_grid(length: int, points: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of about ``points`` grid positions, and for every position the number of its grid point."""
    stride = max(1, length // points)
    grid = torch.arange(stride // 2, length, stride, device=device)
    return grid, (torch.arange(length, device=device) // stride).clamp_max(len(grid) - 1)
