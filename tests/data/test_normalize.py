from __future__ import annotations

import numpy as np
import pytest
import torch

from ambient_mri._checks import DataError
from ambient_mri.data.check import check_kspace
from ambient_mri.data.normalize import estimate_noise_std, measured_scale, noise_warnings
from ambient_mri.data.readers import from_arrays, read_scan
from ambient_mri.operators.fourier import fft, ifft
from ambient_mri.prepare import Preparation
from ambient_mri.prepare.scan import prepare_scan
from ambient_mri.reconstruct.volume import Volume
from tests.data.fastmri_files import random_lines, simulated_kspace


def full_mask(kspace: np.ndarray) -> np.ndarray:
    return np.ones((1, 1, 1, kspace.shape[-1]), bool)


def equispaced(width: int, acceleration: int, offset: int) -> np.ndarray:
    return (np.arange(width) % acceleration == offset)[None, None, None]


# ---------------------------------------------------------------- scale


@pytest.mark.parametrize("shape", [(64, 64), (65, 47), (40, 96)])
def test_low_resolution_image_has_robust_maximum_one(shape: tuple[int, int]) -> None:
    kspace = simulated_kspace(3, 4, *shape)
    scale = measured_scale(kspace, full_mask(kspace))
    # The same image by the definition: the central 8 x 8 samples alone, zero elsewhere, on the scan's own grid.
    core = np.zeros_like(kspace)
    rows, columns = (slice(n // 2 - 4, n // 2 + 4) for n in shape)
    core[..., rows, columns] = kspace[..., rows, columns]
    low = ifft(torch.from_numpy(core / scale)).abs().square().sum(dim=1).sqrt()
    assert float(np.percentile(low.numpy(), 99)) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("acceleration", [4, 8])
def test_same_scale_at_every_acceleration(acceleration: int) -> None:
    kspace = simulated_kspace(2, 4, 96, 96)
    full = measured_scale(kspace, full_mask(kspace))
    mask = random_lines(96, acceleration=acceleration, acs_lines=8)[None, None, None]
    # Exactly the same: nothing outside the core enters.
    assert measured_scale(kspace * mask, mask) == full
    two_dimensional = np.random.default_rng(0).random((1, 1, 96, 96)) < 1 / acceleration
    two_dimensional[..., 44:52, 44:52] = True
    assert measured_scale(kspace * two_dimensional, two_dimensional) == full


@pytest.mark.parametrize("width", [64, 63])
def test_scale_follows_the_units(width: int) -> None:
    kspace = simulated_kspace(2, 3, 48, width)
    scale = measured_scale(kspace, full_mask(kspace))
    assert measured_scale(kspace * np.complex64(7j), full_mask(kspace)) == pytest.approx(7 * scale, rel=1e-5)
    tensor = torch.from_numpy(kspace)
    assert measured_scale(tensor, torch.ones(2, 1, 1, width, dtype=torch.bool)) == scale


def test_scale_ignores_coil_mixing_and_silent_coils() -> None:
    kspace = simulated_kspace(2, 4, 48, 48)
    scale = measured_scale(kspace, full_mask(kspace))
    rng = np.random.default_rng(0)
    unitary, _ = np.linalg.qr(rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4)))
    mixed = np.einsum("cd,sdhw->schw", unitary, kspace).astype(np.complex64)
    silent = np.concatenate([kspace, np.zeros_like(kspace)], axis=1)
    assert measured_scale(mixed, full_mask(kspace)) == pytest.approx(scale, rel=1e-4)
    assert measured_scale(silent, full_mask(kspace)) == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("coils", [1, 2, 8, 16])
def test_scale_ignores_the_number_of_coils(coils: int) -> None:
    one = measured_scale(simulated_kspace(1, 1, 64, 64), np.ones((1, 1, 1, 64), bool))
    many = measured_scale(simulated_kspace(1, coils, 64, 64), np.ones((1, 1, 1, 64), bool))
    assert many == pytest.approx(one, rel=0.1)  # maps modulate the low-resolution images a little


def test_scaled_image_ignores_the_matrix_size() -> None:
    kspace = simulated_kspace(1, 2, 64, 64, noise_std=0)
    padded = np.pad(kspace, ((0, 0), (0, 0), (32, 32), (16, 16)))
    ratio = measured_scale(padded, full_mask(padded)) / measured_scale(kspace, full_mask(kspace))
    assert ratio == pytest.approx(np.sqrt(kspace.size / padded.size), rel=1e-5)  # as the image's own units change


@pytest.mark.parametrize(("acceleration", "bound"), [(4, 2.5), (8, 3.5)])
def test_scale_without_acs(acceleration: int, bound: float) -> None:
    kspace = simulated_kspace(2, 4, 96, 96)
    full = measured_scale(kspace, full_mask(kspace))
    for offset in range(acceleration):
        mask = equispaced(96, acceleration, offset)
        # A core with one line, or two, tells no more.
        assert 1 / bound < measured_scale(kspace * mask, mask) / full < bound


@pytest.mark.parametrize("lines", [slice(45, 51), slice(45, 53), slice(46, 50)])
def test_scale_with_few_central_lines(lines: slice) -> None:
    kspace = simulated_kspace(2, 4, 96, 96)
    mask = equispaced(96, 8, 0)
    mask[..., lines] = True
    full = measured_scale(kspace, full_mask(kspace))
    assert measured_scale(kspace * mask, mask) == pytest.approx(full, rel=0.1)


def test_scale_with_no_sample_in_the_core() -> None:
    kspace = simulated_kspace(2, 4, 96, 96)
    mask = np.ones((1, 1, 1, 96), bool)
    mask[..., 40:56] = False
    assert 0.1 < measured_scale(kspace * mask, mask) / measured_scale(kspace, full_mask(kspace)) < 10


def test_nothing_measured_has_no_scale() -> None:
    with pytest.raises(DataError, match="zero everywhere: there is no scale"):
        measured_scale(np.zeros((1, 2, 16, 16), np.complex64), np.ones((1, 1, 1, 16), bool))
    with pytest.raises(DataError, match=r"kspace must be complex \(slices, coils, H, W\)"):
        measured_scale(np.zeros((2, 16, 16), np.complex64), np.ones((1, 1, 1, 16), bool))
    with pytest.raises(DataError, match=r"mask must broadcast to \(1, 1, 16, 16\)"):
        measured_scale(np.ones((1, 2, 16, 16), np.complex64), np.ones((1, 1, 1, 15), bool))


# ---------------------------------------------------------------- noise

SIGMA = (0.003, 0.02, 0.1)


def noise_of(kspace: np.ndarray, mask: np.ndarray | None = None, extent: object = None) -> tuple[float, str]:
    return estimate_noise_std(kspace, full_mask(kspace) if mask is None else mask, extent)  # type: ignore[arg-type]


@pytest.mark.parametrize("sigma", SIGMA)
@pytest.mark.parametrize(("coils", "shape"), [(8, (128, 128)), (1, (192, 160)), (4, (95, 97))])
def test_noise_of_simulated_scans(sigma: float, coils: int, shape: tuple[int, int]) -> None:
    value, provenance = noise_of(simulated_kspace(2, coils, *shape, noise_std=sigma))
    assert value == pytest.approx(sigma, rel=0.05)
    assert "upper bound" not in provenance


@pytest.mark.parametrize("sigma", SIGMA)
@pytest.mark.parametrize("acceleration", [4, 8])
def test_noise_of_undersampled_scans(sigma: float, acceleration: int) -> None:
    mask = random_lines(128, acceleration=acceleration, acs_lines=8)[None, None, None]
    value, _ = noise_of(simulated_kspace(4, 6, 128, 128, noise_std=sigma) * mask, mask)
    assert value == pytest.approx(sigma, rel=0.05)
    along_rows = mask.swapaxes(-1, -2)
    value, _ = noise_of(simulated_kspace(4, 6, 128, 128, noise_std=sigma) * along_rows, along_rows)
    assert value == pytest.approx(sigma, rel=0.05)


def detailed_object(slices: int, size: int, rows: slice, *, sigma: float, seed: int = 3) -> np.ndarray:
    """One coil; ``rows`` hold detail down to a pixel, the others nothing: signal of 0.03 up to the edge of k-space."""
    rng = np.random.default_rng(seed)
    image = np.zeros((slices, 1, size, size), np.complex64)
    image[:, :, rows, 8:-8] = 0.7 + 0.03 * rng.standard_normal((slices, 1, size, size))[:, :, rows, 8:-8]
    kspace = fft(torch.from_numpy(image)).numpy()
    noise = rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape)
    return (kspace + sigma * noise).astype(np.complex64)


@pytest.mark.parametrize("rows", [slice(9, 128), slice(0, 119), slice(4, 123), slice(3, 125)])
@pytest.mark.parametrize("sigma", [0.001, 0.003, 0.01])
def test_one_undersampled_coil_with_little_room_around_the_object(rows: slice, sigma: float) -> None:
    # The field of view is periodic: nine empty rows are nine, on whichever side of the object they are.
    mask = random_lines(128, acceleration=4, acs_lines=12)[None, None, None]
    found = [noise_of(detailed_object(8, 128, rows, sigma=sigma, seed=s) * mask, mask) for s in range(6)]
    assert np.mean([value for value, _ in found]) == pytest.approx(sigma, rel=0.05)
    assert {provenance for _, provenance in found} == {"image background along rows, noise floor"}
    along_rows = mask.swapaxes(-1, -2)
    turned = detailed_object(8, 128, rows, sigma=sigma).swapaxes(-1, -2) * along_rows
    assert noise_of(turned, along_rows)[0] == pytest.approx(sigma, rel=0.15)


def test_signal_everywhere_above_the_noise_is_an_upper_bound_and_says_so() -> None:
    falling = 1 / (1 + np.hypot(np.arange(-64, 64)[:, None], np.arange(-64, 64)) / 10)
    kspace = (falling * detailed_object(3, 128, slice(0, 128), sigma=0.03)).astype(np.complex64)
    mask = random_lines(128, acceleration=4, acs_lines=12)[None, None, None]
    value, provenance = noise_of(kspace * mask, mask)
    assert value > 0.003 and "may hold signal" in provenance
    assert "fewer than 4 coils" in noise_warnings(provenance, 1)[0]
    assert noise_warnings(provenance, 4) == []  # likely_noise_std lowers it
    problems = check_kspace(kspace * mask, mask).problems
    assert any("noise_std is an upper bound" in problem for problem in problems)
    raw = from_arrays(kspace * mask, mask)
    prepared = prepare_scan(raw, None, Preparation()).preparation
    assert any("noise_std is an upper bound" in note for note in prepared["notes"])
    volume = Volume.measure(raw)
    assert any("noise_std is an upper bound" in warning for warning in volume.warnings())
    assert Volume.measure(raw, noise_std=0.003).warnings() == []
    assert not any("as the coils agree" in source for source in (volume.noise_source, prepared["noise_source"]))
    _, known = noise_of(detailed_object(3, 128, slice(9, 128), sigma=0.003) * mask, mask)
    assert noise_warnings(known, 1) == []


@pytest.mark.parametrize("sigma", SIGMA)
def test_zero_padding_is_no_noise(sigma: float) -> None:
    kspace = simulated_kspace(2, 6, 128, 128, noise_std=sigma)
    kspace[..., :14] = 0
    kspace[..., 110:] = 0
    mask = np.zeros((1, 1, 1, 128), bool)
    mask[..., 14:110] = True
    for given, extent in ((mask, ((0, 128), (14, 110))), (mask, None), (None, None)):
        assert noise_of(kspace, given, extent)[0] == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("sigma", SIGMA)
def test_filtered_edge_lines_are_not_the_noise(sigma: float) -> None:
    kspace = simulated_kspace(2, 6, 128, 128, noise_std=sigma)
    taper = np.ones(128, np.float32)
    taper[:10], taper[-10:] = np.linspace(0.1, 1, 10), np.linspace(1, 0.1, 10)
    assert noise_of(kspace * taper)[0] == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("sigma", SIGMA)
def test_empty_corners_are_not_the_noise(sigma: float) -> None:
    kspace = simulated_kspace(2, 6, 128, 128, noise_std=sigma)
    axis = (np.arange(128) - 64) / 64
    ellipse = (np.hypot(axis[:, None], axis[None, :]) <= 1)[None, None]
    assert noise_of(kspace * ellipse, ellipse)[0] == pytest.approx(sigma, rel=0.05)


def test_margins_dimmed_by_the_readout_filter_do_not_mislead() -> None:
    # Readout filters dim the outer field of view, noise included: the margins alone would give a third of the noise.
    kspace = simulated_kspace(1, 4, 256, 96, noise_std=0.2)
    profile = np.ones(256)
    profile[:40], profile[-40:] = np.linspace(0.2, 1, 40), np.linspace(1, 0.2, 40)
    filtered = np.fft.fft(np.fft.ifft(kspace, axis=-2) * np.fft.ifftshift(profile)[:, None], axis=-2)
    expected = 0.2 * np.sqrt(np.mean(profile**2))
    assert noise_of(filtered.astype(np.complex64))[0] == pytest.approx(expected, rel=0.05)


def test_padded_image_gives_an_upper_bound() -> None:
    kspace = simulated_kspace(1, 4, 96, 96, noise_std=0.01)
    image = ifft(torch.from_numpy(kspace)).numpy()
    padded = np.pad(image, ((0, 0), (0, 0), (16, 16), (16, 16)))
    shifted = np.fft.fft2(np.fft.ifftshift(padded, axes=(-2, -1)), norm="ortho")
    value, _ = noise_of(np.fft.fftshift(shifted, axes=(-2, -1)).astype(np.complex64))
    assert value > 0.005


def test_silent_coils_and_units() -> None:
    kspace = simulated_kspace(1, 4, 96, 96, noise_std=0.05)
    value, _ = noise_of(kspace)
    assert noise_of(1000 * kspace)[0] == pytest.approx(1000 * value, rel=1e-4)
    silent = np.concatenate([kspace, np.zeros_like(kspace)], axis=1)
    assert noise_of(silent)[0] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 1, 6, 7), (3, 2, 4, 9)])
def test_tiny_scans_give_a_number(shape: tuple[int, int, int, int]) -> None:
    value, provenance = noise_of(simulated_kspace(*shape, noise_std=0.1))
    assert np.isfinite(value) and value > 0 and provenance


def test_too_few_samples() -> None:
    kspace = np.zeros((1, 1, 16, 16), np.complex64)
    kspace[..., 8, 8] = 1
    with pytest.raises(DataError, match=r"1 non-zero samples cannot tell the noise. Pass noise_std"):
        noise_of(kspace)


def test_real_scans(data_root: object) -> None:
    for path in sorted(data_root.glob("*coil*/*.h5")):  # type: ignore[attr-defined]
        scan = read_scan(path)
        scale = measured_scale(scan.kspace, scan.mask)
        noise, _ = estimate_noise_std(scan.kspace, scan.mask, scan.acquired_extent)
        assert 1e-4 < noise / scale < 0.3
        image = ifft(torch.from_numpy(scan.kspace)).abs().square().sum(dim=1).sqrt() / scale
        assert 0.9 < float(np.percentile(image.numpy(), 99)) < 2.5


@pytest.mark.parametrize("acceleration", [4, 8])
def test_real_noise_at_every_acceleration(data_root: object, acceleration: int) -> None:
    scan = read_scan(data_root / "multicoil_val" / "brain_t1_8ch.h5")  # type: ignore[operator]
    full, _ = estimate_noise_std(scan.kspace, scan.mask)
    mask = random_lines(180, acceleration=acceleration, acs_lines=12)[None, None, None]
    assert estimate_noise_std(scan.kspace * mask, mask)[0] == pytest.approx(full, rel=0.15)
