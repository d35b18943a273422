"""Figures of natural images, grey or in colour, values in [-1, 1]: rows of training images, samples, restorations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri._files import atomic_path

__all__ = ["image_rows"]

_DPI = 200
_CELL = 0.55  # inch, side of an image
_LABEL = 1.45  # inch, for the names of the rows
_HEAD = 0.26  # inch, for the name of a group
_GAP = 0.03


def image_rows(
    groups: Mapping[str, Mapping[str, Tensor]],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Groups of rows of images, such as masking and noise: training images, samples, restorations, truth.

    Args:
        groups: Name to rows; each row is a name and images (n, 1 or 3, H, W) in [-1, 1]; what lies outside is clipped.
        path: Destination of the PNG.
        title: A line above all of it.
        captions: A line under each image of a row, by the row's name.

    Returns:
        ``path``.

    Raises:
        AmbientMRIError: If there is no image, rows are no images, or captions do not fit.
    """
    rows = [(group, name, images) for group, found in groups.items() for name, images in found.items()]
    require(len(rows) > 0, "image_rows needs at least one row of images.")
    for _, name, images in rows:
        good = images.ndim == 4 and images.shape[1] in (1, 3) and len(images) > 0 and not images.is_complex()
        require(good, f"row {name!r} must be real images (n, 1 or 3, H, W); got {images.dtype} {tuple(images.shape)}.")
        lines = (captions or {}).get(name)
        require(lines is None or len(lines) == len(images), f"row {name!r} needs a caption for each of its images.")
    columns = max(len(images) for _, _, images in rows)
    low = {name: _GAP + (0.11 if name in (captions or {}) else 0.0) for _, name, _ in rows}
    height = (0.25 if title else 0.05) + len(groups) * _HEAD + sum(_CELL + low[name] for _, name, _ in rows)
    width = _LABEL + columns * (_CELL + _GAP)
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.text(0.03 / width, 1 - 0.05 / height, title, fontsize=8.5, va="top")
    edge, previous = 0.25 if title else 0.05, None
    for group, name, images in rows:
        if group != previous:
            edge, previous = edge + _HEAD, group
            figure.text(0.03 / width, 1 - (edge - 0.06) / height, group, fontsize=8, weight="bold")
        figure.text(0.03 / width, 1 - (edge + _CELL / 2) / height, name, fontsize=7, va="center")
        for i, image in enumerate(images):
            left = _LABEL + i * (_CELL + _GAP)
            place = (left / width, 1 - (edge + _CELL) / height, _CELL / width, _CELL / height)
            axes = figure.add_axes(place)
            axes.imshow(_pixels(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
            if name in (captions or {}):
                text = (captions or {})[name][i]
                spot = ((left + _CELL / 2) / width, 1 - (edge + _CELL + 0.01) / height)
                figure.text(*spot, text, fontsize=5, ha="center", va="top")
        edge += _CELL + low[name]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png")
    return target


def _pixels(image: Tensor) -> np.ndarray:
    """(c, H, W) in [-1, 1] -> (H, W) or (H, W, 3) in [0, 1]."""
    values = image.detach().float().cpu().clamp(-1, 1).mul(0.5).add(0.5).numpy()
    return values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
