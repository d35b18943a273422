"""Each kind of malformed file is answered with one line that names file, dataset and fix, and stops no other file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from ambient_mri._checks import DataError
from ambient_mri.data.readers import DataWarning, read_scan
from ambient_mri.masks import RandomLines
from ambient_mri.prepare import prepare_files
from tests.data.fastmri_files import FastMRIFile, brain, header_xml, knee, random_lines, undersampled, with_size


def truncated(path: Path) -> None:
    knee().write(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def wrong_dtype(path: Path) -> None:
    replace(knee(), kspace=np.abs(knee().kspace), reference=None).write(path)


def pairs_of_numbers(path: Path) -> None:
    file = knee()
    with h5py.File(path, "w") as handle:
        handle["kspace"] = np.stack([file.kspace.real, file.kspace.imag], axis=-1).astype(np.float16)


def wrong_axis_order(path: Path) -> None:
    file = knee()
    replace(file, kspace=np.ascontiguousarray(np.moveaxis(file.kspace, 1, -1)), reference=None).write(path)


def slices_last(path: Path) -> None:
    file = knee()
    replace(file, kspace=np.ascontiguousarray(np.moveaxis(file.kspace, 0, -1)), reference=None).write(path)


def zero_slices(path: Path) -> None:
    replace(knee(), kspace=np.zeros((0, 4, 64, 37), np.complex64), reference=None).write(path)


def non_finite(path: Path) -> None:
    file = knee()
    file.kspace[1, 2, 3, 4] = np.nan
    file.write(path)


def mask_of_another_size(path: Path) -> None:
    replace(undersampled(knee(), random_lines(37)), mask=random_lines(40)).write(path)


def unreadable_header(path: Path) -> None:
    replace(knee(), header="<ismrmrdHeader><encoding>").write(path)


def no_kspace(path: Path) -> None:
    with h5py.File(path, "w") as handle:
        handle["reconstruction_rss"] = knee().reference


FATAL: list[tuple[Callable[[Path], None], str, str]] = [
    (truncated, "HDF5 cannot read it|'kspace' is damaged", "copy it again|Copy the file again"),
    (wrong_dtype, "dataset 'kspace' is float32, not complex", r"must be complex \(slices, coils, H, W\)"),
    (pairs_of_numbers, "dataset 'kspace' has 5 axes", r"Join pairs of real numbers with a\[\.\.\., 0\] \+ 1j"),
    (wrong_axis_order, r"dataset 'kspace' has shape \(2, 64, 37, 4\)", "numpy.moveaxis"),
    (slices_last, r"dataset 'kspace' has shape \(4, 64, 37, 2\)", "numpy.moveaxis"),
    (zero_slices, r"dataset 'kspace' is empty, shape \(0, 4, 64, 37\)", "Was the export interrupted"),
    (non_finite, "dataset 'kspace' holds 1 non-finite values .* in slice 1", "Export the file again, or leave"),
    (mask_of_another_size, r"dataset 'mask' has shape \(40,\)", r"expected \(37,\).*another matrix size"),
    (unreadable_header, "dataset 'ismrmrd_header' is not readable XML", "Copy the file again, or delete it"),
    (no_kspace, r"dataset 'kspace' is missing \(the file holds reconstruction_rss\)", "It must be complex"),
]


@pytest.mark.parametrize(("make", "what", "fix"), FATAL, ids=[case[0].__name__ for case in FATAL])
def test_one_line_names_file_dataset_and_fix(make: Callable[[Path], None], what: str, fix: str, tmp_path: Path) -> None:
    path = tmp_path / "file1000001.h5"
    make(path)
    with pytest.raises(DataError, match=what) as caught:
        read_scan(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line
    with pytest.raises(DataError, match=fix):
        read_scan(path)


def test_all_of_them_beside_a_good_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [knee().write(tmp_path / "good.h5")]
    for make, *_ in FATAL:
        files.append(tmp_path / f"{make.__name__}.h5")
        make(files[-1])
    with caplog.at_level(logging.WARNING, logger="ambient_mri"):
        summary = prepare_files(files, tmp_path / "out", law=RandomLines(2.0, 8))
    assert [p.name for p in summary.done] == ["good.h5"] and len(summary.failed) == len(FATAL)
    lines = [record.getMessage() for record in caplog.records]
    assert all(any(f"skipped {path}: " in line for line in lines) for path, _ in summary.failed)
    assert all("\n" not in reason and reason.count(str(path)) == 1 for path, reason in summary.failed)


def test_a_missing_header_is_named_and_the_data_speak_for_themselves(tmp_path: Path) -> None:
    path = replace(brain(), header=None).write(tmp_path / "bare.h5")
    with pytest.warns(
        DataWarning, match=r"bare\.h5: dataset 'ismrmrd_header' is missing.*Copy it from the original"
    ) as told:
        scan = read_scan(path)
    assert len(told) == 1 and scan.acquired_extent == ((0, 48), (5, 36))


def test_the_header_of_another_matrix_is_named_and_its_limits_are_not_believed(tmp_path: Path) -> None:
    """Mixed matrix sizes within a file."""
    header = header_xml(encoded=(96, 60), recon=(48, 48), limits=(0, 29, 15))
    path = FastMRIFile(knee().kspace, header).write(tmp_path / "mixed.h5")
    words = r"'ismrmrd_header' describes a matrix of 96 x 60, 'kspace' has 64 x 37.*header of another scan"
    with pytest.warns(DataWarning, match=words):
        scan = read_scan(path)
    assert scan.acquired_extent == ((0, 64), (0, 37))


@pytest.mark.parametrize(
    ("rows", "width", "coils", "lines"),
    [(640, 372, 15, 368), (640, 320, 16, None), (768, 396, 20, 386), (640, 369, 2, 335), (641, 323, 2, None)],
)
def test_official_sizes(rows: int, width: int, coils: int, lines: int | None, tmp_path: Path) -> None:
    path = with_size(rows, width, coils, lines=lines).write(tmp_path / "file.h5")
    scan = read_scan(path)
    first = 0 if lines is None else width // 2 - lines // 2
    assert scan.kspace.shape == (1, coils, rows, width) and scan.kspace.dtype == np.complex64
    assert scan.acquired_extent == ((0, rows), (first, first + (lines or width)))
    assert scan.recon_shape == (rows // 2, min(rows // 2, width)) and scan.fully_sampled


def test_an_official_size_is_prepared_whole(tmp_path: Path) -> None:
    source = with_size(640, 372, 15, lines=368).write(tmp_path / "file1000831.h5")
    law = RandomLines(4.0, 26)
    (target,) = prepare_files([source], tmp_path / "out", law=law).done
    scan = read_scan(target)
    assert scan.mask.sum() in (92, 93) and not scan.mask[..., :2].any() and not scan.mask[..., -2:].any()
    assert scan.acceleration == pytest.approx(368 / scan.mask.sum())
    np.testing.assert_allclose((np.abs(scan.coil_maps) ** 2).sum(axis=1), 1, atol=1e-3)  # type: ignore[arg-type]
