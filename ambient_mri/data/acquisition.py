"""What a scan really measured: sampling mask, phase-encode axis and acquired extent.

Files say it in three places that need not agree: exact zeros in the data, a stored mask, and the encoding
limits of the header. Noise makes an exact zero in every coil as good as proof that a location was never measured, so
the data lead:

* a line (or, for 2-D masks, a point) that is zero in all coils and slices was not sampled;
* a stored mask may only remove locations from that, never add them;
* the header tells a rim that the scanner zero-padded from one that the mask left out.

Isolated zeros remain: integer-valued data hit zero now and then. Up to 5 % of them within sampled lines do not unsample
a line.

The *acquired extent* ((row0, row1), (column0, column1)), half-open, is the rectangle of k-space that the scan covers;
the zero padding outside it is no measurement, and belongs neither to a loss nor to a noise estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from ambient_mri._checks import DataError, require

__all__ = [
    "Extent",
    "Sampling",
    "acquired_mask",
    "compact_mask",
    "describe_sampling",
    "mask_from_any_shape",
    "support_of",
]

Interval: TypeAlias = tuple[int, int]
Extent: TypeAlias = tuple[Interval, Interval]

ISOLATED_ZEROS = 0.05
# A rim that randomly placed lines leave out at least this often says nothing of the acquired extent.
_CHANCE = 0.05


@dataclass(frozen=True)
class Sampling:
    """The verdict of :func:`describe_sampling`.

    Attributes:
        mask: (slices or 1, 1, H or 1, W or 1) bool, True where measured.
        phase_encode_axis: -1 or -2, the axis with gaps; -1 when there are none; None for a 2-D mask.
        acquired_extent: Rows and columns that the scan covers, half-open.
        notes: What was inferred or left out, for the record.
        suspicions: Contradictions that a user should hear about.
    """

    mask: np.ndarray
    phase_encode_axis: int | None
    acquired_extent: Extent
    notes: tuple[str, ...] = ()
    suspicions: tuple[str, ...] = ()


@dataclass
class _Log:
    notes: list[str] = field(default_factory=list)
    suspicions: list[str] = field(default_factory=list)


def support_of(kspace: np.ndarray) -> np.ndarray:
    """Where any coil is non-zero: k-space (slices, coils, H, W) -> (slices, H, W) bool."""
    return np.stack([_any(part != 0, 0) for part in kspace])


def describe_sampling(
    support: np.ndarray,
    stored: np.ndarray | None = None,
    *,
    header_extent: tuple[Interval | None, Interval | None] = (None, None),
    readout_axis: int = -2,
    where: object = "k-space",
) -> Sampling:
    """Weigh data, stored mask and header against each other.

    Args:
        support: (slices, H, W) bool, where the data are not exactly zero (:func:`support_of`).
        stored: The file's mask, (slices or 1, H, W) bool, or None.
        header_extent: Rows and columns that the header says were acquired; None where it is silent.
        readout_axis: -2 or -1; decides the phase-encode axis of data without gaps.
        where: The file, for messages.

    Raises:
        DataError: If all data are zero, or the stored mask describes other data than these.
    """
    log = _Log()
    empty = ~_any(support, (1, 2))
    require(not empty.all(), f"{where}: dataset 'kspace' is zero everywhere. Was it written to the end?", DataError)
    if empty.any():
        log.suspicions.append(f"k-space of slices {np.flatnonzero(empty).tolist()} is zero everywhere")
    masks = _infer_masks(support, empty) if stored is None else _reconcile(stored, support, header_extent, log, where)
    covered, held = _any(masks, 0), _any(support, 0)
    extent = (
        _acquired_interval(_any(covered, 1), header_extent[0], "rows", log, _any(held, 1)),
        _acquired_interval(_any(covered, 0), header_extent[1], "columns", log, _any(held, 0)),
    )
    axes = {_phase_encode_axis(mask, extent, readout_axis) for mask in masks}
    return Sampling(
        mask=compact_mask(masks[:, None]),
        phase_encode_axis=axes.pop() if len(axes) == 1 else None,
        acquired_extent=extent,
        notes=tuple(log.notes),
        suspicions=tuple(log.suspicions),
    )


def acquired_mask(extent: Extent, shape: tuple[int, int], mask_shape: Sequence[int]) -> np.ndarray | None:
    """Where k-space of ``shape`` is no zero padding, (1, 1, H or 1, W or 1) as the mask is; None for everywhere.

    Args:
        extent: Rows and columns that the scan covers, half-open.
        shape: H and W.
        mask_shape: Of the scan's mask; along an axis on which it is constant there is nothing to tell.
    """
    inside = np.ones((1, 1, 1, 1), dtype=bool)
    for axis, (interval, size) in enumerate(zip(extent, shape, strict=True), start=2):
        if mask_shape[axis] > 1:
            places = np.arange(size)
            along = (places >= interval[0]) & (places < interval[1])
            inside = inside & np.expand_dims(along, tuple(i for i in range(4) if i != axis))
    return None if inside.all() else inside


def compact_mask(mask: np.ndarray) -> np.ndarray:
    """A mask (slices, 1, H, W) with slices, then H or else W, of length 1 where the mask is constant along them."""

    def constant(axis: int) -> bool:
        return bool((mask == mask.take([0], axis=axis)).all())

    if constant(0):
        mask = mask[:1]
    if constant(2):
        mask = mask[:, :, :1]
    elif constant(3):
        mask = mask[..., :1]
    return np.array(mask)


def mask_from_any_shape(mask: np.ndarray, slices: int, shape: tuple[int, int], where: object) -> np.ndarray:
    """A mask as files hold it, as (slices or 1, H, W) bool.

    Args:
        mask: Bool or zeros and ones: (W,) as in official fastMRI files, (H,), (H, W), (slices, H, W), or any of these
            with axes of length 1, such as (1, 1, H, 1).
        slices: Number of slices of the k-space.
        shape: H and W of the k-space.
        where: The file, for messages.

    Raises:
        DataError: If the values are not zeros and ones, or the shape does not fit the k-space.
    """
    binary = mask.dtype == bool or (mask.dtype.kind in "iuf" and bool(np.isin(mask, (0, 1)).all()))
    require(
        binary, f"{where}: dataset 'mask' must be bool, or zeros and ones; got {mask.dtype}. Threshold it.", DataError
    )
    height, width = shape
    flat = mask.astype(bool)
    if flat.ndim >= 2 and flat.shape[-2] in (1, height) and flat.shape[-1] in (1, width):
        flat = flat.reshape(-1, *flat.shape[-2:])
    elif flat.size == width and width in flat.shape:
        flat = flat.reshape(1, 1, width)
    elif flat.size == height and height in flat.shape:
        flat = flat.reshape(1, height, 1)
    require(
        flat.ndim == 3 and flat.shape[0] in (1, slices),
        f"{where}: dataset 'mask' has shape {mask.shape}, which does not fit k-space of {slices} slices of {shape}; "
        f"expected ({width},), {shape} or ({slices}, {height}, {width}). Was it made for another matrix size?",
        DataError,
    )
    return np.broadcast_to(flat, (flat.shape[0], height, width))


def _any(mask: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    return np.asarray(mask.any(axis=axis))


def _infer_masks(support: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """(slices or 1, H, W) from exact zeros: one for all slices, unless a slice plainly has its own or lost lines."""
    merged = _whole_lines(_any(support, 0))
    single = [merged if empty[i] else _whole_lines(part) for i, part in enumerate(support)]
    if not _lines_lost(single, merged) and max(np.mean(mask != merged) for mask in single) <= 0.01:
        return merged[None]
    return np.stack(single)


def _lines_lost(masks: Iterable[np.ndarray], merged: np.ndarray) -> bool:
    """Whether one of the masks (H, W) has nothing on a whole row or column that ``merged`` has."""
    return any((_any(merged, axis) & ~_any(mask, axis)).any() for mask in masks for axis in (0, 1))


def _whole_lines(support: np.ndarray) -> np.ndarray:
    """The mask of rows x columns behind a support, or the support itself where it is not made of whole lines."""
    box = _any(support, 1)[:, None] & _any(support, 0)[None, :]
    isolated = np.count_nonzero(box & ~support)
    return box if isolated <= ISOLATED_ZEROS * np.count_nonzero(box) else support.copy()


def _reconcile(
    stored: np.ndarray, support: np.ndarray, header: tuple[Interval | None, Interval | None], log: _Log, where: object
) -> np.ndarray:
    """What the stored mask and the data agree on, (slices or 1, H, W)."""
    merged = _any(support, 0)
    if len(stored) == 1 and _lines_lost((part for part in support if part.any()), merged & stored[0]):
        stored = np.broadcast_to(stored, support.shape)
    parts = [merged] if len(stored) == 1 else list(support)
    masks = [_reconcile_one(mask, part, header, log, where) for mask, part in zip(stored, parts, strict=True)]
    log.notes[:] = dict.fromkeys(log.notes)
    log.suspicions[:] = dict.fromkeys(log.suspicions)
    return np.stack(masks)


def _reconcile_one(
    stored: np.ndarray, support: np.ndarray, header: tuple[Interval | None, Interval | None], log: _Log, where: object
) -> np.ndarray:
    if not support.any():
        return stored.copy()
    inside = support.copy()
    rows, columns = (given or _span(_any(support, 1 - axis)) for axis, given in enumerate(header))
    inside[slice(*rows), slice(*columns)] = True
    claimed = stored & inside
    padding = np.count_nonzero(stored & ~inside)
    if padding:
        log.notes.append(f"the mask marks {padding} zero-padded locations as sampled; they are left out")
    hollow, extra = claimed & ~support, support & ~stored
    contradictory = min(hollow.sum(), extra.sum()) > ISOLATED_ZEROS * claimed.sum()
    require(
        bool(claimed.any()) and not contradictory,
        f"{where}: dataset 'mask' does not describe 'kspace': {hollow.sum()} of {claimed.sum()} sampled locations are "
        f"zero in every coil, and {extra.sum()} unsampled ones hold data. Is the mask shifted (zero frequency belongs "
        "at n//2), transposed or inverted?",
        DataError,
    )
    if extra.any():
        log.suspicions.append(f"{extra.sum()} locations hold data where the mask says unsampled; they are ignored")
    return _drop_hollow(claimed, support, log)


def _drop_hollow(claimed: np.ndarray, support: np.ndarray, log: _Log) -> np.ndarray:
    """Remove sampled-but-zero locations: whole lines always, isolated points only where they are too many."""
    measured = claimed & support
    lines = claimed & _any(measured, 1)[:, None] & _any(measured, 0)[None, :]
    dropped = np.count_nonzero(claimed & ~lines)
    if np.count_nonzero(lines & ~support) > ISOLATED_ZEROS * np.count_nonzero(lines):
        dropped += np.count_nonzero(lines & ~support)
        lines &= support
    if dropped:
        log.suspicions.append(
            f"{dropped} locations that the mask says sampled are zero in every coil; they count as not measured"
        )
    return lines


def _span(line: np.ndarray) -> Interval:
    """First True and one past the last True."""
    hits = np.flatnonzero(line)
    return int(hits[0]), int(hits[-1]) + 1


def _acquired_interval(line: np.ndarray, header: Interval | None, name: str, log: _Log, held: np.ndarray) -> Interval:
    """The acquired part of one axis, from the lines that count as measured, from the header, and from those that hold
    data: a band of lines that a mask leaves of more data is no scan of low resolution.
    """
    first, last = _span(line)
    gap = _longest_gap(line[first:last])
    if gap == 0 and header is None and (held & ~line).any():
        beyond = _span(held)
        return min(first, beyond[0]), max(last, beyond[1])
    if gap == 0:
        if header is not None and header != (first, last):
            log.notes.append(f"the header says that {name} {header} were acquired; the data fill {(first, last)}")
        return first, last
    if header is not None:
        if first < header[0] or last > header[1]:
            log.suspicions.append(f"the header limits {name} to {header}, yet {(first, last)} hold data")
        return min(first, header[0]), max(last, header[1])
    # Without a header, a rim that the mask may have left out by chance is taken for one that it did leave out.
    by_chance = lambda rim: rim <= gap or _chance_of_rim(rim, line) >= _CHANCE  # noqa: E731
    return (0 if by_chance(first) else first), (len(line) if by_chance(len(line) - last) else last)


def _chance_of_rim(rim: int, line: np.ndarray) -> float:
    """Probability that runs of sampled lines, as many as there are, all miss the first ``rim`` places at random."""
    hits = np.concatenate([[False], line.astype(bool)])
    runs = int(np.count_nonzero(hits[1:] & ~hits[:-1]))
    return float((1 - rim / len(line)) ** runs)


def _longest_gap(line: np.ndarray) -> int:
    hits = np.flatnonzero(line)
    return int(np.diff(hits).max()) - 1 if len(hits) > 1 else 0


def _phase_encode_axis(mask: np.ndarray, extent: Extent, readout_axis: int) -> int | None:
    inner = mask[slice(*extent[0]), slice(*extent[1])]
    rows, columns = _any(inner, 1), _any(inner, 0)
    if not np.array_equal(inner, rows[:, None] & columns[None, :]):
        return None
    if rows.all() and columns.all():
        return -1 if readout_axis == -2 else -2
    if rows.all():
        return -1
    return -2 if columns.all() else None
