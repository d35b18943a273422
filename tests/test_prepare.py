"""Raw files become prepared scans: what a user of the undersampled scan would have, and nothing more."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ambient_mri._checks import AmbientMRIError, DataError
from ambient_mri.data.readers import RawScan, from_arrays, read_scan
from ambient_mri.data.schema import read_prepared
from ambient_mri.masks import PoissonDisc, RandomLines
from ambient_mri.operators.fourier import fft
from ambient_mri.prepare import Preparation, is_prepared, prepare_file, prepare_files, prepare_scan
from ambient_mri.prepare import scan as preparation
from ambient_mri.reconstruct.volume import Volume
from ambient_mri.tensors import complex_randn, keyed_generator
from tests.data.fastmri_files import header_xml, with_size
from tests.training.conftest import smooth_images

LAW = RandomLines(2.0, 8)
NOISE = 0.02


def raw_scan(name: str = "scan", *, size: tuple[int, int] = (32, 40), padding: int = 0, slices: int = 2) -> RawScan:
    """A fully sampled scan of smooth images, its outer columns zero-padded."""
    generator = keyed_generator("raw", name)
    maps = smooth_images(4, size, generator).reshape(1, 4, *size)
    maps = maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()
    kspace = fft(maps * smooth_images(slices, size, generator))
    kspace = kspace + NOISE * complex_randn(kspace.shape, generator=generator)
    if padding:
        kspace[..., :padding] = 0
        kspace[..., -padding:] = 0
    return from_arrays(kspace.numpy())


def save(scan: RawScan, path: Path) -> Path:
    np.savez(path, kspace=scan.kspace)
    return path


def write_kspace(path: Path, scan: RawScan) -> Path:
    """As a raw HDF5 file."""
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as handle:
        handle["kspace"] = scan.kspace
        handle["ismrmrd_header"] = header_xml(encoded=scan.shape, recon=scan.shape).encode()
    return path


def test_a_fully_sampled_volume_is_undersampled_once() -> None:
    raw = raw_scan()
    scan = prepare_scan(raw, LAW, Preparation(seed=3))
    again = prepare_scan(raw, LAW, Preparation(seed=3))
    other = prepare_scan(raw, LAW, Preparation(seed=4))
    assert scan.mask.shape == (1, 1, 1, 40) and scan.mask.sum() == 20
    np.testing.assert_array_equal(scan.kspace, again.kspace)
    assert (scan.mask != other.mask).any()
    np.testing.assert_array_equal(scan.kspace, np.where(scan.mask, raw.kspace, 0))
    assert scan.sampling_law == LAW.describe() and scan.preparation["retrospective"]


def test_everything_comes_from_the_undersampled_scan() -> None:
    """What was left out may be anything: no number in the prepared scan changes."""
    raw = raw_scan()
    scan = prepare_scan(raw, LAW, Preparation())
    poisoned = from_arrays(np.where(scan.mask, raw.kspace, 1e3 * raw.kspace + 7).astype(np.complex64))
    twin = prepare_scan(poisoned, LAW, Preparation())
    for name in ("kspace", "mask", "coil_maps", "noise_std", "scale"):
        np.testing.assert_array_equal(getattr(twin, name), getattr(scan, name))


def test_noise_scale_and_maps() -> None:
    scan = prepare_scan(raw_scan(), LAW, Preparation())
    assert scan.noise_std[0] == pytest.approx(NOISE, rel=0.25)
    assert scan.preparation["maps"] == "espirit/torch" and scan.phase_absorbed
    np.testing.assert_allclose(np.square(np.abs(scan.coil_maps)).sum(axis=1), 1, rtol=1e-4)
    given = prepare_scan(raw_scan(), LAW, Preparation(noise_std=0.5, absorb_phase=False))
    assert given.noise_std[0] == 0.5 and given.preparation["noise_source"] == "given" and not given.phase_absorbed


def test_zero_padding_is_never_sampled() -> None:
    scan = prepare_scan(raw_scan(padding=4), LAW, Preparation())
    assert not scan.mask[..., :4].any() and not scan.mask[..., -4:].any()
    always = LAW.always((32, 40)).numpy()
    assert scan.mask[always].all()
    assert scan.acquired_extent == ((0, 32), (4, 36))


def test_a_scan_with_its_own_mask_is_taken_as_it_is() -> None:
    full = raw_scan()
    mask = LAW.draw((32, 40), torch.Generator().manual_seed(1)).numpy()
    raw = from_arrays(np.where(mask, full.kspace, 0).astype(np.complex64))
    scan = prepare_scan(raw, RandomLines(4.0, 4), Preparation())
    np.testing.assert_array_equal(scan.mask, mask)
    assert scan.sampling_law == {} and not scan.preparation["retrospective"]


def test_two_dimensional_law() -> None:
    scan = prepare_scan(raw_scan(), PoissonDisc(2.0, 10, 2.0), Preparation())
    assert scan.mask.shape == (1, 1, 32, 40) and scan.mask.mean() == pytest.approx(0.5, abs=0.05)


def test_a_law_that_does_not_fit_the_matrix_is_named_with_the_file(tmp_path: Path) -> None:
    source = save(raw_scan(), tmp_path / "scan.npz")
    with pytest.raises(DataError, match=r"scan\.npz: 40 lines at acceleration 8 are 5 lines"):
        prepare_file(source, tmp_path / "out.h5", law=RandomLines(8.0, 8))


def test_files_are_prepared_once_and_failures_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sources = [save(raw_scan(name), tmp_path / f"{name}.npz") for name in ("a", "b", "c")]
    sources[1].write_bytes(b"PK\x03\x04 not an archive")
    first = prepare_files(sources, tmp_path / "out", law=LAW)
    assert [p.name for p in first.done] == ["a.h5", "c.h5"] and first.kept == 0
    assert first.failed[0][0] == sources[1] and "b.npz" in first.failed[0][1]
    assert "skipped" in caplog.text and "b.npz" in caplog.text
    stamps = [p.stat().st_mtime_ns for p in first.done]
    save(raw_scan("b"), sources[1])
    second = prepare_files(sources, tmp_path / "out", law=LAW)
    assert [p.name for p in second.done] == ["a.h5", "b.h5", "c.h5"] and second.kept == 2 and not second.failed
    assert [first.done[i].stat().st_mtime_ns for i in range(2)] == stamps
    assert read_prepared(second.done[0]).mask.tobytes() != read_prepared(second.done[1]).mask.tobytes()


def test_a_damaged_target_is_made_again(tmp_path: Path) -> None:
    source = save(raw_scan(), tmp_path / "scan.npz")
    target = prepare_file(source, tmp_path / "out.h5", law=LAW)
    target.write_bytes(target.read_bytes()[:500])
    assert not is_prepared(target)
    assert is_prepared(prepare_file(source, target, law=LAW))


def test_a_raw_file_is_never_written_over(tmp_path: Path) -> None:
    path = write_kspace(tmp_path / "scan.h5", raw_scan())
    content = path.read_bytes()
    with pytest.raises(
        DataError, match=r"scan\.h5 would be replaced by what is prepared from it\. Choose another folder"
    ):
        prepare_files([path], tmp_path, law=LAW)
    other = write_kspace(tmp_path / "other" / "scan.h5", raw_scan("other"))
    with pytest.raises(AmbientMRIError, match=r"is no prepared scan: it is not written over"):
        prepare_file(other, path, law=LAW)
    assert path.read_bytes() == content


def test_two_scans_of_one_name_in_two_folders(tmp_path: Path) -> None:
    """The second does not replace the first; a file that changed in its place does, and so does one that was moved."""
    first = write_kspace(tmp_path / "s1" / "scan.h5", raw_scan("one"))
    second = write_kspace(tmp_path / "s2" / "scan.h5", raw_scan("two"))
    target = prepare_file(first, tmp_path / "out" / "scan.h5", law=LAW)
    content = target.read_bytes()
    with pytest.raises(DataError, match=r"s2/scan\.h5: another file of this name, from another folder, was prepared"):
        prepare_files([second], tmp_path / "out", law=LAW)
    assert target.read_bytes() == content
    moved = tmp_path / "s3" / "scan.h5"
    moved.parent.mkdir()
    first.rename(moved)
    assert prepare_file(moved, target, law=LAW).read_bytes() == content
    write_kspace(moved, raw_scan("three"))
    moved.rename(first)
    assert prepare_file(first, target, law=LAW).read_bytes() != content
    assert str(tmp_path) not in str(read_prepared(target).preparation)


def test_a_prepared_full_scan_is_undersampled_without_what_the_rest_would_tell(tmp_path: Path) -> None:
    full = prepare_file(save(raw_scan(), tmp_path / "scan.npz"), tmp_path / "full" / "scan.h5")
    twice = read_prepared(prepare_file(full, tmp_path / "twice" / "scan.h5", law=LAW))
    known = read_prepared(full)
    assert twice.mask.sum() == 20 and twice.preparation["maps"] == "espirit/torch" and twice.phase_absorbed
    assert not np.allclose(twice.coil_maps, known.coil_maps, atol=1e-3)
    assert twice.preparation["noise_source"] != "from the file"
    straight = prepare_scan(from_arrays(np.where(twice.mask, known.kspace, 0)), None, Preparation())
    np.testing.assert_allclose(twice.coil_maps, straight.coil_maps, atol=1e-4)
    again = read_prepared(prepare_file(full, tmp_path / "again" / "scan.h5"))
    np.testing.assert_array_equal(again.coil_maps, known.coil_maps)


def test_numbers_of_slices_are_those_of_the_volume(tmp_path: Path) -> None:
    raw = save(raw_scan(slices=6), tmp_path / "scan.npz")
    part = prepare_file(raw, tmp_path / "part" / "scan.h5", settings=Preparation(slices=(2, 5)))
    assert read_scan(part).volume_slices == (2, 3, 4) and read_scan(part, slice(1, 3)).volume_slices == (3, 4)
    less = prepare_file(part, tmp_path / "less" / "scan.h5", settings=Preparation(slices=(1, 3)))
    assert read_scan(less).volume_slices == (3, 4) and read_scan(less).slice_indices == (0, 1)
    assert Volume.measure(read_scan(less)).settings()["slices"] == [3, 4]


def test_nothing_to_prepare(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"none of the 1 files could be prepared\. The first: .*bad\.npz"):
        prepare_files([tmp_path / "bad.npz"], tmp_path / "out", law=LAW)
    with pytest.raises(DataError, match="share the name"):
        prepare_files([tmp_path / "a" / "x.h5", tmp_path / "b" / "x.h5"], tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*k-space of slices .* is zero everywhere")
def test_a_slice_without_signal_changes_nothing_for_the_others(tmp_path: Path) -> None:
    """Maps, scale and noise level are those of the volume without it; its own maps are flat."""
    kspace = raw_scan(slices=3).kspace
    mask = LAW.draw((32, 40), torch.Generator().manual_seed(1)).numpy()
    kspace = np.where(mask, kspace, 0).astype(np.complex64)
    with_empty = np.insert(kspace, 1, 0, axis=0)
    expected = prepare_scan(from_arrays(kspace, mask), None, Preparation())
    np.savez(tmp_path / "scan.npz", kspace=with_empty, mask=mask)
    target = prepare_file(tmp_path / "scan.npz", tmp_path / "out.h5")
    found, others = read_prepared(target), [0, 2, 3]
    np.testing.assert_array_equal(found.coil_maps[others], expected.coil_maps)
    np.testing.assert_array_equal(found.noise_std, np.full(4, expected.noise_std[0]))
    assert found.scale == expected.scale and found.preparation["maps"] == "espirit/torch"
    np.testing.assert_array_equal(found.coil_maps[1], np.full((4, 32, 40), 0.5, np.complex64))
    assert not found.kspace[1].any()
    notes = [text for text in found.preparation["notes"] if "zeros" in text]
    assert notes == ["slices [1] hold nothing but zeros: their coil maps are flat, the same for every coil."]


def test_maps_do_not_depend_on_which_slices_are_estimated_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices with masks of their own, 4 to 12 calibration lines."""
    full = raw_scan(slices=3).kspace
    masks = np.stack(
        [RandomLines(2.0, n).draw((32, 40), torch.Generator().manual_seed(n)).numpy()[0] for n in (4, 12, 8)]
    )
    raw = from_arrays(np.where(masks, full, 0).astype(np.complex64), masks[:, 0])
    assert len(raw.mask) == 3
    together = prepare_scan(raw, None, Preparation())
    monkeypatch.setattr(preparation, "_BATCH", 1)
    single = prepare_scan(raw, None, Preparation())
    np.testing.assert_allclose(together.coil_maps, single.coil_maps, rtol=0, atol=1e-5)
    assert together.preparation["notes"] == single.preparation["notes"]


def test_a_miniature_of_an_official_file_with_an_odd_number_of_lines(tmp_path: Path) -> None:
    """640 x 369 with 335 acquired lines, the narrowest official padding: from the file to a prepared scan."""
    source = with_size(640, 369, 3, lines=335).write(tmp_path / "file1000017.h5")
    (target,) = prepare_files([source], tmp_path / "out", law=RandomLines(4.0, 26)).done
    scan = read_prepared(target)
    assert scan.kspace.shape == scan.coil_maps.shape == (1, 3, 640, 369) and scan.recon_shape == (320, 320)
    first = 369 // 2 - 335 // 2
    assert scan.acquired_extent == ((0, 640), (first, first + 335))
    assert not scan.mask[..., :first].any() and not scan.mask[..., first + 335 :].any()
    assert scan.mask[..., 184 - 13 : 184 + 13].all()
    assert not scan.kspace[..., ~scan.mask[0, 0, 0]].any()
    np.testing.assert_allclose(np.square(np.abs(scan.coil_maps)).sum(axis=1), 1, rtol=1e-4)
    assert np.isfinite(scan.scale) and scan.noise_std[0] == pytest.approx(0.01, rel=0.1)  # as it was simulated


def test_an_empty_scan(tmp_path: Path) -> None:
    np.savez(tmp_path / "zero.npz", kspace=np.zeros((1, 2, 32, 40), np.complex64))
    with pytest.raises(AmbientMRIError, match="zero everywhere"):
        prepare_file(tmp_path / "zero.npz", tmp_path / "out.h5", law=LAW)
