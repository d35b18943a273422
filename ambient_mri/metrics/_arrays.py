"""What goes into a metric: arrays of finite float64 or complex128, and the pixels that count."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import require

ArrayLike = np.ndarray | Tensor


def as_array(name: str, values: ArrayLike | float) -> np.ndarray:
    """A float64 or complex128 array of finite values: scores do not depend on the precision they are stored in."""
    if isinstance(values, Tensor):
        # Widened in torch: bfloat16 has no numpy counterpart.
        wide = torch.complex128 if values.is_complex() else torch.float64
        values = values.detach().cpu().to(wide).resolve_conj().resolve_neg().numpy()
    array = np.asarray(values)
    array = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    bad = int(np.count_nonzero(~np.isfinite(array)))
    require(bad == 0, f"{name} holds {bad} non-finite values (NaN or infinity) and cannot be scored.")
    return array


def pair(
    reference: ArrayLike, image: ArrayLike, names: tuple[str, str] = ("reference", "image")
) -> tuple[np.ndarray, np.ndarray]:
    x0, x = as_array(names[0], reference), as_array(names[1], image)
    require(
        x0.shape == x.shape and x0.ndim >= 2,
        f"{names[0]} and {names[1]} must have the same shape (..., H, W); got {x0.shape} and {x.shape}.",
    )
    require(
        np.iscomplexobj(x0) == np.iscomplexobj(x),
        f"{names[0]} and {names[1]} must both be complex or both be magnitude images; got {x0.dtype} and {x.dtype}.",
    )
    return x0, x


def real_pair(reference: ArrayLike, image: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    for name, values in (("reference", reference), ("image", image)):
        complex_values = values.is_complex() if isinstance(values, Tensor) else np.iscomplexobj(values)
        require(not complex_values, f"{name} is complex, and psnr and ssim are defined for magnitudes: pass its abs().")
    return pair(reference, image)


def sample_pair(samples: ArrayLike, reference: ArrayLike, minimum: int) -> tuple[np.ndarray, np.ndarray]:
    kept = samples is not None
    require(kept, "samples is None: they were not kept. Pass keep_samples=True to reconstruct() or solve().")
    x, x0 = as_array("samples", samples), as_array("reference", reference)
    require(
        x.ndim == x0.ndim + 1 and x.shape[1:] == x0.shape,
        f"samples must have the reference's shape with the sample axis in front; got {x.shape} for {x0.shape}.",
    )
    require(
        np.iscomplexobj(x) == np.iscomplexobj(x0),
        f"samples and reference must both be complex or both be magnitudes; got {x.dtype} and {x0.dtype}.",
    )
    require(len(x) >= minimum, f"this metric needs at least {minimum} samples; got {len(x)}. Draw more samples.")
    return x, x0


def peak_of(x0: np.ndarray, data_range: float | None) -> float:
    peak = float(x0.max()) if data_range is None else float(data_range)
    require(peak > 0, f"the data range (by default the reference volume's maximum) must be positive; got {peak:g}.")
    return peak


def as_support(support: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(support.detach().cpu().numpy() if isinstance(support, Tensor) else support)
    require(array.dtype == np.bool_, f"support must be a bool mask; got {array.dtype}.")
    fits = array.ndim <= len(shape) and all(a in (1, s) for a, s in zip(array.shape[::-1], shape[::-1], strict=False))
    require(fits, f"support {array.shape} does not broadcast to {shape}.")
    return np.broadcast_to(array, shape)


def select(values: np.ndarray, support: ArrayLike | None) -> np.ndarray:
    """The values inside the support, flat; all of them where there is none."""
    if support is None:
        return values.ravel()
    chosen = values[as_support(support, values.shape)]
    require(chosen.size > 0, "the support (or mask) selects no value to score.")
    return chosen
