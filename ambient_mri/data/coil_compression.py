r"""Coil compression: many coils into few virtual ones, by the singular vectors of the calibration data.

*SVD* (Huang et al. 2008, MRI 26:133): with X the calibration samples, (coils, samples), and X = U S V^H, the k first
columns of U give the virtual coils y_v = U_k^H y: for every k no other k channels hold more of the energy.

*Geometric* (Zhang et al. 2013, MRM 69:571): along a fully sampled readout the coils may be mixed differently at every
position x, where fewer of them see anything. U_k(x) comes from the calibration lines in the hybrid space (x, ky). Each
matrix is only known up to a unitary mix of its k channels; neighbours are aligned so that the virtual coils stay smooth
along x (eqs. 6-8), with U S V^H the singular value decomposition of

    C_x = A0_x A_{x-1}^H ,        A_x = V U^H A0_x ,       A0_x = U_k(x)^H .

Differs: 1. the alignment runs from the middle, where there is signal, to both ends. 2. one set of matrices serves all
slices of a volume, so that it has one number of coils.

The rows are orthonormal: white noise stays white and keeps its level. Energies include the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ambient_mri._checks import DataError, check_option, require
from ambient_mri.coil_maps import find_acs
from ambient_mri.data.whitening import mix_coils
from ambient_mri.operators.fourier import fft, ifft

__all__ = ["Compression", "coil_compression"]

METHODS = ("svd", "geometric")
#: More calibration lines add noise, and no coils.
_LINES = 24


@dataclass(frozen=True, eq=False)
class Compression:
    """Matrices that make virtual coils.

    Attributes:
        matrices: (1, k, coils) for ``svd``; (positions, k, coils), one for each readout position, for ``geometric``.
        method: ``"svd"`` or ``"geometric"``.
        axis: The readout axis, -2 or -1 (of no meaning for ``svd``).
        energy: Share of the calibration data's energy that the virtual coils hold.
    """

    matrices: np.ndarray
    method: str
    axis: int
    energy: float

    @property
    def coils(self) -> int:
        """Number of virtual coils."""
        return int(self.matrices.shape[1])

    def apply(self, kspace: np.ndarray) -> np.ndarray:
        """K-space (slices, coils, H, W) of the virtual coils, complex64; unsampled lines stay exact zeros."""
        if self.method == "svd":
            return mix_coils(self.matrices[0], kspace)
        parts = []
        for part in kspace:
            hybrid = _last(ifft(torch.from_numpy(part), (self.axis,)).numpy(), self.axis)
            # (positions, k, coils) @ (positions, coils, lines)
            mixed = self.matrices.astype(np.complex64) @ hybrid.transpose(2, 0, 1)
            back = _last(mixed.transpose(1, 2, 0), self.axis)
            parts.append(fft(torch.from_numpy(np.ascontiguousarray(back)), (self.axis,)).numpy())
        return np.stack(parts)

    def describe(self) -> dict[str, Any]:
        """Plain data, for the record."""
        return {"method": self.method, "coils": self.coils, "energy": self.energy}


def coil_compression(
    kspace: np.ndarray, mask: np.ndarray, coils: int | float, *, method: str = "svd", readout_axis: int = -2
) -> Compression:
    """Virtual coils from the calibration region of a scan.

    Args:
        kspace: (slices, coils, H, W) complex64, zero where not sampled; white noise (see
            :mod:`~ambient_mri.data.whitening`).
        mask: (slices or 1, 1, H or 1, W or 1) bool.
        coils: Number of virtual coils, or, below 1, the share of the energy that they must hold, such as 0.98.
        method: ``"svd"`` or ``"geometric"``.
        readout_axis: The fully sampled axis along which geometric matrices vary.

    Raises:
        AmbientMRIError: For an unknown method, a number of coils that cannot be, or a scan without calibration lines or
            with an undersampled readout.
    """
    check_option("method", method, METHODS)
    count = kspace.shape[1]
    good = 0 < coils < 1 or (float(coils).is_integer() and 1 <= coils <= count)
    require(good, f"coils must be 1 to {count}, or a share of the energy between 0 and 1; got {coils}.")
    calibration = _calibration(kspace, mask, method, readout_axis)
    grams = _grams(calibration)
    values, vectors = np.linalg.eigh(grams)
    values, vectors = values[:, ::-1].clip(min=0), vectors[..., ::-1]
    held = values.sum(axis=0).cumsum() / values.sum()
    number = int(coils) if coils >= 1 else int(np.searchsorted(held, coils)) + 1
    matrices = vectors[..., :number].conj().swapaxes(-2, -1)
    if method == "geometric":
        matrices = _aligned(matrices)
    return Compression(matrices, method, readout_axis, float(held[number - 1]))


def _calibration(kspace: np.ndarray, mask: np.ndarray, method: str, axis: int) -> np.ndarray:
    """Calibration samples (positions, coils, samples): one position for SVD, all of the readout for geometric."""
    shape = (kspace.shape[-2], kspace.shape[-1])
    acs = find_acs(torch.from_numpy(np.ascontiguousarray(mask)), shape)
    hint = "Leave the coils as they are."
    require(acs is not None, f"coil compression needs calibration lines, and the scan has none. {hint}", DataError)
    region = acs.limited(_LINES)  # type: ignore[union-attr]
    rows, cols = (slice(*i) for i in (region.rows, region.cols))
    if method == "svd":
        samples = kspace[..., rows, cols].swapaxes(0, 1)
        return samples.reshape(1, len(samples), -1)
    length = shape[axis]
    full = mask.shape[axis] == 1 or bool((mask.any(axis=axis) == mask.all(axis=axis)).all())
    require(full, f"geometric coil compression needs a fully sampled readout. Use compression='svd'. {hint}", DataError)
    lines = kspace[..., :, cols] if axis == -2 else kspace[..., rows, :]
    hybrid = ifft(torch.from_numpy(np.ascontiguousarray(lines)), (axis,)).numpy()
    moved = np.moveaxis(hybrid, axis, 0)  # (positions, slices, coils, lines)
    return moved.swapaxes(1, 2).reshape(length, kspace.shape[1], -1)


def _grams(samples: np.ndarray) -> np.ndarray:
    """X X^H of every position, complex128: its eigenvectors are the left singular vectors of X."""
    grams = np.empty((len(samples), samples.shape[1], samples.shape[1]), dtype=np.complex128)
    for gram, x in zip(grams, samples, strict=True):
        wide = x.astype(np.complex128)
        gram[...] = wide @ wide.conj().T
    require(bool(np.abs(grams).max() > 0), "the calibration lines are zero: there is nothing to compress.", DataError)
    return grams


def _aligned(matrices: np.ndarray) -> np.ndarray:
    """Neighbours aligned from the middle to both ends."""
    aligned = matrices.copy()
    middle = len(matrices) // 2
    for order in (range(middle + 1, len(matrices)), range(middle - 1, -1, -1)):
        before = aligned[middle]
        for x in order:
            u, _, vh = np.linalg.svd(matrices[x] @ before.conj().T)
            before = aligned[x] = (u @ vh).conj().T @ matrices[x]
    return aligned


def _last(array: np.ndarray, axis: int) -> np.ndarray:
    """(coils, H, W) with the readout as the last axis, and back."""
    return array if axis == -1 else array.swapaxes(-2, -1)
