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

from ambient_mri.metrics.features import frechet_distance, kernel_distance
from ambient_mri.metrics.images import SSIM_WINDOW as SSIM_WINDOW
from ambient_mri.metrics.images import fit_scale, nmse, nrmse, psnr, ssim
from ambient_mri.metrics.samples import MINIMUM_COVERAGE_SAMPLES as MINIMUM_COVERAGE_SAMPLES
from ambient_mri.metrics.samples import chi2_residual, coverage, mean_of_known, std_error_correlation, variance_ratio

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
    "mean_of_known",
    "variance_ratio",
]

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
