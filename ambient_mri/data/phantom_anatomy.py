"""Anatomy of the brain phantom: fields, positive inside a structure, and the order in which they are painted.

Coordinates: (y, x) of the head in half fields of view, anterior and left negative; (v, u) the same in half axes of the
brain; z the axial level. See :mod:`ambient_mri.data.phantom` for the whole picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Canvas",
    "Field",
    "Head",
    "Waves",
    "outline",
    "paint_deep",
    "paint_face",
    "paint_lesion",
    "paint_posterior_fossa",
    "paint_scalp_and_skull",
    "pial_depth",
]

Field: TypeAlias = NDArray[np.float32]
Point: TypeAlias = tuple[Field, Field]

_ANGLES = 512


@dataclass(frozen=True)
class Waves:
    """A random field: plane waves with wave vectors in a ring, in two phases between which z rotates."""

    k: NDArray[np.float32]  # (waves, 2), radians a unit of length
    phase: NDArray[np.float32]  # (waves,)
    speed: NDArray[np.float32]  # (waves,), radians a unit of z

    @classmethod
    def draw(cls, rng: np.random.Generator, wavelength: float, count: int = 20, change: float = 8.0) -> Waves:
        """Wavelengths within 25 % of ``wavelength``; ``change`` is how fast the field changes along z."""
        length = 2 * np.pi / (wavelength * rng.uniform(0.75, 1.25, count))
        # Evenly spread directions: a handful of waves drawn at random would line up in stripes.
        angle = np.pi * (np.arange(count) + rng.uniform(0, 1, count)) / count
        k = length[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)
        phase, speed = rng.uniform(0, 2 * np.pi, count), change * rng.standard_normal(count)
        return cls(*(a.astype(np.float32) for a in (k, phase, speed)))

    def on_axes(self, y: Field, x: Field, z: float) -> Field:
        """Unit-variance values on the grid y (H, 1) by x (1, W)."""
        rows = np.exp(1j * (y * self.k[:, 0] + self.phase + self.speed * z)).astype(np.complex64)
        columns = np.exp(1j * (self.k[:, 1:] * x)).astype(np.complex64)
        return np.asarray((rows @ columns).real * np.float32(np.sqrt(2 / len(self.k))))


@dataclass(frozen=True)
class Head:
    """What is drawn once for a head; lengths in half fields of view."""

    axes: tuple[float, float]  # lateral, anterior-posterior
    squareness: float
    centre: tuple[float, float]
    angle: float
    harmonics: NDArray[np.float64]  # (orders, 2) of the outline
    scalp: NDArray[np.float64]  # (orders, 2), relative thickness
    thickness: tuple[float, float, float]  # scalp, skull, subarachnoid space
    age: float  # 0 to 1: wide sulci and ventricles
    grey: float
    folds: NDArray[np.float64]  # (waves, 4): order, depth frequency, phase, speed
    fold_waves: Waves
    warp: tuple[Waves, Waves]
    texture: Waves
    fine: Waves
    sizes: NDArray[np.float64]  # individual variation of deep structures, about 1
    lesion: tuple[float, float, float, float] | None  # x, y, radius (of the brain), z
    tissue: dict[str, float]
    texture_strength: float


@dataclass
class Canvas:
    """The picture and the coordinates that its structures are placed in."""

    image: Field
    pixel: float
    y: Field  # (H, W), head coordinates, anterior negative
    x: Field
    depth: Field  # below the skin
    theta: Field

    def cover(self, field: Field) -> Field:
        """Share of every pixel inside ``field`` > 0."""
        return np.clip(0.5 + field / self.pixel, 0, 1)

    def paint(self, field: Field, value: float | Field, opacity: float = 1.0) -> None:
        """Lay ``value`` over the picture wherever ``field`` > 0."""
        self.image += opacity * self.cover(field) * (value - self.image)


def _series(theta: NDArray[np.float64], coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over orders from 2 of a cos + b sin."""
    orders = np.arange(2, 2 + len(coefficients))[:, None]
    return np.asarray(coefficients[:, 0] @ np.cos(orders * theta) + coefficients[:, 1] @ np.sin(orders * theta))


def outline(head: Head, z: float, shape: tuple[int, int]) -> tuple[Canvas, Point]:
    """Head coordinates, the depth below the skin, and the axes (H, 1), (1, W) for random fields."""
    height, width = shape
    unit = 0.5 * min(height, width / 0.85)
    rows = ((np.arange(height, dtype=np.float32) - height // 2) / unit)[:, None]
    columns = ((np.arange(width, dtype=np.float32) - width // 2) / unit)[None]
    y0, x0 = rows - np.float32(head.centre[0]), columns - np.float32(head.centre[1])
    cos, sin = np.float32(np.cos(head.angle)), np.float32(np.sin(head.angle))
    y, x = cos * y0 + sin * x0, cos * x0 - sin * y0
    # The head narrows towards the vertex like an ellipsoid, and a little towards the base.
    shrink = np.sqrt(1 - ((z - 0.42) / 0.66) ** 2) if z > 0.42 else 1 - 0.35 * (0.42 - z) ** 2
    table = np.linspace(-np.pi, np.pi, _ANGLES + 1)
    p = head.squareness
    edge = (np.abs(np.cos(table) / head.axes[0]) ** p + np.abs(np.sin(table) / head.axes[1]) ** p) ** (-1 / p)
    edge *= shrink * (1 + _series(table, head.harmonics))
    theta = np.arctan2(y, x)
    depth = _lookup(theta, edge) - np.hypot(y, x)
    canvas = Canvas(np.zeros(shape, np.float32), 1 / unit, y, x, depth, theta)
    return canvas, (rows, columns)


def _lookup(theta: Field, table: NDArray[np.float64]) -> Field:
    """A periodic function of the angle, from its table on [-pi, pi], linearly interpolated."""
    position = (theta + np.float32(np.pi)) * np.float32(_ANGLES / (2 * np.pi))
    index = np.clip(position.astype(np.int32), 0, _ANGLES - 1)
    low, step = table.astype(np.float32)[:-1], np.diff(table).astype(np.float32)
    return np.asarray(low[index] + (position - index) * step[index])


def paint_scalp_and_skull(canvas: Canvas, head: Head, z: float, texture: Field) -> Field:
    """Paint skin, fat, bone with marrow and the subarachnoid space; the depth below the inner table."""
    table = np.linspace(-np.pi, np.pi, _ANGLES + 1)
    scalp = head.thickness[0] * np.exp(_series(table, head.scalp))
    # Seen at a slant near the vertex, layers are thicker; the temporal muscle lies at the sides of lower levels.
    slant = 1 + 0.7 * max(z - 0.6, 0.0) ** 2 / 0.16
    temple = np.exp(-(((np.abs(np.cos(table)) - 1) / 0.12) ** 2)) * max(1 - z / 0.5, 0.0)
    outer = _lookup(canvas.theta, (scalp + 0.07 * temple) * slant)
    skull = _lookup(canvas.theta, head.thickness[1] * slant * (1 - 0.45 * temple + 0.2 * np.cos(2 * table)))
    d, tissue = canvas.depth, head.tissue
    canvas.paint(d, tissue["skin"])
    canvas.paint(d - 0.016, tissue["fat"] * (1 + 0.08 * texture))
    if z < 0.5:
        muscle = np.minimum(d - 0.035, outer - 0.012 - d)
        canvas.paint(muscle - 0.012, tissue["muscle"])
    inner = d - outer - skull
    canvas.paint(d - outer, tissue["bone"])
    diploe = 0.32 * skull - np.abs(d - outer - 0.5 * skull) + 0.006 * texture
    canvas.paint(diploe, tissue["marrow"])
    canvas.paint(inner, tissue["csf"])
    return np.asarray(inner)


def _tube(point: Point, path: list[tuple[float, float, float]]) -> Field:
    """Positive inside a bent tube: (x, y, radius) along its path, joined by straight, tapering pieces."""
    y, x = point
    best = np.full(np.broadcast_shapes(y.shape, x.shape), -np.inf, np.float32)
    for (x0, y0, r0), (x1, y1, r1) in pairwise(path):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        distance = np.hypot(x - (x0 + along * dx), y - (y0 + along * dy))
        best = np.maximum(best, r0 + along * (r1 - r0) - distance)
    return best


def _ellipse(point: Point, centre: tuple[float, float], axes: tuple[float, float], turn: float = 0.0) -> Field:
    """Positive inside an ellipse with centre (x, y) and half axes (along x, along y) before the turn."""
    y, x = point[0] - centre[1], point[1] - centre[0]
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    return np.asarray((1 - np.hypot(along / axes[0], across / axes[1])) * min(axes))


def _cut(z: float, middle: float, half: float) -> float:
    """Radius, relative to the largest, of an ellipsoid of the given extent along z; negative outside it."""
    t = (z - middle) / half
    return float(np.sqrt(1 - t * t)) if abs(t) < 1 else -0.5


def pial_depth(canvas: Canvas, head: Head, z: float, point: Point, brain: Field, axes: Point) -> Field:
    """Distance below the surface of the cortex, sulci and fissures included."""
    folds = head.fold_waves.on_axes(*axes, z) + 0.9 * _radial_folds(canvas, head, z, brain)
    slope_y, slope_x = np.gradient(folds, canvas.pixel)
    away = np.abs(folds) / np.sqrt(slope_y**2 + slope_x**2 + 25)
    bend, open_ = (waves.on_axes(*axes, z) for waves in head.warp)
    width = (0.003 + 0.015 * head.age) * np.exp(0.5 * open_)
    depth = 0.17 + 0.05 * head.age + 0.045 * bend
    cortex = away - np.minimum(width, 0.6 * (depth - brain))
    # The interhemispheric fissure, through which the corpus callosum crosses around the middle.
    v, u = point
    midline = np.abs(canvas.x - 0.006 * bend)
    gap = 0.44 * _cut(z, 0.48, 0.22)
    fissure = midline - np.minimum(0.006 + 0.01 * head.age, 0.5 * (np.abs(v - 0.03) - gap) * head.axes[1])
    pial = np.minimum(np.minimum(brain, cortex), fissure)
    size = _cut(z, 0.4, 0.2)
    if size > 0:
        lateral = np.abs(u + 0.02 * bend)
        sylvian = _tube(
            (v + 0.03 * bend, lateral), [(1.0, -0.2, 0.0), (0.64, -0.2, 0.0), (0.58, -0.05, 0.0), (0.6, 0.16, 0.0)]
        )
        pial = np.minimum(pial, -sylvian * head.axes[0] * 0.9 - (0.008 + 0.014 * head.age) * size)
    return np.asarray(pial)


def _radial_folds(canvas: Canvas, head: Head, z: float, brain: Field) -> Field:
    """A random field of angle and depth whose zero lines run inwards, looked up in a table."""
    from scipy.ndimage import map_coordinates

    order, frequency, phase, speed = head.folds.T[:, :, None]
    angle = np.linspace(-np.pi, np.pi, _ANGLES + 1)
    depth = np.linspace(0, 0.5, 33)
    # Sulci meander: the angle is modulated slowly around the head.
    bent = angle + 0.05 * np.sin(3 * angle + phase[0]) + 0.03 * np.sin(7 * angle + phase[1])
    around = np.exp(1j * (order * bent + phase + speed * z)).astype(np.complex64)
    inwards = np.exp(1j * frequency * depth).astype(np.complex64)
    table = (inwards.T @ around).real * np.float32(np.sqrt(2 / len(order)))
    where = np.stack([brain * np.float32(64), (canvas.theta + np.float32(np.pi)) * np.float32(_ANGLES / (2 * np.pi))])
    return np.asarray(map_coordinates(table, where, order=1, mode="nearest"))


def paint_deep(canvas: Canvas, head: Head, z: float, point: Point) -> None:
    """Paint nuclei, then ventricles."""
    tissue, sizes, scale = head.tissue, head.sizes, head.axes[0]
    v = point[0]
    bend = 0.02 * np.sin(4 * v + sizes[7] * 9).astype(np.float32)
    half = (v, np.abs(point[1] + bend))
    wide = 0.75 + 0.75 * head.age

    def paint(field: Field, size: float, value: float, opacity: float = 1.0) -> None:
        if size > 0:
            canvas.paint(field * scale, value, opacity)

    size = _cut(z, 0.42, 0.15)
    paint(_ellipse(half, (0.42 * sizes[0], -0.06), (0.10 * size, 0.27 * size), 0.28), size, tissue["deep"])
    paint(
        _ellipse(half, (0.33 * sizes[0], -0.03), (0.05 * size, 0.15 * size), 0.5),
        size,
        0.5 * (tissue["deep"] + tissue["white"]),
    )
    size = _cut(z, 0.43, 0.12) * sizes[1]
    paint(_ellipse(half, (0.16, 0.13), (0.13 * size, 0.20 * size), -0.35), size, tissue["deep"])
    size = _cut(z, 0.47, 0.18) * sizes[2]
    paint(_ellipse(half, (0.14 + 0.06 * wide, -0.30), (0.07 * size, 0.15 * size), -0.35), size, tissue["deep"])
    size = wide * sizes[3] * _cut(z, 0.52, 0.14)
    rise = min(max((z - 0.42) / 0.14, 0.0), 1.0)  # horns apart below, one curved body above
    front = [(0.045, -0.10 + 0.1 * rise, 0.03 * size), (0.08, -0.27, 0.055 * size), (0.17, -0.43, 0.045 * size)]
    paint(_tube(half, front), size, tissue["csf"])
    if rise > 0.35:
        body = [(0.06, -0.2, 0.05 * size), (0.09, 0.05, 0.055 * size * rise), (0.2, 0.33, 0.06 * size)]
        paint(_tube(half, body), size, tissue["csf"])
    size = wide * sizes[4] * _cut(z, 0.45, 0.14)
    paint(
        _tube(half, [(0.24, 0.30, 0.05 * size), (0.30, 0.42, 0.065 * size), (0.26, 0.62, 0.02 * size)]),
        size,
        tissue["csf"],
    )
    size = wide * _cut(z, 0.39, 0.09)
    paint(_tube(half, [(0.0, -0.02, 0.025 * size), (0.0, 0.22, 0.03 * size)]), size, tissue["csf"])


def paint_face(canvas: Canvas, head: Head, z: float, point: Point, texture: Field) -> Field | None:
    """Paint what lies before the brain at low levels; the field of that region, or None higher up."""
    if z >= 0.24:
        return None
    v, u = point
    tissue, low = head.tissue, 1 - z / 0.24
    border = -1.12 + 0.66 * low**0.7 + (0.1 * np.cos(3.3 * u) - 0.12 * np.abs(u)) * low
    region = (border - v) * head.axes[1]
    inside = np.minimum(region, canvas.depth - 0.03)
    canvas.paint(inside, tissue["bone"])
    canvas.paint(np.minimum(inside - 0.03, 0.03 * texture + 0.004), tissue["marrow"])
    side = (v, np.abs(u))
    size = _cut(z, 0.08, 0.17)
    if size > 0:
        orbit = np.minimum(
            _ellipse(side, (0.44, -0.78), (0.25 * size, 0.30 * size), 0.5) * head.axes[0], canvas.depth - 0.03
        )
        canvas.paint(orbit, tissue["fat"] * (1 + 0.05 * texture))
        canvas.paint(_tube(side, [(0.42, -0.66, 0.02), (0.24, -0.42, 0.015)]) * head.axes[0], tissue["muscle"])
        canvas.paint(_tube(side, [(0.60, -0.70, 0.012), (0.42, -0.50, 0.015)]) * head.axes[0], tissue["muscle"])
        globe = _ellipse(side, (0.44, -0.80), (0.16 * size, 0.16 * size)) * head.axes[0]
        canvas.paint(globe + 0.01, tissue["muscle"])
        canvas.paint(globe, tissue["eye"])
        canvas.paint(_ellipse(side, (0.45, -0.91), (0.065 * size, 0.03 * size)) * head.axes[0], 0.8 * tissue["muscle"])
        cells = _ellipse(side, (0.0, -0.72), (0.15, 0.26)) * head.axes[0]
        canvas.paint(np.minimum(cells, canvas.depth - 0.05), 0.03)
        canvas.paint(np.minimum(cells, 0.01 * texture), tissue["muscle"])
    return region


def paint_posterior_fossa(canvas: Canvas, head: Head, z: float, point: Point, brain: Field) -> None:
    """Paint temporal bones, cisterns, brain stem and the cerebellum with its folia."""
    tissue, sizes, scale = head.tissue, head.sizes, head.axes[0]
    v, u = point
    side = (v, np.abs(u))
    size = _cut(z, 0.02, 0.2)
    if size > 0:
        petrous = (
            _tube(side, [(1.05, 0.12, 0.13 * size), (0.62, 0.02, 0.09 * size), (0.28, -0.10, 0.05 * size)]) * scale
        )
        canvas.paint(petrous, tissue["bone"])
        canvas.paint(np.minimum(petrous - 0.02, 0.02), 0.7 * tissue["marrow"], 0.5)
    size = _cut(z, 0.08, 0.20) * sizes[5]
    if size > 0:
        # Two hemispheres below, the vermis alone under the tentorium.
        lobes = _ellipse(side, (0.30 * size**2, 0.50), (0.54 * size**2, 0.44 * size), -0.15)
        lobes = np.maximum(lobes, _ellipse(point, (0.0, 0.46), (0.22 * size, 0.42 * size)))
        cerebellum = np.minimum(lobes, brain / scale) * scale
        canvas.paint(cerebellum + 0.008, tissue["csf"])
        canvas.paint(cerebellum, tissue["grey"])
        # Folia: thin leaves parallel to the surface, in a ring around the white core.
        leaves = 0.5 + 0.5 * np.cos(cerebellum * 150 + 2.5 * np.sin(6 * u) + 2 * np.sin(7 * v))
        canvas.paint(
            cerebellum - 0.02, tissue["grey"] + (tissue["white"] - tissue["grey"]) * leaves.astype(np.float32), 0.6
        )
        canvas.paint(cerebellum - 0.16 * size, tissue["white"])
        canvas.paint(_ellipse(point, (0.0, 0.52), (0.07, 0.3 * size)) * scale, tissue["grey"])
    size = _cut(z, 0.14, 0.22) * sizes[6]
    if size > 0:
        canvas.paint(_ellipse(point, (0.0, 0.0), (0.21 * size, 0.22 * size)) * scale, tissue["csf"])
        canvas.paint(_ellipse(side, (0.07, 0.06), (0.17 * size, 0.19 * size)) * scale, tissue["white"])
        fourth = _cut(z, 0.1, 0.1)
        if fourth > 0:
            canvas.paint(_ellipse(point, (0.0, 0.27), (0.12 * fourth, 0.07 * fourth)) * scale, tissue["csf"])


def paint_lesion(canvas: Canvas, head: Head, z: float, point: Point, pial: Field, texture: Field) -> None:
    """Paint a lesion with a core in some heads, and the white-matter spots of old age."""
    tissue, scale = head.tissue, head.axes[0]
    spots = np.minimum(0.012 * (texture - 3.2 + 1.6 * head.age), pial - head.grey - 0.05)
    canvas.paint(spots, tissue["lesion"], 0.8)
    if head.lesion is None:
        return
    x, y, radius, middle = head.lesion
    size = radius * _cut(z, middle, 0.25)
    if size <= 0:
        return
    blob = _ellipse(point, (x, y), (size, 0.85 * size), 3 * x) * scale + 0.022 * texture
    canvas.paint(np.minimum(blob, pial), tissue["lesion"], 0.85)
    canvas.paint(np.minimum(blob - 0.45 * size * scale, pial), tissue["core"], 0.7)
