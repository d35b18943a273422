r"""Image quality and honesty of uncertainty: pure functions on numpy arrays or torch tensors, floats out.

Symbols: x0 reference, x image, x_k the k-th of K posterior samples, s the noise standard deviation per real and per
imaginary part. Every quality metric takes (reference, image), the order of ``fastmri.evaluate``, whose definitions
these are:

    psnr = 10 log10( max(x0)^2 / mean (x0 - x)^2 )     max(x0): of the whole volume that is passed in
    ssim = 7 x 7 uniform window, K1 = .01, K2 = .03, sample covariance, data range max(x0), without a border of 3
    nmse = ||x0 - x||^2 / ||x0||^2 ,    nrmse = sqrt(nmse)

Leading axes are slices of one volume, the last two are the image: (H, W), (slices, H, W) and (slices, 1, H, W) are all
good. ``psnr`` and ``ssim`` are defined for magnitude images and refuse complex ones; ``nmse`` and ``nrmse`` accept
both. ``support`` (bool, broadcastable) scores the pixels inside a region; the data range remains the whole volume's
maximum.

References: Zbontar et al. 2018 (arXiv:1811.08839); Wang et al. 2004 (SSIM); Dawid 1984 (probability integral
transform).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import require

__all__ = [
    "DEFINITIONS",
    "chi2_residual",
    "coverage",
    "fit_scale",
    "frechet_distance",
    "kernel_distance",
    "nmse",
    "nrmse",
    "psnr",
    "ssim",
    "std_error_correlation",
    "variance_ratio",
]

ArrayLike = np.ndarray | Tensor

SSIM_WINDOW = 7
MINIMUM_COVERAGE_SAMPLES = 32
_RANK_BLOCK = 16384  # pixels at a time, to bound memory

DEFINITIONS: dict[str, str] = {
    "psnr": "PSNR in dB: 10 log10(max^2 / mean squared error), max of the whole reference volume (fastMRI).",
    "ssim": "SSIM: 7x7 uniform window, K1 .01, K2 .03, data range = maximum of the reference volume (fastMRI).",
    "nmse": "NMSE: ||x - reference||^2 / ||reference||^2 (fastMRI).",
    "nrmse": "NRMSE: ||x - reference|| / ||reference||.",
    "coverage90": "Coverage of the pixel-wise 90 % interval of 32 or more samples, the reference's noise counted.",
    "variance_ratio": "Variance ratio (calibrated: 1): (1 + 1/K) Var of K samples / (MSE of the mean - noise).",
    "std_error_correlation": "Pearson correlation over pixels of the samples' std with |mean - reference|.",
    "chi2_residual": "chi^2: ||y - A x||^2 / (m noise_std^2), m real numbers; 1 if honest, less if noise is fitted.",
    "kernel": "Kernel distance (unbiased MMD^2, cubic kernel) to held-out images, in the same feature space.",
    "frechet": "Frechet distance of unconditional samples to held-out images, in the feature space of the settings.",
}


def psnr(
    reference: ArrayLike, image: ArrayLike, data_range: float | None = None, *, support: ArrayLike | None = None
) -> float:
    """Peak signal-to-noise ratio in dB; infinite for identical images.

    Args:
        reference: Magnitude reference, (..., H, W), real.
        image: Same shape and units.
        data_range: Peak value; the reference volume's maximum where None.
        support: Bool, broadcastable to ``reference``: score these pixels alone.

    Raises:
        AmbientMRIError: If shapes differ, values are complex or not finite, the range is not positive, or support is
            empty.

    Source: fastmri.evaluate.psnr. Differs: 1. ``support``.
    """
    x0, x = _real_pair(reference, image)
    peak = _data_range(x0, data_range)
    error = float(np.mean(_select((x0 - x) ** 2, support)))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def ssim(
    reference: ArrayLike, image: ArrayLike, data_range: float | None = None, *, support: ArrayLike | None = None
) -> float:
    """Structural similarity, the mean over slices and over pixels at least 3 away from the border.

    Args:
        reference: Magnitude reference, (..., H, W), real, both sides at least 7 pixels.
        image: Same shape and units.
        data_range: L of the constants (K L)^2; the reference volume's maximum where None.
        support: Bool, broadcastable: mean of the SSIM map over these pixels of all slices. Windows still reach outside.

    Raises:
        AmbientMRIError: As :func:`psnr`, and if the image is smaller than the window.

    Source: fastmri.evaluate.ssim, through scikit-image. Differs: 1. always computed in float64; 2. ``support``.
    """
    from skimage.metrics import structural_similarity

    x0, x = _real_pair(reference, image)
    height, width = x0.shape[-2:]
    require(
        min(height, width) >= SSIM_WINDOW,
        f"ssim needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels; got {height} x {width}.",
    )
    peak, pad = _data_range(x0, data_range), (SSIM_WINDOW - 1) // 2
    pairs = zip(x0.reshape(-1, height, width), x.reshape(-1, height, width), strict=True)
    maps = [structural_similarity(a, b, win_size=SSIM_WINDOW, data_range=peak, full=True)[1] for a, b in pairs]
    inner = np.s_[..., pad : height - pad, pad : width - pad]
    inside = None if support is None else _support(support, x0.shape)[inner]
    return float(np.mean(_select(np.stack(maps).reshape(x0.shape)[inner], inside)))


def nmse(reference: ArrayLike, image: ArrayLike, *, support: ArrayLike | None = None) -> float:
    """Normalised mean squared error ||x0 - x||^2 / ||x0||^2; real or complex.

    Args:
        reference: (..., H, W), real or complex.
        image: Same shape and units.
        support: Bool, broadcastable: both norms over these pixels alone.

    Raises:
        AmbientMRIError: If shapes differ, one is complex and the other real, values are not finite, or the reference is
            zero.

    Source: fastmri.evaluate.nmse. Differs: 1. complex images; 2. ``support``.
    """
    x0, x = _pair(reference, image)
    energy = float(np.sum(_select(np.abs(x0) ** 2, support)))
    require(energy > 0, "nmse is undefined: the reference is zero in every scored pixel.")
    return float(np.sum(_select(np.abs(x0 - x) ** 2, support))) / energy


def nrmse(reference: ArrayLike, image: ArrayLike, *, support: ArrayLike | None = None) -> float:
    """Normalised root mean squared error ||x - x0|| / ||x0||; arguments and errors as :func:`nmse`."""
    return math.sqrt(nmse(reference, image, support=support))


def fit_scale(x: ArrayLike, reference: ArrayLike, *, support: ArrayLike | None = None) -> float:
    """The one real factor a that minimises ||a x - reference||^2: a = Re<x, reference> / <x, x>.

    Args:
        x: Image to be rescaled, (..., H, W), real or complex.
        reference: Same shape.
        support: Bool, broadcastable: fit on these pixels alone.

    Raises:
        AmbientMRIError: If shapes differ, values are not finite, or ``x`` is zero.
    """
    image, x0 = _pair(x, reference, names=("x", "reference"))
    energy = float(np.sum(_select(np.abs(image) ** 2, support)))
    require(energy > 0, "fit_scale is undefined: x is zero in every pixel of the fit.")
    return float(np.sum(_select((np.conj(image) * x0).real, support))) / energy


def coverage(
    samples: ArrayLike,
    reference: ArrayLike,
    level: float = 0.9,
    noise_std: float = 0.0,
    *,
    support: ArrayLike | None = None,
) -> float:
    r"""Fraction of pixels whose reference lies in the central ``level`` interval of the posterior samples.

    The reference has rank r among the K samples; its level in the predictive distribution is (r + v)/(K + 1), v uniform
    in [0, 1], and the average over v is taken exactly. The expected value is then ``level`` for exchangeable samples at
    any K, where empirical quantiles of few samples cover too little. A noisy reference is compared with samples that
    carry the same noise, averaged over it exactly: r is then a sum of Bernoulli variables of Pr = Phi((x0 - x_k) / s).

    Args:
        samples: (K, ..., H, W), real or complex (real and imaginary parts are then counted as two values), K >= 32.
        reference: (..., H, W), same units.
        level: Nominal coverage in (0, 1).
        noise_std: The reference's own noise per real (and imaginary) part; 0 for a noiseless reference.
        support: Bool, broadcastable to ``reference``.

    Raises:
        AmbientMRIError: If there are too few samples, shapes differ, or level or noise_std is out of range.
    """
    x, x0 = _sample_pair(samples, reference, minimum=MINIMUM_COVERAGE_SAMPLES)
    require(0 < level < 1, f"level must lie between 0 and 1; got {level!r}.")
    require(noise_std >= 0, f"noise_std must not be negative; got {noise_std!r}.")
    if np.iscomplexobj(x):
        x, x0 = np.stack([x.real, x.imag], axis=1), np.stack([x0.real, x0.imag])
    rank = np.arange(len(x) + 1)
    lower, upper = 0.5 * (1 - level) * len(rank), 0.5 * (1 + level) * len(rank)
    covered = np.clip(np.minimum(rank + 1, upper) - np.maximum(rank, lower), 0, 1)
    x0, x = _select(x0, support), np.stack([_select(sample, support) for sample in x])
    if noise_std == 0:
        # Equal values (an empty background) share the ranks between them: they count as exactly calibrated.
        below, up_to = np.sum(x < x0, axis=0), np.sum(x <= x0, axis=0)
        cumulated = np.concatenate([[0.0], np.cumsum(covered)])
        return float(np.mean((cumulated[up_to + 1] - cumulated[below]) / (up_to + 1 - below)))
    blocks = range(0, x0.size, _RANK_BLOCK)
    chances = (covered @ _noisy_rank(x[:, i : i + _RANK_BLOCK], x0[i : i + _RANK_BLOCK], noise_std) for i in blocks)
    return float(sum(np.sum(chance) for chance in chances) / x0.size)


def _noisy_rank(x: np.ndarray, x0: np.ndarray, noise_std: float) -> np.ndarray:
    """Pr(rank of x0 among samples x_k + noise = r), a Poisson-binomial law, (K + 1, pixels), by adding one sample at a
    time.
    """
    from scipy.special import ndtr

    law = np.zeros((len(x) + 1, x0.size))
    law[0] = 1.0
    for chance in ndtr((x0 - x) / noise_std):
        law[1:] = law[1:] * (1 - chance) + law[:-1] * chance
        law[0] *= 1 - chance
    return law


def variance_ratio(
    samples: ArrayLike, reference: ArrayLike, noise_std: float = 0.0, *, support: ArrayLike | None = None
) -> float:
    """Variance of the samples over the variance that the error of their mean implies; 1 for an exact posterior.

    The mean of K exact samples misses x0 by (1 + 1/K) Var on average, and by 2 s^2 more (complex; s^2 real) if the
    reference is noisy: ratio = (1 + 1/K) Var / (mean |x0 - mean|^2 - noise).

    Args:
        samples: (K, ..., H, W), real or complex, K >= 2.
        reference: (..., H, W), same units.
        noise_std: The reference's own noise per real (and imaginary) part.
        support: Bool, broadcastable to ``reference``.

    Returns:
        The ratio; NaN where the reference's noise accounts for the whole error, so that no variance is left to compare
        with.

    Raises:
        AmbientMRIError: If there are fewer than two samples or shapes differ.
    """
    x, x0 = _sample_pair(samples, reference, minimum=2)
    noise = noise_std**2 * (2 if np.iscomplexobj(x) else 1)
    spread = float(np.mean(_select(np.var(x, axis=0, ddof=1), support)))
    error = float(np.mean(_select(np.abs(x0 - x.mean(axis=0)) ** 2, support))) - noise
    return (1 + 1 / len(x)) * spread / error if error > 0 else math.nan


def std_error_correlation(samples: ArrayLike, reference: ArrayLike, *, support: ArrayLike | None = None) -> float:
    """Pearson correlation over pixels between the samples' standard deviation and |mean - reference|.

    Args:
        samples: (K, ..., H, W), real or complex, K >= 2.
        reference: (..., H, W), same units.
        support: Bool, broadcastable to ``reference``.

    Returns:
        The correlation; NaN where the standard deviation or the error is constant, the correlation being undefined.

    Raises:
        AmbientMRIError: If there are fewer than two samples or shapes differ.
    """
    x, x0 = _sample_pair(samples, reference, minimum=2)
    std = _select(np.std(x, axis=0, ddof=1), support)
    error = _select(np.abs(x.mean(axis=0) - x0), support)
    std, error = std - std.mean(), error - error.mean()
    norm = float(np.linalg.norm(std) * np.linalg.norm(error))
    return float(np.sum(std * error)) / norm if norm > 0 else math.nan


def chi2_residual(residual: ArrayLike, noise_std: float | ArrayLike, mask: ArrayLike | None = None) -> float:
    """Residual whiteness ||y - A x||^2 / (m noise_std^2), m the real numbers measured (two for a complex one).

    Args:
        residual: y - A x, batch first, k-space (batch, coils, H, W) complex; units of y.
        noise_std: Noise per real and per imaginary part, one number or one per batch row, > 0.
        mask: Measured locations, bool, broadcastable to ``residual``; everywhere where None.

    Returns:
        The mean over the measured values: near 1 for an honest sample, far below 1 for one that fits noise.

    Raises:
        AmbientMRIError: If noise_std is not positive or the mask selects nothing.
    """
    r, std = _array("residual", residual), np.asarray(_array("noise_std", noise_std), dtype=np.float64)
    require(
        std.ndim == 0 or std.shape == r.shape[:1],
        f"noise_std {std.shape} must be one number or one per row of {r.shape}.",
    )
    require(bool(np.all(std > 0)), "chi2_residual needs a positive noise_std: without noise the residual has no scale.")
    std = std.reshape(-1, *[1] * (r.ndim - 1)) if std.ndim else std
    parts = 2 if np.iscomplexobj(r) else 1
    return float(np.mean(_select(np.abs(r / std) ** 2 / parts, mask)))


def frechet_distance(x: ArrayLike, reference: ArrayLike) -> float:
    """Frechet distance between Gaussian fits of two sets of features.

        || m_x - m_r ||^2 + tr( C_x + C_r - 2 (C_x C_r)^(1/2) )

    Args:
        x: (n, d) features, n > d for covariances of full rank.
        reference: (m, d) features.

    Raises:
        AmbientMRIError: If shapes do not fit, or a set has fewer than two rows.

    Source: Dowson & Landau 1982, J. Multivar. Anal. 12; Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    """
    a, b = _array("x", x), _array("reference", reference)
    require(
        a.ndim == 2 and b.ndim == 2 and a.shape[1] == b.shape[1] and min(len(a), len(b)) >= 2,
        f"features must be (n, d) and (m, d) with two rows at least; got {a.shape} and {b.shape}.",
    )
    first, second = (np.atleast_2d(np.cov(f, rowvar=False)) for f in (a, b))
    # The eigenvalues of C_x C_r are those of the symmetric C_x^(1/2) C_r C_x^(1/2): real and not negative.
    values, basis = np.linalg.eigh(first)
    root = (basis * np.sqrt(np.clip(values, 0, None))) @ basis.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    mean = float(np.sum((a.mean(0) - b.mean(0)) ** 2))
    return max(mean + float(np.trace(first) + np.trace(second) - 2 * cross), 0.0)


def kernel_distance(x: ArrayLike, reference: ArrayLike) -> float:
    """Squared maximum mean discrepancy of two sets of features, kernel (x . y / d + 1)^3; unbiased, so that it may be
    negative, and meaningful for few images where the Frechet distance is not.

    Args:
        x: (n, d) features.
        reference: (m, d) features.

    Raises:
        AmbientMRIError: As :func:`frechet_distance`.

    Source: Binkowski et al. 2018, arXiv:1801.01401, eq. 4. Differs: 1. all images at once, no subsets.
    """
    a, b = _array("x", x), _array("reference", reference)
    require(
        a.ndim == 2 and b.ndim == 2 and a.shape[1] == b.shape[1] and min(len(a), len(b)) >= 2,
        f"features must be (n, d) and (m, d) with two rows at least; got {a.shape} and {b.shape}.",
    )
    within = []
    for f in (a, b):
        table = (f @ f.T / f.shape[1] + 1) ** 3
        within.append(float(table.sum() - np.trace(table)) / (len(f) * (len(f) - 1)))
    return sum(within) - 2 * float(np.mean((a @ b.T / a.shape[1] + 1) ** 3))


def _array(name: str, values: ArrayLike | float) -> np.ndarray:
    """A float64 or complex128 array of finite values: scores do not depend on the precision they are stored in."""
    if isinstance(values, Tensor):
        # Widened in torch: bfloat16 has no numpy counterpart.
        wide = torch.complex128 if values.is_complex() else torch.float64
        values = values.detach().cpu().to(wide).resolve_conj().resolve_neg().numpy()
    array = np.asarray(values)
    array = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    bad = int(np.count_nonzero(~np.isfinite(array)))
    require(bad == 0, f"{name} holds {bad} non-finite values (NaN or infinity) and cannot be scored.")
    return array


def _pair(
    reference: ArrayLike, image: ArrayLike, names: tuple[str, str] = ("reference", "image")
) -> tuple[np.ndarray, np.ndarray]:
    x0, x = _array(names[0], reference), _array(names[1], image)
    require(
        x0.shape == x.shape and x0.ndim >= 2,
        f"{names[0]} and {names[1]} must have the same shape (..., H, W); got {x0.shape} and {x.shape}.",
    )
    require(
        np.iscomplexobj(x0) == np.iscomplexobj(x),
        f"{names[0]} and {names[1]} must both be complex or both be magnitude images; got {x0.dtype} and {x.dtype}.",
    )
    return x0, x


def _real_pair(reference: ArrayLike, image: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    for name, values in (("reference", reference), ("image", image)):
        complex_values = values.is_complex() if isinstance(values, Tensor) else np.iscomplexobj(values)
        require(not complex_values, f"{name} is complex, and psnr and ssim are defined for magnitudes: pass its abs().")
    return _pair(reference, image)


def _sample_pair(samples: ArrayLike, reference: ArrayLike, minimum: int) -> tuple[np.ndarray, np.ndarray]:
    x, x0 = _array("samples", samples), _array("reference", reference)
    require(
        x.ndim == x0.ndim + 1 and x.shape[1:] == x0.shape,
        f"samples must have the reference's shape with the sample axis in front; got {x.shape} for {x0.shape}.",
    )
    require(
        np.iscomplexobj(x) == np.iscomplexobj(x0),
        f"samples and reference must both be complex or both be magnitudes; got {x.dtype} and {x0.dtype}.",
    )
    require(len(x) >= minimum, f"this metric needs at least {minimum} samples; got {len(x)}. Draw more samples.")
    return x, x0


def _data_range(x0: np.ndarray, data_range: float | None) -> float:
    peak = float(x0.max()) if data_range is None else float(data_range)
    require(peak > 0, f"the data range (by default the reference volume's maximum) must be positive; got {peak:g}.")
    return peak


def _support(support: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(support.detach().cpu().numpy() if isinstance(support, Tensor) else support)
    require(array.dtype == np.bool_, f"support must be a bool mask; got {array.dtype}.")
    fits = array.ndim <= len(shape) and all(a in (1, s) for a, s in zip(array.shape[::-1], shape[::-1], strict=False))
    require(fits, f"support {array.shape} does not broadcast to {shape}.")
    return np.broadcast_to(array, shape)


def _select(values: np.ndarray, support: ArrayLike | None) -> np.ndarray:
    """The values inside the support, flat; all of them where there is none."""
    if support is None:
        return values.ravel()
    chosen = values[_support(support, values.shape)]
    require(chosen.size > 0, "the support (or mask) selects no value to score.")
    return chosen
