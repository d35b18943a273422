"""Write a reconstruction, and read it back.

HDF5, fastMRI's layout for submissions and more beside it (slices first, after the centre crop to the scan's image
size):

| dataset | shape, dtype |
|---|---|
| ``reconstruction`` | (slices, H, W) float32, abs(mean): what fastMRI's evaluation reads |
| ``mean`` | (slices, H, W) complex64 |
| ``std`` | (slices, H, W) float32, where there are samples |
| ``samples`` | (slices, samples, H, W) complex64, on request |
| ``residual`` | (slices, ...) float32, as the caller defines it |
| attribute ``settings`` | JSON |

All in raw units. ``.npz`` holds the same arrays; NIfTI the magnitude, and the standard deviation in a second file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ambient_mri._checks import AmbientMRIError, DataError, require
from ambient_mri.data.files import PathLike, atomic_path, open_hdf5, plain_value, require_dataset
from ambient_mri.data.readers.numpy_arrays import ArrayLike, to_numpy

__all__ = ["read_reconstruction", "save_reconstruction"]

_ENDINGS = ".h5, .hdf5, .npz, .nii or .nii.gz"


def save_reconstruction(
    path: PathLike,
    mean: ArrayLike,
    *,
    std: ArrayLike | None = None,
    samples: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    recon_shape: tuple[int, int] | None = None,
    affine: np.ndarray | None = None,
    settings: dict[str, Any] | None = None,
) -> list[Path]:
    """Write a reconstruction; the file appears whole or not at all.

    Args:
        path: Ending .h5 or .hdf5, .npz, .nii or .nii.gz.
        mean: (slices, H, W) or (slices, 1, H, W) complex, raw units.
        std: Real, shape of ``mean``: standard deviation of the complex samples.
        samples: (slices, samples, H, W) or (slices, samples, 1, H, W) complex.
        residual: (slices, ...) real, whatever measures the fit to the data.
        recon_shape: Centre crop that removes readout oversampling; by default the whole image.
        affine: (4, 4), (row, column, slice) of the cropped image to mm; NIfTI without it gets voxels of 1 mm.
        settings: What made the reconstruction; must be JSON.

    Returns:
        The files written.

    Raises:
        AmbientMRIError: If shapes disagree, the ending is unknown, or NIfTI is asked for and nibabel is not installed.
        DataError: If the folder does not exist.
    """
    arrays = _arrays(mean, std, samples, residual, recon_shape)
    text = json.dumps(settings or {}, sort_keys=True)
    name = Path(path).name.lower()
    if name.endswith((".h5", ".hdf5")):
        return [_write_hdf5(Path(path), arrays, affine, text)]
    if name.endswith(".npz"):
        return [_write_npz(Path(path), arrays, affine, text)]
    require(
        name.endswith((".nii", ".nii.gz")),
        f"{path}: the ending names no known format; use {_ENDINGS} (Reconstruction.save also takes .png).",
    )
    return _write_nifti(Path(path), arrays, affine)


def read_reconstruction(path: PathLike) -> dict[str, Any]:
    """Read what :func:`save_reconstruction`, or any writer of fastMRI's layout, wrote as HDF5.

    Returns:
        ``reconstruction`` (slices, H, W) float32, ``settings``, and ``mean``, ``std``, ``samples``, ``residual``,
        ``affine`` where the file holds them.

    Raises:
        DataError: If the file is damaged or holds no reconstruction.
    """
    with open_hdf5(path) as handle:
        image = require_dataset(handle, "reconstruction", path, "Write it with `ambient-mri reconstruct`.")
        message = f"{path}: dataset 'reconstruction' must be (slices, H, W); got {image.shape}."
        require(image.ndim == 3, message, DataError)
        found = {"reconstruction": np.asarray(image[()], dtype=np.float32)}
        for name in ("mean", "std", "samples", "residual", "affine"):
            if name in handle:
                found[name] = np.asarray(handle[name][()])
        settings = plain_value(handle.attrs.get("settings", "{}"))
    return {**found, "settings": json.loads(settings)}


def _arrays(
    mean: ArrayLike,
    std: ArrayLike | None,
    samples: ArrayLike | None,
    residual: ArrayLike | None,
    recon_shape: tuple[int, int] | None,
) -> dict[str, np.ndarray]:
    """Checked and cropped arrays under the names of the file."""
    full = _drop_channel("mean", to_numpy(mean), 3)
    shape = recon_shape or full.shape[-2:]
    fits = all(crop <= size for crop, size in zip(shape, full.shape[-2:], strict=True))
    require(fits, f"recon_shape {tuple(shape)} is larger than the image {full.shape[-2:]}. Is it transposed?")
    arrays = {"reconstruction": _crop(np.abs(full), shape).astype(np.float32)}
    arrays["mean"] = _crop(full, shape).astype(np.complex64)
    if std is not None:
        spread = _drop_channel("std", to_numpy(std), 3)
        require(spread.shape == full.shape, f"std must have the shape of mean, {full.shape}; got {spread.shape}.")
        arrays["std"] = _crop(spread, shape).astype(np.float32)
    if samples is not None:
        draws = _drop_channel("samples", to_numpy(samples), 4)
        fits = (draws.shape[0], *draws.shape[2:]) == full.shape
        wanted = (full.shape[0], "any", *full.shape[1:])
        require(fits, f"samples must be {wanted} to match mean; got {draws.shape}. Samples are the second axis.")
        arrays["samples"] = _crop(draws, shape).astype(np.complex64)
    if residual is not None:
        fit = to_numpy(residual).astype(np.float32)
        message = f"residual must have one entry for each of the {len(full)} slices; got shape {fit.shape}."
        require(fit.ndim > 0 and len(fit) == len(full), message)
        arrays["residual"] = fit
    return arrays


def _drop_channel(name: str, array: np.ndarray, ndim: int) -> np.ndarray:
    if array.ndim == ndim + 1 and array.shape[-3] == 1:
        array = array[..., 0, :, :]
    require(array.ndim == ndim, f"{name} must have {ndim} axes, slices first and H, W last; got shape {array.shape}.")
    return array


def _crop(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Centre crop of the last two axes that keeps pixel n//2 at the centre."""
    top, left = (size // 2 - crop // 2 for size, crop in zip(image.shape[-2:], shape, strict=True))
    return np.ascontiguousarray(image[..., top : top + shape[0], left : left + shape[1]])


def _write_hdf5(path: Path, arrays: dict[str, np.ndarray], affine: np.ndarray | None, settings: str) -> Path:
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        for name, array in arrays.items():
            handle[name] = array
        if affine is not None:
            handle["affine"] = np.asarray(affine, dtype=np.float64)
        handle.attrs["settings"] = settings
    return path


def _write_npz(path: Path, arrays: dict[str, np.ndarray], affine: np.ndarray | None, settings: str) -> Path:
    content: dict[str, Any] = {**arrays, "settings": np.array(settings)}
    if affine is not None:
        content["affine"] = np.asarray(affine)
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **content)
    return path


def require_nibabel(path: PathLike) -> Any:
    """The module that writes ``path``.

    Raises:
        AmbientMRIError: If it is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise AmbientMRIError(
            f"{path}: NIfTI needs nibabel. Install it with `pip install 'ambient-mri[nifti]'`, or write .h5 or .npz."
        ) from error
    return nibabel


def _write_nifti(path: Path, arrays: dict[str, np.ndarray], affine: np.ndarray | None) -> list[Path]:
    """Magnitude at ``path``; standard deviation, where there is one, beside it with ``_std`` in its name."""
    nibabel = require_nibabel(path)
    stem, dot, ending = path.name.partition(".nii")
    written = []
    for name, target in (("reconstruction", path), ("std", path.with_name(f"{stem}_std{dot}{ending}"))):
        if name not in arrays:
            continue
        image = nibabel.Nifti1Image(np.moveaxis(arrays[name], 0, -1), np.eye(4) if affine is None else affine)
        image.header.set_xyzt_units("mm")
        with atomic_path(target) as temporary:
            nibabel.save(image, temporary)
        written.append(target)
    return written
