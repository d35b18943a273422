"""Prepared scans on disk: HDF5 schema, version 1. One file a volume, one chunk a slice, raw units.

| dataset | shape, dtype |
|---|---|
| ``kspace`` | (slices, coils, H, W) complex64, raw units, zero outside the mask |
| ``mask`` | (slices or 1, 1, H, W) bool |
| ``coil_maps`` | (slices or 1, coils, H, W) complex64, sum over coils of abs(S)^2 = 1 |
| ``noise_std`` | (slices,) float32, per real and imaginary part, raw units |
| ``scale`` | one float64, raw units per scaled unit |

Attributes: ``schema_version``, ``source``, ``source_sha256``, ``acquisition``, ``acquired_extent`` (rows, columns;
half-open), ``recon_shape``, ``affine`` (4 x 4, mm), ``phase_absorbed``, ``sampling_law`` and ``preparation`` (JSON).

Scaled values exist only inside a :class:`~ambient_mri.measurement.Measurement`; a reference image, where there is one,
lives in another file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import torch

from ambient_mri._checks import DataError, require
from ambient_mri.data.acquisition import Extent, acquired_mask, compact_mask
from ambient_mri.data.files import (
    PathLike,
    SliceSelection,
    atomic_path,
    check_finite_array,
    open_hdf5,
    plain_value,
    read_rows,
    require_dataset,
    select_slices,
)
from ambient_mri.measurement import Measurement

__all__ = ["SCHEMA_VERSION", "PreparedScan", "read_attributes", "read_prepared", "write_prepared"]

SCHEMA_VERSION = 1
_FIX = "Prepare the scan again with `ambient-mri prepare`."
_DTYPES = {"kspace": "complex64", "mask": "bool", "coil_maps": "complex64", "noise_std": "float32", "scale": "float64"}
# HDF5 keeps an attribute in the object header, which holds 64 KiB.
_LONGEST_ATTRIBUTE = 60_000


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A volume, or some of its slices, ready for training and reconstruction.

    Attributes:
        kspace: (slices, coils, H, W) complex64, raw units, zero outside the mask.
        mask: (slices or 1, 1, H or 1, W or 1) bool.
        coil_maps: (slices or 1, coils, H, W) complex64, sum over coils of abs(S)^2 = 1; one set may serve all slices.
        noise_std: (slices,) float32, per real and imaginary part, raw units.
        scale: Raw units per scaled unit, one for the volume.
        source: Name of the scan; random draws that belong to the scan are tied to it.
        source_sha256: Of the raw file.
        acquisition: The contrast's name; may be empty.
        acquired_extent: ((row0, row1), (column0, column1)) really covered; by default all of k-space.
        recon_shape: Rows and columns after the centre crop; by default all of the image.
        affine: (4, 4), (row, column, slice) to mm, or None where unknown.
        phase_absorbed: Whether the image's smooth phase was moved into the coil maps.
        sampling_law: What the mask was drawn from; empty for a scan's own mask.
        preparation: Every setting of the preparation.
        slice_indices: Which of the volume's slices these are; not stored.
    """

    kspace: np.ndarray
    mask: np.ndarray
    coil_maps: np.ndarray
    noise_std: np.ndarray
    scale: float
    source: str
    source_sha256: str = ""
    acquisition: str = ""
    acquired_extent: Extent | None = None
    recon_shape: tuple[int, int] | None = None
    affine: np.ndarray | None = None
    phase_absorbed: bool = False
    sampling_law: dict[str, Any] = field(default_factory=dict)
    preparation: dict[str, Any] = field(default_factory=dict)
    slice_indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Fill in what follows from the k-space: extent, image size and slice numbers."""
        height, width = self.kspace.shape[-2:]
        defaults = {
            "acquired_extent": ((0, height), (0, width)),
            "recon_shape": (height, width),
            "slice_indices": tuple(range(len(self.kspace))),
        }
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return self.kspace.shape[0]

    def measurement(self, rows: slice | int | None = None) -> Measurement:
        """Slices as a scaled, checked Measurement on the CPU: y = kspace / scale, noise_std / scale.

        Args:
            rows: One slice, a range of them, or None for all; positions in this object, not in the file.

        Raises:
            AmbientMRIError: If the arrays do not belong together.
        """
        picked = select_slices(rows, len(self), self.source)
        pick = lambda a: a[list(picked)] if len(a) == len(self) else a  # noqa: E731
        maps, mask = torch.from_numpy(pick(self.coil_maps)), compact_mask(pick(self.mask))
        height, width = self.kspace.shape[-2:]
        acquired = acquired_mask(self.acquired_extent, (height, width), mask.shape)  # type: ignore[arg-type]
        return Measurement(
            y=torch.from_numpy(pick(self.kspace) / np.float32(self.scale)),
            mask=torch.from_numpy(mask),
            coil_maps=maps.expand(len(picked), *maps.shape[1:]),
            noise_std=torch.from_numpy((pick(self.noise_std) / self.scale).astype(np.float32)),
            scale=torch.full((len(picked),), self.scale, dtype=torch.float32),
            key=tuple(f"{self.source}/{self.slice_indices[i]}" for i in picked),
            acquired=None if acquired is None else torch.from_numpy(acquired),
        ).check()


def write_prepared(path: PathLike, scan: PreparedScan) -> None:
    """Check a scan and write it; a run that is killed leaves the old file, or none.

    K-space is compressed (lzf) where a quarter of it or more is zero.

    Raises:
        DataError: If the scan breaks the schema, or the folder does not exist.
    """
    _check(scan, path)
    height, width = scan.kspace.shape[-2:]
    mask = np.broadcast_to(scan.mask, (len(scan.mask), 1, height, width))
    sparse = "lzf" if mask.mean() <= 0.75 else None
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        _write_by_slice(handle, "kspace", scan.kspace, sparse)
        _write_by_slice(handle, "mask", mask, "gzip")
        _write_by_slice(handle, "coil_maps", scan.coil_maps, None)
        handle["noise_std"] = scan.noise_std.astype(np.float32)
        handle["scale"] = np.float64(scan.scale)
        for name, value in _attributes(scan, path).items():
            handle.attrs[name] = value


def read_prepared(path: PathLike, slices: SliceSelection = None) -> PreparedScan:
    """Read a prepared scan, or some of its slices; nothing else leaves the disk.

    Raises:
        DataError: If the file is damaged, of another schema version, or breaks the schema; one line that names the
            file, the dataset and the fix.
    """
    with open_hdf5(path) as handle:
        version = plain_value(handle.attrs.get("schema_version"))
        known = f"{path}: attribute 'schema_version' is {version!r}; ambient_mri reads {SCHEMA_VERSION}."
        require(version == SCHEMA_VERSION, f"{known} {_FIX}", DataError)
        datasets = {name: require_dataset(handle, name, path, _FIX) for name in _DTYPES}
        for name, dtype in _DTYPES.items():
            found = datasets[name].dtype
            require(found == dtype, f"{path}: dataset '{name}' must be {dtype}; got {found}. {_FIX}", DataError)
        _check_shapes({name: item.shape for name, item in datasets.items()}, path, on_disk=True)
        count = datasets["kspace"].shape[0]
        indices = select_slices(slices, count, path)
        arrays = {
            name: read_rows(datasets[name], indices if datasets[name].shape[0] == count else (0,))
            for name in ("kspace", "mask", "coil_maps", "noise_std")
        }
        scale = float(datasets["scale"][()])
        attributes = _parse_attributes(handle, path)
    arrays["mask"] = compact_mask(arrays["mask"])
    fields: dict[str, Any] = {**arrays, **attributes}
    scan = PreparedScan(scale=scale, slice_indices=indices, **fields)
    _check(scan, path)
    return scan


def read_attributes(path: PathLike) -> dict[str, Any]:
    """What a prepared scan says about itself, by the names of :class:`PreparedScan`; no array leaves the disk.

    Raises:
        DataError: If the file is damaged, or an attribute is missing.
    """
    with open_hdf5(path) as handle:
        return _parse_attributes(handle, path)


def _write_by_slice(handle: h5py.File, name: str, array: np.ndarray, compression: str | None) -> None:
    handle.create_dataset(name, data=array, chunks=(1, *array.shape[1:]), compression=compression)


def _attributes(scan: PreparedScan, path: PathLike) -> dict[str, Any]:
    found = {
        "schema_version": SCHEMA_VERSION,
        "source": scan.source,
        "source_sha256": scan.source_sha256,
        "acquisition": scan.acquisition,
        "acquired_extent": np.asarray(scan.acquired_extent, dtype=np.int64),
        "recon_shape": np.asarray(scan.recon_shape, dtype=np.int64),
        "phase_absorbed": bool(scan.phase_absorbed),
    }
    if scan.affine is not None:
        found["affine"] = np.asarray(scan.affine, dtype=np.float64)
    for name, value in (("sampling_law", scan.sampling_law), ("preparation", scan.preparation)):
        text = json.dumps(value, sort_keys=True)
        fits = len(text.encode()) <= _LONGEST_ATTRIBUTE
        require(fits, f"{path}: attribute '{name}' has {len(text)} characters; keep it under 60 kB.", DataError)
        found[name] = text
    return found


def _parse_attributes(handle: h5py.File, path: PathLike) -> dict[str, Any]:
    attrs = {key: plain_value(value) for key, value in handle.attrs.items()}
    try:
        rows, columns = attrs["acquired_extent"]
        height, width = attrs["recon_shape"]
        return {
            "acquired_extent": ((int(rows[0]), int(rows[1])), (int(columns[0]), int(columns[1]))),
            "recon_shape": (int(height), int(width)),
            "affine": None if attrs.get("affine") is None else np.asarray(attrs["affine"], dtype=np.float64),
            "phase_absorbed": bool(attrs["phase_absorbed"]),
            "sampling_law": json.loads(attrs["sampling_law"]),
            "preparation": json.loads(attrs["preparation"]),
            **{key: str(attrs[key]) for key in ("source", "source_sha256", "acquisition")},
        }
    except KeyError as error:
        raise DataError(f"{path}: attribute {error} is missing. {_FIX}") from error
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path}: an attribute has the wrong form ({error}). {_FIX}") from error


def _check_shapes(shapes: dict[str, tuple[int, ...]], where: object, *, on_disk: bool = False) -> None:
    kspace = shapes["kspace"]
    require(
        len(kspace) == 4 and min(kspace) > 0,
        f"{where}: dataset 'kspace' must be (slices, coils, H, W), none of them 0; got {kspace}. {_FIX}",
        DataError,
    )
    slices, coils, height, width = kspace
    rows, columns = ({height}, {width}) if on_disk else ({1, height}, {1, width})
    expected: dict[str, tuple[set[int], ...]] = {
        "mask": ({1, slices}, {1}, rows, columns),
        "coil_maps": ({1, slices}, {coils}, {height}, {width}),
        "noise_std": ({slices},),
        "scale": (),
    }
    for name, allowed in expected.items():
        found = shapes[name]
        fits = len(found) == len(allowed) and all(n in sizes for n, sizes in zip(found, allowed, strict=True))
        wanted = "(" + ", ".join(" or ".join(map(str, sorted(sizes))) for sizes in allowed) + ")"
        message = f"{where}: dataset '{name}' must have shape {wanted} to match kspace {kspace}; got {found}. {_FIX}"
        require(fits, message, DataError)


def _check(scan: PreparedScan, where: object) -> None:
    """The schema's promises about shapes and values."""
    arrays = {"kspace": scan.kspace, "mask": scan.mask, "coil_maps": scan.coil_maps, "noise_std": scan.noise_std}
    _check_shapes({name: a.shape for name, a in arrays.items()} | {"scale": ()}, where)
    for name in ("kspace", "mask", "coil_maps"):
        found, wanted = arrays[name].dtype, _DTYPES[name]
        require(found == wanted, f"{where}: dataset '{name}' must be {wanted}; got {found}. Convert it.", DataError)
    for name in ("kspace", "coil_maps"):
        check_finite_array(arrays[name], name, where, scan.slice_indices if len(arrays[name]) == len(scan) else None)
    noise = np.asarray(scan.noise_std, dtype=np.float64)
    good = bool((np.isfinite(noise) & (noise >= 0)).all())
    require(good, f"{where}: dataset 'noise_std' must be finite and not negative. {_FIX}", DataError)
    good = bool(np.isfinite(scan.scale)) and scan.scale > 0
    require(good, f"{where}: dataset 'scale' must be a positive finite number; got {scan.scale}. {_FIX}", DataError)
    _check_mask(scan, where)
    _check_maps(scan.coil_maps, where)


def _check_mask(scan: PreparedScan, where: object) -> None:
    require(bool(scan.mask.any()), f"{where}: dataset 'mask' selects no k-space location. Is it inverted?", DataError)
    outside = ~np.broadcast_to(scan.mask, (len(scan), 1, *scan.kspace.shape[-2:]))
    stray = sum(np.count_nonzero(part[:, out[0]]) for part, out in zip(scan.kspace, outside, strict=True))
    require(
        stray == 0,
        f"{where}: dataset 'kspace' holds {stray} values outside the mask; what was not measured must be zero, or "
        "training could see it. Multiply it by the mask.",
        DataError,
    )


def _check_maps(maps: np.ndarray, where: object) -> None:
    power = sum(np.square(coil.real) + np.square(coil.imag) for coil in maps.swapaxes(0, 1))
    worst = float(np.abs(power - 1).max())
    require(
        worst < 1e-2,
        f"{where}: dataset 'coil_maps' must be normalised, sum over coils of |S|^2 = 1 in every pixel; it is off by "
        f"up to {worst:.2g}. Divide by the root sum of squares, and do not crop the maps.",
        DataError,
    )
