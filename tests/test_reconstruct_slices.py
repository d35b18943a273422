"""Slices that share a scan and nothing else: masks of their own, slices without signal, maps by few lines or many."""

from __future__ import annotations

import io
import json
import sys
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from tqdm import tqdm

from ambient_mri._checks import DataError
from ambient_mri.coil_maps import estimate_coil_maps
from ambient_mri.data.readers import from_arrays
from ambient_mri.data.schema import write_prepared
from ambient_mri.measurement import Measurement
from ambient_mri.prepare import Preparation, prepare_scan
from ambient_mri.prior import Prior
from ambient_mri.reconstruct import ReconstructionWarning, reconstruct, volume
from ambient_mri.reconstruct.notes import too_little_noise
from ambient_mri.reconstruct.read import levels_of_slices, read_raw
from ambient_mri.reconstruct.volume import JOINT_BELOW, Volume
from ambient_mri.sampling.calibration import effective_noise_std
from ambient_mri.sampling.joint_maps import JointSettings
from tests.oracles import StationaryDenoiser
from tests.test_reconstruct import NOISE, UNIT, ambient_prior, lines, run, scan

FULL = torch.ones(1, 1, 1, 36, dtype=torch.bool)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*ACS lines:ambient_mri.reconstruct.ReconstructionWarning"),
    pytest.mark.filterwarnings("ignore:.*hold nothing but zeros:ambient_mri.reconstruct.ReconstructionWarning"),
    pytest.mark.filterwarnings("ignore:.*is zero everywhere"),
]


def own_masks(*acs: int) -> tuple[Tensor, Tensor]:
    """K-space of slices with ``acs`` central lines each, and their masks; 4 and a neighbour are 5 calibration lines."""
    kspace, _, _, _ = scan(20, 24, 4, slices=len(acs), mask=torch.ones(1, 1, 1, 24, dtype=torch.bool))
    mask = torch.cat([lines(24, n, 3) for n in acs])
    return kspace * mask, mask


@pytest.fixture(autouse=True)
def short_joint_estimation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which maps are estimated jointly is what counts here, not how well."""
    monkeypatch.setattr(volume, "JointSettings", partial(JointSettings, chains=2, steps=6))


def test_slices_in_another_order_keep_their_own_maps_and_masks(tmp_path: Path) -> None:
    kspace, mask = (x.numpy() for x in own_masks(8, 4, 6))
    maps = np.stack([np.full((4, 20, 24), i + 1, np.complex64) for i in range(3)])
    np.savez(tmp_path / "k.npz", kspace=kspace)
    for order in ([2, 0, 1], [2, 1], [0, 2]):
        found = read_raw(kspace, mask, maps, order)
        assert found.slice_indices == tuple(order)
        for row, index in enumerate(order):
            assert np.array_equal(found.kspace[row], kspace[index])
            assert np.array_equal(found.mask[row], mask[index])
            assert np.array_equal(found.coil_maps[row], maps[index])
        told = levels_of_slices(np.array([0.1, 0.2, 0.3]), kspace, found)
        assert np.array_equal(told, np.array([0.1, 0.2, 0.3])[order])  # type: ignore[arg-type]
    assert levels_of_slices(0.1, kspace, found) == 0.1
    # Of a file it is not known whether three maps are those of the volume, or of the slices in their new order.
    with pytest.raises(DataError, match=r"coil_maps has one entry for each of the 3 slices.*in the order \[2, 0, 1\]"):
        read_raw(tmp_path / "k.npz", None, maps, [2, 0, 1])
    assert np.array_equal(read_raw(tmp_path / "k.npz", None, maps, [2, 1]).coil_maps, maps[[2, 1]])


def test_maps_that_were_estimated_with_the_image_are_not_judged_by_those_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ESPIRiT's maps leave of a few calibration lines contradicts no noise level once they are replaced."""
    chunk = Volume.measure(read_raw(*own_masks(4, 4)), NOISE).chunk(slice(0, 2), torch.device("cpu"))
    monkeypatch.setattr(volume, "joint_coil_maps", lambda model, part, *_, **__: part)
    monkeypatch.setattr(volume, "calibrationless_coil_maps", lambda model, part, *_, **__: part)
    prior = Prior(StationaryDenoiser(sd=0.3, cutoff=0.12), "clean", {}, name="p")
    found = chunk.with_joint_maps(prior, 0, [1]).effective
    for name in ("agreement", "of_calibration"):
        before, after = getattr(chunk.effective, name), getattr(found, name)
        assert torch.equal(after[0], before[0]) and bool(after[1].isnan())
    levels = [np.array([0.01, 0.01])]
    results = {"noise_std_scaled": levels, "calibration_noise_std": [np.array([0.01, np.nan])]}
    assert too_little_noise(dict(results), "given", False) == []
    results["calibration_noise_std"] = [np.array([0.1, np.nan])]
    assert "10 times the noise" in too_little_noise(dict(results), "given", False)[0]
    results["calibration_noise_std"] = [np.array([np.nan, np.nan])]
    assert too_little_noise(dict(results), "given", False) == []


@pytest.mark.parametrize("coil_maps", ["espirit", None])
def test_slices_with_masks_of_their_own_do_not_depend_on_the_batch_size(coil_maps: str | None) -> None:
    """The first slice is calibrated by 5 lines (jointly, if nothing is asked for), the second by 14: in any company."""
    kspace, mask = own_masks(4, 14)
    together, single = (run(kspace, mask=mask, coil_maps=coil_maps, samples=2, batch_size=n) for n in (64, 2))
    assert np.abs(together.samples - single.samples).max() < 1e-4 * np.abs(together.samples).max()
    np.testing.assert_allclose(together.noise_std, single.noise_std, rtol=1e-5)
    np.testing.assert_allclose(together.phase, single.phase, atol=1e-4)
    joint = "espirit/torch" if coil_maps else "joint from espirit/torch, espirit/torch"
    assert together.settings["coil_maps"] == single.settings["coil_maps"] == joint
    assert together.settings["warnings"] == single.settings["warnings"]


def prepared(kspace: Tensor, mask: Tensor, path: Path) -> Path:
    """A prepared scan."""
    write_prepared(path, prepare_scan(from_arrays(kspace, mask), None, Preparation()))
    return path


@pytest.mark.parametrize("acs", [(4, 14), (0, 0)])
def test_a_prepared_scan_is_reconstructed_as_its_raw_file_is(acs: tuple[int, int], tmp_path: Path) -> None:
    """Its maps are worth what its calibration lines are worth: with few of them, they are estimated with the image."""
    kspace, mask = own_masks(*acs)
    raw, again = run(kspace, mask=mask, samples=2), run(prepared(kspace, mask, tmp_path / "a.h5"), samples=2)
    assert again.settings["coil_maps"] == raw.settings["coil_maps"] and "joint" in raw.settings["coil_maps"]
    assert again.settings["warnings"] == raw.settings["warnings"] != []
    np.testing.assert_allclose(np.abs(again.mean), np.abs(raw.mean), atol=0.02 * np.abs(raw.mean).max())


def test_maps_of_a_prepared_full_scan_do_not_tell_what_a_mask_leaves_out(tmp_path: Path) -> None:
    kspace, mask = own_masks(14)
    full, _, _, _ = scan(20, 24, 4, mask=torch.ones(1, 1, 1, 24, dtype=torch.bool))
    path = prepared(full, torch.ones(1, 1, 1, 24, dtype=torch.bool), tmp_path / "full.h5")
    assert read_raw(path, mask).coil_maps is None
    assert read_raw(path, np.ones(24, bool)).coil_maps is not None
    by_file, by_array = (run(k, mask=mask, samples=1, noise_std=NOISE) for k in (path, kspace))
    np.testing.assert_allclose(np.abs(by_file.mean), np.abs(by_array.mean), atol=1e-3 * np.abs(by_array.mean).max())


def test_an_ambient_prior_sees_the_lines_of_the_slice_alone() -> None:
    kspace, mask = own_masks(4, 14)
    together, single = (
        run(kspace, mask=mask, prior=ambient_prior(), sampler="split_gibbs", samples=1, steps=2, batch_size=n)
        for n in (8, 1)
    )
    assert np.abs(together.samples - single.samples).max() < 1e-4 * np.abs(together.samples).max()


def test_the_effective_noise_of_a_row_is_that_of_its_own_calibration_lines() -> None:
    kspace, mask = own_masks(4, 14, 4)
    y, one = kspace / UNIT, torch.ones(3)
    maps = estimate_coil_maps(y, mask, noise_std=NOISE / UNIT).maps
    m = Measurement(y, mask, maps, NOISE / UNIT * one, one, ("0", "1", "2"))
    together = effective_noise_std(m)
    for row in range(3):
        torch.testing.assert_close(tuple(x[row] for x in together), tuple(x[0] for x in effective_noise_std(m[row])))
    assert all(x.shape == (3,) for x in together)


@pytest.mark.parametrize("given", [False, True])
def test_a_slice_without_signal_is_zero_and_the_others_do_not_notice(given: bool) -> None:
    kspace, _, maps, _ = scan(slices=3)
    kspace[1] = 0
    changes = {"noise_std": NOISE, "coil_maps": maps} if given else {}
    with pytest.warns(ReconstructionWarning, match=r"slices \[1\] hold nothing but zeros"):
        found = run(kspace, **changes)
    expected = run(kspace, slices=[0, 2], **changes)
    for name in ("mean", "std", "samples", "zero_filled", "phase", "residual", "noise_std"):
        values = getattr(found, name)
        assert len(values) == 3 and np.isfinite(values[[0, 2]]).all()
        assert np.array_equal(values[[0, 2]], getattr(expected, name)), name
        assert not values[1].any() or name == "noise_std" or (name == "residual" and np.isnan(values[1]))
    assert found.scale == expected.scale and found.noise_std[1] > 0
    for key in ("noise_std_scaled", "effective_noise_std_scaled", "slices"):
        assert len(found.settings[key]) == 3
    assert found.settings["coil_maps"] == expected.settings["coil_maps"]
    assert found.magnitude_std is not None and not found.magnitude_std[1].any()
    assert json.loads(json.dumps(found.settings)) == found.settings
    with pytest.raises(DataError, match=r"slices \[1\] hold nothing but zeros: there is nothing to reconstruct"):
        run(kspace, slices=[1], **changes)


def test_scale_and_noise_do_not_depend_on_slices_without_signal() -> None:
    kspace, _, _, _ = scan(slices=2, mask=FULL)
    padded = torch.cat([kspace, torch.zeros_like(kspace), torch.zeros_like(kspace)])
    alone, among = (Volume.measure(read_raw(k)) for k in (kspace, padded))
    assert among.scale == alone.scale and among.noise_std[0] == alone.noise_std[0]
    assert among.noise_source == alone.noise_source and len(among) == len(alone) == 2


def test_joint_maps_where_lines_are_plenty_are_warned_about() -> None:
    kspace, _, _, _ = scan(20, 24, 3, mask=lines(24, 16, 2))
    settings = {"samples": 1, "steps": 2}
    words = (
        rf"coil_maps='joint' was asked for .* 17 ACS lines: from {JOINT_BELOW} lines .* Leave coil_maps out, or pass"
    )
    with pytest.warns(ReconstructionWarning, match=words):
        assert run(kspace, coil_maps="joint", **settings).settings["coil_maps"] == "joint from espirit/torch"
    few, _, _, _ = scan(20, 24, 3, mask=lines(24, JOINT_BELOW - 1, 2))
    noted = run(few, coil_maps="joint", **settings).settings["warnings"]
    assert not any("was asked for" in text for text in noted)
    one, _, _, mask = scan(coils=1)
    assert run(one, mask=mask, coil_maps="joint", **settings).settings["coil_maps"] == "single_coil"


@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")
def test_the_progress_bar_counts_the_joint_estimation_of_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the sampling that follows."""
    bars = []

    class Bar(tqdm):
        said: ClassVar[list[str]] = []

        def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
            self.said.append(f"{desc} {self.n}")
            super().set_description(desc, refresh)

    def progress_bar(progress: bool, total: int) -> Bar:
        bars.append(Bar(total=total, file=io.StringIO()))
        return bars[-1]

    monkeypatch.setattr(sys.modules[reconstruct.__module__], "progress_bar", progress_bar)
    monkeypatch.setattr(volume, "JointSettings", partial(JointSettings, chains=2, steps=3, sweeps=1))
    kspace, _, _, _ = scan(20, 24, 3, slices=2, mask=lines(24, 4, 2))
    run(kspace, coil_maps="joint", samples=2, steps=5)
    estimated, sampled = 2 * 2 * 3, 2 * 2 * 5
    assert bars[0].total == bars[0].n == estimated + sampled
    assert Bar.said == ["coil maps 0", f"sampling {estimated}"]


def test_a_nested_list_is_told_to_be_made_an_array() -> None:
    with pytest.raises(DataError, match=r"got list\. Pass numpy\.asarray"):
        read_raw([[1j, 0j], [0j, 1j]])  # type: ignore[arg-type]
