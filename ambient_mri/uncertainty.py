r"""What samples of a posterior say beside their mean: principal components, and a recalibrated standard deviation.

Symbols: x_1..x_K samples, m their mean, s their standard deviation, x0 the reference, n the reference's own noise.

**Principal components.** The eigenvectors of the samples' covariance, images of norm one, by falling variance: the
directions in which the data leave the image most uncertain. K samples have K - 1 of them at most.

**Recalibration.** Exact samples make e = m - x0 a Student-t variable with K - 1 degrees of freedom, of scale
s sqrt(1 + 1/K), to which the reference's noise adds. The factor c of s is the one for which the central interval of
``level`` covers that share of the pixels of scans whose truth is known:

    |e| <= t sqrt( c^2 (1 + 1/K) s^2 + n^2 )   <=>   c^2 >= ( (e / t)^2 - n^2 ) / ( (1 + 1/K) s^2 )

so that c^2 is the quantile of order ``level`` of the right-hand side over the pixels. c > 1 where a sampler is
under-dispersed. One number cannot repair a spread that is wrong in shape; it makes the interval of ``level`` honest on
average.

References: Golub & Van Loan 2013, Matrix Computations, section 8.6 (the small Gram matrix instead of the large one);
Angelopoulos et al. 2022, arXiv:2202.05265 (calibrated intervals for images).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from ambient_mri._checks import AmbientMRIError, require

__all__ = [
    "CALIBRATION_LEVEL",
    "Recalibration",
    "Spread",
    "kept_samples",
    "principal_components",
    "recalibrate",
    "recalibration_factor",
]

Kept = TypeVar("Kept")

CALIBRATION_LEVEL = 0.9
# Of a case's largest standard deviation: pixels below it have no spread that a factor could correct.
_NO_SPREAD = 1e-6


def principal_components(samples: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The directions of largest variance of samples, and their standard deviations.

    Args:
        samples: (K, ..., H, W) real or complex, K >= 2.
        k: How many, at most K - 1.

    Returns:
        Images (k, ..., H, W) of norm one, the dtype of ``samples``, orthogonal to each other; and the standard
        deviation of the samples along each, (k,), by falling size. The sign (phase) is that with a positive real sum
        against the first sample's deviation.

    Raises:
        AmbientMRIError: If there are too few samples.
    """
    count = len(samples)
    require(count >= 2, f"principal components need two samples at least; got {count}.")
    require(1 <= k < count, f"{count} samples have {count - 1} principal components; {k} were asked for.")
    centred = (samples - samples.mean(axis=0)).reshape(count, -1)
    gram = (centred @ centred.conj().T).astype(np.complex128 if np.iscomplexobj(samples) else np.float64)
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:k].clip(0), vectors[:, ::-1][:, :k]
    images = vectors.conj().T @ centred
    norm = np.linalg.norm(images, axis=1, keepdims=True)
    images = images / np.where(norm > 0, norm, 1)
    turn = images.conj() @ centred[0]
    images = images * np.where(np.abs(turn) > 0, turn / np.maximum(np.abs(turn), 1e-300), 1)[:, None]
    return images.reshape(k, *samples.shape[1:]).astype(samples.dtype), np.sqrt(values / (count - 1))


def recalibration_factor(settings: Mapping[str, Any]) -> float:
    """c of a result's ``settings["recalibration"]``; 1 where its prior has none for the sampler."""
    return float((settings.get("recalibration") or {}).get("factor", 1.0))


def kept_samples(samples: Kept | None, function: str) -> Kept:
    """The samples of a result of ``function``.

    Raises:
        AmbientMRIError: If they were not kept.
    """
    if samples is None:
        raise AmbientMRIError(f"the samples were not kept: call {function}(..., keep_samples=True).")
    return samples


@dataclass(frozen=True)
class Spread:
    """What the samples of several images say of their uncertainty, recalibrated.

    Attributes:
        samples: (n, K, ...) real or complex.
        factor: c, of every distance from the middle.
    """

    samples: np.ndarray
    factor: float = 1.0

    def quantile(self, q: float) -> np.ndarray:
        """Pixel-wise quantile, of abs(sample) where complex, its distance from the median times c: (n, ...).

        Raises:
            AmbientMRIError: If ``q`` is no quantile.
        """
        require(0 <= q <= 1, f"a quantile lies between 0 and 1; got {q}.")
        values = np.abs(self.samples) if np.iscomplexobj(self.samples) else self.samples
        middle, found = np.quantile(values, (0.5, q), axis=1)
        return middle + self.factor * (found - middle)

    def principal_components(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """:func:`principal_components` of each image's samples: (n, k, ...), and times c along each, (n, k)."""
        each = [principal_components(samples, k) for samples in self.samples]
        images, deviation = (np.stack(part) for part in zip(*each, strict=True))
        return images, self.factor * deviation


@dataclass(frozen=True)
class Recalibration:
    """A factor of the standard deviation, and what it was measured on.

    Attributes:
        factor: c.
        level: Share of the pixels that the interval covers with it.
        coverage: Share of the pixels that the interval of ``level`` covered without it.
        samples: K, a case.
        cases: How many.
        pixels: In all cases together.
    """

    factor: float
    level: float
    coverage: float
    samples: int
    cases: int
    pixels: int

    def describe(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def recalibrate(
    cases: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    samples: int,
    *,
    level: float = CALIBRATION_LEVEL,
    noise_std: Sequence[float] | None = None,
) -> Recalibration:
    """The factor c of the standard deviation (module docstring).

    Args:
        cases: (error e, standard deviation s, support) of every case: real, real and bool, one shape; pixels outside
            the support are left out.
        samples: K, of which ``std`` and the mean were made.
        level: Of the interval.
        noise_std: n of every case, in the units of e; zero when None.

    Raises:
        AmbientMRIError: If there is no case, too few samples, no spread anywhere, or the level is out of range.
    """
    from scipy.stats import t

    require(len(cases) > 0, "recalibration needs one scan with its reference at least; got none.")
    require(samples >= 3, f"recalibration needs three samples a slice at least; got {samples}.")
    require(0 < level < 1, f"level must lie between 0 and 1; got {level}.")
    quantile = float(t.ppf(0.5 * (1 + level), samples - 1))
    needed = []
    for i, (error, std, support) in enumerate(cases):
        noise = 0.0 if noise_std is None else noise_std[i]
        inside = np.broadcast_to(support, std.shape) & (std > _NO_SPREAD * std.max())
        e, s = error[inside].astype(np.float64), std[inside].astype(np.float64)
        needed.append(((e / quantile) ** 2 - noise**2) / ((1 + 1 / samples) * s**2))
    together = np.concatenate(needed)
    require(together.size > 0, "the samples do not differ anywhere: a factor cannot correct a spread of zero.")
    factor = math.sqrt(max(float(np.quantile(together, level)), 0.0))
    require(
        factor > 0,
        "the noise of the references explains all errors: no factor can be told from it. Take scans that are more "
        "undersampled, or references with less noise.",
    )
    return Recalibration(factor, level, float(np.mean(together <= 1)), samples, len(cases), together.size)
