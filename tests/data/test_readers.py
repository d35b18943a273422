from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ambient_mri._checks import DataError
from ambient_mri.data.readers import DataWarning, from_arrays, read_reference, read_scan
from ambient_mri.data.readers.header import acquired_interval, parse_header
from tests.data.fastmri_files import FastMRIFile, brain, header_xml, knee, random_lines, simulated_kspace, undersampled

# ---------------------------------------------------------------- fastMRI, as published


def test_knee_with_readout_oversampling(tmp_path: Path) -> None:
    file = knee()
    scan = read_scan(file.write(tmp_path / "file1000001.h5"))
    np.testing.assert_array_equal(scan.kspace, file.kspace)
    assert scan.kspace.dtype == np.complex64
    assert scan.mask.shape == (1, 1, 1, 37) and scan.mask.dtype == bool and scan.mask.all()
    assert scan.phase_encode_axis == -1
    assert scan.acquired_extent == ((0, 64), (0, 37))
    assert scan.recon_shape == (32, 32)
    assert (scan.acquisition, scan.name, scan.slice_indices) == ("CORPD_FBK", "file1000001", (0, 1))
    assert scan.attrs["patient_id"] == "00000000"
    assert scan.fully_sampled and scan.acceleration == 1
    assert scan.header["encoded_fov_mm"] == (320.0, 160.0, 4.5)
    assert scan.sha256 == hashlib.sha256((tmp_path / "file1000001.h5").read_bytes()).hexdigest()


def test_affine_knows_voxel_sizes_and_the_centre(tmp_path: Path) -> None:
    scan = read_scan(knee().write(tmp_path / "knee.h5"))
    assert scan.affine is not None
    np.testing.assert_allclose(np.diag(scan.affine), [160 / 32, 160 / 32, 4.5, 1])
    np.testing.assert_allclose(scan.affine @ [16, 16, 0, 1], [0, 0, 0, 1])


@pytest.mark.parametrize(("width", "lines", "center"), [(40, 31, 15), (40, 30, 12), (37, 29, 16), (36, 36, 18)])
def test_brain_zero_padding_is_not_sampled(tmp_path: Path, width: int, lines: int, center: int) -> None:
    # Line `center` of the scanner's counter is the zero frequency, so it lies at width // 2.
    first = width // 2 - center
    scan = read_scan(brain(width=width, lines=lines, center=center).write(tmp_path / "brain.h5"))
    assert scan.acquired_extent == ((0, 48), (first, first + lines))
    expected = np.zeros(width, dtype=bool)
    expected[first : first + lines] = True
    np.testing.assert_array_equal(scan.mask, expected[None, None, None])
    assert scan.recon_shape == (24, 24)
    assert scan.fully_sampled and scan.acceleration == 1


def test_extent_agrees_with_the_padding_that_fastmri_computes(tmp_path: Path) -> None:
    scan = read_scan(brain().write(tmp_path / "brain.h5"))
    limits, encoded = scan.header["encoding_limits"]["kspace_encoding_step_1"], scan.header["encoded_matrix"]
    # fastMRI's own bookkeeping: lines left of `left` and from `right` on are padding.
    left = encoded[1] // 2 - limits["center"]
    right = left + limits["maximum"] + 1
    assert scan.acquired_extent[1] == (left, right)


def test_undersampled_test_file_keeps_its_mask(tmp_path: Path) -> None:
    mask = random_lines(37)
    file = undersampled(knee(), mask)
    scan = read_scan(file.write(tmp_path / "test.h5"))
    np.testing.assert_array_equal(scan.mask, mask[None, None, None])
    np.testing.assert_array_equal(scan.kspace, file.kspace)
    assert scan.phase_encode_axis == -1
    assert scan.acquired_extent == ((0, 64), (0, 37))
    assert scan.acceleration == pytest.approx(37 / mask.sum())
    assert not scan.fully_sampled
    assert scan.attrs["acceleration"] == 4 and scan.recon_shape == (32, 32)


def test_padding_is_left_out_of_an_official_mask(tmp_path: Path) -> None:
    mask = random_lines(40, seed=3)
    mask[[0, 39]] = True  # zero padding that the mask claims
    scan = read_scan(undersampled(brain(), mask).write(tmp_path / "test.h5"))
    expected = mask.copy()
    expected[[0, 39]] = False
    np.testing.assert_array_equal(scan.mask[0, 0, 0], expected & (np.arange(40) >= 5) & (np.arange(40) < 36))
    assert scan.acquired_extent == ((0, 48), (5, 36))
    assert any("zero-padded" in note for note in scan.notes)


def test_mask_is_inferred_where_the_file_has_none(tmp_path: Path) -> None:
    mask = random_lines(37)
    scan = read_scan(undersampled(knee(), mask, store=False).write(tmp_path / "test.h5"))
    np.testing.assert_array_equal(scan.mask, mask[None, None, None])
    assert scan.acquired_extent == ((0, 64), (0, 37))


def test_phase_encoding_along_rows_is_inferred(tmp_path: Path) -> None:
    mask = np.repeat(random_lines(48)[:, None], 40, axis=1)
    scan = read_scan(undersampled(brain(lines=40, center=20), mask).write(tmp_path / "test.h5"))
    assert scan.phase_encode_axis == -2
    assert scan.mask.shape == (1, 1, 48, 1)


def test_two_dimensional_mask_is_first_class(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((64, 37)) < 0.3
    mask[28:36, 15:22] = True
    for store in (True, False):
        scan = read_scan(undersampled(knee(), mask, store=store).write(tmp_path / f"test{store}.h5"))
        np.testing.assert_array_equal(scan.mask, mask[None, None])
        assert scan.phase_encode_axis is None


@pytest.mark.filterwarnings("ignore:.*is missing or says nothing of the matrix")
def test_three_axes_without_a_header_may_be_coils(tmp_path: Path) -> None:
    kspace = simulated_kspace(1, 4, 32, 24)[0]
    with h5py.File(tmp_path / "mine.h5", "w") as handle:
        handle["kspace"] = kspace
    with pytest.warns(DataWarning, match=r"\(4, 32, 24\) is read as 4 slices of one coil.*write kspace\[None\]"):
        assert read_scan(tmp_path / "mine.h5").kspace.shape == (4, 1, 32, 24)


def test_single_coil(tmp_path: Path) -> None:
    full = knee(coils=1)
    file = FastMRIFile(full.kspace[:, 0], full.header, reference=full.reference)
    path = file.write(tmp_path / "single.h5")
    scan = read_scan(path)
    assert scan.kspace.shape == (2, 1, 64, 37)
    np.testing.assert_array_equal(read_reference(path), full.reference)


def test_partial_echo_gives_a_row_extent(tmp_path: Path) -> None:
    file = knee()
    file.kspace[:, :, :10] = 0
    scan = read_scan(file.write(tmp_path / "partial.h5"))
    assert scan.acquired_extent == ((10, 64), (0, 37))
    assert scan.mask.shape == (1, 1, 64, 1) and scan.mask.sum() == 54


def test_only_the_chosen_slices_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = knee(slices=6, coils=2)
    path = file.write(tmp_path / "knee.h5")
    read: list[object] = []
    original = h5py.Dataset.__getitem__

    def spy(self: h5py.Dataset, key: object, **options: object) -> object:
        if self.name == "/kspace":
            read.append(key)
        return original(self, key, **options)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    np.testing.assert_array_equal(read_scan(path, slice(2, 4)).kspace, file.kspace[2:4])
    assert read == [slice(2, 4)]
    scan = read_scan(path, [4, -6])
    np.testing.assert_array_equal(scan.kspace, file.kspace[[4, 0]])
    assert scan.slice_indices == (4, 0)
    np.testing.assert_array_equal(read_scan(path, -1).kspace, file.kspace[5:])


def test_a_mask_for_every_slice_follows_the_selection(tmp_path: Path) -> None:
    masks = np.stack([np.tile(random_lines(37, seed=s), (64, 1)) for s in range(3)])
    full = knee(slices=3)
    file = FastMRIFile(np.where(masks[:, None], full.kspace, np.complex64(0)), full.header, masks)
    path = file.write(tmp_path / "masks.h5")
    np.testing.assert_array_equal(read_scan(path).mask, masks[:, None, :1])
    np.testing.assert_array_equal(read_scan(path, 2).mask, masks[2:, None, :1])
    # Inferred from zeros, the slices differ too.
    file = FastMRIFile(file.kspace, full.header)
    np.testing.assert_array_equal(read_scan(file.write(tmp_path / "zeros.h5")).mask, masks[:, None, :1])


def test_integer_data_with_isolated_zeros_stay_fully_sampled(tmp_path: Path) -> None:
    file = knee(slices=1, coils=1)
    file.kspace[0, 0, np.arange(5) * 7, np.arange(5) * 5] = 0
    scan = read_scan(file.write(tmp_path / "integers.h5"))
    assert scan.fully_sampled and scan.mask.all()


# ---------------------------------------------------------------- headers


@pytest.mark.parametrize("namespace", ["", 'xmlns="http://www.ismrm.org/ISMRMRD"', 'xmlns="urn:vendor"'])
def test_header_in_any_namespace(namespace: str) -> None:
    xml = header_xml(
        encoded=(640, 368), recon=(320, 320), limits=(0, 321, 160), coils=15, namespace=namespace, acceleration=2
    )
    for text in (xml, xml.encode(), xml.encode() + b"\x00"):
        header = parse_header(text, "file")
        assert header["encoded_matrix"] == (640, 368, 1) and header["recon_matrix"] == (320, 320, 1)
        assert header["receiver_channels"] == 15 and header["acceleration"] == (2, 1)
        assert acquired_interval(header, "kspace_encoding_step_1", 368) == (24, 346)


def test_silent_or_senseless_limits_are_ignored() -> None:
    header = parse_header("<ismrmrdHeader><encoding/></ismrmrdHeader>", "file")
    assert acquired_interval(header, "kspace_encoding_step_1", 40) is None
    header = parse_header(header_xml(encoded=(8, 40), recon=(8, 8), limits=(0, -5, 20)), "file")
    assert acquired_interval(header, "kspace_encoding_step_1", 40) is None


def test_header_with_swapped_axes(tmp_path: Path) -> None:
    kspace = simulated_kspace(1, 2, 32, 64)
    header = header_xml(encoded=(64, 32), recon=(24, 28), coils=2)
    scan = read_scan(FastMRIFile(kspace, header).write(tmp_path / "swapped.h5"))
    assert scan.phase_encode_axis == -2 and scan.recon_shape == (28, 24)


def test_recon_shape_never_exceeds_the_matrix(tmp_path: Path) -> None:
    kspace = simulated_kspace(1, 2, 64, 20)
    header = header_xml(encoded=(64, 20), recon=(32, 32), coils=2)
    assert read_scan(FastMRIFile(kspace, header).write(tmp_path / "narrow.h5")).recon_shape == (32, 20)


def test_missing_header_warns_and_reads(tmp_path: Path) -> None:
    path = replace(knee(), header=None).write(tmp_path / "bare.h5")
    with pytest.warns(DataWarning, match=r"bare\.h5: dataset 'ismrmrd_header' is missing"):
        scan = read_scan(path)
    assert scan.recon_shape == (32, 32)  # the size of the reference, whose values stay unread


def test_unreadable_header(tmp_path: Path) -> None:
    path = replace(knee(), header="<ismrmrdHeader><encoding>").write(tmp_path / "cut.h5")
    with pytest.raises(DataError, match=r"cut\.h5: dataset 'ismrmrd_header' is not readable XML"):
        read_scan(path)


def test_non_cartesian_trajectory(tmp_path: Path) -> None:
    header = header_xml(encoded=(64, 37), recon=(32, 32), trajectory="spiral")
    with pytest.raises(DataError, match="spiral trajectory; only Cartesian"):
        read_scan(replace(knee(), header=header).write(tmp_path / "spiral.h5"))


# ---------------------------------------------------------------- contradictions


def test_mask_claims_a_line_that_is_zero(tmp_path: Path) -> None:
    mask = random_lines(37)
    file = undersampled(knee(), mask)
    line = int(np.flatnonzero(mask)[2])
    file.kspace[..., line] = 0
    with pytest.warns(DataWarning, match="64 locations that the mask says sampled are zero in every coil"):
        scan = read_scan(file.write(tmp_path / "hole.h5"))
    assert not scan.mask[..., line].any() and scan.mask.sum() == mask.sum() - 1


def test_data_outside_the_mask_are_ignored(tmp_path: Path) -> None:
    mask = random_lines(37)
    path = replace(knee(), mask=mask).write(tmp_path / "more.h5")
    with pytest.warns(DataWarning, match="hold data where the mask says unsampled"):
        scan = read_scan(path)
    assert np.count_nonzero(scan.kspace[..., ~mask]) == 0
    np.testing.assert_array_equal(scan.kspace[..., mask], knee().kspace[..., mask])


@pytest.mark.parametrize("change", [np.fft.ifftshift, np.logical_not])
def test_mask_of_other_data(tmp_path: Path, change: object) -> None:
    mask = random_lines(37)
    file = replace(undersampled(knee(), mask), mask=change(mask))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"'mask' does not describe 'kspace'.*shifted .* transposed or inverted"):
        read_scan(file.write(tmp_path / "other.h5"))


def test_uncentred_kspace_is_named(tmp_path: Path) -> None:
    file = knee()
    shifted = np.fft.ifftshift(file.kspace, axes=(-2, -1))
    with pytest.warns(DataWarning, match="apply numpy.fft.fftshift") as caught:
        read_scan(FastMRIFile(shifted, file.header).write(tmp_path / "shifted.h5"))
    assert len(caught) == 2


def test_empty_slice_is_named(tmp_path: Path) -> None:
    file = knee(slices=3)
    file.kspace[2] = 0
    with pytest.warns(DataWarning, match=r"slices \[2\] is zero everywhere"):
        scan = read_scan(file.write(tmp_path / "empty.h5"))
    assert scan.mask.shape == (1, 1, 1, 37)


# ---------------------------------------------------------------- bad files: one line that names file, dataset and fix

_KSPACE = r"complex \(slices, coils, H, W\)"


@pytest.mark.parametrize(
    ("kspace", "message"),
    [
        (np.zeros((2, 4, 64, 37), np.float32), rf"'kspace' is float32, not complex.*{_KSPACE}"),
        (np.zeros((0, 4, 64, 37), np.complex64), r"'kspace' is empty, shape \(0, 4, 64, 37\)"),
        (np.zeros((64, 37), np.complex64), rf"'kspace' has 2 axes.*{_KSPACE}"),
        (np.ones((2, 64, 37, 4), np.complex64), rf"shape \(2, 64, 37, 4\).*last two axes.*{_KSPACE}.*moveaxis"),
        (np.ones((64, 37, 2), np.complex64), "not in the last two axes"),
        (np.zeros((2, 4, 64, 37), np.complex64), "zero everywhere"),
    ],
)
def test_wrong_kspace(tmp_path: Path, kspace: np.ndarray, message: str) -> None:
    path = FastMRIFile(kspace, knee().header).write(tmp_path / "bad.h5")
    with pytest.raises(DataError, match=message) as caught:
        read_scan(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 256, 12, 8), (1, 64, 64, 8)])
def test_coils_last_without_a_header(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = FastMRIFile(np.ones(shape, np.complex64), None).write(tmp_path / "bad.h5")
    with pytest.raises(DataError, match="look like coils stored last"):
        read_scan(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1j * np.nan])
def test_non_finite_names_the_slice(tmp_path: Path, value: complex) -> None:
    file = knee(slices=3)
    file.kspace[1, 2, 3, 4] = value
    path = file.write(tmp_path / "nan.h5")
    with pytest.raises(DataError, match=r"nan\.h5: dataset 'kspace' holds 1 non-finite values .* in slice 1"):
        read_scan(path, [0, 1])
    assert len(read_scan(path, [0, 2])) == 2


def test_missing_kspace(tmp_path: Path) -> None:
    path = tmp_path / "images.h5"
    with h5py.File(path, "w") as handle:
        handle["reconstruction_rss"] = np.zeros((1, 8, 8), np.float32)
    with pytest.raises(DataError, match=r"'kspace' is missing \(the file holds reconstruction_rss\)"):
        read_scan(path)


def test_ismrmrd_raw_file(tmp_path: Path) -> None:
    path = tmp_path / "raw.h5"
    with h5py.File(path, "w") as handle:
        handle["dataset/data"] = np.zeros(3)
    with pytest.raises(DataError, match=r"raw\.h5: group 'dataset' makes it an ISMRMRD raw-data file"):
        read_scan(path)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_truncated(tmp_path: Path, keep: float) -> None:
    path = knee().write(tmp_path / "cut.h5")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match=r"cut\.h5: HDF5 cannot read it .*truncated or damaged") as caught:
        read_scan(path)
    assert "\n" not in str(caught.value)


def test_damaged_chunk(tmp_path: Path) -> None:
    path = tmp_path / "damaged.h5"
    kspace = knee(slices=1).kspace
    with h5py.File(path, "w") as handle:
        handle.create_dataset("kspace", data=kspace, chunks=kspace.shape, compression="gzip")
        offset = handle["kspace"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged\.h5: HDF5 cannot read it"):
        read_scan(path)


def test_missing_empty_folder_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_scan(tmp_path / "absent.h5")
    with pytest.raises(DataError, match="is a folder"):
        read_scan(tmp_path)
    (tmp_path / "empty.h5").touch()
    with pytest.raises(DataError, match="the file is empty"):
        read_scan(tmp_path / "empty.h5")
    (tmp_path / "notes.txt").write_text("k-space, honestly")
    with pytest.raises(DataError, match=r"notes\.txt: not a k-space file of a known kind"):
        read_scan(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("slices", "message"), [([7], r"slice \[7\] does not exist; there are 2"), (slice(5, 9), "picks none")]
)
def test_wrong_slices(tmp_path: Path, slices: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_scan(knee().write(tmp_path / "knee.h5"), slices)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(36, bool), r"'mask' has shape \(36,\).*expected \(37,\)"),
        (np.full(37, 0.5), "'mask' must be bool, or zeros and ones"),
        (np.ones((3, 64, 37), bool), "does not fit k-space of 2 slices"),
    ],
)
def test_wrong_mask(tmp_path: Path, mask: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_scan(replace(knee(), mask=mask).write(tmp_path / "mask.h5"))


def test_other_complex_types(tmp_path: Path) -> None:
    kspace = knee().kspace
    pairs = np.empty(kspace.shape, dtype=[("real", "f4"), ("imag", "f4")])
    pairs["real"], pairs["imag"] = kspace.real, kspace.imag
    for name, array in (("pairs", pairs), ("double", kspace.astype(np.complex128))):
        scan = read_scan(FastMRIFile(array, knee().header).write(tmp_path / f"{name}.h5"))
        assert scan.kspace.dtype == np.complex64
        np.testing.assert_array_equal(scan.kspace, kspace)


# ---------------------------------------------------------------- references stay apart


def test_reference_is_no_part_of_a_scan(tmp_path: Path) -> None:
    file = knee()
    path = file.write(tmp_path / "knee.h5")
    scan = read_scan(path)
    assert not [name for name in vars(scan) if "reference" in name or "rss" in name]
    np.testing.assert_array_equal(read_reference(path, [1]), file.reference[1:])  # type: ignore[index]


def test_reading_a_scan_leaves_the_reference_unread(tmp_path: Path) -> None:
    file = knee()
    file.reference[:] = np.nan  # type: ignore[index]
    path = file.write(tmp_path / "knee.h5")
    assert read_scan(path).recon_shape == (32, 32)
    with pytest.raises(DataError, match="'reconstruction_rss' holds 1024 non-finite values"):
        read_reference(path)


def test_test_file_has_no_reference(tmp_path: Path) -> None:
    path = undersampled(knee(), random_lines(37)).write(tmp_path / "test.h5")
    with pytest.raises(DataError, match=r"'reconstruction_rss' is missing.*may hold its image, \(slices, H, W\)"):
        read_reference(path)


# ---------------------------------------------------------------- NumPy files and arrays


@pytest.mark.parametrize("shape", [(20, 17), (3, 20, 17), (2, 3, 20, 17)])
def test_npy_layouts(tmp_path: Path, shape: tuple[int, ...]) -> None:
    kspace = simulated_kspace(2, 3, 20, 17).reshape(-1)[: int(np.prod(shape))].reshape(shape)
    kspace[..., shape[-2] // 2, shape[-1] // 2] = 100
    np.save(tmp_path / "scan.npy", kspace)
    scan = read_scan(tmp_path / "scan.npy")
    np.testing.assert_array_equal(scan.kspace, kspace[(None,) * (4 - kspace.ndim)])
    assert scan.name == "scan" and scan.recon_shape == (20, 17)


def test_npz_with_everything(tmp_path: Path) -> None:
    mask = random_lines(17, acs_lines=4)
    kspace = simulated_kspace(3, 2, 20, 17) * mask
    maps = np.full((3, 2, 20, 17), np.sqrt(0.5), np.complex64)
    np.savez(tmp_path / "scan.npz", kspace=kspace, mask=mask, coil_maps=maps, noise_std=[0.1, 0.2, 0.3])
    scan = read_scan(tmp_path / "scan.npz", slice(1, 3))
    np.testing.assert_array_equal(scan.kspace, kspace[1:])
    np.testing.assert_array_equal(scan.mask[0, 0, 0], mask)
    np.testing.assert_allclose(scan.noise_std, [0.2, 0.3])  # type: ignore[arg-type]
    assert scan.coil_maps is not None and scan.coil_maps.shape == (2, 2, 20, 17)
    assert scan.slice_indices == (1, 2)


def test_arrays_and_tensors_give_the_same_scan() -> None:
    kspace, mask = simulated_kspace(1, 3, 20, 17), random_lines(17, acs_lines=4)
    a = from_arrays(kspace, mask)
    b = from_arrays(torch.from_numpy(kspace[0]).requires_grad_(), torch.from_numpy(mask))
    np.testing.assert_array_equal(a.kspace, b.kspace)
    np.testing.assert_array_equal(a.mask, b.mask)
    assert np.count_nonzero(a.kspace[..., ~mask]) == 0
    assert np.count_nonzero(kspace) == kspace.size  # the caller's array is untouched
    assert a.sha256 == b.sha256


@pytest.mark.parametrize("shape", [(1, 1, 20, 1), (20,), (1, 20, 1), (20, 17)])
def test_masks_along_rows(shape: tuple[int, ...]) -> None:
    rows = random_lines(20, acs_lines=4)
    mask = np.broadcast_to(rows[:, None], (20, 17)) if shape == (20, 17) else rows.reshape(shape)
    scan = from_arrays(simulated_kspace(1, 2, 20, 17), mask)
    np.testing.assert_array_equal(scan.mask, rows[None, None, :, None])
    assert scan.phase_encode_axis == -2


def test_square_masks_follow_broadcasting() -> None:
    line, kspace = random_lines(16, acceleration=2, acs_lines=4), simulated_kspace(1, 2, 16, 16)
    assert from_arrays(kspace, line).phase_encode_axis == -1
    assert from_arrays(kspace, line[None, :]).phase_encode_axis == -1
    assert from_arrays(kspace, line[:, None]).phase_encode_axis == -2
    assert from_arrays(kspace, line[None, None, :, None]).phase_encode_axis == -2


@pytest.mark.parametrize(
    ("kspace", "message"),
    [
        (np.zeros((20, 17)), "'kspace' must be complex; got float64.*magnitude image"),
        (np.zeros((20, 17, 2)), r"Join pairs of real numbers with a\[\.\.\., 0\] \+ 1j"),
        (np.zeros((1, 2, 4, 20, 17), np.float16), r"If axis 1 holds real and imaginary parts, join .* a\[:, 0\] \+ 1j"),
        (np.zeros((2, 4, 20, 17), np.float32), r"If axis 0 holds .* a\[0\] \+ 1j \* a\[1\]"),
        (np.zeros((1, 2, 3, 20, 17), complex), r"must be \(H, W\), \(coils, H, W\)"),
        (np.ones((20, 17, 4), complex), "looks like coils stored last.*moveaxis"),
        (np.ones((1, 200, 170, 4), complex), "looks like coils stored last"),
        (np.ones((200, 40, 40), complex), r"ambiguous: 200 coils or slices\? Pass kspace\[:, None\]"),
        (np.zeros((0, 20, 17), complex), "is empty"),
        (np.full((20, 17), np.nan + 0j), "340 non-finite values"),
        (np.zeros((20, 17), complex), "zero everywhere"),
    ],
)
def test_wrong_arrays(kspace: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(kspace)


def test_a_coil_that_is_not_finite_is_named_and_so_are_marks_of_missing_lines() -> None:
    kspace = simulated_kspace(2, 4, 20, 17)
    broken = kspace.copy()
    broken[1, 2] = np.nan
    with pytest.raises(
        DataError, match=r"340 non-finite .* in slice 1, coils \[2\]\. .* numpy\.delete\(kspace, \[2\], axis=-3\)"
    ):
        from_arrays(broken)
    assert from_arrays(np.delete(broken, [2], axis=-3)).num_coils == 3
    marked = kspace.copy()
    marked[..., ::2] = np.nan
    with pytest.raises(DataError, match=r"in slice 0\. .* If they mark what was not measured, set them to 0"):
        from_arrays(marked)
    broken[1] = np.nan
    with pytest.raises(DataError, match=r"in slice 1\. Export .*, or leave that slice out with slices=\.\.\.$"):
        from_arrays(broken)


def test_a_file_of_torch_save_is_named(tmp_path: Path) -> None:
    torch.save(torch.zeros(2, 20, 17, dtype=torch.complex64), tmp_path / "scan.pt")
    with pytest.raises(DataError, match=r"scan\.pt: not a \.npz file\. .* reconstruct\(torch\.load"):
        read_scan(tmp_path / "scan.pt")


def suspicions(kspace: np.ndarray) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from_arrays(kspace)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("lines", [None, 8])
def test_sixteen_coils_and_more_that_are_stored_last_are_told(lines: int | None) -> None:
    kspace = simulated_kspace(1, 20, 64, 48)
    kspace = kspace if lines is None else kspace * random_lines(48, acceleration=4, acs_lines=lines)
    assert suspicions(kspace) == []
    (told,) = suspicions(np.moveaxis(kspace, 1, -1))
    assert "'kspace' of 64 coils, 48 x 20" in told and "numpy.moveaxis(kspace, -1, -3)" in told


@pytest.mark.parametrize("shape", [(64, 48), (63, 47)])
def test_an_image_whose_middle_was_not_at_half_its_size_is_told(shape: tuple[int, int]) -> None:
    kspace = simulated_kspace(1, 4, *shape)
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=(-2, -1))), axes=(-2, -1))
    careless = np.fft.fftshift(np.fft.fft2(image), axes=(-2, -1))  # ifftshift of the image is missing
    told = suspicions(careless)
    assert len(told) == 2 and "both ends of the rows" in told[0] and "both ends of the columns" in told[1]
    mended = careless * (-1.0) ** np.arange(shape[0])[:, None] * (-1.0) ** np.arange(shape[1])
    assert suspicions(mended) == suspicions(kspace) == []
    (told,) = suspicions(careless * (-1.0) ** np.arange(shape[0])[:, None])  # along one axis
    assert "its columns by (-1) ** numpy.arange(n)" in told


def test_an_image_is_told_from_k_space() -> None:
    kspace = simulated_kspace(1, 4, 64, 48)
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=(-2, -1))), axes=(-2, -1))
    (told,) = suspicions(image)
    assert "are these images?" in told
    assert suspicions(image * 1e25) == [told] and suspicions(kspace * 1e25) == []


def test_wrong_companions() -> None:
    kspace = simulated_kspace(1, 2, 20, 17)
    with pytest.raises(DataError, match=r"'coil_maps' must be complex.*estimated from another scan"):
        from_arrays(kspace, coil_maps=np.ones((3, 20, 17), complex))
    with pytest.raises(DataError, match="'noise_std' must be one number"):
        from_arrays(kspace, noise_std=-0.1)
    with pytest.raises(DataError, match="'mask' has shape"):
        from_arrays(kspace, np.ones(21, bool))


def test_damaged_numpy_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", image=np.zeros(3))
    with pytest.raises(DataError, match=r"'kspace' is missing \(the file holds image\)"):
        read_scan(tmp_path / "scan.npz")
    for name, save in (("a.npy", np.save), ("a.npz", lambda p, k: np.savez(p, kspace=k))):
        path = tmp_path / name
        save(path, simulated_kspace(1, 2, 20, 17))
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(DataError, match=re.escape(f"{path}: NumPy cannot read it")):
            read_scan(path)
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="NumPy cannot read it"):
        read_scan(tmp_path / "object.npy")


# ---------------------------------------------------------------- real scans


def test_every_real_scan_reads(data_root: Path) -> None:
    files = sorted(data_root.glob("*coil*/*.h5"))
    assert files
    for path in files:
        scan = read_scan(path)
        assert scan.kspace.ndim == 4 and np.isfinite(scan.kspace).all()
        assert np.count_nonzero(np.where(scan.mask, 0, scan.kspace)) == 0
        if "test" in path.parent.name:
            assert scan.acceleration > 2
        else:
            assert scan.fully_sampled
            assert read_reference(path).shape[-2:] == scan.recon_shape


def test_real_prospective_masks(data_root: Path) -> None:
    lines = read_scan(data_root / "multicoil_test" / "brain_t2_12ch_r3.h5")
    assert lines.phase_encode_axis == -2 and lines.mask.shape == (1, 1, 256, 1) and lines.mask.sum() == 107
    poisson = read_scan(data_root / "multicoil_test" / "brain_t1_8ch_poisson8.h5")
    assert poisson.phase_encode_axis is None and poisson.mask.shape == (1, 1, 230, 180)
    assert poisson.acceleration == pytest.approx(8, rel=0.05)


def test_a_rim_that_random_lines_miss_by_chance_is_no_acquired_extent() -> None:
    """R = 8 leaves a quarter at one side empty once in a dozen draws; the zero padding of a dense mask stays."""
    generator = np.random.default_rng(0)
    line = np.zeros(128, bool)
    line[60:68] = line[[33, 40, 50, 75, 90, 99, 110, 121]] = True
    kspace = generator.standard_normal((1, 2, 128, 128)) * line * (1 + 1j)
    assert from_arrays(kspace.astype(np.complex64)).acceleration == pytest.approx(8.0)
    dense = np.zeros(128, bool)
    dense[20:108] = generator.random(88) < 0.5
    dense[[20, 107]] = dense[60:68] = True
    found = from_arrays((generator.standard_normal((1, 2, 128, 128)) * dense * (1 + 1j)).astype(np.complex64))
    assert found.acquired_extent[1] == (20, 108)


def test_real_numbers_made_complex_are_told() -> None:
    real = np.random.default_rng(0).standard_normal((2, 16, 16))
    real[:, 8, 8] = 10
    with pytest.warns(DataWarning, match="imaginary part of 'kspace' is zero everywhere"):
        from_arrays(real.astype(np.complex64))


@pytest.mark.parametrize("shape", [(101, 3, 87), (3, 16, 7)])
def test_an_image_of_a_few_rows_is_an_axis_elsewhere(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="The last two axes are those of the image"):
        from_arrays(np.full(shape, 1 + 1j, np.complex64))


@pytest.mark.filterwarnings("ignore::ambient_mri.data.readers.DataWarning")  # white noise has no centre
@pytest.mark.parametrize("mask", [None, np.ones(256, dtype=bool)], ids=["inferred", "stored"])
def test_lines_that_one_slice_lost_are_no_measured_zeros(mask: np.ndarray | None) -> None:
    generator = np.random.default_rng(0)
    kspace = (generator.normal(size=(3, 2, 32, 256)) + 1j).astype(np.complex64)
    kspace[1, ..., [127, 129]] = 0
    kspace[0, :, 5, 7] = 0  # a single zero is no lost line
    scan = from_arrays(kspace, mask)
    assert scan.mask.shape == (3, 1, 1, 256) and not scan.fully_sampled
    assert [int(m.sum()) for m in scan.mask] == [256, 254, 256] and not scan.mask[1, ..., [127, 129]].any()
