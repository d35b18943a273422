"""Honesty of posterior samples: whether their spread is the error that they make, and their residual the noise."""

from __future__ import annotations

import math

import numpy as np

from ambient_mri._checks import require
from ambient_mri.metrics._arrays import ArrayLike, as_array, sample_pair, select

__all__ = [
    "MINIMUM_COVERAGE_SAMPLES",
    "chi2_residual",
    "coverage",
    "mean_of_known",
    "std_error_correlation",
    "variance_ratio",
]

MINIMUM_COVERAGE_SAMPLES = 32
_RANK_BLOCK = 16384  # pixels at a time, to bound memory


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
    x, x0 = sample_pair(samples, reference, minimum=MINIMUM_COVERAGE_SAMPLES)
    require(0 < level < 1, f"level must lie between 0 and 1; got {level!r}.")
    require(noise_std >= 0, f"noise_std must not be negative; got {noise_std!r}.")
    if np.iscomplexobj(x):
        x, x0 = np.stack([x.real, x.imag], axis=1), np.stack([x0.real, x0.imag])
    rank = np.arange(len(x) + 1)
    lower, upper = 0.5 * (1 - level) * len(rank), 0.5 * (1 + level) * len(rank)
    covered = np.clip(np.minimum(rank + 1, upper) - np.maximum(rank, lower), 0, 1)
    x0, x = select(x0, support), np.stack([select(sample, support) for sample in x])
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
    x, x0 = sample_pair(samples, reference, minimum=2)
    noise = noise_std**2 * (2 if np.iscomplexobj(x) else 1)
    spread = float(np.mean(select(np.var(x, axis=0, ddof=1), support)))
    error = float(np.mean(select(np.abs(x0 - x.mean(axis=0)) ** 2, support))) - noise
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
    x, x0 = sample_pair(samples, reference, minimum=2)
    std = select(np.std(x, axis=0, ddof=1), support)
    error = select(np.abs(x.mean(axis=0) - x0), support)
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
    r, std = as_array("residual", residual), np.asarray(as_array("noise_std", noise_std), dtype=np.float64)
    require(
        std.ndim == 0 or std.shape == r.shape[:1],
        f"noise_std {std.shape} must be one number or one per row of {r.shape}.",
    )
    require(bool(np.all(std > 0)), "chi2_residual needs a positive noise_std: without noise the residual has no scale.")
    std = std.reshape(-1, *[1] * (r.ndim - 1)) if std.ndim else std
    parts = 2 if np.iscomplexobj(r) else 1
    return float(np.mean(select(np.abs(r / std) ** 2 / parts, mask)))


def mean_of_known(values: ArrayLike) -> float:
    """Mean of the finite ones: the residual of a slice without signal, or of a scan without noise, is NaN; NaN if all
    are.
    """
    found = np.asarray(values, dtype=np.float64)
    return float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else float("nan")
