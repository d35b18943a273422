"""Quality of an image against its reference, by the definitions of :mod:`ambient_mri.metrics`."""

from __future__ import annotations

import math

import numpy as np

from ambient_mri._checks import require
from ambient_mri.metrics._arrays import ArrayLike, as_support, pair, peak_of, real_pair, select

__all__ = ["SSIM_WINDOW", "fit_scale", "nmse", "nrmse", "psnr", "ssim"]

SSIM_WINDOW = 7


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
    x0, x = real_pair(reference, image)
    peak = peak_of(x0, data_range)
    error = float(np.mean(select((x0 - x) ** 2, support)))
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

    x0, x = real_pair(reference, image)
    height, width = x0.shape[-2:]
    require(
        min(height, width) >= SSIM_WINDOW,
        f"ssim needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels; got {height} x {width}.",
    )
    peak, pad = peak_of(x0, data_range), (SSIM_WINDOW - 1) // 2
    pairs = zip(x0.reshape(-1, height, width), x.reshape(-1, height, width), strict=True)
    maps = [structural_similarity(a, b, win_size=SSIM_WINDOW, data_range=peak, full=True)[1] for a, b in pairs]
    inner = np.s_[..., pad : height - pad, pad : width - pad]
    inside = None if support is None else as_support(support, x0.shape)[inner]
    return float(np.mean(select(np.stack(maps).reshape(x0.shape)[inner], inside)))


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
    x0, x = pair(reference, image)
    energy = float(np.sum(select(np.abs(x0) ** 2, support)))
    require(energy > 0, "nmse is undefined: the reference is zero in every scored pixel.")
    return float(np.sum(select(np.abs(x0 - x) ** 2, support))) / energy


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
    image, x0 = pair(x, reference, names=("x", "reference"))
    energy = float(np.sum(select(np.abs(image) ** 2, support)))
    require(energy > 0, "fit_scale is undefined: x is zero in every pixel of the fit.")
    return float(np.sum(select((np.conj(image) * x0).real, support))) / energy
