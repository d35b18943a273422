from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ambient_mri._checks import AmbientMRIError, DataError
from ambient_mri.data.files import atomic_path
from ambient_mri.data.readers import read_scan
from ambient_mri.data.schema import PreparedScan, read_prepared, write_prepared
from tests.data.fastmri_files import random_lines, simulated_kspace

SLICES, COILS, HEIGHT, WIDTH = 3, 4, 24, 19


def unit_maps(slices: int, coils: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    maps = rng.standard_normal((slices, coils, height, width)) + 1j * rng.standard_normal(
        (slices, coils, height, width)
    )
    return (maps / np.linalg.norm(maps, axis=1, keepdims=True)).astype(np.complex64)


def prepared(**changes: object) -> PreparedScan:
    mask = random_lines(WIDTH, acceleration=2, acs_lines=4)[None, None, None]
    scan = PreparedScan(
        kspace=simulated_kspace(SLICES, COILS, HEIGHT, WIDTH) * mask,
        mask=mask,
        coil_maps=unit_maps(SLICES, COILS, HEIGHT, WIDTH),
        noise_std=np.array([0.1, 0.2, 0.3], np.float32),
        scale=2.5,
        source="file1000001.h5",
        source_sha256="ab" * 32,
        acquisition="AXT2",
        acquired_extent=((0, 24), (1, 18)),
        recon_shape=(12, 19),
        affine=np.diag([1.0, 2.0, 3.0, 1.0]),
        phase_absorbed=True,
        sampling_law={"law": "RandomLines", "acceleration": 4},
        preparation={"coil_maps": {"method": "espirit", "kernel": 6}, "noise": "periphery"},
    )
    return replace(scan, **changes)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "scan.h5"
    write_prepared(target, prepared())
    return target


def test_round_trip_is_exact(path: Path) -> None:
    written, read = prepared(), read_prepared(path)
    for name in ("kspace", "mask", "coil_maps", "noise_std", "affine"):
        a, b = getattr(written, name), getattr(read, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    for name in ("scale", "source", "source_sha256", "acquisition", "acquired_extent", "recon_shape"):
        assert getattr(written, name) == getattr(read, name)
    assert read.phase_absorbed is True
    assert (read.sampling_law, read.preparation) == (written.sampling_law, written.preparation)


def test_layout_on_disk_is_schema_version_1(path: Path) -> None:
    with h5py.File(path) as handle:
        assert set(handle) == {"kspace", "mask", "coil_maps", "noise_std", "scale"}
        assert handle["kspace"].shape == (SLICES, COILS, HEIGHT, WIDTH) and handle["kspace"].dtype == np.complex64
        assert handle["kspace"].chunks == (1, COILS, HEIGHT, WIDTH)
        assert handle["kspace"].compression == "lzf"
        assert handle["mask"].shape == (1, 1, HEIGHT, WIDTH) and handle["mask"].dtype == bool
        assert handle["coil_maps"].chunks == (1, COILS, HEIGHT, WIDTH)
        assert handle["noise_std"].shape == (SLICES,) and handle["scale"].shape == ()
        assert set(handle.attrs) == {
            "schema_version", "source", "source_sha256", "acquisition", "acquired_extent", "recon_shape", "affine",
            "phase_absorbed", "sampling_law", "preparation",
        }  # fmt: skip
        assert handle.attrs["schema_version"] == 1
        np.testing.assert_array_equal(handle["kspace"], prepared().kspace)  # raw units


def test_some_slices(path: Path) -> None:
    scan = read_prepared(path, [2, 0])
    np.testing.assert_array_equal(scan.kspace, prepared().kspace[[2, 0]])
    np.testing.assert_array_equal(scan.coil_maps, prepared().coil_maps[[2, 0]])
    np.testing.assert_array_equal(scan.noise_std, prepared().noise_std[[2, 0]])
    assert scan.slice_indices == (2, 0)
    assert scan.measurement().key == ("file1000001.h5/2", "file1000001.h5/0")


def test_measurement_is_scaled(path: Path) -> None:
    scan = read_prepared(path)
    m = scan.measurement(1)
    torch.testing.assert_close(m.y * m.scale[:, None, None, None], torch.from_numpy(scan.kspace[1:2]))
    torch.testing.assert_close(m.noise_std, torch.tensor([0.2 / 2.5]))
    assert m.mask.shape == (1, 1, 1, WIDTH) and m.mask.dtype == torch.bool
    assert m.key == ("file1000001.h5/1",)
    whole = scan.measurement()
    assert len(whole) == SLICES and whole.y.dtype == torch.complex64
    torch.testing.assert_close(scan.measurement(slice(1, 3)).y, whole.y[1:])


def test_one_set_of_maps_serves_all_slices(tmp_path: Path) -> None:
    write_prepared(tmp_path / "one.h5", prepared(coil_maps=unit_maps(1, COILS, HEIGHT, WIDTH)))
    scan = read_prepared(tmp_path / "one.h5", slice(1, 3))
    assert scan.coil_maps.shape[0] == 1
    assert scan.measurement().coil_maps.shape == (2, COILS, HEIGHT, WIDTH)  # type: ignore[union-attr]


def test_a_mask_for_every_slice(tmp_path: Path) -> None:
    masks = np.stack([random_lines(WIDTH, acceleration=2, acs_lines=4, seed=s) for s in range(SLICES)])[:, None, None]
    scan = prepared(mask=masks, kspace=simulated_kspace(SLICES, COILS, HEIGHT, WIDTH) * masks)
    write_prepared(tmp_path / "masks.h5", scan)
    np.testing.assert_array_equal(read_prepared(tmp_path / "masks.h5").mask, masks)
    np.testing.assert_array_equal(read_prepared(tmp_path / "masks.h5", 2).measurement().mask.numpy(), masks[2:])


def test_defaults_and_single_slice(tmp_path: Path) -> None:
    k = simulated_kspace(1, 1, 8, 9)
    scan = PreparedScan(k, np.ones((1, 1, 1, 9), bool), np.ones_like(k), np.zeros(1, np.float32), 1.0, "x")
    write_prepared(tmp_path / "x.h5", scan)
    read = read_prepared(tmp_path / "x.h5")
    assert read.acquired_extent == ((0, 8), (0, 9)) and read.recon_shape == (8, 9) and read.affine is None
    with h5py.File(tmp_path / "x.h5") as handle:
        assert handle["kspace"].compression is None  # dense data gain nothing from it


def test_a_prepared_scan_is_a_scan(path: Path) -> None:
    scan = read_scan(path, slice(0, 2))
    np.testing.assert_array_equal(scan.kspace, prepared().kspace[:2])
    np.testing.assert_array_equal(scan.coil_maps, prepared().coil_maps[:2])  # type: ignore[arg-type]
    assert scan.phase_encode_axis == -1 and scan.acquired_extent == ((0, 24), (1, 18)) and scan.recon_shape == (12, 19)
    assert scan.attrs["source"] == "file1000001.h5"


def _set(name: str, index: tuple[int, ...], value: complex) -> Callable[[PreparedScan], PreparedScan]:
    def change(scan: PreparedScan) -> PreparedScan:
        array = getattr(scan, name).copy()
        array[index] = value
        return replace(scan, **{name: array})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("kspace", (1, 0, 0, 9), np.nan), "'kspace' holds 1 non-finite values .* in slice 1"),
        (_set("coil_maps", (2, 0, 0, 0), np.inf), "'coil_maps' holds 1 non-finite values .* in slice 2"),
        (_set("kspace", (0, 0, 3, 0), 1), "'kspace' holds 1 values outside the mask"),
        (_set("noise_std", (0,), -1), "'noise_std' must be finite and not negative"),
        (lambda s: replace(s, scale=0.0), "'scale' must be a positive finite number; got 0.0"),
        (lambda s: replace(s, coil_maps=2 * s.coil_maps), r"'coil_maps' must be normalised.*off by up to 3"),
        (lambda s: replace(s, coil_maps=s.coil_maps[:, :3]), r"'coil_maps' must have shape \(1 or 3, 4, 24, 19\)"),
        (lambda s: replace(s, noise_std=s.noise_std[:2]), r"'noise_std' must have shape \(3\)"),
        (lambda s: replace(s, mask=s.mask[..., :5]), r"'mask' must have shape \(1 or 3, 1, 1 or 24, 1 or 19\)"),
        (lambda s: replace(s, mask=s.mask & False, kspace=s.kspace * 0), "'mask' selects no k-space location"),
        (lambda s: replace(s, kspace=s.kspace.astype(complex)), "'kspace' must be complex64; got complex128"),
        (lambda s: replace(s, preparation={"a": "b" * 70_000}), "'preparation' has 70009 characters"),
    ],
)
def test_what_breaks_the_schema_is_not_written(
    tmp_path: Path, change: Callable[[PreparedScan], PreparedScan], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        write_prepared(tmp_path / "bad.h5", change(prepared()))
    assert str(caught.value).startswith(str(tmp_path / "bad.h5"))
    assert not list(tmp_path.iterdir())


def _delete(name: str) -> Callable[[h5py.File], None]:
    return lambda handle: handle.__delitem__(name)


def _replace(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(handle: h5py.File) -> None:
        del handle[name]
        handle[name] = value

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda h: h.attrs.__setitem__("schema_version", 2), "'schema_version' is 2; ambient_mri reads 1"),
        (lambda h: h.attrs.__delitem__("recon_shape"), "attribute 'recon_shape' is missing"),
        (lambda h: h.attrs.__setitem__("preparation", "{"), "an attribute has the wrong form"),
        (lambda h: h.attrs.__setitem__("acquired_extent", 3), "an attribute has the wrong form"),
        (_delete("coil_maps"), r"'coil_maps' is missing \(the file holds kspace, mask, noise_std, scale\)"),
        (_replace("kspace", np.zeros((3, 4, 24, 19), np.float32)), "'kspace' must be complex64; got float32"),
        (
            _replace("mask", np.ones((1, 1, 24, 18), bool)),
            r"'mask' must have shape \(1 or 3, 1, 24, 19\).*\(1, 1, 24, 18\)",
        ),
        (_replace("kspace", np.zeros((0, 4, 24, 19), np.complex64)), "none of them 0"),
        (_replace("scale", np.float64(np.nan)), "'scale' must be a positive finite number"),
        (lambda h: h["kspace"].__setitem__((1, 0, 0, 9), np.inf), "'kspace' holds 1 non-finite values .* in slice 1"),
    ],
)
def test_what_breaks_the_schema_is_not_read(path: Path, damage: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(path, "r+") as handle:
        damage(handle)
    with pytest.raises(DataError, match=message) as caught:
        read_prepared(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_truncated_file_is_named(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"scan\.h5: HDF5 cannot read it .*truncated"):
        read_prepared(path)


def test_measurement_rejects_a_wrong_slice(path: Path) -> None:
    with pytest.raises(AmbientMRIError, match=r"slice \[3\] does not exist; there are 3 slices"):
        read_prepared(path).measurement(3)


def test_an_interrupted_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_prepared(path, prepared(scale=9.0))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["scan.h5"]


def test_a_write_replaces_the_old_file(path: Path) -> None:
    write_prepared(path, prepared(scale=9.0))
    assert read_prepared(path).scale == 9.0
    assert [p.name for p in path.parent.iterdir()] == ["scan.h5"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder .*absent does not exist"), atomic_path(tmp_path / "absent" / "a"):
        pass
