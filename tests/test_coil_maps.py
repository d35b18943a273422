"""Coil maps: ACS detection, ESPIRiT against known maps, sigpy and BART, the absorbed phase, fall-backs and errors."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from sigpy.mri.app import EspiritCalib
from torch import Tensor

from ambient_mri._checks import AmbientMRIError
from ambient_mri.coil_maps import AcsRegion, absorb_phase, calibration, espirit, estimate_coil_maps, find_acs
from ambient_mri.coil_maps.acs import low_resolution_images
from ambient_mri.operators import fft, ifft
from ambient_mri.tensors import complex_randn, keyed_generator

needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="needs the BART toolbox (apt-get install bart)")

FULL = torch.ones(1, 1, 1, 1, dtype=torch.bool)


def smooth_maps(coils: int, size: tuple[int, int], batch: int = 1) -> Tensor:
    """Coils around the object: Gaussian magnitude and linear phase, unit norm at every pixel (batch, coils, H, W)."""
    row, col = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in size)
    maps = []
    for index in range(coils * batch):
        angle = 2 * math.pi * (index % coils) / coils + 0.4 * (index // coils)
        distance = (row[:, None] - 1.2 * math.sin(angle)) ** 2 + (col - 1.2 * math.cos(angle)) ** 2
        phase = angle + 0.7 * math.cos(angle) * row[:, None] - 0.7 * math.sin(angle) * col
        maps.append(torch.polar(torch.exp(-distance / 1.5), phase))
    stacked = torch.stack(maps).reshape(batch, coils, *size)
    return (stacked / stacked.norm(dim=1, keepdim=True)).to(torch.complex64)


def head(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A textured ellipse with a smooth phase (1, 1, H, W), and its support."""
    row, col = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    support = (row / 0.8) ** 2 + (col / 0.65) ** 2 < 1
    magnitude = support * (1 + 0.4 * torch.sin(9 * row) * torch.cos(7 * col) + 0.5 * ((row - 0.2) ** 2 + col**2 < 0.05))
    return torch.polar(magnitude, 1.1 * row + 0.8 * col**2)[None, None], support


def scan(coils: int, size: tuple[int, int], noise_std: float = 1e-3, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """k-space of the head (batch, coils, H, W), its true maps, its support."""
    maps, (image, support) = smooth_maps(coils, size, batch), head(size)
    noise = complex_randn((batch, coils, *size), generator=keyed_generator("coil-maps", coils, *size))
    return fft(maps * image) + noise_std * noise, maps, support


def lines(width: int, acs: int, step: int = 4) -> Tensor:
    """Every ``step``-th line along the columns and ``acs`` central ones: (1, 1, 1, W)."""
    mask = torch.zeros(width, dtype=torch.bool)
    mask[1::step] = True
    start = width // 2 - acs // 2
    if acs > 0:
        mask[start - 1 : start + acs + 1] = False
    mask[start : start + acs] = True
    return mask[None, None, None]


def agreement(a: Tensor, b: Tensor, support: Tensor) -> float:
    """Mean |<a, b>| over the support: 1 for maps that are equal up to a phase per pixel."""
    return float((a.conj() * b).sum(dim=1).abs()[..., support].mean())


class TestFindAcs:
    @pytest.mark.parametrize("width", [64, 65])
    @pytest.mark.parametrize("acs", [1, 2, 7, 8, 12])
    def test_lines_along_either_axis(self, width: int, acs: int) -> None:
        mask = torch.zeros(1, 1, 1, width, dtype=torch.bool)
        start = width // 2 - acs // 2
        mask[..., start : start + acs] = True
        mask[..., ::16] = True
        mask[..., start - 1] = mask[..., start + acs] = False
        region = find_acs(mask, (40, width))
        assert region == AcsRegion(rows=(0, 40), cols=(start, start + acs), image_shape=(40, width))
        swapped = find_acs(mask.mT, (width, 40))
        assert swapped == AcsRegion(rows=(start, start + acs), cols=(0, 40), image_shape=(width, 40))
        assert region.num_lines == min(acs, 40)

    def test_fully_sampled(self) -> None:
        assert find_acs(FULL, (7, 9)) == AcsRegion(rows=(0, 7), cols=(0, 9), image_shape=(7, 9))

    def test_calibration_square_of_a_two_dimensional_law(self) -> None:
        mask = torch.rand(1, 1, 48, 40, generator=keyed_generator("mask")) < 0.1
        mask[..., 16:32, 14:26] = True
        mask[..., [15, 32], :] = mask[..., :, [13, 26]] = False
        assert find_acs(mask) == AcsRegion(rows=(16, 32), cols=(14, 26), image_shape=(48, 40))

    def test_calibration_disc_gives_the_largest_inscribed_rectangle(self) -> None:
        offset = torch.arange(-20, 21)
        disc = (offset[:, None] ** 2 + offset**2 <= 100)[None, None]
        region = find_acs(disc)
        assert region is not None
        assert bool(region.crop(disc).all())
        sizes = [(2 * h + 1) * (2 * int((100 - h * h) ** 0.5) + 1) for h in range(11)]
        assert region.shape[0] * region.shape[1] == max(sizes)

    def test_no_zero_frequency_no_region(self) -> None:
        assert find_acs(lines(64, 0, step=4)) is None

    def test_a_batch_counts_what_every_row_has(self) -> None:
        region = find_acs(torch.cat([lines(64, 12), lines(64, 8)]), (64, 64))
        assert region is not None
        assert region.shape == (64, 8)

    def test_errors(self) -> None:
        with pytest.raises(AmbientMRIError, match="mask must be bool"):
            find_acs(torch.ones(1, 1, 4, 4))
        with pytest.raises(AmbientMRIError, match=r"mask \(1, 1, 1, 64\) does not broadcast to an image of shape"):
            find_acs(lines(64, 8), (64, 60))

    def test_limited_region_is_centred_and_longer_where_lines_are_few(self) -> None:
        assert find_acs(FULL, (128, 101)).limited(24).shape == (24, 24)
        few = find_acs(lines(128, 8), (100, 128)).limited(24)
        assert few == AcsRegion(rows=(26, 74), cols=(60, 68), image_shape=(100, 128))


class TestEspirit:
    @pytest.mark.parametrize(
        ("coils", "size"), [(2, (48, 40)), (2, (45, 51)), (8, (48, 40)), (8, (45, 51)), (64, (33, 28))]
    )
    def test_recovers_known_maps(self, size: tuple[int, int], coils: int) -> None:
        kspace, maps, support = scan(coils, size)
        acs = find_acs(FULL, size).limited(24)
        found, eigenvalue = espirit(kspace, acs)
        assert agreement(found, maps, support) > 0.9995
        assert float((found.conj() * maps).sum(dim=1).abs()[..., support].min()) > 0.99  # no holes
        assert float(eigenvalue[0, 0, support].mean()) > 0.99
        torch.testing.assert_close(found.norm(dim=1), torch.ones(1, *size))

    @pytest.mark.parametrize("size", [(48, 40), (45, 51)])
    def test_equals_sigpy(self, size: tuple[int, int]) -> None:
        kspace, _, support = scan(6, size)
        found, eigenvalue = espirit(kspace, find_acs(FULL, size).limited(24))
        app = EspiritCalib(kspace[0].numpy(), crop=0, output_eigenvalue=True, show_pbar=False)
        expected, values = (torch.from_numpy(np.ascontiguousarray(a)) for a in app.run())
        assert agreement(found, expected[None], support) > 0.99999
        torch.testing.assert_close(eigenvalue[0, 0, support], values[0].real[support], rtol=1e-4, atol=1e-4)

    def test_is_the_dominant_eigenvector_everywhere(self) -> None:
        """Against eigh of every pixel's matrix, outside the object too, where eigenvalues lie close together."""
        size, kernel = (48, 40), (6, 6)
        kspace, _, _ = scan(4, size, noise_std=0.02)
        region = find_acs(FULL, size).limited(24).crop(kspace)
        kernels = calibration._signal_autocorrelation(region[0], 0.0, kernel, 0.02)[None]
        maps, values = calibration._pointwise_eigenvectors(kernels.to(torch.complex64), size, kernel, 10_000)
        rows, cols = (calibration._harmonics(n, 6, kernels) for n in size)
        matrices = torch.einsum("yi,bcdij,xj->byxcd", rows, kernels, cols)
        torch.testing.assert_close(matrices, matrices.mH, rtol=0, atol=1e-12)
        expected = torch.linalg.eigvalsh(matrices)[..., -1]
        torch.testing.assert_close(values[:, 0].double(), expected, rtol=2e-3, atol=0)
        image = torch.einsum("byxcd,bdyx->bcyx", matrices, maps.to(matrices.dtype))
        residual = (image - expected[:, None] * maps).norm(dim=1) / expected
        assert float(residual.max()) < 5e-3

    def test_slices_of_a_batch_are_independent(self) -> None:
        kspace, maps, support = scan(4, (40, 36), batch=3)
        acs = find_acs(FULL, (40, 36)).limited(20)
        together, values = espirit(kspace, acs)
        assert agreement(together, maps, support) > 0.999
        for row in range(3):
            alone, value = espirit(kspace[row : row + 1], acs)
            assert agreement(alone, together[row : row + 1], support) > 1 - 1e-6
            torch.testing.assert_close(value[0], values[row], rtol=1e-3, atol=1e-4)

    def test_tiles_do_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kspace, _, _ = scan(4, (40, 36))
        acs = find_acs(FULL, (40, 36)).limited(20)
        whole, _ = espirit(kspace, acs)
        monkeypatch.setitem(calibration._TILE_ELEMENTS, "cpu", 1)
        row_by_row, _ = espirit(kspace, acs)
        torch.testing.assert_close(row_by_row, whole, rtol=1e-3, atol=1e-3)

    def test_units_do_not_matter(self) -> None:
        kspace, _, _ = scan(4, (40, 36))
        acs = find_acs(FULL, (40, 36)).limited(20)
        torch.testing.assert_close(espirit(1e-7 * kspace, acs)[0], espirit(kspace, acs)[0], rtol=1e-3, atol=1e-3)

    def test_a_zero_coil_stays_zero(self) -> None:
        kspace, _, _ = scan(4, (40, 36))
        kspace = torch.cat([kspace, torch.zeros_like(kspace[:, :1])], dim=1)
        found, _ = espirit(kspace, find_acs(FULL, (40, 36)).limited(20))
        assert float(found[:, -1].abs().max()) < 1e-5
        torch.testing.assert_close(found.norm(dim=1), torch.ones(1, 40, 36))

    def test_a_smaller_kernel_is_better_where_lines_are_few(self) -> None:
        """The reason for shrinking it: 8 lines hold 3 positions of a kernel of 6, too few to tell signal from noise."""
        kspace, maps, support = scan(6, (64, 64))
        acs = find_acs(lines(64, 8), (64, 64)).limited(24)
        adapted = agreement(espirit(kspace, acs)[0], maps, support)
        full = agreement(espirit(kspace, acs, kernel=(6, 6))[0], maps, support)
        assert 1 - adapted < 0.5 * (1 - full)

    @pytest.mark.parametrize("noise_std", [0.05, 0.15])
    def test_a_known_noise_level_keeps_noise_out_of_the_maps(self, noise_std: float) -> None:
        """Noise above the relative threshold fills the whole space: every vector is a map then, with eigenvalue 1."""
        kspace, maps, support = scan(6, (64, 60), noise_std=noise_std)
        acs = find_acs(FULL, (64, 60)).limited(24)
        unaware, eigenvalue = espirit(kspace, acs, threshold=1e-4)
        assert float(eigenvalue.min()) > 0.99
        assert agreement(unaware, maps, support) < 0.8
        aware, _ = espirit(kspace, acs, threshold=1e-4, noise_std=torch.tensor([noise_std]))
        assert agreement(aware, maps, support) > 0.998

    def test_noise_edge_is_the_largest_singular_value_of_noise(self) -> None:
        noise = 0.3 * complex_randn((6, 24, 24), generator=keyed_generator("edge"))
        patches = calibration._patches(noise, (6, 6))
        assert patches.shape == (19 * 19, 6 * 36)
        largest = float(torch.linalg.matrix_norm(patches, 2))
        assert calibration._noise_edge(patches, 0.3) == pytest.approx(largest, rel=0.1)

    def test_the_region_may_be_a_number_of_samples_or_a_mask(self) -> None:
        kspace, _, _ = scan(3, (40, 37))
        region = AcsRegion.central((40, 37), 24)
        assert region.shape == (24, 24)
        expected = espirit(kspace, region)[0]
        for named in (24, FULL, lines(37, 24, step=37).expand(1, 1, 40, 37)):
            assert torch.equal(espirit(kspace, named)[0], expected)
        assert torch.equal(
            espirit(kspace, lines(37, 8))[0], espirit(kspace, find_acs(lines(37, 8), (40, 37)).limited(24))[0]
        )

    @pytest.mark.parametrize(
        ("acs", "message"),
        [
            (lines(20, 0), "the mask passed as acs leaves out the zero frequency"),
            (0, "acs must be at least 1 sample a side; got 0"),
            (
                True,
                r"acs must be a calibration region .*, a bool mask tensor, or the number of samples a side; got bool",
            ),
            (np.ones((24, 20), bool), "or the number of samples a side; got ndarray"),
            (
                AcsRegion.central((24, 24), 8),
                r"acs is a region of k-space of shape \(24, 24\), but kspace has \(24, 20\)",
            ),
        ],
    )
    def test_what_is_no_region_is_named(self, acs: object, message: str) -> None:
        with pytest.raises(AmbientMRIError, match=message):
            espirit(scan(3, (24, 20))[0], acs)  # type: ignore[arg-type]

    def test_values_that_are_not_finite_are_named_with_their_place(self) -> None:
        kspace, _, _ = scan(3, (24, 20))
        expected = espirit(kspace, 8)[0]
        kspace[0, 2, 0, 1] = float("inf")
        assert torch.equal(espirit(kspace, 8)[0], expected)  # only the region is read
        kspace[0, 1, 12, 10] = float("nan")
        kspace[0, 2, 0, 1] = 0
        message = (
            r"kspace holds 1 non-finite values .* index \(0, 1, 12, 10\)\. Set these samples to 0 and take them out"
        )
        with pytest.raises(AmbientMRIError, match=message):
            espirit(kspace, 8)
        with pytest.raises(AmbientMRIError, match=message):
            estimate_coil_maps(kspace, FULL)
        with pytest.raises(AmbientMRIError, match=r"kspace must be complex \(batch, coils, H, W\)"):
            espirit(kspace[0], 8)

    def test_errors(self) -> None:
        kspace, _, _ = scan(3, (24, 20))
        with pytest.raises(AmbientMRIError, match=r"noise_std must be one number or \(1,\), one a slice; got 2"):
            espirit(kspace, find_acs(FULL, (24, 20)), noise_std=torch.ones(2))
        acs = find_acs(FULL, (24, 20)).limited(5)
        with pytest.raises(AmbientMRIError, match=r"kernel \(6, 6\) is larger than the calibration region \(5, 5\)"):
            espirit(kspace, acs, kernel=(6, 6))
        with pytest.raises(AmbientMRIError, match=r"no signal in the calibration region of slices \[1\]"):
            espirit(torch.cat([kspace, torch.zeros_like(kspace)]), acs)

    @pytest.mark.gpu
    def test_same_maps_on_the_gpu(self) -> None:
        kspace, _, support = scan(8, (64, 60), batch=2)
        acs = find_acs(FULL, (64, 60)).limited(24)
        assert agreement(espirit(kspace.cuda(), acs)[0].cpu(), espirit(kspace, acs)[0], support) > 0.99999


class TestAbsorbPhase:
    def test_low_resolution_image_becomes_real_and_the_step_is_invertible(self) -> None:
        kspace, maps, support = scan(4, (48, 45))
        absorbed, phase = absorb_phase(maps, kspace, FULL)
        assert phase.shape == (1, 1, 48, 45)
        torch.testing.assert_close(absorbed * torch.polar(torch.ones_like(phase), -phase), maps)
        acs = find_acs(FULL, (48, 45))
        low = (absorbed.conj() * low_resolution_images(kspace, acs)).sum(dim=1)
        assert float(low.imag.abs().max()) < 1e-5 * float(low.abs().max())
        assert float(low.real.min()) >= 0
        image = (absorbed.conj() * ifft(kspace)).sum(dim=1)[0, support]
        assert float(image.imag.norm() / image.norm()) < 0.1

    def test_measurement_does_not_change(self) -> None:
        kspace, maps, _ = scan(4, (48, 45))
        absorbed, phase = absorb_phase(maps, kspace, lines(45, 12))
        image, _ = head((48, 45))
        torch.testing.assert_close(absorbed * (image * torch.polar(torch.ones_like(phase), -phase)), maps * image)

    def test_does_not_depend_on_the_phase_convention_of_the_maps(self) -> None:
        kspace, maps, _ = scan(4, (48, 45))
        turned = maps * torch.polar(*(torch.ones(48, 45), 3 * torch.rand(48, 45, generator=keyed_generator("turn"))))
        torch.testing.assert_close(
            absorb_phase(turned, kspace, FULL)[0], absorb_phase(maps, kspace, FULL)[0], rtol=1e-4, atol=1e-4
        )

    @pytest.mark.parametrize("acs", [0, 1, 2, 3])
    def test_without_calibration_lines_the_coils_tell_the_phase(self, acs: int) -> None:
        """The image that is left is as real as after the phase of the full data has been taken out."""
        kspace, maps, support = scan(6, (48, 45))
        mask = lines(45, acs, step=3)
        image = (maps.conj() * ifft(kspace)).sum(dim=1)[0, support]
        absorbed, phase = absorb_phase(maps, kspace * mask, mask)
        torch.testing.assert_close(absorbed * torch.polar(torch.ones_like(phase), -phase), maps)
        left = image * torch.polar(torch.ones_like(phase), -phase)[0, 0, support]
        assert float(image.imag.norm() / image.norm()) > 0.4
        assert float(left.imag.norm() / left.norm()) < 0.15
        assert float(left.real.mean()) > 0.9 * float(image.abs().mean())

    def test_one_coil_without_calibration_lines_has_no_phase(self) -> None:
        image, _ = head((48, 45))
        mask = lines(45, 2, step=5)
        flat = torch.ones_like(image)
        absorbed, phase = absorb_phase(flat, fft(image) * mask, mask)
        assert torch.equal(absorbed, flat)
        assert not bool(phase.any())


class TestEstimateCoilMaps:
    @pytest.mark.parametrize("size", [(64, 60), (61, 65)])
    @pytest.mark.parametrize("acs", [2, 4, 8, 24])
    def test_from_the_acs_of_an_undersampled_scan(self, size: tuple[int, int], acs: int) -> None:
        kspace, maps, support = scan(6, size)
        mask = lines(size[1], acs)
        found = estimate_coil_maps(kspace * mask, mask)
        assert found.method == "espirit/torch"
        assert found.acs is not None
        assert found.acs.num_lines == acs
        assert agreement(found.maps, maps, support) > {2: 0.97, 4: 0.985, 8: 0.998, 24: 0.9995}[acs]
        torch.testing.assert_close(found.maps.norm(dim=1), torch.ones(1, *size))
        assert found.eigenvalue is not None
        assert bool(found.warnings) == (acs < 16)

    def test_lines_along_the_rows(self) -> None:
        kspace, maps, support = scan(6, (64, 60))
        mask = lines(64, 12).mT
        assert agreement(estimate_coil_maps(kspace * mask, mask).maps, maps, support) > 0.999

    def test_only_the_calibration_region_counts(self) -> None:
        """Maps are those of *this* undersampled scan: locations outside its ACS cannot change them."""
        kspace, _, _ = scan(4, (64, 60))
        mask = lines(60, 12)
        other = torch.where(lines(60, 12, step=60), kspace, 0)
        found, same = estimate_coil_maps(kspace * mask, mask), estimate_coil_maps(other, mask)
        assert torch.equal(found.maps, same.maps)

    def test_phase_is_absorbed_by_default_and_can_be_taken_out(self) -> None:
        kspace, _, support = scan(6, (64, 60))
        absorbed, plain = (estimate_coil_maps(kspace, FULL, absorb=flag) for flag in (True, False))
        assert not bool(plain.phase.any())
        image = (absorbed.maps.conj() * ifft(kspace)).sum(dim=1)[0, support]
        assert float(image.imag.norm() / image.norm()) < 0.1
        undone = absorbed.maps * torch.polar(torch.ones_like(absorbed.phase), -absorbed.phase)
        torch.testing.assert_close(undone, plain.maps, rtol=1e-4, atol=1e-5)

    def test_one_coil_has_the_phase_as_its_map(self) -> None:
        image, _ = head((48, 45))
        kspace = fft(image)
        found = estimate_coil_maps(kspace, FULL)
        assert found.method == "single_coil"
        assert found.warnings == ()
        torch.testing.assert_close(found.maps, torch.polar(torch.ones_like(found.phase), found.phase))

    def test_one_line_falls_back_to_low_resolution_with_a_warning(self) -> None:
        kspace, maps, support = scan(6, (64, 60))
        mask = lines(60, 1, step=6)
        found = estimate_coil_maps(kspace * mask, mask)
        assert found.method == "low_resolution"
        assert found.eigenvalue is None
        assert "only 1 ACS line (ESPIRiT needs 2)" in found.warnings[0]
        assert agreement(found.maps, maps, support) > 0.8
        torch.testing.assert_close(found.maps.norm(dim=1), torch.ones(1, 64, 60))

    def test_a_few_neighbours_are_no_calibration_region(self) -> None:
        kspace, _, _ = scan(6, (64, 60))
        mask = torch.zeros(1, 1, 64, 60, dtype=torch.bool)
        mask[..., ::3, ::3] = True
        mask[..., 31:34, 29:32] = True
        found = estimate_coil_maps(kspace * mask, mask)
        assert found.method == "low_resolution"
        assert "fully sampled centre has 3 x 3 samples (ESPIRiT needs 32)" in found.warnings[0]

    def test_no_lines_fall_back_to_the_centre_with_a_warning(self) -> None:
        kspace, _, _ = scan(6, (64, 60))
        mask = lines(60, 0, step=3)
        mask[..., 30] = False
        found = estimate_coil_maps(kspace * mask, mask)
        assert found.method == "low_resolution"
        assert found.acs is None
        assert "has no ACS lines" in found.warnings[0]
        torch.testing.assert_close(found.maps.norm(dim=1), torch.ones(1, 64, 60))

    @pytest.mark.parametrize("absorb", [False, True])
    def test_rows_with_masks_of_their_own_are_calibrated_by_their_own_lines(self, absorb: bool) -> None:
        """Every row as it would be alone, and with its own phase, method and words."""
        kspace, _, _ = scan(6, (64, 60), noise_std=0.01, batch=4)
        mask = torch.cat([lines(60, acs) for acs in (5, 14, 1, 5)])
        kspace, noise = kspace * mask, torch.tensor([0.01, 0.02, 0.01, 0.03])
        together = estimate_coil_maps(kspace, mask, noise_std=noise, absorb=absorb)
        for row in range(4):
            one = slice(row, row + 1)
            alone = estimate_coil_maps(kspace[one], mask[one], noise_std=noise[one], absorb=absorb)
            torch.testing.assert_close(together.maps[one], alone.maps, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(together.phase[one], alone.phase, rtol=1e-4, atol=1e-5)
            assert together.sources[row] == alone.sources[0]
        assert together.method == "espirit/torch, low_resolution"
        assert [s.acs.num_lines for s in together.sources if s.acs] == [5, 14, 1, 5]
        assert together.acs is not None and together.acs.num_lines == 1
        assert [text.split(":")[0] for text in together.warnings] == [
            "coil maps come from 5 ACS lines (16 are enough)",
            "coil maps come from 14 ACS lines (16 are enough)",
            "only 1 ACS line (ESPIRiT needs 2)",
        ]
        assert together.eigenvalue is not None and not bool(together.eigenvalue[2].any())

    @pytest.mark.parametrize("backend", ["torch", "sigpy", pytest.param("bart", marks=needs_bart)])
    def test_rows_without_signal_get_flat_maps_and_a_warning(self, backend: str) -> None:
        kspace, _, _ = scan(4, (40, 36), batch=4)
        kspace[[0, 2]] = 0
        found = estimate_coil_maps(kspace, FULL, backend=backend)
        others = estimate_coil_maps(kspace[[1, 3]], FULL, backend=backend)
        assert torch.equal(found.maps[[1, 3]], others.maps) and torch.equal(found.phase[[1, 3]], others.phase)
        assert torch.equal(found.maps[[0, 2]], torch.full((2, 4, 40, 36), 0.5, dtype=torch.complex64))
        assert found.eigenvalue is not None and others.eigenvalue is not None
        assert torch.equal(found.eigenvalue[[1, 3]], others.eigenvalue)
        assert not bool(found.eigenvalue[[0, 2]].any()) and not bool(found.phase[[0, 2]].any())
        assert found.method == others.method and found.acs == others.acs
        assert found.warnings == (
            "slices [0, 2] hold nothing but zeros: their coil maps are flat, the same for every coil.",
        )

    def test_nothing_but_zeros_at_all(self) -> None:
        found = estimate_coil_maps(torch.zeros(2, 4, 40, 36, dtype=torch.complex64), lines(36, 12))
        assert found.method == "flat" and found.acs is None and found.eigenvalue is not None
        assert not bool(found.eigenvalue.any()) and bool((found.maps == 0.5).all())
        assert "slices [0, 1] hold nothing but zeros" in found.warnings[0]

    def test_signal_outside_the_calibration_region_alone_is_an_error(self) -> None:
        kspace, _, _ = scan(4, (40, 36), batch=3)
        kspace[0] = 0
        kspace[2, :, 8:32, 6:30] = 0
        with pytest.raises(
            AmbientMRIError, match=r"calibration region of slices \[2\]\. Is the k-space .* not centred"
        ):
            estimate_coil_maps(kspace, FULL)

    def test_sigpy_backend(self) -> None:
        kspace, _, support = scan(5, (48, 45), batch=2)
        ours, theirs = (estimate_coil_maps(kspace, FULL, backend=name) for name in ("torch", "sigpy"))
        assert theirs.method == "espirit/sigpy"
        assert agreement(ours.maps, theirs.maps, support) > 0.99999
        assert theirs.eigenvalue is not None
        assert theirs.eigenvalue.shape == (2, 1, 48, 45)
        torch.testing.assert_close(theirs.maps[..., support], ours.maps[..., support], rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("backend", ["sigpy", pytest.param("bart", marks=needs_bart)])
    def test_every_backend_knows_the_noise(self, backend: str) -> None:
        kspace, maps, support = scan(6, (48, 45), noise_std=0.05)
        settings = {"backend": backend, "threshold": 1e-4}
        assert agreement(estimate_coil_maps(kspace, FULL, **settings).maps, maps, support) < 0.8
        assert agreement(estimate_coil_maps(kspace, FULL, noise_std=0.05, **settings).maps, maps, support) > 0.998

    @needs_bart
    @pytest.mark.parametrize("acs", [8, 24])
    def test_bart_backend(self, acs: int) -> None:
        kspace, _, support = scan(5, (48, 45), batch=2)
        mask = lines(45, acs)
        ours, theirs = (estimate_coil_maps(kspace * mask, mask, backend=name) for name in ("torch", "bart"))
        assert theirs.method == "espirit/bart"
        assert agreement(ours.maps, theirs.maps, support) > 0.9999
        assert theirs.eigenvalue is not None
        torch.testing.assert_close(theirs.eigenvalue[..., support], ours.eigenvalue[..., support], rtol=0, atol=2e-2)

    @needs_bart
    def test_what_bart_says_is_passed_on(self) -> None:
        kspace, _, _ = scan(3, (32, 30))
        mask = lines(30, 3)
        with pytest.raises(AmbientMRIError, match=r"bart ecalib failed on .*: ERROR: Calibration region not found"):
            estimate_coil_maps(kspace * mask, mask, backend="bart")

    def test_a_missing_bart_is_named_with_the_fix(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        kspace, _, _ = scan(3, (32, 30))
        with pytest.raises(AmbientMRIError, match=r"needs the program `bart` on the PATH: apt-get install bart"):
            estimate_coil_maps(kspace, FULL, backend="bart")

    def test_bad_input(self) -> None:
        kspace, _, _ = scan(3, (32, 30))
        with pytest.raises(AmbientMRIError, match="backend must be one of 'torch', 'sigpy', 'bart'"):
            estimate_coil_maps(kspace, FULL, backend="matlab")
        with pytest.raises(AmbientMRIError, match=r"kspace must be complex \(batch, coils, H, W\)"):
            estimate_coil_maps(kspace.real, FULL)
        for mask in (FULL.expand(2, 1, 1, 1), FULL.float(), lines(32, 8)):
            with pytest.raises(AmbientMRIError, match=r"mask must be bool and broadcast to \(1, 1, 32, 30\)"):
                estimate_coil_maps(kspace, mask)
        kspace[0, 1, 2, 3] = float("nan")
        with pytest.raises(AmbientMRIError, match=r"kspace holds 1 non-finite values .* \(0, 1, 2, 3\)"):
            estimate_coil_maps(kspace, FULL)


class TestRealHeads:
    """Where scans are available: parity with sigpy and BART, and no holes."""

    @pytest.fixture(params=["brain_t1_4ch", "brain_t1_8ch", "phantom_4ch"])
    def kspace(self, request: pytest.FixtureRequest, data_root: Path) -> Tensor:
        with h5py.File(data_root / "multicoil_val_128" / f"{request.param}.h5") as file:
            return torch.from_numpy(file["kspace"][:1])

    def test_equals_sigpy(self, kspace: Tensor) -> None:
        ours, theirs = (
            estimate_coil_maps(kspace, FULL, backend=name, absorb=False).maps for name in ("torch", "sigpy")
        )
        magnitude = ifft(kspace).norm(dim=1)[0]
        assert agreement(ours, theirs, magnitude > 0.1 * magnitude.max()) > 0.9999

    @pytest.mark.parametrize("acs", [12, 24])
    def test_no_holes(self, kspace: Tensor, acs: int) -> None:
        """|S^H x| / ||x|| in every pixel of the object: a hole in the maps loses signal there."""
        images, mask = ifft(kspace), lines(128, acs)
        maps = estimate_coil_maps(kspace * mask, mask).maps
        magnitude = images.norm(dim=1)
        seen = (maps.conj() * images).sum(dim=1).abs() / magnitude
        assert float(seen[magnitude > 0.1 * magnitude.max()].min()) > 0.9

    @needs_bart
    @pytest.mark.parametrize("acs", [8, 12, 24])
    def test_explains_the_data_as_well_as_bart(self, kspace: Tensor, acs: int) -> None:
        """Relative residual of fully sampled data, || x_c - S_c sum S^H x || / || x ||, within 2 % of ecalib's."""
        images, mask = ifft(kspace), lines(128, acs)

        def residual(backend: str) -> float:
            maps = estimate_coil_maps(kspace * mask, mask, backend=backend).maps
            return float((images - maps * (maps.conj() * images).sum(dim=1, keepdim=True)).norm() / images.norm())

        assert residual("torch") < 1.02 * residual("bart")
