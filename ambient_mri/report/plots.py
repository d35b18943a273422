"""Figures on white paper: reconstructions beside their errors, sheets of samples, curves. Written as PNG, atomically.

All images of a figure share one grey window, [0, m] with m the 99.8th percentile of the reference; errors and standard
deviations share [0, m / 5], which shows them five times brighter than the images. The windows stand in the figure's
footnote. One pixel of the image is a whole number of pixels of the figure. Non-finite values are drawn in blue and
never enter a window.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri._files import write_atomically
from ambient_mri.masks import effective_acceleration
from ambient_mri.metrics import psnr, ssim
from ambient_mri.report.tables import format_value

__all__ = ["ERROR_GAIN", "curve_figure", "reconstruction_figure", "sample_sheet"]

ImageLike = np.ndarray | Tensor
PathLike = str | os.PathLike[str]

ERROR_GAIN = 5
_DPI = 200
_INSIDE = 4  # curves whose legend stands among them; that of more stands beside them
_CELL_PIXELS = 320  # aimed width of one image; the true one is the nearest multiple of the image's own
_GAP = 0.05  # inch between images
_NAME_LINE, _TEXT_LINE = 0.15, 0.125  # inch
_CHARACTER = 0.068  # inch, width of a bold character of 7 points
_NON_FINITE = "#3b82f6"
_INK, _FAINT = "#111111", "#555555"
# Okabe & Ito 2008: eight colours that remain distinct for colour-blind readers (yellow left out: too pale on paper).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass
class _Cell:
    """One image of a figure: pixels, window, colour map, the lines above it (the first one is its name), and whether a
    line around it tells it from the page.
    """

    image: np.ndarray | None
    lines: tuple[str, ...] = ()
    window: tuple[float, float] = (0.0, 1.0)
    cmap: str = "gray"
    strong: bool = False
    framed: bool = False


def reconstruction_figure(
    panels: Mapping[str, ImageLike],
    path: PathLike,
    *,
    reference: ImageLike | None = None,
    std: ImageLike | None = None,
    errors: bool = True,
    mask: ImageLike | None = None,
    acceleration: float | None = None,
    title: str | None = None,
) -> Path:
    """Reference and methods side by side with PSNR and SSIM, their errors below, the standard deviation and the mask.

    With a reference the second row holds the mask, |error| of every method, and |error| / std of the last method, which
    for an honest posterior is noise with 95 % of its pixels below 2. Without one the figure is a single row.

    Args:
        panels: Name to image (H, W), real or complex (the magnitude is shown); leading axes of length 1 are dropped.
        path: Destination of the PNG.
        reference: Reference image, in the units of the panels. Panels are neither rescaled nor shifted to fit it.
        std: Standard deviation of the last panel's magnitude, same units.
        errors: Whether to draw the row of errors.
        mask: Sampled locations, bool, (H, W) or one line for all, zero frequency in the middle; drawn at its own size
            where k-space is larger than the image, as with readout oversampling.
        acceleration: R of the scan, said above the mask; counted over the whole mask when None, which is too much where
            some of the matrix is zero padding that no scanner would have measured.
        title: A line above the figure: the case, the acceleration, "simulated" where it is.

    Returns:
        ``path``.

    Raises:
        AmbientMRIError: If there is no panel or shapes differ.
    """
    require(len(panels) > 0, "reconstruction_figure needs at least one panel.")
    images = {name: _magnitude(name, image) for name, image in panels.items()}
    shape = next(iter(images.values())).shape
    truth = None if reference is None else _magnitude("reference", reference)
    deviation = None if std is None else _magnitude("std", std)
    named = {**images, "reference": truth, "std": deviation}
    for name, image in named.items():
        require(image is None or image.shape == shape, f"{name} has shape {_shape(image)}, the other images {shape}.")
    sampled = None if mask is None else _mask(mask, shape)
    masks = [] if sampled is None else [_mask_cell(sampled, acceleration, strong=truth is None or not errors)]
    window = _window([truth] if truth is not None else list(images.values()))
    top = [] if truth is None else [_Cell(truth, ("Reference",), window, strong=True)]
    top += [_Cell(x, (name, *_score(truth, x)), window, strong=True) for name, x in images.items()]
    narrow = (0.0, window[1] / ERROR_GAIN)
    if deviation is not None:
        top.append(
            _Cell(deviation, (f"Std × {ERROR_GAIN}", f"mean {_mean(deviation):.2g}"), narrow, "inferno", strong=True)
        )
    if truth is None or not errors:
        rows = [top + masks]
    else:
        rows = [top, (masks or [_Cell(None)]) + _error_row(images, truth, deviation, narrow)]
    return _draw(rows, path, title, _footnote(window, errors and truth is not None, deviation is not None))


def sample_sheet(
    images: ImageLike | Sequence[ImageLike],
    path: PathLike,
    *,
    names: Sequence[str] | None = None,
    num_columns: int | None = None,
    title: str | None = None,
) -> Path:
    """A contact sheet of images in one grey window.

    Args:
        images: (n, H, W) or (n, 1, H, W), or a sequence of (H, W); real or complex.
        path: Destination of the PNG.
        names: A caption for every image.
        num_columns: Images in a row; about as wide as high, and at most 8, where None.
        title: A line above the sheet.

    Returns:
        ``path``.

    Raises:
        AmbientMRIError: If there is no image, shapes differ, or the captions do not fit.
    """
    magnitudes = [_magnitude(f"image {i}", image) for i, image in enumerate(images)]
    require(len(magnitudes) > 0, "sample_sheet needs at least one image.")
    require(len({x.shape for x in magnitudes}) == 1, "sample_sheet needs images of one shape.")
    require(names is None or len(names) == len(magnitudes), f"{len(magnitudes)} images need as many names.")
    width = num_columns or min(8, math.ceil(math.sqrt(len(magnitudes))))
    window = _window(magnitudes)
    cells = [_Cell(x, () if names is None else (names[i],), window) for i, x in enumerate(magnitudes)]
    rows = [cells[i : i + width] for i in range(0, len(cells), width)]
    return _draw(rows, path, title, f"All images in the window 0 to {window[1]:.3g}.")


def curve_figure(
    curves: Mapping[str, Sequence[Any]],
    path: PathLike,
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    xscale: str = "linear",
    yscale: str = "linear",
) -> Path:
    """Curves with markers and, where given, 95 % intervals; labelled in a legend.

    Args:
        curves: Name to (x, y) or (x, y, half width of the interval), each 1-D. Non-finite points are left out.
        path: Destination of the PNG.
        xlabel: Quantity and unit on the horizontal axis.
        ylabel: Quantity and unit on the vertical axis.
        title: A line above the axes.
        xscale: ``"linear"`` or ``"log"``.
        yscale: As ``xscale``.

    Returns:
        ``path``.

    Raises:
        AmbientMRIError: If there is no curve or its columns differ in length.
    """
    require(len(curves) > 0, "curve_figure needs at least one curve.")
    beside = len(curves) > _INSIDE
    figure = Figure(figsize=(5.6 if beside else 3.6, 2.6), dpi=_DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    for i, (name, columns) in enumerate(curves.items()):
        x, y, *half = (np.asarray(column, dtype=np.float64) for column in columns)
        require(all(column.shape == x.shape for column in (y, *half)), f"the columns of {name!r} differ in length.")
        colour, y = _COLOURS[i % len(_COLOURS)], np.where(np.isfinite(y), y, np.nan)
        style = "-" if i < len(_COLOURS) else "--"
        axes.plot(x, y, style, color=colour, marker="o", markersize=2.5, linewidth=1.2, label=name)
        if half:
            axes.fill_between(x, y - half[0], y + half[0], color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale(xscale)
    axes.set_yscale(yscale)
    _plain_ticks(axes, curves, xscale)
    axes.set_xlabel(xlabel, fontsize=8)
    axes.set_ylabel(ylabel, fontsize=8)
    if title:
        axes.set_title(title, fontsize=8, loc="left")
    axes.tick_params(labelsize=7, width=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e5e5e5", linewidth=0.5)
    axes.set_axisbelow(True)
    if beside:
        figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    else:
        axes.legend(fontsize=7, frameon=False)
    return _save(figure, path)


def _plain_ticks(axes: Axes, curves: Mapping[str, Sequence[Any]], xscale: str) -> None:
    """On a logarithmic axis, a few sampled values read better than powers of ten."""
    values = sorted({float(x) for columns in curves.values() for x in columns[0]})
    if xscale == "log" and len(values) <= 8:
        axes.set_xticks(values, [f"{x:g}" for x in values])
        axes.set_xticks([], minor=True)


def _error_row(
    images: Mapping[str, np.ndarray],
    truth: np.ndarray,
    deviation: np.ndarray | None,
    window: tuple[float, float],
) -> list[_Cell]:
    """Everything but the mask, which stands below the reference."""
    row = [_Cell(np.abs(x - truth), (f"|error| × {ERROR_GAIN}",), window, "inferno") for x in images.values()]
    if deviation is not None:
        error = np.abs(list(images.values())[-1] - truth)
        # An error where the samples agree exactly is far outside the interval, not undefined.
        known = np.isfinite(error) & np.isfinite(deviation)
        ratio = np.full(error.shape, np.nan)
        np.divide(error, np.maximum(deviation, np.finfo(np.float32).tiny), out=ratio, where=known)
        finite = ratio[np.isfinite(ratio)]
        below = 100 * float(np.mean(finite < 2)) if finite.size else math.nan
        row.append(_Cell(ratio, (f"|error| / std: {below:.0f} % < 2",), (0.0, 3.0), "inferno"))
    return row


def _draw(rows: Sequence[Sequence[_Cell]], path: PathLike, title: str | None, footnote: str) -> Path:
    """Lay the cells out in inches so that nothing overlaps, nothing is wasted, and image pixels meet figure pixels."""
    height, width = next(cell.image.shape for cell in rows[0] if cell.image is not None)
    repeat = max(1, round(_CELL_PIXELS / width)) if width <= 2 * _CELL_PIXELS else _CELL_PIXELS / width
    cell_width, cell_height = repeat * width / _DPI, repeat * height / _DPI
    heads = [max(_head_height(cell) for cell in row) for row in rows]
    columns = max(len(row) for row in rows)
    notes = _wrap(footnote, columns * cell_width)
    top = 0.21 if title else 0.02
    bottom = 0.06 + 0.11 * len(notes)
    size = (
        columns * cell_width + (columns + 1) * _GAP,
        top + sum(heads) + len(rows) * (cell_height + _GAP) + bottom,
    )
    size = tuple(math.ceil(inches * _DPI) / _DPI for inches in size)
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white")
    if title:
        figure.text(_GAP / size[0], 1 - 0.05 / size[1], title, fontsize=8.5, va="top", color=_INK)
    edge = top
    for row, head in zip(rows, heads, strict=True):
        edge += head
        for j, cell in enumerate(row):
            left = _GAP + j * (cell_width + _GAP)
            _draw_cell(figure, cell, (_snap(left), _snap(size[1] - edge - cell_height), cell_width, cell_height), head)
        edge += cell_height + _GAP
    for i, line in enumerate(reversed(notes)):
        figure.text(_GAP / size[0], (0.04 + 0.11 * i) / size[1], line, fontsize=5.5, va="bottom", color=_FAINT)
    return _save(figure, path)


def _draw_cell(figure: Figure, cell: _Cell, box: tuple[float, float, float, float], head: float) -> None:
    """One image in ``box`` (left, bottom, width, height, inches) with its lines in the ``head`` inches above it."""
    if cell.image is None:
        return
    left, bottom, width, height = box
    total_width, total_height = figure.get_size_inches()
    place = (left / total_width, bottom / total_height, width / total_width, height / total_height)
    axes = figure.add_axes(place)
    cmap = colormaps[cell.cmap].with_extremes(bad=_NON_FINITE)
    shown = np.ma.masked_invalid(cell.image)
    axes.imshow(shown, cmap=cmap, vmin=cell.window[0], vmax=cell.window[1], interpolation="antialiased", aspect="auto")
    axes.set_axis_off()
    if cell.framed:
        axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=_FAINT, linewidth=0.8))
    centre, base = (left + width / 2) / total_width, bottom + height + head - 0.05 - _NAME_LINE + 0.035
    for i, line in enumerate(cell.lines):
        weight, colour = ("bold" if cell.strong else "normal", _INK) if i == 0 else ("normal", _FAINT)
        size = min(7.0, 7.0 * width / (_CHARACTER * len(line))) if line else 7.0
        figure.text(
            centre,
            (base - i * _TEXT_LINE) / total_height,
            line,
            fontsize=size,
            ha="center",
            weight=weight,
            color=colour,
        )


def _head_height(cell: _Cell) -> float:
    return 0.05 + _NAME_LINE + _TEXT_LINE * (len(cell.lines) - 1) if cell.lines else 0.0


def _mask_cell(sampled: np.ndarray, acceleration: float | None, *, strong: bool) -> _Cell:
    said = effective_acceleration(torch.tensor(sampled)) if acceleration is None else acceleration
    lines = ("Mask", f"R = {said:.1f}") if strong else (f"Mask, R = {said:.1f}",)
    return _Cell(sampled.astype(np.float64), lines, strong=strong, framed=True)


def _footnote(window: tuple[float, float], errors: bool, std: bool) -> str:
    text = f"Images in one window, 0 to {window[1]:.3g}."
    narrow = " and ".join((["Errors"] if errors else []) + (["std"] if std else []))
    if narrow:
        text += f" {narrow[0].upper()}{narrow[1:]}: 0 to {window[1] / ERROR_GAIN:.3g}."
    if errors and std:
        text += " |error| / std: 0 to 3."
    return text + (
        " PSNR and SSIM of the magnitude, peak = maximum of the reference, SSIM window 7 x 7." if errors else ""
    )


def _score(truth: np.ndarray | None, image: np.ndarray) -> tuple[str, ...]:
    if not np.isfinite(image).all():
        return ("non-finite values",)
    if truth is None or not np.isfinite(truth).all() or truth.max() <= 0:
        return ()
    similarity = format_value("ssim", ssim(truth, image)) if min(truth.shape) >= 7 else "–"
    return (f"{format_value('psnr', psnr(truth, image))} dB / {similarity}",)


def _magnitude(name: str, image: ImageLike) -> np.ndarray:
    if isinstance(image, Tensor):
        image = image.detach().abs().to("cpu").double().numpy()
    array = np.abs(np.asarray(image)).astype(np.float64)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    require(array.ndim == 2, f"{name} must be one image (H, W); got shape {array.shape}. Choose a slice or a sample.")
    return array


def _mask(mask: ImageLike, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask).astype(bool)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    require(array.ndim <= 2, f"mask must be that of one slice, (H, W) or one line; got shape {array.shape}.")
    array = np.atleast_2d(array)
    return np.broadcast_to(array, [n if n > 1 else m for n, m in zip(array.shape, shape, strict=True)])


def _window(images: Sequence[np.ndarray]) -> tuple[float, float]:
    finite = np.concatenate([x[np.isfinite(x)] for x in images])
    top = float(np.percentile(finite, 99.8)) if finite.size else 0.0
    return 0.0, top if top > 0 else 1.0


def _mean(image: np.ndarray) -> float:
    finite = image[np.isfinite(image)]
    return float(finite.mean()) if finite.size else math.nan


def _shape(image: np.ndarray | None) -> tuple[int, ...]:
    return () if image is None else image.shape


def _snap(inches: float) -> float:
    return round(inches * _DPI) / _DPI


def _wrap(text: str, inches: float) -> list[str]:
    """Break the footnote to the figure's width; a character of 5.5 points is about 0.043 inch wide."""
    import textwrap

    return textwrap.wrap(text, max(20, int(inches / 0.043)))


def _save(figure: Figure, path: PathLike) -> Path:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return write_atomically(path, buffer.getvalue())
