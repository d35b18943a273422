r"""Procedural brain-like slices: as many different heads as training asks for, from nothing but a seed.

A head is drawn from (seed, index), then cut at an axial level z (0 skull base, 1 vertex). Anatomy is a set of *fields*,
functions of the position that are positive inside a structure and grow by one per unit of length, so that

    coverage = clip( 1/2 + field / pixel, 0, 1 )

is the share of a pixel inside it: anti-aliased at any matrix size. Structures are painted one over the other:

    scalp, skull     d = R(theta) - r, the depth below an outline R; layers of varying thickness
    cortex           p = min( d, |n| / |grad n| - w(d), fissures ): the zero lines of the random field n are the sulci,
                     w their half width, which falls to nothing with depth; grey matter where p < its thickness
    deep structures  tubes and ellipses in coordinates of the brain, which grow and shrink with z like cut ellipsoids
    skull base       orbits, sinuses, temporal bone, brain stem, cerebellum with its folia

Lengths are in half fields of view. Random fields are sums of plane waves whose phases turn with z: smooth from slice to
slice. Contrast is T1-, T2-, FLAIR- or proton-density-like, jittered for every head. There is no bias field, no coil and
no phase: :mod:`ambient_mri.data.simulate` adds what a scanner adds. These are phantoms, and a result obtained on them
says so.
"""

from __future__ import annotations

import numpy as np

from ambient_mri._checks import require
from ambient_mri.data.phantom_anatomy import (
    Field,
    Head,
    Waves,
    outline,
    paint_deep,
    paint_face,
    paint_lesion,
    paint_posterior_fossa,
    paint_scalp_and_skull,
    pial_depth,
)
from ambient_mri.tensors import keyed_generator

__all__ = ["BrainPhantom", "phantom_slice"]

_TISSUES = ("skin", "fat", "bone", "marrow", "muscle", "csf", "grey", "white", "deep", "lesion", "core", "eye")
# Intensities relative to the brightest tissue, roughly those of spin echoes at 1.5 to 3 T.
_CONTRASTS = {
    "t1": (0.55, 0.95, 0.06, 0.45, 0.36, 0.12, 0.46, 0.68, 0.56, 0.32, 0.20, 0.16),
    "t2": (0.40, 0.70, 0.05, 0.32, 0.22, 1.00, 0.58, 0.40, 0.46, 0.80, 0.95, 0.98),
    "flair": (0.50, 0.80, 0.05, 0.38, 0.30, 0.17, 0.52, 0.42, 0.48, 0.88, 0.30, 0.18),
    "pd": (0.45, 0.72, 0.07, 0.36, 0.36, 0.94, 0.80, 0.58, 0.68, 0.88, 0.92, 0.90),
}


class BrainPhantom:
    """An endless, indexable set of brain-like slices and volumes.

    Args:
        size: Rows and columns, or one number for both.
        seed: Seed of the set; slice ``i`` is a pure function of (seed, i), whatever was drawn before.

    Raises:
        AmbientMRIError: If a side is shorter than 16 pixels.
    """

    def __init__(self, size: int | tuple[int, int] = 128, seed: int = 0) -> None:
        self.shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.seed = seed
        require(min(self.shape) >= 16, f"a phantom needs at least 16 x 16 pixels; got {self.shape}.")

    def __repr__(self) -> str:
        return f"BrainPhantom(size={self.shape}, seed={self.seed})"

    def __getitem__(self, index: int) -> Field:
        """Slice ``index``: another head at another level for every index, (H, W) float32 in [0, 1]."""
        return phantom_slice(index, shape=self.shape, seed=self.seed)

    def volume(self, index: int, num_slices: int, *, levels: tuple[float, float] = (0.1, 0.95)) -> Field:
        """Neighbouring slices of head ``index``, evenly spaced between two levels: (slices, H, W) float32.

        Raises:
            AmbientMRIError: If ``num_slices`` is not positive or a level is outside [0, 1].
        """
        require(num_slices >= 1, f"num_slices must be at least 1; got {num_slices}.")
        require(min(levels) >= 0 and max(levels) <= 1, f"levels must lie in [0, 1]; got {levels}.")
        head = _draw_head(_rng("head", self.seed, index))
        ladder = np.linspace(*levels, num_slices) if num_slices > 1 else [float(np.mean(levels))]
        return np.stack([_render(head, float(z), self.shape) for z in ladder])


def phantom_slice(
    index: int, *, shape: tuple[int, int] = (128, 128), seed: int = 0, level: float | None = None
) -> Field:
    """One brain-like slice, a pure function of its arguments.

    Args:
        index: Which head.
        shape: Rows and columns, any sizes from 16; anterior is up.
        seed: Seed of the set.
        level: Axial level from 0 (skull base) to 1 (vertex); drawn from (seed, index) if None.

    Returns:
        (H, W) float32 magnitudes, 0 in air, at most 1.

    Raises:
        AmbientMRIError: If a side is shorter than 16 pixels or the level is outside [0, 1].
    """
    require(min(shape) >= 16, f"a phantom needs at least 16 x 16 pixels; got {tuple(shape)}.")
    # More slices around the basal ganglia and above than at the base and the vertex, as in a clinical stack.
    z = float(0.04 + 0.93 * _rng("level", seed, index).beta(1.9, 1.5)) if level is None else level
    require(0 <= z <= 1, f"level must lie in [0, 1], from the skull base to the vertex; got {z}.")
    return _render(_draw_head(_rng("head", seed, index)), z, shape)


def _rng(*keys: int | str) -> np.random.Generator:
    return np.random.default_rng(keyed_generator("phantom", *keys).initial_seed())


def _draw_head(rng: np.random.Generator) -> Head:
    width, age = rng.uniform(0.60, 0.74), rng.beta(1.3, 1.8)
    orders = np.arange(2, 8)[:, None]
    order, frequency = rng.integers(11, 27, 18), rng.normal(0, 6, 18)
    phase, speed = rng.uniform(0, 2 * np.pi, 18), rng.normal(0, 7, 18)
    return Head(
        axes=(width, min(width * rng.uniform(1.16, 1.34), 0.86)),
        squareness=rng.uniform(2.0, 2.35),
        centre=(rng.uniform(-0.045, 0.045), rng.uniform(-0.045, 0.045)),
        angle=rng.normal(0, 0.07),
        harmonics=rng.normal(0, 0.022, (6, 2)) / orders,
        scalp=rng.normal(0, 0.32, (6, 2)) / orders,
        thickness=(rng.uniform(0.035, 0.075), rng.uniform(0.045, 0.085), 0.008 + 0.03 * age),
        age=float(age),
        grey=rng.uniform(0.028, 0.038),
        folds=np.stack([order, frequency, phase, speed], 1),
        fold_waves=Waves.draw(rng, rng.uniform(0.21, 0.27)),
        warp=(Waves.draw(rng, 0.9, 8, 3.0), Waves.draw(rng, 0.6, 10, 3.0)),
        texture=Waves.draw(rng, 0.3, 16),
        fine=Waves.draw(rng, 0.075, 24, 20.0),
        sizes=rng.normal(1, 0.1, 8),
        lesion=_draw_lesion(rng),
        tissue=_draw_contrast(rng),
        texture_strength=rng.uniform(0.008, 0.024),
    )


def _draw_lesion(rng: np.random.Generator) -> tuple[float, float, float, float] | None:
    present, angle, distance = rng.uniform() < 0.35, rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.65)
    size, z = rng.uniform(0.06, 0.3), rng.uniform(0.35, 0.85)
    return (distance * np.cos(angle), distance * np.sin(angle), size, z) if present else None


def _draw_contrast(rng: np.random.Generator) -> dict[str, float]:
    name = rng.choice(list(_CONTRASTS), p=[0.42, 0.24, 0.28, 0.06])
    values = np.array(_CONTRASTS[str(name)]) * np.exp(rng.normal(0, 0.09, len(_TISSUES)))
    values[1] *= rng.uniform(0.35, 1.0) if rng.uniform() < 0.3 else 1.0  # fat saturation, more or less complete
    return dict(zip(_TISSUES, (float(v) for v in values / max(values.max(), 1.0)), strict=True))


def _render(head: Head, z: float, shape: tuple[int, int]) -> Field:
    """The slice of ``head`` at level ``z``."""
    canvas, axes = outline(head, z, shape)
    tissue = head.tissue
    texture = head.texture.on_axes(*axes, z)
    inner = paint_scalp_and_skull(canvas, head, z, texture)
    brain = inner - head.thickness[2]
    semi = [max(s - sum(head.thickness), 0.1) for s in (head.axes[1], head.axes[0])]
    v, u = canvas.y / semi[0], canvas.x / semi[1]
    face = paint_face(canvas, head, z, (v, u), texture)
    brain = np.minimum(brain, -face) if face is not None else brain
    pial = pial_depth(canvas, head, z, (v, u), brain, axes)
    grey = head.grey * (1 + 0.22 * texture)
    canvas.paint(pial, tissue["grey"])
    canvas.paint(pial - grey, tissue["white"])
    paint_deep(canvas, head, z, (v, u))
    if z < 0.4:
        paint_posterior_fossa(canvas, head, z, (v, u), brain)
    paint_lesion(canvas, head, z, (v, u), pial, texture)
    grain = head.fine.on_axes(*axes, z)
    canvas.image *= 1 + head.texture_strength * (grain + 0.6 * texture)
    return _finish(canvas.image)


def _finish(image: Field) -> Field:
    """A pixel's point-spread function, about half a pixel wide, and the range [0, 1]."""
    from scipy.ndimage import correlate1d

    kernel = np.array([0.09, 0.82, 0.09], np.float32)
    for axis in (0, 1):
        image = correlate1d(image, kernel, axis=axis, mode="nearest")
    return np.clip(image, 0, 1).astype(np.float32)
