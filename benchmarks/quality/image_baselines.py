"""Classical restorations of natural images, none of which needs training; values in [-1, 1].

Missing pixels: normalised Gaussian interpolation, biharmonic inpainting (scikit-image), total variation with the
measured pixels fixed (primal-dual, Chambolle & Pock 2011, algorithm 1). Noise: total variation (Chambolle), non-local
means and wavelet thresholding (BayesShrink, cycle-spun), all of scikit-image.

Where a method has a setting, it is the best of a grid by mean PSNR, chosen with the references in hand: a generous
opponent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

__all__ = ["candidates"]

Restore = Callable[[Tensor, Tensor], Tensor]


def candidates(noise_std: float, missing: float) -> Iterator[tuple[str, float | None, Restore]]:
    """Every (method, setting, function of (y, mask)) for a corruption."""
    if missing > 0:
        for width in (0.4, 0.5, 0.6, 0.7, 0.9, 1.2):
            yield "gaussian_interpolation", width, partial(gaussian_interpolation, width=width)
        yield "biharmonic", None, biharmonic
        yield "total_variation", None, total_variation_inpainting
        return
    for factor in (0.5, 0.7, 0.9, 1.2, 1.6):
        yield "total_variation", factor, partial(_by_image, _total_variation, factor * noise_std)
    for factor in (0.5, 0.7, 0.9, 1.2):
        yield "nonlocal_means", factor, partial(_by_image, partial(_nonlocal_means, noise_std), factor * noise_std)
    for factor in (0.7, 1.0, 1.3):
        yield "wavelet_threshold", factor, partial(_by_image, _wavelet, factor * noise_std)


def gaussian_interpolation(y: Tensor, mask: Tensor, *, width: float) -> Tensor:
    """(g * y) / (g * mask) where pixels are missing, g a Gaussian of ``width`` pixels."""
    from scipy.ndimage import gaussian_filter

    def smooth(image: Tensor) -> np.ndarray:
        # A little of a wide kernel decides where the narrow one reaches no measured pixel.
        narrow, wide = (gaussian_filter(image.double().numpy(), (0, 0, w, w)) for w in (width, 4 * width))
        return narrow + 1e-4 * wide

    ratio = smooth(y) / np.maximum(smooth(mask.expand_as(y)), 1e-12)
    return torch.where(mask, y, torch.from_numpy(ratio).to(y))


def biharmonic(y: Tensor, mask: Tensor) -> Tensor:
    """Biharmonic inpainting, image by image."""
    from skimage.restoration import inpaint_biharmonic

    parts = [
        inpaint_biharmonic(np.moveaxis(image.numpy(), 0, -1).astype(float), ~seen[0].numpy(), channel_axis=-1)
        for image, seen in zip(y, mask, strict=True)
    ]
    return torch.from_numpy(np.moveaxis(np.stack(parts), -1, 1)).to(y)


def total_variation_inpainting(y: Tensor, mask: Tensor, *, iterations: int = 400) -> Tensor:
    """argmin TV(x) with x = y on the mask; isotropic over space and colours."""
    step = 1 / 8**0.5
    x = torch.where(mask, y, (y.sum((2, 3)) / mask.sum((2, 3)).clamp_min(1))[..., None, None])
    ahead, dual = x, torch.zeros(2, *y.shape)
    for _ in range(iterations):
        dual = dual + step * _gradient(ahead)
        dual = dual / dual.square().sum(dim=(0, 2), keepdim=True).sqrt().clamp_min(1)
        following = torch.where(mask, y, x - step * _gradient_adjoint(dual))
        ahead, x = 2 * following - x, following
    return x


def _gradient(x: Tensor) -> Tensor:
    rows, columns = torch.zeros_like(x), torch.zeros_like(x)
    rows[..., :-1, :], columns[..., :-1] = x.diff(dim=-2), x.diff(dim=-1)
    return torch.stack([rows, columns])


def _gradient_adjoint(p: Tensor) -> Tensor:
    found = torch.zeros_like(p[0])
    found[..., 1:, :] += p[0][..., :-1, :]
    found[..., :-1, :] -= p[0][..., :-1, :]
    found[..., 1:] += p[1][..., :-1]
    found[..., :-1] -= p[1][..., :-1]
    return found


def _by_image(method: Callable[[np.ndarray, float], np.ndarray], weight: float, y: Tensor, mask: Tensor) -> Tensor:
    parts = [method(np.moveaxis(image.double().numpy(), 0, -1), weight) for image in y]
    return torch.from_numpy(np.moveaxis(np.stack(parts), -1, 1)).to(y)


def _total_variation(image: np.ndarray, weight: float) -> np.ndarray:
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(image, weight=weight, channel_axis=-1)


def _nonlocal_means(noise_std: float, image: np.ndarray, weight: float) -> np.ndarray:
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(
        image, patch_size=3, patch_distance=7, h=weight, sigma=noise_std, fast_mode=False, channel_axis=-1
    )


def _wavelet(image: np.ndarray, sigma: float) -> np.ndarray:
    from skimage.restoration import denoise_wavelet

    options = {"sigma": sigma, "convert2ycbcr": False, "channel_axis": -1, "wavelet": "db2", "rescale_sigma": False}
    parts = []
    for shift in product(range(4), repeat=2):
        found = denoise_wavelet(np.roll(image, shift, axis=(0, 1)), **options)
        parts.append(np.roll(found, tuple(-n for n in shift), axis=(0, 1)))
    return np.mean(parts, axis=0)
