"""Simulated sets are made once, resumably, the same every time; folders are prepared or taken as they are."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from ambient_mri._checks import DataError
from ambient_mri.data.datasets import read_images
from ambient_mri.data.schema import read_prepared
from ambient_mri.masks import RandomLines
from ambient_mri.operators.sense import sense
from ambient_mri.training.simulated import ImageFiles, Phantoms
from ambient_mri.training.sources import ScanFolder, cache_folder
from tests.training.conftest import smooth_images

LAW = RandomLines(2.0, 6)
SCANNER = {"coils": [2, 3], "noise_std": [0.0, 0.0]}


def phantoms(cache: Path, **options: Any) -> Phantoms:
    settings = {"size": 32, "train_volumes": 3, "val_volumes": 1, "slices": 2, "scanner": SCANNER, **options}
    return Phantoms("phantom", cache=str(cache), **settings)


def test_a_phantom_set(tmp_path: Path) -> None:
    found = phantoms(tmp_path).prepare(LAW)
    assert [p.stem for p in found.train] == ["train_00000", "train_00001", "train_00002"]
    assert [p.stem for p in found.val] == ["val_00000"]
    assert found.manifest["simulated"] and found.manifest["sampling_law"] == LAW.describe()
    scans = [read_prepared(p) for p in found.train]
    assert len({scan.mask.tobytes() for scan in scans}) == 3
    for scan, path in zip(scans, found.train_references(), strict=True):
        images = read_images(path)
        assert images.key == tuple(f"{scan.source}/{i}" for i in range(2)) and images.scale == scan.scale
        # Without noise, the scan is the measurement of its reference.
        operator = sense(torch.from_numpy(scan.coil_maps), torch.from_numpy(scan.mask))
        torch.testing.assert_close(operator(torch.from_numpy(images.images)), torch.from_numpy(scan.kspace))


def test_what_is_there_stays_and_what_is_missing_comes_back_the_same(tmp_path: Path) -> None:
    found = phantoms(tmp_path).prepare(LAW)
    kept, lost = found.train[0], found.train[1]
    stamp, content = kept.stat().st_mtime_ns, read_prepared(lost).kspace
    lost.unlink()
    again = phantoms(tmp_path).prepare(LAW)
    assert again == found and kept.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(read_prepared(lost).kspace, content)


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"size": 48}, {"scanner": {**SCANNER, "coils": [2, 2]}}, {"mask_per": "slice"}]
)
def test_other_settings_are_another_set(options: dict[str, Any], tmp_path: Path) -> None:
    first, second = (phantoms(tmp_path, **o).prepare(LAW) for o in ({}, options))
    assert first.train[0] != second.train[0]


def test_more_volumes_extend_a_set(tmp_path: Path) -> None:
    first = phantoms(tmp_path, train_volumes=2).prepare(LAW)
    assert phantoms(tmp_path, train_volumes=3).prepare(LAW).train[:2] == first.train


def test_a_simulated_set_needs_a_law(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data=phantom is simulated and needs a law"):
        phantoms(tmp_path).prepare(None)


def test_image_files_are_split_by_subject(tmp_path: Path, generator: torch.Generator) -> None:
    images = smooth_images(8, (24, 24), generator)[:, 0].abs().numpy()
    subjects, split = np.array([3, 3, 3, 11, 11, 7, 7, 7]), np.array(["train"] * 5 + ["val"] * 3)
    np.savez(tmp_path / "heads.npz", images=images, subject=subjects, split=split)
    source = ImageFiles("images", str(tmp_path), files=["heads.npz"], cache=str(tmp_path / "cache"), scanner=SCANNER)
    found = source.prepare(LAW)
    assert [p.stem for p in found.train] == ["heads_0003", "heads_0011"] and [p.stem for p in found.val] == [
        "heads_0007"
    ]
    assert [len(read_prepared(p)) for p in (*found.train, *found.val)] == [3, 2, 3]


def test_images_are_known_by_their_content_not_by_the_names_of_files(
    tmp_path: Path, generator: torch.Generator
) -> None:
    """Another file of the same name, in another folder or in the same, is another set."""
    found = []
    for i, folder in enumerate(("a", "b", "a")):
        (tmp_path / folder).mkdir(exist_ok=True)
        images = smooth_images(2, (24, 24), generator)[:, 0].abs().numpy()
        np.savez(tmp_path / folder / "h.npz", images=images, subject=np.array([1, 2]), split=np.array(["train"] * 2))
        source = ImageFiles(
            "images", str(tmp_path / folder), files=["h.npz"], cache=str(tmp_path / "c"), scanner=SCANNER
        )
        scans = source.prepare(LAW)
        assert source.prepare(LAW) == scans and len(list((tmp_path / "c").iterdir())) == i + 1
        found.append(scans)
    stored = [np.abs(read_images(scans.train_references()[0]).images) for scans in found]
    assert all(not np.allclose(a, b, rtol=0.01) for a, b in combinations(stored, 2))
    assert len({scans.manifest["hash"] for scans in found}) == 1, "the same settings, by which a draw is known"


def test_missing_images_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data=brain_images needs the folder with a\.npz: run `python -m .* data\.root="
    ):
        ImageFiles("brain_images", None, files=["a.npz"]).prepare(LAW)
    with pytest.raises(DataError, match=r"a\.npz not found in .* They come from the archive"):
        ImageFiles("brain_images", str(tmp_path), files=["a.npz"], page="the archive").prepare(LAW)


def test_prepared_files_are_taken_as_they_are(scan_folder: Path, tmp_path: Path) -> None:
    found = ScanFolder("mine", str(scan_folder), cache=str(tmp_path)).prepare(None)
    assert [p.parent for p in found.train] == [scan_folder / "train"] * 5
    assert [p.parent for p in found.val] == [scan_folder / "val"] and not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="5 of the 5 training scans of 'mine' have no reference images"):
        found.train_references()


def test_reconstructions_become_references(scan_folder: Path, tmp_path: Path) -> None:
    found = ScanFolder("mine", str(scan_folder), cache=str(tmp_path)).prepare(None)
    given = found.with_references(scan_folder / "references")
    assert len(given.train_references()) == 5 and len(given.val_references()) == 1
    assert given.manifest["references"] == "given"
    with pytest.raises(DataError, match="holds no image file of the 5 training scans, such as v0"):
        found.with_references(tmp_path)


def test_held_out_scans_do_not_have_the_names_of_training_scans(scan_folder: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(scan_folder / part, tmp_path / part)
    shutil.copy(scan_folder / "train" / "v1.h5", tmp_path / "val" / "v0.h5")
    found = ScanFolder("mine", str(tmp_path)).prepare(None)
    with pytest.raises(DataError, match=r"1 held-out scans have the file names of training scans, such as v0\.h5"):
        found.with_references(scan_folder / "references")


@pytest.mark.filterwarnings("ignore::ambient_mri.data.readers.DataWarning")  # files without a header
def test_raw_files_are_prepared_first_and_a_bad_one_is_skipped(tmp_path: Path, generator: torch.Generator) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    for i in range(11):
        kspace = torch.fft.fftshift(torch.fft.fft2(smooth_images(6, (24, 24), generator)), dim=(-2, -1))
        with h5py.File(root / f"s{i:02d}.h5", "w") as handle:
            handle["kspace"] = kspace.reshape(2, 3, 24, 24).numpy()
    (root / "s03.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    source = ScanFolder("raw", str(root), cache=str(tmp_path / "cache"), seed=4)
    found = source.prepare(LAW)
    assert [p.stem for p in found.val] == ["s09"] and len(found.train) == 9
    scan = read_prepared(found.train[0])
    assert scan.sampling_law == LAW.describe() and scan.mask.sum() == 12
    shutil.rmtree(root / "s03.h5", ignore_errors=True)
    assert source.prepare(LAW).train == found.train
    # Files of the same names in another folder are other scans.
    elsewhere = shutil.copytree(root, tmp_path / "elsewhere")
    others = ScanFolder("raw", str(elsewhere), cache=str(tmp_path / "cache"), seed=4).prepare(LAW)
    assert not set(others.train) & set(found.train) and str(tmp_path) not in str(others.manifest)


def test_fastmri_without_a_folder_names_the_registration_page() -> None:
    page, variable = "https://fastmri.med.nyu.edu", "FASTMRI_KNEE_ROOT"
    with pytest.raises(DataError, match=rf"Register at {page}, download, and run `python .*{variable}"):
        ScanFolder("fastmri_knee", None, page=page, variable=variable).prepare(LAW)
    with pytest.raises(DataError, match="is not a folder"):
        ScanFolder("fastmri_knee", "/nowhere").prepare(LAW)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*\.h5 file in"):
        ScanFolder("mine", str(tmp_path)).prepare(LAW)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMBIENT_MRI_CACHE", "/from/variable")
    assert cache_folder("/given") == Path("/given") and cache_folder(None) == Path("/from/variable")
    monkeypatch.delenv("AMBIENT_MRI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/user/cache")
    assert cache_folder(None) == Path("/user/cache/ambient_mri")
