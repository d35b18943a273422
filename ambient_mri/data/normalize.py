r"""Two numbers that every scan needs and few files bring, from measured data alone: intensity scale and noise level.

**Scale.** raw = scale * scaled. It is the 99th percentile, over all pixels of all slices, of the root sum of squares
over coils of the low-resolution image that a small central core of k-space makes (8 x 8 samples, no window). So that
image, scaled, has a robust maximum of one. A core that every mask samples gives the same number at every acceleration.
It is

* unchanged by unitary mixing of the coils, by coils added with no signal, and by the number of coils that share one
  image (sum over coils of abs(S)^2 = 1);
* in step with the matrix size: k-space of the same field of view, cropped or zero-padded, changes the units of an
  orthonormal transform and the scale by the same factor, so that the scaled image keeps its range;
* not unchanged by the field of view: 8 samples of a readout sampled twice as densely resolve half as much. Remove
  readout oversampling first where scans with and without it are mixed.

A fully sampled image never enters: scaling by it would tell a reconstruction what its scan did not.

**Noise.** Per real and per imaginary part: far from the centre of k-space there is little but noise, and abs(n)^2 of
complex Gaussian noise is exponential with median 2 ln(2) sigma^2; the median ignores the few samples that hold signal.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import DataError, require
from ambient_mri.coil_maps.noise_likelihood import FEWEST_COILS
from ambient_mri.data.acquisition import Extent
from ambient_mri.data.null_space import null_space_variance
from ambient_mri.operators.fourier import ifft

__all__ = ["PERIPHERY", "estimate_noise_std", "measured_scale", "noise_warnings"]

# Where an estimate comes from that rests on the outer samples of k-space, which may hold signal.
PERIPHERY = "k-space periphery"
_MAY_HOLD_SIGNAL = "may hold signal"

# Fallback of the scale: the power of objects with sharp edges falls as |k|^-3 in two dimensions; an object half the
# field of view wide bends that law at half a cycle per field of view.
_BEND, _EXPONENT = 0.5, 1.5
# Noise: rings of equal sample number. Three in a row whose variances agree within 5 % may be the noise floor, but
# signal that falls off slowly can look like that; eight in a row within 8 % can only be noise.
_RINGS, _SHORT, _LONG = 16, (3, 0.05), (8, 0.08)
_FEWEST_SAMPLES, _ENOUGH_SAMPLES = 32, 2**22
# Margins: bins along the field of view, and how many of them must be dark; finer ones where the object leaves no room.
_MARGINS = ((16, 2), (32, 2), (64, 3))
# The null space is believed where its variance is plainly less than that of the other views, and more than the rounding
# to half precision of coils that are mixtures of each other, which have relations without noise: 1e-6 of the periphery.
_TOLD_APART, _ROUNDED = 0.8, 1e-5


def measured_scale(kspace: np.ndarray | Tensor, mask: np.ndarray | Tensor, core: int = 8) -> float:
    """One intensity scale for a volume, from a fixed central core of its measured k-space.

    Where the core is sampled in part (no ACS), the samples that there are make the image, and its level is raised by
    the root of the missing power, extrapolated from the samples around. On real scans that costs a few per cent where
    the mask has six central lines, and up to a factor of two (R=4) or three (R=8) where it has no ACS at all. A core
    with no sample is widened until it has some.

    Args:
        kspace: (slices, coils, H, W) complex, raw units, zero frequency at n//2. All slices of the volume.
        mask: (slices or 1, 1, H or 1, W or 1) bool.
        core: Side of the core in samples.

    Returns:
        Raw units per scaled unit, positive.

    Raises:
        DataError: If the k-space is not 4-D complex or nothing but zeros was measured.
    """
    data, sampled = _as_tensors(kspace, mask)
    height, width = data.shape[-2:]
    used = core
    while not bool((sampled & (data != 0))[..., *_centre(height, width, used)].any()):
        require(used < max(height, width), "the measured k-space is zero everywhere: there is no scale.", DataError)
        used *= 2
    middle = _centre(height, width, used)
    seen = torch.where(sampled[..., *middle], data[..., *middle], 0)
    level = _robust_maximum(seen) * math.sqrt(seen.shape[-2] * seen.shape[-1] / (height * width))
    return level * math.sqrt(_power_ratio(data, sampled, core, used))


def _as_tensors(kspace: np.ndarray | Tensor, mask: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
    """K-space and its mask, expanded to (slices, 1, H, W), on the CPU; without slices that hold nothing but zeros.

    Those say nothing: neither scale nor noise may depend on how many of them there are.
    """
    data, sampled = (
        x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(np.require(x, requirements="W"))
        for x in (kspace, mask)
    )
    good = data.ndim == 4 and data.is_complex()
    require(good, f"kspace must be complex (slices, coils, H, W); got {data.dtype} {tuple(data.shape)}.", DataError)
    slices, _, height, width = data.shape
    full = (slices, 1, height, width)
    good = sampled.ndim == 4 and all(n in (1, size) for n, size in zip(sampled.shape, full, strict=True))
    require(good, f"mask must broadcast to {full} to match kspace; got {tuple(sampled.shape)}.", DataError)
    sampled = sampled.bool().expand(full)
    held = [i for i in range(slices) if bool(((data[i] != 0) & sampled[i]).any())]
    return (data, sampled) if len(held) in (0, slices) else (data[held], sampled[held])


def _centre(height: int, width: int, size: int) -> tuple[slice, slice]:
    """The central rows and columns, ``size`` of each where there are so many; n//2 is their index size//2."""
    rows, columns = (min(size, n) for n in (height, width))
    top, left = height // 2 - rows // 2, width // 2 - columns // 2
    return slice(top, top + rows), slice(left, left + columns)


def _robust_maximum(core: Tensor) -> float:
    """99th percentile of the RSS image of a k-space core, in units of the core's grid, on at least 32 x 32 pixels."""
    grid = [max(32, 2 * n) for n in core.shape[-2:]]
    padded = core.new_zeros((*core.shape[:2], *grid))
    rows, columns = (slice(g // 2 - n // 2, g // 2 - n // 2 + n) for g, n in zip(grid, core.shape[-2:], strict=True))
    padded[..., rows, columns] = core
    image = ifft(padded) * math.sqrt(grid[0] * grid[1] / (core.shape[-2] * core.shape[-1]))
    rss = image.abs().double().square().sum(dim=1).sqrt()
    return float(np.percentile(rss.numpy(), 99))


def _power_ratio(data: Tensor, sampled: Tensor, core: int, used: int) -> float:
    """Power of the full core over the power of the samples that made the image; one where the core is fully sampled."""
    height, width = data.shape[-2:]
    middle = _centre(height, width, core)
    if used == core and bool(sampled[..., *middle].all()):
        return 1.0
    share = sampled.double().mean(dim=(0, 1))
    power = (data.abs().double().square().sum(dim=1, keepdim=True) * sampled).mean(dim=(0, 1)) / share.clamp(min=1e-12)
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    model = (_BEND**2 + rows[:, None].double() ** 2 + columns[None, :].double() ** 2) ** -_EXPONENT
    around = torch.zeros_like(share)
    around[*_centre(height, width, 4 * used)] = 1
    weight = around * share
    # Means of roots: a fit of the power itself would rest on the one or two strongest samples.
    model = model * float((weight * power.sqrt()).sum() / (weight * model.sqrt()).sum()) ** 2
    wanted = torch.where(share > 0, power, model)[*middle].sum()
    return float(wanted / (power * share)[*_centre(height, width, used)].sum())


def estimate_noise_std(
    kspace: np.ndarray | Tensor, mask: np.ndarray | Tensor, acquired_extent: Extent | None = None
) -> tuple[float, str]:
    """Noise standard deviation per real and per imaginary part, raw units, and where it comes from.

    Four views, all of which err upwards:

    1. *k-space periphery*: rings of sampled locations, from the edge of the acquired extent inwards. The outermost that
       agree in variance are the noise floor; rings further out were filtered by the scanner, rings further in hold
       signal.
    2. *image background*: where the mask is constant along an axis, the transform along that axis alone separates the
       object from the empty margins of the field of view, at any acceleration. The lines there are ranked as in 1. The
       margins must hold a twentieth of the field of view, and a hundred samples of lines far from the centre.
    3. *image corners*, where 2 finds nothing and hardly anything is missing: elliptical scans, filtered k-space.

    4. *null space of the calibration lines*, from four coils on, where 1 found no floor of half of all rings: what no
       image seen by the coils can be (:mod:`ambient_mri.data.null_space`). It tells weak noise from signal that reaches
       the edge of k-space, down to a three hundredth of that signal; what is less is taken for the rounding of coils
       that are mixtures of each other.

    The smallest is taken, except that a floor of half of all rings settles the matter against margins that are much
    darker: those of an oversampled readout are dimmed by its filter.

    Exact zeros, and margins far below the periphery, count as padding. Coils are averaged in variance; whiten them
    first where they differ much. Of volumes with more than 4 million samples, every n-th slice is looked at.

    Args:
        kspace: (slices, coils, H, W) complex, raw units, zero frequency at n//2.
        mask: (slices or 1, 1, H or 1, W or 1) bool.
        acquired_extent: ((row0, row1), (column0, column1)) really covered; by default all of k-space.

    Returns:
        The estimate, and its provenance in words.

    Raises:
        DataError: If fewer than 32 non-zero samples were measured.
    """
    data, given = _as_tensors(kspace, mask)
    every = max(1, min(data.shape[0], data.numel() // _ENOUGH_SAMPLES))
    data, given = data[::every], given[::every]
    slices, _, height, width = data.shape
    (top, bottom), (left, right) = acquired_extent or ((0, height), (0, width))
    sampled = torch.zeros(slices, height, width, dtype=torch.bool)
    sampled[:, top:bottom, left:right] = True
    sampled &= given[:, 0]
    holds = (data != 0).any(dim=1)
    sampled &= holds.any(dim=-1, keepdim=True) & holds.any(dim=-2, keepdim=True)
    distance = (_distance(height, top, bottom), _distance(width, left, right))
    power = data.swapaxes(0, 1)[:, sampled].abs().double().square().numpy()
    count = int(np.count_nonzero(power))
    require(count >= _FEWEST_SAMPLES, f"{count} non-zero samples cannot tell the noise. Pass noise_std.", DataError)
    periphery, provenance, settled = _periphery(power, sampled.numpy(), distance)
    margins = {}
    for name, axis, (first, last) in (("rows", -2, (top, bottom)), ("columns", -1, (left, right))):
        lines = sampled.any(dim=axis)
        if bool((sampled.sum(dim=axis) == lines * (last - first)).all()):
            spread = (last - first) / data.shape[axis]  # an orthonormal transform spreads the noise over the padding
            found = _background(ifft(data, (axis,)), lines.numpy(), axis, distance[-1 - axis], periphery * spread)
            margins[f"image background along {name}, noise floor"] = found / spread
    if min(margins.values(), default=math.inf) == math.inf:
        margins = {"image corners": _corners(data, sampled, periphery)}
    name, variance = _weigh(margins)
    # Edges that the scanner filtered can look like a floor of three rings, far below the noise; empty margins that
    # hold as much in every line cannot.
    filtered = not settled and name != "image corners" and variance < math.inf
    if filtered or (0.75 if settled else 0.0) * periphery < variance < periphery:
        periphery, provenance = variance, name
    found = math.inf if settled else null_space_variance(data, sampled)
    if _ROUNDED * periphery < found < _TOLD_APART * periphery:
        periphery, provenance = found, "null space of the calibration lines"
    return math.sqrt(periphery), provenance


def noise_warnings(provenance: str, num_coils: int) -> list[str]:
    """One sentence where the provenance of an estimate says that it may hold signal, and coils cannot lower it."""
    if _MAY_HOLD_SIGNAL not in provenance or num_coils >= FEWEST_COILS:
        return []
    return [
        "noise_std is an upper bound, perhaps several times too high: neither the edge of k-space nor an empty margin "
        f"of the field of view shows noise alone, and fewer than {FEWEST_COILS} coils cannot tell it from signal. Pass "
        "noise_std, from a noise scan if there is one."
    ]


def _weigh(margins: dict[str, float]) -> tuple[str, float]:
    """The smaller variance; of two that nearly agree the larger, since a filter along the axis lowers one."""
    least = min(margins.values(), default=math.inf)
    near = [item for item in margins.items() if item[1] <= 1.25 * least]
    return max(near, key=lambda item: item[1], default=("", math.inf))


def _distance(size: int, first: int, last: int) -> np.ndarray:
    """Distance of every index from the zero frequency, 1 at the far end of the acquired extent."""
    return np.abs(np.arange(size) - size // 2) / max(size // 2 - first, last - 1 - size // 2, 1)


def _periphery(
    power: np.ndarray, sampled: np.ndarray, distance: tuple[np.ndarray, np.ndarray]
) -> tuple[float, str, bool]:
    """Noise variance from sampled k-space, power (coils, samples), its provenance, and whether that settles it."""
    rows, columns = distance[0][:, None], distance[1][None, :]
    # Scanners filter whole lines, so square rings show a filter's edge; round ones end in the corners, where signal is
    # weakest.
    radii = {"square": np.maximum(rows, columns), "round": np.hypot(rows, columns)}
    rings = {k: _ring_variances(power, np.broadcast_to(r, sampled.shape)[sampled], _RINGS) for k, r in radii.items()}
    for run in (_LONG, _SHORT):
        for name, (variances, counts) in rings.items():
            variance, agree = _floor(variances, counts, *run)
            if agree:
                settled = run is _LONG
                doubt = "" if settled else f" of three rings, which {_MAY_HOLD_SIGNAL}"
                return variance, f"{PERIPHERY}, {name} rings, noise floor{doubt}", settled
    bound = min(_floor(*found, *_SHORT)[0] for found in rings.values())
    return bound, f"{PERIPHERY} without a noise floor: an upper bound that {_MAY_HOLD_SIGNAL}", False


def _background(hybrid: Tensor, lines: np.ndarray, axis: int, distance: np.ndarray, periphery: float) -> float:
    """Variance in the empty margins of data transformed along ``axis`` alone; infinite where there are none.

    Args:
        hybrid: (slices, coils, H, W), image along ``axis``, k-space along the other.
        lines: (slices, H or W) bool, the sampled lines along the other axis.
        axis: -2 or -1.
        distance: (H or W,) of the lines from the zero frequency.
        periphery: Variance of the noise, or more; margins below a thousandth of it were padded.
    """
    # (coils, slices, lines, positions along the axis)
    aligned = hybrid.permute(1, 0, 3, 2) if axis == -2 else hybrid.permute(1, 0, 2, 3)
    outer = lines & (distance > 0.25)
    far = np.broadcast_to(distance, lines.shape)[outer]
    power = aligned[:, torch.from_numpy(outer)].abs().double().square().numpy()
    return next((v for bins in _MARGINS if (v := _margins(power, far, bins, periphery)) < math.inf), math.inf)


def _margins(power: np.ndarray, far: np.ndarray, sought: tuple[int, int], periphery: float) -> float:
    """Variance in the darkest bins along the last axis of ``power`` (coils, lines, positions); infinite without any.

    The field of view is periodic: its first and last positions share a bin, so that an object off the centre, which
    leaves room on one side alone, has a margin, too.
    """
    number, fewest = min(sought[0], power.shape[-1]), sought[1]
    bins = np.array_split(np.roll(np.arange(power.shape[-1]), power.shape[-1] // number // 2), number)
    variances = np.array([_variance(power[..., b].reshape(len(power), -1)) for b in bins])
    counts = np.array([np.count_nonzero(power[..., b]) for b in bins])
    order = [i for i in np.argsort(variances) if counts[i] >= _FEWEST_SAMPLES and variances[i] > 1e-3 * periphery]
    lowest = order[:2]
    if len(lowest) < 2 or not _agree(variances[lowest], counts[lowest].min(), 0.2):
        return math.inf
    # Every margin that shows no more than those two: with few coils and lines, two of them leave much to chance.
    level = float(variances[lowest].mean())
    error = 3 * math.sqrt(1.5) / math.log(2)  # three standard errors of the difference from a mean of two
    near = [i for i in order if variances[i] <= level * (1 + error / math.sqrt(counts[i]))]
    if len(near) < fewest:  # the edge of a filter along the readout: dark, but not alike
        return math.inf
    empty = np.concatenate([bins[i] for i in near])
    margin = power[..., empty].reshape(len(power), -1)
    # What leaks out of the object falls off along the other axis; noise does not.
    return _longest_floor(*_ring_variances(margin, np.repeat(far, len(empty)), _RINGS // 2))


def _corners(kspace: Tensor, sampled: Tensor, periphery: float) -> float:
    """Variance in the image's corners, a tenth of each side; infinite for undersampled or padded images."""
    fraction = float(sampled.double().mean())
    box = int(sampled.any(-1).any(0).sum()) * int(sampled.any(-2).any(0).sum())
    if fraction * kspace.shape[-2] * kspace.shape[-1] < 0.75 * box:
        return math.inf
    image = ifft(kspace).swapaxes(0, 1)
    height, width = (max(1, n // 10) for n in image.shape[-2:])
    sides = (image[..., :height, :], image[..., -height:, :])
    ends = [end for side in sides for end in (side[..., :width], side[..., -width:])]
    variances = np.array([_variance(e.flatten(1).abs().double().square().numpy()) / fraction for e in ends])
    padded = variances.min() < 1e-3 * periphery
    return math.inf if padded or not _agree(variances, ends[0].numel(), 0.5) else float(variances.mean())


def _variance(power: np.ndarray) -> float:
    """Noise variance per part from abs(n)^2 (coils, samples): medians by coil, exact zeros left out, then the mean."""
    medians = [np.median(coil[coil > 0]) for coil in power if np.any(coil > 0)]
    return float(np.mean(medians)) / (2 * math.log(2)) if medians else 0.0


def _agree(variances: np.ndarray, count: int, tolerance: float) -> bool:
    """Whether variances from ``count`` samples each are equal within ``tolerance`` or three standard errors."""
    # The median of n exponential variables has a relative standard error of 1 / (ln 2 sqrt(n)).
    error = 1 / (math.log(2) * math.sqrt(count))
    return bool(np.ptp(variances) <= max(tolerance, 3 * error) * variances.mean())


def _ring_variances(power: np.ndarray, radius: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise variance and sample number of rings that hold equally many samples, from the centre outwards.

    Args:
        power: abs(k)^2, (coils, samples).
        radius: (samples,).
        number: Of rings; fewer where there are few samples.
    """
    rings = np.array_split(np.argsort(radius, kind="stable"), max(1, min(number, power.size // _FEWEST_SAMPLES)))
    counts = np.array([np.count_nonzero(power[:, ring]) for ring in rings])
    variances = np.array([_variance(power[:, ring]) for ring in rings])
    return variances[counts > 0], counts[counts > 0]


def _floor(variances: np.ndarray, counts: np.ndarray, length: int, tolerance: float) -> tuple[float, bool]:
    """Mean variance of ``length`` rings in a row, and whether they agree: the outermost that do, else the flattest.

    Only the outer two thirds of the rings count.
    """
    flattest, least = float(variances.min()), math.inf
    for last in range(len(variances), max(len(variances) // 3 + length, length) - 1, -1):
        run = variances[last - length : last]
        if _agree(run, counts[last - length : last].min(), tolerance):
            return _pooled(variances, counts, last - length, last), True
        spread = float(np.ptp(run) / run.mean())
        if spread < least:
            flattest, least = float(run.mean()), spread
    return flattest, False


def _longest_floor(variances: np.ndarray, counts: np.ndarray) -> float:
    """Mean variance of as many rings in a row, three or more, as differ no more than chance makes them; else infinite.

    Of runs of one length the outermost counts. Rings of a margin hold few samples: three of them leave much to chance.
    """
    for length in range(len(variances), _SHORT[0] - 1, -1):
        for last in range(len(variances), length - 1, -1):
            run, number = variances[last - length : last], counts[last - length : last]
            deviations = math.log(2) * np.sqrt(number) * (run / run.mean() - 1)  # in standard errors of a median
            # chi^2 of length - 1 degrees of freedom, at most two standard deviations above its mean
            chance = float(np.sum(deviations**2)) <= length - 1 + 2 * math.sqrt(2 * (length - 1))
            if chance or np.ptp(run) <= _SHORT[1] * run.mean():
                return float(run.mean())
    return math.inf


def _pooled(variances: np.ndarray, counts: np.ndarray, first: int, last: int) -> float:
    """Mean variance of rings ``first`` to ``last``, and of those further in for as long as they show no more.

    A floor of three rings alone would leave an estimate from few coils and few lines to chance.
    """
    mean = float(variances[first:last].mean())
    while first > len(variances) // 3:
        error = 1 / (math.log(2) * math.sqrt(counts[first - 1]))
        if abs(variances[first - 1] - mean) > 2 * error * mean:
            break
        first -= 1
        mean = float(variances[first:last].mean())
    return mean
