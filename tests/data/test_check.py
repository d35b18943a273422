"""check_kspace() finds what is there, and says what is odd in one sentence each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ambient_mri
from ambient_mri import cli
from ambient_mri._checks import DataError
from ambient_mri.data.check import check_kspace
from ambient_mri.data.readers import read_scan
from tests.data.fastmri_files import brain, knee, random_lines, simulated_kspace, undersampled, with_size


def problems(*arguments: object, **options: object) -> str:
    return "\n".join(check_kspace(*arguments, **options).problems)  # type: ignore[arg-type]


def test_a_good_file_has_no_problem(tmp_path: Path) -> None:
    path = with_size(128, 96, 4, slices=2, acquisition="CORPDFS_FBK", lines=90).write(tmp_path / "file1.h5")
    found = ambient_mri.check_kspace(path)
    assert isinstance(found, ambient_mri.KspaceCheck) and found.problems == () and found.name == "file1"
    assert found.shape == (2, 4, 128, 96) and found.recon_shape == (64, 64) and found.acquisition == "CORPDFS_FBK"
    assert found.fully_sampled and found.sampled == (90, 90) and found.acceleration == 1
    assert found.readout_oversampling == 2 and found.acquired_extent == ((0, 128), (3, 93))
    assert found.peak == (64, 48) and found.acs == (128, 90) and found.phase_encode_axis == -1
    assert found.noise_std == pytest.approx(0.01, rel=0.1)
    assert found.snr == pytest.approx(found.scale / found.noise_std) and found.snr > 20  # type: ignore[operator]
    assert sum(found.coil_energy) == pytest.approx(1) and found.voxel_mm == pytest.approx((2.5, 2.5, 4.5))


def test_effective_acceleration_of_a_test_file(tmp_path: Path) -> None:
    mask = random_lines(37, acceleration=3, acs_lines=6)
    found = check_kspace(undersampled(knee(), mask).write(tmp_path / "a.h5"))
    assert found.sampled == (12, 37) and found.acceleration == pytest.approx(37 / 12) and not found.fully_sampled
    assert found.acs == (64, 7) and "7 calibration lines (16 are enough)" in "".join(found.problems)


def test_rows_may_be_the_phase_encode_axis() -> None:
    mask = random_lines(64, acceleration=2, acs_lines=20)
    found = check_kspace(simulated_kspace(1, 3, 64, 48) * mask[:, None])
    assert found.phase_encode_axis == -2 and found.sampled == (32, 64) and found.acs[0] >= 20  # type: ignore[index]


def test_zero_frequency_stored_first() -> None:
    shifted = np.fft.ifftshift(simulated_kspace(1, 3, 48, 40), axes=(-2, -1))
    assert problems(shifted).count("apply numpy.fft.fftshift") == 2


def test_a_shift_by_a_few_lines() -> None:
    found = problems(np.roll(simulated_kspace(1, 3, 64, 48), 7, axis=-1))
    assert "+7 columns off the centre 24" in found and "rows" not in found


def test_empty_and_weak_coils() -> None:
    kspace = simulated_kspace(1, 5, 48, 40)
    kspace[:, 1] = 0
    kspace[:, 3] *= 1e-3
    found = check_kspace(kspace)
    assert found.empty_coils == (1,)
    assert "coils [1] are zero everywhere" in found.problems[0] and "coils [3] hold less than 1 %" in found.problems[1]


def test_an_empty_slice_and_a_missing_header(tmp_path: Path) -> None:
    file = replace(brain(slices=3), header=None)
    file.kspace[1] = 0
    found = problems(file.write(tmp_path / "a.h5"))
    assert "slices [1] is zero everywhere" in found and "'ismrmrd_header' is missing" in found
    assert str(tmp_path) not in found


def test_no_calibration_lines() -> None:
    mask = np.ones(40, dtype=bool)
    mask[18:23] = False
    assert "the zero frequency is not sampled" in problems(simulated_kspace(1, 3, 48, 40), mask)


def test_a_noise_scan_is_no_image() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1, 3, 48, 40)) + 1j * rng.standard_normal((1, 3, 48, 40))
    assert "is this a noise scan" in problems(noise.astype(np.complex64))


def test_a_scan_and_some_slices(tmp_path: Path) -> None:
    path = knee(slices=3).write(tmp_path / "a.h5")
    assert check_kspace(path, slices=slice(1, 3)).shape[0] == 2
    assert check_kspace(read_scan(path)).shape == (3, 4, 64, 37)
    with pytest.raises(DataError, match="no such file"):
        check_kspace(tmp_path / "b.h5")


def test_info_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = knee()
    file.kspace[:, 2] = 0
    path = file.write(tmp_path / "a.h5")
    assert cli.main(["info", str(path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("readout oversampling 2", "strongest location row 32, column 18", "coils [2] are zero everywhere"):
        assert words in text
