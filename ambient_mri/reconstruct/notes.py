"""What a user should know of a reconstruction, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ambient_mri.data.check import LOWEST_SNR
from ambient_mri.prior import Prior
from ambient_mri.reconstruct.result import MISFIT

if TYPE_CHECKING:
    from ambient_mri.data.readers import RawScan

__all__ = ["misfit", "nothing_but_noise", "nothing_missing", "other_size", "too_little_noise", "too_much_noise"]

# Effective noise over that of the scan from which maps, or a noise level, that were given cannot be right.
_LOUD = 4.0
# Effective noise, in units of the prior, above which a scan that is said to have none has some.
_SILENT = 1e-3
# Share of k-space by which the two sides of its centre differ in a partial Fourier scan.
_PARTIAL = 0.05
# Chi^2 of the calibration lines below which a noise_std is too high.
_QUIET = 0.5


def nothing_missing(raw: RawScan) -> list[str]:
    """A note where the scan is fully sampled."""
    if not raw.fully_sampled or any(_one_sided(*axis) for axis in zip(raw.acquired_extent, raw.shape, strict=True)):
        return []
    return [
        "the scan is fully sampled (R = 1): nothing is missing, so all that a prior can do is take out noise. The "
        "combined image itself is `zero_filled`; to try a reconstruction, undersample: pass mask=."
    ]


def _one_sided(extent: tuple[int, int], size: int) -> bool:
    """Whether an axis of k-space is covered farther on one side of its centre than on the other: partial Fourier."""
    before, after = size // 2 - extent[0], extent[1] - (size + 1) // 2
    return abs(before - after) > _PARTIAL * size


def nothing_but_noise(noise_std: np.ndarray) -> list[str]:
    """A note where the noise, (slices,) in units of the brightest pixels, leaves no signal in any slice."""
    quietest = float(noise_std.min(initial=np.inf))
    if quietest * LOWEST_SNR <= 1:
        return []
    return [
        f"signal is {1 / quietest:.1f} times the noise of a sample: is this a noise scan, or an empty slice? What the "
        "image shows is the prior's, not the data's."
    ]


def misfit(residual: np.ndarray) -> list[str]:
    """A note where the images do not explain the data: what was read is hardly what the scanner measured."""
    worst = float(residual.max(initial=0.0, where=np.isfinite(residual)))
    if worst <= MISFIT:
        return []
    return [
        f"the images do not fit the data: chi^2 of the residual is {worst:.3g}, where 1 is expected. Check that this "
        "is k-space with its zero frequency at n//2, and its mask, coil maps and noise_std (`ambient-mri info FILE`)."
    ]


def too_much_noise(agreement: np.ndarray, source: str) -> list[str]:
    """A note where the calibration lines, of chi^2 ``agreement`` a slice, hold less noise than the scan is said to."""
    known = agreement[np.isfinite(agreement)]
    if source not in ("given", "from the file") or len(known) == 0 or (chi2 := float(np.median(known))) >= _QUIET:
        return []
    factor = chi2**-0.5
    return [
        f"noise_std ({source}) looks about {factor:.1f} times too high: that much better do the calibration lines fit. "
        "The image will be smoother than the data warrant; divide noise_std by it."
    ]


def too_little_noise(results: dict[str, list[np.ndarray]], source: str, given_maps: bool) -> list[str]:
    """A note where the calibration lines leave far more than the noise under maps or a noise level that were given."""
    noise, found = np.concatenate(results["noise_std_scaled"]), np.concatenate(results.pop("calibration_noise_std"))
    noise, found = noise[np.isfinite(found)], found[np.isfinite(found)]
    if len(found) == 0:
        return []
    ratio = float(np.median(found[noise > 0] / noise[noise > 0])) if (noise > 0).any() else 0.0
    told = source in ("given", "from the file")
    if told and not (noise > 0).any() and float(np.median(found)) > _SILENT:
        what = "the calibration lines are not free of noise, or not explained by the coil maps"
        return [f"noise_std ({source}) is 0, but {what}: leave it out, and it is estimated."]
    if ratio < _LOUD or not (given_maps or told):
        return []
    culprits = ["coil_maps (coils in another order, flipped, conjugated, of another scan)"] if given_maps else []
    culprits += [f"noise_std ({source}; its units?)"] if told else []
    what = f"the calibration lines contradict {' or '.join(culprits)}; leave it out, or correct it"
    return [f"{what}. What is left there, laid on the whole scan, is {ratio:.0f} times the noise."]


def other_size(prior: Prior, raw: RawScan) -> list[str]:
    """A note where the pixels are hardly those that the prior knows; oversampled readout is no finer."""
    trained, shape = prior.metadata.get("image_shape"), raw.recon_shape
    if not trained or 0.5 <= shape[0] * shape[1] / (trained[0] * trained[1]) <= 2:
        return []
    return [
        f"this scan has {shape[0]} x {shape[1]} pixels, the prior {prior.name!r} was trained on {trained[0]} x "
        f"{trained[1]}: structures have another size in pixels than it knows."
    ]
