"""A prepared scan (schema version 1) seen as a raw one, so that every command takes either file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ambient_mri.data.acquisition import describe_sampling, mask_from_any_shape, support_of
from ambient_mri.data.files import PathLike, SliceSelection
from ambient_mri.data.readers.raw_scan import RawScan
from ambient_mri.data.schema import read_prepared

__all__ = ["read_prepared_as_raw"]


def _first_slice(preparation: Mapping[str, Any]) -> int:
    """Number of the first slice in the volume that a file was prepared from."""
    chosen = preparation.get("slices") or (0,)  # older files say no more than what was asked for
    return int(preparation.get("first_slice", max(0, chosen[0])))


def read_prepared_as_raw(path: PathLike, slices: SliceSelection = None) -> RawScan:
    """Read a prepared file as a :class:`RawScan` that brings its coil maps and noise level.

    Raises:
        DataError: As :func:`~ambient_mri.data.schema.read_prepared`.
    """
    scan = read_prepared(path, slices)
    shape = (scan.kspace.shape[-2], scan.kspace.shape[-1])
    extent = scan.acquired_extent or ((0, shape[0]), (0, shape[1]))
    stored = mask_from_any_shape(scan.mask, len(scan), shape, path)
    sampling = describe_sampling(support_of(scan.kspace), stored, header_extent=extent, where=path)
    return RawScan(
        kspace=scan.kspace,
        mask=scan.mask,
        phase_encode_axis=sampling.phase_encode_axis,
        acquired_extent=extent,
        recon_shape=scan.recon_shape or shape,
        acquisition=scan.acquisition,
        source=Path(path),
        attrs={
            "source": scan.source,
            "source_sha256": scan.source_sha256,
            "phase_absorbed": scan.phase_absorbed,
            "maps": scan.preparation.get("maps", ""),
            "first_slice": _first_slice(scan.preparation),
            "whitened": bool(scan.preparation.get("whitening")),
        },
        coil_maps=scan.coil_maps,
        noise_std=scan.noise_std,
        affine=scan.affine,
        slice_indices=scan.slice_indices,
    )
