from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ambient_mri._checks import AmbientMRIError, DataError
from ambient_mri.data.writers import read_reconstruction, save_reconstruction
from ambient_mri.operators.fourier import ifft
from tests.data.fastmri_files import rss, simulated_kspace


def images(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


@pytest.mark.parametrize("channel", [False, True])
def test_fastmri_layout(tmp_path: Path, channel: bool) -> None:
    mean, samples = images(2, 20, 17), images(2, 5, 20, 17)
    std = samples.std(axis=1).astype(np.float32)
    arrays = [torch.from_numpy(a) for a in (mean, std, samples)]
    if channel:
        arrays = [a.unsqueeze(-3) for a in arrays]
    path = tmp_path / "file1000001.h5"
    written = save_reconstruction(
        path,
        arrays[0],
        std=arrays[1],
        samples=arrays[2],
        residual=torch.tensor([0.5, 1.5]),
        affine=np.eye(4),
        settings={"sampler": "split_gibbs", "steps": 50},
    )
    assert written == [path]
    with h5py.File(path) as handle:
        assert handle["reconstruction"].shape == (2, 20, 17) and handle["reconstruction"].dtype == np.float32
        np.testing.assert_array_equal(handle["reconstruction"], np.abs(mean))
    read = read_reconstruction(path)
    np.testing.assert_array_equal(read["mean"], mean)
    np.testing.assert_array_equal(read["samples"], samples)
    np.testing.assert_array_equal(read["std"], std)
    np.testing.assert_array_equal(read["residual"], np.float32([0.5, 1.5]))
    np.testing.assert_array_equal(read["affine"], np.eye(4))
    assert read["settings"] == {"sampler": "split_gibbs", "steps": 50}


@pytest.mark.parametrize("shape", [(64, 37), (65, 38)])
def test_crop_matches_the_reference_of_the_file(tmp_path: Path, shape: tuple[int, int]) -> None:
    # A centre crop that is off by a pixel would not meet the reference, an independent crop of the same image.
    kspace = simulated_kspace(1, 1, *shape)
    save_reconstruction(tmp_path / "a.h5", ifft(torch.from_numpy(kspace)), recon_shape=(32, 31))
    np.testing.assert_allclose(
        read_reconstruction(tmp_path / "a.h5")["reconstruction"], rss(kspace, (32, 31)), rtol=1e-5
    )


def test_npz(tmp_path: Path) -> None:
    mean = images(2, 8, 9)
    save_reconstruction(tmp_path / "a.npz", mean, settings={"steps": 1})
    with np.load(tmp_path / "a.npz") as archive:
        assert set(archive.files) == {"reconstruction", "mean", "settings"}
        np.testing.assert_array_equal(archive["mean"], mean)
        assert str(archive["settings"]) == '{"steps": 1}'
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti(tmp_path: Path, ending: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    mean, std = images(3, 8, 9), np.abs(images(3, 8, 9))
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    written = save_reconstruction(tmp_path / f"scan.a{ending}", mean, std=std, affine=affine)
    assert [p.name for p in written] == [f"scan.a{ending}", f"scan.a_std{ending}"]
    image = nibabel.load(written[0])
    # Axes of the array: (row, column, slice).
    np.testing.assert_allclose(image.get_fdata(), np.moveaxis(np.abs(mean), 0, -1), rtol=1e-6)
    np.testing.assert_array_equal(image.affine, affine)
    assert image.header.get_zooms() == (1.0, 2.0, 3.0)
    np.testing.assert_allclose(nibabel.load(written[1]).get_fdata(), np.moveaxis(std, 0, -1), rtol=1e-6)
    assert len(list(tmp_path.iterdir())) == 2


def test_nifti_without_nibabel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(
        AmbientMRIError, match=r"NIfTI needs nibabel. Install it with `pip install 'ambient-mri\[nifti\]'`"
    ):
        save_reconstruction(tmp_path / "a.nii.gz", images(1, 8, 9))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": images(8, 9)}, r"mean must have 3 axes, slices first .* got shape \(8, 9\)"),
        ({"std": np.zeros((2, 8, 8))}, r"std must have the shape of mean, \(2, 8, 9\); got \(2, 8, 8\)"),
        ({"samples": images(5, 2, 8, 9)}, "Samples are the second axis"),
        ({"residual": np.zeros(3)}, r"residual must have one entry for each of the 2 slices; got shape \(3,\)"),
        ({"recon_shape": (9, 8)}, r"recon_shape \(9, 8\) is larger than the image .*transposed"),
        ({"path": "a.dcm"}, r"a\.dcm: the ending names no known format; use \.h5"),
    ],
)
def test_wrong_input(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    given = {"path": "a.h5", "mean": images(2, 8, 9)} | arguments
    path, mean = tmp_path / str(given.pop("path")), given.pop("mean")
    with pytest.raises(AmbientMRIError, match=message):
        save_reconstruction(path, mean, **given)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    save_reconstruction(path, images(1, 8, 9))
    before = path.read_bytes()

    def disk_full(target: Path, **_: object) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", disk_full)
    with pytest.raises(OSError, match="no space"):
        save_reconstruction(path, images(2, 8, 9))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_reading_what_is_no_reconstruction(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "k.h5", "w") as handle:
        handle["kspace"] = np.zeros(3)
    with pytest.raises(DataError, match="'reconstruction' is missing"):
        read_reconstruction(tmp_path / "k.h5")
