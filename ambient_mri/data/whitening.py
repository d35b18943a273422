r"""Pre-whitening: a linear mix of the coils after which their noise is uncorrelated and equally strong.

With Sigma = E[n n^H] the noise covariance of the coils and Sigma = L L^H its Cholesky factor,

    y_w = W y ,    W = s L^-1 ,    s^2 = mean of diag(Sigma)          =>    E[ W n (W n)^H ] = s^2 I .

The factor s keeps the units: whitened k-space has the noise level that the coils had on average. Coils in which there
is nothing at all (exact zeros) are left as they are.

The covariance comes from a noise scan (samples without excitation), or from the periphery of k-space, where there is
little but noise: a filter that the scanner laid over the edges scales all coils alike and cancels in W.

Source: Pruessmann et al. 2001, MRM 46:638 (noise covariance in SENSE); Hansen & Kellman 2015, JMRI 41:543.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ambient_mri._checks import DataError, require
from ambient_mri.data.acquisition import Extent
from ambient_mri.data.files import PathLike, check_finite_array, open_hdf5, require_dataset, require_file

__all__ = ["Whitening", "noise_covariance", "periphery_covariance", "read_noise_scan", "whitening"]

#: Samples for each coil that a covariance needs: its eigenvalues are then known to about 2 / sqrt(this number).
_SAMPLES_PER_COIL = 20
#: The share of the sampled locations, farthest from the zero frequency, that counts as periphery.
_PERIPHERY = 0.2
_ENOUGH_SAMPLES = 2**18
_NAMES = ("noise", "kspace", "data")


@dataclass(frozen=True, eq=False)
class Whitening:
    """A whitening matrix, and what it was made from.

    Attributes:
        matrix: (coils, coils) complex128, W.
        noise_std: s / sqrt(2): noise per real and imaginary part of every whitened coil, raw units.
        correlation: Largest |correlation| between two coils before.
        spread: Noise standard deviation of the noisiest coil over that of the quietest.
    """

    matrix: np.ndarray
    noise_std: float
    correlation: float
    spread: float

    def apply(self, kspace: np.ndarray) -> np.ndarray:
        """W y for k-space (..., coils, H, W); zeros in all coils stay zeros."""
        return mix_coils(self.matrix, kspace)

    def describe(self) -> dict[str, Any]:
        """Plain data, for the record."""
        return {"noise_std": self.noise_std, "correlation": self.correlation, "spread": self.spread}


def mix_coils(matrix: np.ndarray, kspace: np.ndarray) -> np.ndarray:
    """``matrix`` (new, coils) applied to k-space (..., coils, H, W), slice by slice; complex64."""
    flat = kspace.reshape(-1, *kspace.shape[-3:])
    small = matrix.astype(np.complex64)
    mixed = np.empty((len(flat), len(matrix), *kspace.shape[-2:]), dtype=np.complex64)
    for new, old in zip(mixed, flat, strict=True):
        new[...] = (small @ old.reshape(len(old), -1)).reshape(new.shape)
    return mixed.reshape(*kspace.shape[:-3], *mixed.shape[1:])


def whitening(covariance: np.ndarray) -> Whitening:
    """The whitening matrix of a noise covariance E[n n^H], (coils, coils).

    Raises:
        DataError: If it is not a covariance: not square and Hermitian, not finite, or not positive definite.
    """
    sigma = np.asarray(covariance, dtype=np.complex128)
    square = sigma.ndim == 2 and sigma.shape[0] == sigma.shape[1] and bool(np.isfinite(sigma).all())
    require(square, f"a noise covariance must be finite (coils, coils); got {sigma.shape}.", DataError)
    power = np.diagonal(sigma).real
    live = np.flatnonzero(power > 0)
    require(len(live) > 0, "the noise covariance is zero: there is no noise in any coil.", DataError)
    inner = sigma[np.ix_(live, live)]
    hermitian = np.allclose(inner, inner.conj().T, atol=1e-6 * power.max())
    require(hermitian, "a noise covariance must be Hermitian. Use noise_covariance(samples).", DataError)
    try:
        factor = np.linalg.cholesky(inner)
    except np.linalg.LinAlgError as error:
        message = "the noise covariance is not positive definite: two coils hold the same noise, or too few samples"
        raise DataError(f"{message}. Compress the coils first, or pass a longer noise scan.") from error
    level = float(np.sqrt(power[live].mean()))
    matrix = np.eye(len(sigma), dtype=np.complex128)
    matrix[np.ix_(live, live)] = level * np.linalg.inv(factor)
    std = np.sqrt(power[live])
    correlation = np.abs(inner / np.outer(std, std)) - np.eye(len(live))
    return Whitening(matrix, level / np.sqrt(2), float(correlation.max()), float(std.max() / std.min()))


def noise_covariance(samples: np.ndarray, where: object = "the noise scan") -> np.ndarray:
    """E[n n^H] of noise samples (coils, ...) complex; a constant offset of the receiver is taken off.

    Raises:
        DataError: If the samples are not complex, not finite, or fewer than 20 a coil.
    """
    require(
        samples.ndim >= 2 and samples.dtype.kind == "c",
        f"{where}: noise samples must be complex (coils, samples); got {samples.dtype} {samples.shape}.",
        DataError,
    )
    check_finite_array(samples, "noise", where)
    flat = samples.reshape(len(samples), -1).astype(np.complex128)
    enough = flat.shape[1] >= _SAMPLES_PER_COIL * len(flat)
    hint = "Are the coils the first axis? numpy.moveaxis makes them so."
    shape = f"{flat.shape[1]} samples of {len(flat)} coils"
    require(enough, f"{where}: {shape} are too few; at least {_SAMPLES_PER_COIL} a coil. {hint}", DataError)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return (flat @ flat.conj().T) / (flat.shape[1] - 1)


def periphery_covariance(kspace: np.ndarray, mask: np.ndarray, extent: Extent) -> np.ndarray:
    """E[n n^H] from the sampled fifth of k-space that is farthest from the zero frequency.

    Args:
        kspace: (slices, coils, H, W) complex, raw units, zero where not sampled.
        mask: (slices or 1, 1, H or 1, W or 1) bool.
        extent: ((row0, row1), (column0, column1)) really acquired.

    Raises:
        DataError: If there are too few samples.
    """
    slices, _, height, width = kspace.shape
    far = [
        np.abs(np.arange(n) - n // 2) / max(n // 2 - first, last - 1 - n // 2, 1)
        for n, (first, last) in zip((height, width), extent, strict=True)
    ]
    radius = np.maximum(far[0][:, None], far[1][None, :])
    # Scanners leave single samples at exactly zero in every coil where they padded: those are no noise.
    sampled = np.broadcast_to(mask[:, 0], (slices, height, width)) & (kspace != 0).any(axis=1)
    require(bool(sampled.any()), "k-space is zero everywhere: there is no periphery to take the noise from.", DataError)
    shown = np.broadcast_to(radius, sampled.shape)[sampled]
    outer = sampled & (radius >= np.quantile(shown, 1 - _PERIPHERY))
    samples = kspace.swapaxes(0, 1)[:, outer]
    step = max(1, samples.shape[1] // _ENOUGH_SAMPLES)
    return noise_covariance(samples[:, ::step], "the periphery of k-space")


def read_noise_scan(path: PathLike) -> np.ndarray:
    """Noise samples (coils, ...) of a .npy file, or of ``noise``, ``kspace`` or ``data`` in a .npz or HDF5 file.

    Arrays of four axes are taken as (slices, coils, H, W).

    Raises:
        DataError: If there is no such file or array.
    """
    file = require_file(path)
    if file.suffix.lower() in (".h5", ".hdf5"):
        with open_hdf5(file) as handle:
            name = next((n for n in _NAMES if n in handle), _NAMES[0])
            array = np.asarray(require_dataset(handle, name, file, "It must hold noise samples (coils, samples).")[()])
    else:
        array = _load_numpy(file)
    return array.swapaxes(0, 1) if array.ndim == 4 else array


def _load_numpy(file: Path) -> np.ndarray:
    try:
        with file.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            name = next((n for n in _NAMES if n in content.files), None)
            found = ", ".join(content.files) or "nothing"
            require(name is not None, f"{file}: array 'noise' is missing (the file holds {found}).", DataError)
            return np.asarray(content[str(name)])
    except DataError:
        raise
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{file}: NumPy cannot read it ({error}). A noise scan is .npy, .npz or .h5.") from error
