"""Distances between sets of images, each image a vector of features."""

from __future__ import annotations

import numpy as np

from ambient_mri._checks import require
from ambient_mri.metrics._arrays import ArrayLike, as_array

__all__ = ["frechet_distance", "kernel_distance"]


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
    a, b = as_array("x", x), as_array("reference", reference)
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
    a, b = as_array("x", x), as_array("reference", reference)
    require(
        a.ndim == 2 and b.ndim == 2 and a.shape[1] == b.shape[1] and min(len(a), len(b)) >= 2,
        f"features must be (n, d) and (m, d) with two rows at least; got {a.shape} and {b.shape}.",
    )
    within = []
    for f in (a, b):
        table = (f @ f.T / f.shape[1] + 1) ** 3
        within.append(float(table.sum() - np.trace(table)) / (len(f) * (len(f) - 1)))
    return sum(within) - 2 * float(np.mean((a @ b.T / a.shape[1] + 1) ** 3))
