"""Whether an array is centred k-space with its axes in place: what the data themselves say, as suspicions.

The energy of k-space lies around the zero frequency of both its axes, and the object in the middle of the field of
view. Where it does not, a layout of another toolbox is the usual reason; nothing is repaired.
"""

from __future__ import annotations

import numpy as np

__all__ = ["check_layout", "pairs_hint"]

# Axes shorter than this are not looked at.
_SHORTEST = 16
# Share of the energy in the middle eighth of an axis from which it is one of k-space. Real scans have 0.84 and more,
# an even share of 16 coils is 0.2.
_MIDDLE, _FOCUSED = 8, 0.5
# Share of the energy at the zero frequency and its neighbours from which an image is smooth throughout, as k-space of a
# point is, windowed or not. Real heads, knees and a phantom have 0.4 to 0.8.
_POINT = 0.97
# Locations around the zero frequency that make the image in which the object is looked for, along either axis, and the
# energy in the outer quarter of the field of view over that in the middle quarter from which it was split.
_CORE, _SPLIT = 16, 4.0


def check_layout(kspace: np.ndarray) -> tuple[str, ...]:
    """Suspicions, one for each thing that is odd; empty for k-space as this package wants it.

    Args:
        kspace: (slices, coils, H, W); the middle slice decides, unless it is empty.
    """
    part = kspace[len(kspace) // 2]
    magnitude = np.abs(part).astype(np.float64)  # squares of large numbers overflow in single precision
    largest = magnitude.max()
    if largest == 0:
        return ()
    power = np.square(magnitude / largest)
    if found := _coils_last(power):
        return (found,)
    return _not_centred(power.sum(axis=0)) or _image(part / largest) or _split(part / largest)


def pairs_hint(shape: tuple[int, ...]) -> str:
    """How real numbers of a shape become complex, where an axis of two may be real and imaginary parts; or empty."""
    pairs = [axis for axis, size in enumerate(shape) if size == 2]
    if len(shape) < 3 or not pairs:
        return ""
    if pairs[-1] == len(shape) - 1:
        return "Join pairs of real numbers with a[..., 0] + 1j * a[..., 1]."
    axis = pairs[-1]
    first, second = (", ".join([*[":"] * axis, str(i)]) for i in (0, 1))
    return f"If axis {axis} holds real and imaginary parts, join them with a[{first}] + 1j * a[{second}]."


def _coils_last(power: np.ndarray) -> str:
    """Of |k|^2 (coils, H, W): energy in the middle of the first two axes, and all along the last one."""
    shares = [_share(power.sum(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if power.shape[0] < _SHORTEST or min(shares[0], shares[1]) < _FOCUSED or shares[2] >= _FOCUSED:
        return ""
    return (
        f"'kspace' of {power.shape[0]} coils, {power.shape[1]} x {power.shape[2]}, has its energy in the middle of the "
        "coils and of the rows, not of the columns: are the coils stored last? Pass numpy.moveaxis(kspace, -1, -3)"
    )


def _share(profile: np.ndarray) -> float:
    """Share of a profile in its middle eighth."""
    size = len(profile)
    reach = max(1, size // (2 * _MIDDLE))
    return float(profile[size // 2 - reach : size // 2 + reach + 1].sum() / profile.sum())


def _not_centred(power: np.ndarray) -> tuple[str, ...]:
    """For every axis of |k|^2 (H, W) whose strongest location is at index 0 rather than near n//2."""
    peak = np.unravel_index(int(power.argmax()), power.shape)
    return tuple(
        f"the strongest k-space location is at index {index} of {size} {name}, not near {size // 2}; "
        "if the zero frequency is stored first, apply numpy.fft.fftshift"
        for name, index, size in zip(("rows", "columns"), peak, power.shape, strict=True)
        if size >= _SHORTEST and min(index, size - index) <= size // _MIDDLE
    )


def _image(part: np.ndarray) -> tuple[str, ...]:
    """Of (coils, H, W): energy all over, and in the middle once transformed, but not at a point alone."""
    if min(part.shape[-2:]) < _SHORTEST or _focused(part):
        return ()
    transform = np.fft.fftshift(np.fft.fft2(part), axes=(-2, -1))
    if not _focused(transform):
        return ()
    power = np.square(np.abs(transform), dtype=np.float64).sum(axis=0)
    row, column = (n // 2 for n in power.shape)
    if power[row - 1 : row + 2, column - 1 : column + 2].sum() > _POINT * power.sum():
        return ()
    return ("the energy of 'kspace' is spread as that of an image is: are these images? Pass their centred 2-D FFT",)


def _focused(part: np.ndarray) -> bool:
    power = np.square(np.abs(part), dtype=np.float64).sum(axis=0)
    return min(_share(power.sum(axis=1)), _share(power.sum(axis=0))) >= _FOCUSED


def _split(part: np.ndarray) -> tuple[str, ...]:
    """For every axis of (coils, H, W) along which the object surrounds an empty middle."""
    if min(part.shape[-2:]) < _CORE:
        return ()
    rows, columns = (slice(n // 2 - _CORE // 2, n // 2 + _CORE // 2) for n in part.shape[-2:])
    core = np.fft.ifftshift(part[:, rows, columns], axes=(-2, -1))
    image = np.square(np.abs(np.fft.fftshift(np.fft.ifft2(core), axes=(-2, -1))), dtype=np.float64).sum(axis=0)
    eighth, found = _CORE // 8, []
    for name, axis in (("rows", 1), ("columns", 0)):
        profile = image.sum(axis=axis)
        outer = profile[:eighth].sum() + profile[-eighth:].sum()
        if outer > _SPLIT * profile[_CORE // 2 - eighth : _CORE // 2 + eighth].sum():
            found.append(
                f"the object lies at both ends of the {name}, around an empty middle: k-space that alternates in sign "
                f"does that, as the FFT of an image leaves it whose middle was not at n//2; multiply its {name} by "
                "(-1) ** numpy.arange(n), and look at the image: the other axis may alternate, too, unseen where the "
                "object fills most of it"
            )
    return tuple(found)
