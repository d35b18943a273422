"""Simulated scans: the physics against closed forms, and one draw a scan, whatever is simulated beside it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.phantom import BrainPhantom
from ambient_mri.data.schema import read_prepared, write_prepared
from ambient_mri.data.simulate import (
    CoilArray,
    SimulatedScan,
    Simulation,
    loop_field,
    simulate_coil_maps,
    simulate_scan,
    smooth_phase,
)
from ambient_mri.masks import IndependentLines, PoissonDisc, RandomLines, SamplingLaw
from ambient_mri.operators.fourier import fft
from ambient_mri.tensors import keyed_generator

LAW = RandomLines(acceleration=3, acs_lines=10)
STILL = Simulation(zoom=(1, 1), shift=0, turn=False)


@lru_cache
def heads(slices: int = 3, shape: tuple[int, int] = (48, 45)) -> np.ndarray:
    return BrainPhantom(shape, seed=9).volume(0, slices, levels=(0.4, 0.7))


def simulate(
    images: np.ndarray | None = None, *, law: SamplingLaw = LAW, seed: int = 0, scan_id: str = "a", **settings: Any
) -> SimulatedScan:
    images = heads() if images is None else images
    mask_per = str(settings.pop("mask_per", "volume"))
    scanner = Simulation(**settings)
    return simulate_scan(images, law=law, seed=seed, scan_id=scan_id, settings=scanner, mask_per=mask_per)


def same(one: SimulatedScan, other: SimulatedScan) -> bool:
    fields = ("kspace", "mask", "coil_maps", "noise_std", "scale")
    equal = [np.array_equal(getattr(one.scan, f), getattr(other.scan, f)) for f in fields]
    return all(equal) and np.array_equal(one.images, other.images)


class TestLoopField:
    def field(
        self, points: list[list[float]], radius: float = 0.7, centre: tuple[float, float, float] = (0, 0, 0)
    ) -> torch.Tensor:
        double = torch.float64
        return loop_field(
            torch.tensor(points, dtype=double),
            torch.tensor([centre], dtype=double),
            torch.tensor([[0, 0, 1]], dtype=double),
            torch.tensor([radius], dtype=double),
        )[0]

    def test_on_the_axis(self) -> None:
        heights = [-1.5, -0.2, 0.0, 0.4, 2.0]
        field = self.field([[0, 0, z] for z in heights])
        # B_z = 2 pi a^2 / (a^2 + z^2)^(3/2) in units of mu_0 / (4 pi).
        expected = [2 * np.pi * 0.49 / (0.49 + z * z) ** 1.5 for z in heights]
        np.testing.assert_allclose(field[:, 2], expected, rtol=1e-12)
        np.testing.assert_allclose(field[:, :2], 0, atol=1e-12)

    def test_off_the_axis_against_elliptic_integrals(self) -> None:
        from scipy.special import ellipe, ellipk

        a, rho, z = 0.7, np.array([0.1, 0.3, 1.5, 2.0]), np.array([0.5, 1.2, 0.3, -0.8])
        field = self.field([[r * 0.6, r * 0.8, h] for r, h in zip(rho, z, strict=True)])
        # Smythe, Static and Dynamic Electricity, sec. 7.10: the loop's field in cylindrical coordinates.
        outer, inner = (a + rho) ** 2 + z**2, (a - rho) ** 2 + z**2
        m = 4 * a * rho / outer
        along = 2 / np.sqrt(outer) * (ellipk(m) + (a * a - rho**2 - z**2) / inner * ellipe(m))
        away = 2 * z / (rho * np.sqrt(outer)) * (-ellipk(m) + (a * a + rho**2 + z**2) / inner * ellipe(m))
        np.testing.assert_allclose(field[:, 2], along, rtol=1e-6)
        np.testing.assert_allclose(field[:, 0], 0.6 * away, rtol=1e-5)
        np.testing.assert_allclose(field[:, 1], 0.8 * away, rtol=1e-5)

    def test_it_moves_with_the_loop_and_has_no_divergence(self) -> None:
        moved = self.field([[0.5, 0.4, 1.0]], centre=(0.2, 0.3, 0.6))
        np.testing.assert_allclose(moved, self.field([[0.3, 0.1, 0.4]]), rtol=1e-12)
        step = 1e-4 * np.eye(3)
        point = np.array([0.3, 0.1, 0.4])
        ahead, behind = (self.field([list(point + sign * s) for s in step]).numpy() for sign in (1, -1))
        assert abs(np.trace(ahead - behind)) / 2e-4 < 1e-6


class TestCoilMaps:
    @pytest.mark.parametrize("shape", [(48, 48), (33, 50), (50, 33), (128, 128)])
    @pytest.mark.parametrize("coils", [1, 2, 4, 8, 13, 16])
    def test_normalised_at_every_pixel(self, shape: tuple[int, int], coils: int) -> None:
        maps = simulate_coil_maps(shape, coils, keyed_generator("coils", coils))
        assert maps.shape == (coils, *shape)
        assert maps.dtype == torch.complex64
        np.testing.assert_allclose(maps.abs().square().sum(dim=0), 1, rtol=1e-5)

    @pytest.mark.parametrize("coils", [4, 8, 16])
    def test_smooth(self, coils: int) -> None:
        for draw in range(5):
            maps = simulate_coil_maps((64, 64), coils, keyed_generator("smooth", draw))
            spectrum = fft(maps * torch.hann_window(64)[:, None] * torch.hann_window(64)).abs().square()
            centre = spectrum[:, 32 - 6 : 32 + 7, 32 - 6 : 32 + 7].sum()
            assert centre / spectrum.sum() > 0.999

    @pytest.mark.parametrize("coils", [4, 8, 12])
    def test_each_coil_sees_its_own_region(self, coils: int) -> None:
        maps = simulate_coil_maps((32, 32), coils, keyed_generator("rank"))
        singular = torch.linalg.svdvals(maps.flatten(1))
        assert singular[coils // 2] > 0.1 * singular[0]
        assert singular[-1] > 1e-3 * singular[0]
        assert maps.abs().amax(dim=(1, 2)).min() > 0.3

    def test_interpolation_from_the_coarse_grid_is_exact_enough(self) -> None:
        array = CoilArray.draw(8, keyed_generator("grid"))
        maps = array.maps((64, 64))
        axis = torch.linspace(-1, 1, 64)
        points = torch.stack([*torch.meshgrid(axis, axis, indexing="ij"), torch.zeros(64, 64)], dim=-1).reshape(-1, 3)
        field = loop_field(points, array.centre, array.normal, array.radius, conductor=0.12).reshape(8, 64, 64, 3)
        direct = torch.complex(field[..., 0], -field[..., 1]) * torch.exp(1j * array.phase)[:, None, None]
        direct = direct / direct.abs().square().sum(dim=0, keepdim=True).sqrt()
        assert (maps - direct).abs().max() < 5e-3
        assert (maps - direct).abs().square().mean().sqrt() < 1e-4

    def test_neighbouring_slices_change_gradually(self) -> None:
        array = CoilArray.draw(6, keyed_generator("volume"))
        reference, near, far = (array.maps((40, 40), height) for height in (0.0, 0.04, 0.4))
        close, distant = (reference - near).abs().max(), (reference - far).abs().max()
        assert 0 < close < 0.15
        assert distant > 2 * close

    def test_reproducible_and_different(self) -> None:
        one, again, other = (simulate_coil_maps((24, 24), 5, keyed_generator("a", k)) for k in (0, 0, 1))
        assert torch.equal(one, again)
        assert not torch.allclose(one, other, atol=0.1)

    def test_no_coil_is_an_error(self) -> None:
        with pytest.raises(AmbientMRIError, match="num_coils must be at least 1; got 0"):
            simulate_coil_maps((24, 24), 0, keyed_generator("a"))


class TestSmoothPhase:
    def test_rms_and_bandwidth(self) -> None:
        for draw in range(5):
            phase = smooth_phase((48, 40), keyed_generator(draw), 1.3)
            assert phase.shape == (48, 40)
            assert float((phase - phase.mean()).square().mean().sqrt()) == pytest.approx(1.3, rel=1e-4)
            assert phase.diff(dim=0).abs().max() < 0.5
            assert phase.diff(dim=1).abs().max() < 0.6

    def test_close_positions_have_close_phases(self) -> None:
        here, near, far = (smooth_phase((32, 32), keyed_generator("p"), 1.0, position=z) for z in (0.0, 0.04, 1.5))
        assert (here - near).abs().max() < 0.3
        assert (here - far).abs().max() > 3 * (here - near).abs().max()


class TestOneDrawAScan:
    def test_the_same_key_gives_the_same_scan_whatever_came_before(self) -> None:
        one = simulate()
        simulate(scan_id="b")
        torch.rand(7)
        assert same(one, simulate())

    @pytest.mark.parametrize("change", [{"seed": 1}, {"scan_id": "b"}])
    def test_another_key_gives_another_mask_noise_and_maps(self, change: dict[str, Any]) -> None:
        fixed: dict[str, Any] = {"coils": (5, 5), "turn": False, "zoom": (1, 1), "shift": 0.0}
        one, other = simulate(**fixed).scan, simulate(**fixed, **change).scan
        assert not np.array_equal(one.mask, other.mask)
        assert np.abs(one.coil_maps - other.coil_maps).max() > 0.1
        assert one.noise_std[0] != other.noise_std[0]

    def test_slices_of_a_volume_share_the_mask_and_not_the_noise(self) -> None:
        images = np.repeat(heads(1), 3, axis=0)
        quiet, noisy = (simulate(images, noise_std=s, coils=(4, 4), absorb_phase=False) for s in (0.0, 0.01))
        assert noisy.scan.mask.shape == (1, 1, 1, 45)
        noise = noisy.scan.kspace - quiet.scan.kspace
        correlation = abs(np.vdot(noise[0], noise[1])) / (np.linalg.norm(noise[0]) * np.linalg.norm(noise[1]))
        assert correlation < 0.1

    def test_independent_slices_have_masks_of_their_own(self) -> None:
        found = simulate(mask_per="slice", coils=(4, 4))
        masks = found.scan.mask
        assert masks.shape == (3, 1, 1, 45)
        assert len({m.tobytes() for m in masks}) == 3
        assert len(set(found.scan.noise_std.tolist())) == 3
        # A slice does not change with the ones that are simulated after it.
        alone = simulate(heads()[:2], mask_per="slice", coils=(4, 4), absorb_phase=False).scan
        beside = simulate(mask_per="slice", coils=(4, 4), absorb_phase=False).scan
        for name in ("mask", "noise_std", "coil_maps"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(beside, name)[:2])

    def test_the_number_of_coils_varies_within_its_range(self) -> None:
        image = heads(1, (24, 24))
        law = RandomLines(acceleration=2, acs_lines=6)
        counts = {simulate(image, law=law, scan_id=str(i), coils=(4, 7)).scan.kspace.shape[1] for i in range(24)}
        assert counts == {4, 5, 6, 7}

    def test_noise_levels_stay_in_their_range(self) -> None:
        image = heads(1, (24, 24))
        law = RandomLines(acceleration=2, acs_lines=6)
        levels = [simulate(image, law=law, scan_id=str(i), noise_std=(0.01, 0.04)).scan.noise_std[0] for i in range(24)]
        assert 0.01 <= min(levels) < 0.015
        assert 0.03 < max(levels) <= 0.04


class TestMeasurement:
    @pytest.mark.parametrize("law", [LAW, IndependentLines(3, 8), PoissonDisc(4, 12)])
    @pytest.mark.parametrize("absorb", [True, False])
    @pytest.mark.parametrize("shape", [(48, 45), (41, 64)])
    def test_kspace_is_a_x_where_sampled_and_zero_elsewhere(
        self, law: SamplingLaw, absorb: bool, shape: tuple[int, int]
    ) -> None:
        found = simulate(heads(2, shape), law=law, noise_std=0.0, absorb_phase=absorb)
        scan = found.scan
        predicted = fft(torch.from_numpy(scan.coil_maps * found.images)).numpy()
        mask = np.broadcast_to(scan.mask, scan.kspace.shape)
        np.testing.assert_allclose(scan.kspace[mask], predicted[mask], atol=2e-5)
        assert (scan.kspace[~mask] == 0).all()
        assert scan.kspace.dtype == scan.coil_maps.dtype == found.images.dtype == np.complex64

    def test_training_can_only_ever_read_what_the_mask_holds(self) -> None:
        scan = simulate(noise_std=0.01).scan
        union = (scan.kspace != 0).any(axis=(0, 1))
        np.testing.assert_array_equal(union, np.broadcast_to(scan.mask[0, 0], union.shape))
        y = scan.measurement().y
        np.testing.assert_array_equal((y != 0).any(dim=0).any(dim=0).numpy(), union)

    def test_noise_has_the_stated_variance_per_real_part(self) -> None:
        quiet, noisy = (simulate(noise_std=s, coils=(6, 6), absorb_phase=False).scan for s in (0.0, 0.02))
        mask = np.broadcast_to(noisy.mask, noisy.kspace.shape)
        noise = (noisy.kspace - quiet.kspace)[mask]
        np.testing.assert_allclose(noisy.noise_std, 0.02)
        tolerance = 4 / np.sqrt(2 * len(noise))
        assert np.std(noise.real) / 0.02 == pytest.approx(1, abs=tolerance)
        assert np.std(noise.imag) / 0.02 == pytest.approx(1, abs=tolerance)
        assert abs(np.mean(noise.real * noise.imag)) / 0.02**2 < 5 / np.sqrt(len(noise))

    def test_the_brightest_pixels_are_one_in_raw_units(self) -> None:
        for factor in (1.0, 300.0):
            found = simulate_scan(factor * heads(), law=LAW, seed=0, scan_id="a", settings=STILL)
            assert np.quantile(np.abs(found.images), 0.999) == pytest.approx(1, rel=1e-3)
            assert 0.2 < found.scan.scale < 2

    def test_absorbing_the_phase_leaves_little(self) -> None:
        images = heads(3, (64, 64))
        law = RandomLines(acceleration=4, acs_lines=12)

        def residual(absorb: bool) -> float:
            x = simulate(images, law=law, phase=1.0, noise_std=0.01, absorb_phase=absorb).images
            return float(np.sqrt((x.imag**2).sum() / (np.abs(x) ** 2).sum()))

        assert residual(False) > 0.4
        assert residual(True) < 0.1

    def test_absorbing_the_phase_changes_neither_kspace_nor_magnitudes(self) -> None:
        with_phase, without = simulate(absorb_phase=False), simulate(absorb_phase=True)
        np.testing.assert_array_equal(with_phase.scan.kspace, without.scan.kspace)
        np.testing.assert_allclose(np.abs(with_phase.images), np.abs(without.images), atol=1e-6)
        assert without.scan.phase_absorbed
        assert not with_phase.scan.phase_absorbed

    def test_complex_images_keep_their_own_phase(self) -> None:
        images = heads() * np.exp(0.3j)
        found = simulate_scan(images, law=LAW, seed=0, scan_id="a", settings=replace(STILL, absorb_phase=False))
        bright = np.abs(found.images[:, 0]) > 0.1
        np.testing.assert_allclose(np.angle(found.images[:, 0][bright]), 0.3, atol=1e-4)

    def test_the_object_is_moved_in_the_scanner_once(self) -> None:
        still = simulate_scan(heads(1), law=LAW, seed=0, scan_id="a", settings=STILL)
        moved = simulate_scan(heads(1), law=LAW, seed=0, scan_id="a", settings=replace(STILL, zoom=(0.85, 0.85)))
        area = [(np.abs(s.images) > 0.1).mean() for s in (still, moved)]
        assert area[1] / area[0] == pytest.approx(0.85**2, rel=0.05)

        def centre(found: SimulatedScan) -> np.ndarray:
            weight = np.abs(found.images[0, 0])
            return np.array([np.average(i, weights=weight) for i in np.indices(weight.shape)])

        shifted = simulate_scan(heads(1), law=LAW, seed=0, scan_id="a", settings=replace(STILL, shift=0.05))
        distance = np.abs(centre(shifted) - centre(still))
        assert distance.max() > 0.1
        assert (distance <= 0.05 * np.array([48, 45]) + 0.2).all()

    def test_what_was_simulated_is_recorded_and_fits_the_schema(self, tmp_path: Path) -> None:
        found = simulate(scan_id="head 7", seed=5)
        write_prepared(tmp_path / "scan.h5", found.scan)
        scan = read_prepared(tmp_path / "scan.h5")
        assert scan.source == "head 7"
        assert scan.acquisition == "simulated"
        assert scan.sampling_law["law"] == "RandomLines"
        assert scan.preparation["simulated"] is True
        assert scan.preparation["coil_maps"] == "true"
        assert scan.preparation["data_seed"] == 5
        assert scan.preparation["scanner"]["zoom"] == [0.85, 1.1]
        assert scan.measurement().check().num_coils == found.scan.kspace.shape[1]


class TestErrors:
    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (np.zeros((2, 24, 24)), "nothing but zeros"),
            (np.ones((24, 24)), r"images must be \(slices, H, W\); got \(24, 24\)"),
            (np.full((1, 24, 24), np.nan), "holds 576 non-finite values"),
            (np.ones((1, 24, 24)) - 2 * np.eye(24), "must not be negative.*holds -1"),
        ],
    )
    def test_images(self, images: np.ndarray, message: str) -> None:
        with pytest.raises(AmbientMRIError, match=message):
            simulate_scan(images, law=LAW, seed=0, scan_id="a")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"coils": (8, 4)}, r"coils must be a range.*got \(8, 4\)"),
            ({"noise_std": (0.1, 0.01)}, "noise_std must be a number or a range"),
            ({"noise_std": -1.0}, "noise_std must be a number or a range"),
            ({"zoom": (1.1, 0.9)}, "zoom must be a range"),
            ({"zoom": (0.0, 0.9)}, "zoom must be a positive"),
            ({"shift": 0.7}, "shift is a share"),
            ({"phase": -1.0}, "phase must be zero or a positive"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(AmbientMRIError, match=message):
            Simulation(**settings)

    def test_mask_per(self) -> None:
        with pytest.raises(AmbientMRIError, match="mask_per must be one of 'volume', 'slice'"):
            simulate(mask_per="volumes")
