"""From a scan to a reconstruction: everything inferred, raw units kept, samples reproducible, bad input named."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

import ambient_mri
from ambient_mri import Reconstruction, metrics, reconstruct, solve
from ambient_mri._checks import AmbientMRIError, DataError, PriorError
from ambient_mri.coil_maps import estimate_coil_maps
from ambient_mri.data.readers import DataWarning
from ambient_mri.measurement import Measurement
from ambient_mri.metrics import coverage, nrmse
from ambient_mri.operators import Identity, Mask, conjugate_gradient, fft, ifft, sense
from ambient_mri.prior import Prior, build_model
from ambient_mri.reconstruct import ReconstructionWarning
from ambient_mri.sampling import DDS, SplitGibbs
from ambient_mri.sampling.calibration import EffectiveNoise, effective_noise_std
from ambient_mri.tensors import complex_randn, keyed_generator
from tests.data.fastmri_files import header_xml
from tests.oracles import StationaryDenoiser, WhiteDenoiser, smooth_coils

PRIOR = StationaryDenoiser(sd=0.3, cutoff=0.12)
UNIT = 3e-5  # raw units per scaled unit: scanners count in small numbers
NOISE = 0.02 * UNIT


def lines(width: int, acs: int, spacing: int) -> Tensor:
    """(1, 1, 1, W): every ``spacing``-th line and ``acs`` central ones."""
    mask = torch.zeros(width, dtype=torch.bool)
    mask[::spacing] = True
    mask[width // 2 - acs // 2 : width // 2 - acs // 2 + acs] = True
    return mask[None, None, None]


def scan(
    height: int = 32, width: int = 36, coils: int = 8, slices: int = 1, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Raw k-space, images, maps (one set) and mask: Gaussian random fields around a mean, inside a soft disc."""
    generator = keyed_generator("scan", height, width)
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    disc = torch.sigmoid(16 * (0.75 - torch.hypot(rows, columns)))
    images = (0.6 + PRIOR.draw(slices, (height, width), generator)) * disc
    maps = smooth_coils(coils, height, width).to(torch.complex64)
    mask = lines(width, 16, 2) if mask is None else mask
    operator = sense(maps, mask)
    clean = operator.forward(images)
    kspace = UNIT * clean + NOISE * complex_randn(clean.shape, generator=generator) * mask
    return kspace, UNIT * images[:, 0], maps[0], mask


def run(kspace: Any, **changes: Any) -> Reconstruction:
    arguments = {"prior": PRIOR, "samples": 3, "steps": 8, "progress": False, **changes}
    return reconstruct(kspace, **arguments)


def posterior_mean(found: Reconstruction, kspace: Tensor, maps: Tensor) -> np.ndarray:
    """The exact posterior mean, raw units, given the scale, phase and noise level that a reconstruction settled on.

    (A^H A / s^2 + C^-1) x' = A^H y / s^2 for x' = x exp(-i phase), C the prior's covariance in raw units.
    """
    rotation = torch.from_numpy(np.exp(1j * found.phase))[:, None]
    operator = sense(maps[None] * rotation, torch.from_numpy(found.mask))
    power = PRIOR.power((int(kspace.shape[-2]), int(kspace.shape[-1]))) * found.scale**2
    ratio = float(found.noise_std[0]) ** 2
    result = conjugate_gradient(
        lambda x: operator.normal(x) + ifft(fft(x) * (ratio / power)), operator.adjoint(kspace), max_iterations=300
    )
    return (result.x * rotation)[:, 0].numpy()


def test_a_scan_is_reconstructed_in_raw_units_with_everything_inferred() -> None:
    kspace, truth, _, mask = scan()
    found = run(kspace.numpy(), samples=8, steps=20)
    assert found.mean.shape == (1, 32, 36) and found.samples.shape == (1, 8, 32, 36) and found.residual.shape == (1,)
    assert found.mean.dtype == np.complex64 and found.std is not None and found.std.dtype == np.float32
    # The maps, and so the image's phase and shading, are estimated: magnitudes are compared.
    error, before = (nrmse(truth.abs().numpy(), np.abs(x)) for x in (found.mean, found.zero_filled))
    assert error < 0.9 * before and error < 0.1
    assert np.array_equal(found.mask, mask.numpy())
    s = found.settings
    assert s["acceleration"] == pytest.approx(36 / int(mask.sum())) and s["phase_encode_axis"] == -1
    assert s["coil_maps"] == "espirit/torch" and s["run"]["data_step"] == "exact" and s["warnings"] == []
    assert s["noise_std_scaled"][0] * s["scale"] == pytest.approx(NOISE, rel=0.35)
    assert found.noise_std[0] >= 0.99 * s["noise_std_scaled"][0] * s["scale"]
    assert json.loads(json.dumps(s)) == s


@pytest.mark.parametrize("points", [False, True])
def test_the_mean_is_the_exact_posterior_mean(points: bool) -> None:
    mask = torch.rand(1, 1, 32, 36, generator=keyed_generator("dots")) < 0.5 if points else lines(36, 16, 2)
    kspace, truth, maps, _ = scan(mask=mask)
    ramp = torch.exp(1j * torch.linspace(0, 2, 36))
    turned, image = maps * ramp, truth / ramp
    found = run(kspace, coil_maps=turned, noise_std=NOISE, samples=24, steps=30)
    exact = posterior_mean(found, kspace, turned)
    assert nrmse(image.numpy(), found.mean) == pytest.approx(nrmse(image.numpy(), exact), rel=0.1)
    assert nrmse(exact, found.mean) < 0.35 * nrmse(image.numpy(), exact)
    assert found.settings["noise_source"] == "given" and found.settings["coil_maps"] == "given"
    assert points or np.abs(found.phase).max() > 0.5
    assert found.settings["run"]["data_step"] == ("conjugate_gradient" if points else "exact")
    assert 0.8 < found.residual[0] < 1.2


def test_the_units_of_the_scan_do_not_matter() -> None:
    kspace, _, maps, _ = scan()
    first = run(kspace, coil_maps=maps, noise_std=NOISE)
    second = run(kspace * 1e4, coil_maps=maps, noise_std=NOISE * 1e4)
    assert np.allclose(second.mean, first.mean * 1e4, rtol=1e-3, atol=1e-3 * np.abs(second.mean).max())
    assert np.allclose(second.residual, first.residual, rtol=1e-2)


@pytest.mark.parametrize("mask", [None, torch.rand(1, 1, 32, 36, generator=keyed_generator("points")) < 0.6])
def test_the_result_does_not_depend_on_the_batch_size(mask: Tensor | None) -> None:
    kspace, _, maps, _ = scan(slices=3, mask=mask)
    whole, single, odd = (run(kspace, coil_maps=maps, noise_std=NOISE, batch_size=n) for n in (9, 1, 4))
    scale = np.abs(whole.samples).max()
    assert np.abs(whole.samples - single.samples).max() < 1e-4 * scale
    assert np.abs(whole.samples - odd.samples).max() < 1e-4 * scale
    again, other = (run(kspace, coil_maps=maps, noise_std=NOISE, batch_size=9, seed=seed) for seed in (0, 1))
    assert np.array_equal(again.samples, whole.samples) and not np.allclose(other.samples, whole.samples)


def test_without_the_samples_all_else_is_the_same(tmp_path: Path) -> None:
    """Moments of the samples, in batches of two and all at once; lines along the rows, where a factor is known."""
    kspace, _, maps, _ = scan(height=36, width=32, slices=2, mask=lines(36, 16, 2).mT)
    prior = Prior(PRIOR, "clean", {}, {"recalibration": {"split_gibbs": {"factor": 1.5}}})
    options = {"prior": prior, "coil_maps": maps, "noise_std": NOISE, "samples": 6, "steps": 4}
    kept, streamed = run(kspace, **options), run(kspace, keep_samples=False, batch_size=4, **options)
    assert kept.samples is not None and kept.samples.shape[1] == 6 and streamed.samples is None
    samples, close = kept.samples.astype(np.complex128), {"rtol": 1e-5, "atol": 1e-6 * float(np.abs(kept.mean).max())}
    assert kept.std is not None and streamed.std is not None and kept.magnitude_std is not None
    assert np.allclose(kept.mean, samples.mean(axis=1), **close)
    assert np.allclose(kept.std, 1.5 * samples.std(axis=1, ddof=1), **close)
    assert np.allclose(kept.magnitude_std, 1.5 * np.abs(samples).std(axis=1, ddof=1), **close)
    # Batches of another shape round differently.
    loose = {"rtol": 1e-3, "atol": 1e-4 * float(np.abs(kept.mean).max())}
    for name in ("mean", "std", "magnitude_std", "residual", "zero_filled", "phase"):
        assert np.allclose(getattr(streamed, name), getattr(kept, name), **loose), name
    assert streamed.num_samples == kept.num_samples == 6 and repr(streamed) == repr(kept)
    assert "std" in np.load(streamed.save(tmp_path / "out.npz")[0])
    for ask in (
        lambda: streamed.quantile(0.9),
        lambda: streamed.principal_components(2),
        lambda: streamed.save(tmp_path / "all.h5", samples=True),
    ):
        with pytest.raises(AmbientMRIError, match=r"not kept: call reconstruct\(\.\.\., keep_samples=True\)"):
            ask()
    with pytest.raises(AmbientMRIError, match=r"samples is None: they were not kept\. Pass keep_samples=True"):
        coverage(streamed.samples, kept.mean)  # type: ignore[arg-type]
    assert not (tmp_path / "all.h5").exists()


def test_lines_along_the_rows_are_found() -> None:
    kspace, truth, maps, _ = scan(height=36, width=32, mask=lines(36, 16, 2).mT)
    found = run(kspace, coil_maps=maps, noise_std=NOISE, samples=16, steps=20)
    assert found.settings["phase_encode_axis"] == -2 and found.mask.shape == (1, 1, 36, 1)
    assert found.settings["run"]["data_step"] == "exact"
    exact = posterior_mean(found, kspace, maps)
    assert nrmse(truth.numpy(), found.mean) < 1.1 * nrmse(truth.numpy(), exact)


@pytest.mark.parametrize(("height", "width", "coils"), [(31, 37, 3), (24, 24, 1)])
def test_odd_sizes_and_a_single_coil(height: int, width: int, coils: int) -> None:
    kspace, truth, _, _ = scan(height, width, coils, mask=lines(width, 16, 2))
    kspace = kspace[0, 0] if coils == 1 else kspace[0]
    found = run(kspace, noise_std=NOISE, samples=8, steps=20)
    assert found.mean.shape == (1, height, width) and np.isfinite(found.mean).all()
    error, before = (nrmse(truth.abs().numpy(), np.abs(x)) for x in (found.mean, found.zero_filled))
    # One coil cannot tell what is missing: the mean of 8 samples is zero-filling, with an eighth of the missing power.
    assert error < (1.2 * before if coils == 1 else before)
    assert found.settings["coil_maps"] == ("single_coil" if coils == 1 else "espirit/torch")


def ambient_prior() -> Prior:
    torch.manual_seed(0)
    network = {"name": "UNet", "channels": 8, "multipliers": [1, 2]}
    architecture = {"kind": "ambient", "network": network, "sd": 0.4, "profile_bins": 4, "precision": "fp32"}
    model = build_model(architecture)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.02)
    return Prior(model.eval().requires_grad_(False), "ambient", architecture, {}, name="toy")  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", ["one_step", "split_gibbs", "dds"])
def test_ambient_priors_reconstruct(sampler: str) -> None:
    kspace, _, maps, _ = scan(slices=2)
    arguments = {"prior": ambient_prior(), "sampler": sampler, "coil_maps": maps, "noise_std": NOISE}
    steps = None if sampler == "one_step" else 4
    found = run(kspace, steps=steps, batch_size=4, **arguments)
    assert found.samples.shape[1] == (1 if sampler == "one_step" else 3)
    assert (found.std is None) == (sampler == "one_step")
    assert np.allclose(found.samples, run(kspace, steps=steps, batch_size=1, **arguments).samples, atol=1e-3 * UNIT)


def test_an_ambient_network_sees_the_lines_along_its_own_axis() -> None:
    kspace, _, maps, _ = scan()
    arguments = {"prior": ambient_prior(), "sampler": "one_step", "noise_std": NOISE, "steps": None}
    upright = run(kspace, coil_maps=maps, **arguments)
    lying = run(kspace.mT.contiguous(), coil_maps=maps.mT, **arguments)
    assert lying.settings["phase_encode_axis"] == -2
    assert np.allclose(lying.mean.swapaxes(-2, -1), upright.mean, atol=1e-3 * UNIT)
    assert np.allclose(lying.zero_filled.swapaxes(-2, -1), upright.zero_filled, atol=1e-3 * UNIT)


def write_file(path: Path, kspace: Tensor, recon: tuple[int, int]) -> Path:
    height, width = kspace.shape[-2:]
    with h5py.File(path, "w") as handle:
        handle["kspace"] = kspace.numpy()
        handle["ismrmrd_header"] = header_xml(encoded=(height, width), recon=recon, oversampling=2)
        handle.attrs["acquisition"] = "AXT2"
    return path


def test_a_file_is_read_reconstructed_cropped_and_saved(tmp_path: Path) -> None:
    kspace, _, _, _ = scan(height=64, width=32, slices=2, mask=lines(32, 16, 2))
    path = write_file(tmp_path / "scan.h5", kspace, recon=(32, 32))
    found = run(path, slices=[1], samples=2)
    assert found.name == "scan" and found.settings["slices"] == [1] and found.magnitude.shape == (1, 32, 32)
    assert found.magnitude_std is not None and found.magnitude_std.shape == (1, 32, 32)
    from ambient_mri.data.writers import read_reconstruction

    (written,) = found.save(tmp_path / "out.h5", samples=True)
    content = read_reconstruction(written)
    assert np.allclose(content["reconstruction"], found.magnitude) and content["samples"].shape == (1, 2, 32, 32)
    assert content["settings"]["sampler"]["sampler"] == "split_gibbs"
    assert np.load(found.save(tmp_path / "out.npz")[0])["mean"].shape == (1, 32, 32)
    for name in ("out.png", "out.html"):
        (found.report if name.endswith("html") else found.save)(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000
    with pytest.raises(AmbientMRIError, match=r"no known format; use \.h5.* \(Reconstruction\.save also takes \.png\)"):
        found.save(tmp_path / "out.jpeg")
    assert "2 samples of split_gibbs" in repr(found)


def test_the_image_may_be_smaller_than_k_space_along_both_axes(tmp_path: Path) -> None:
    """As in fastMRI's knees: oversampled along the readout, padded along the other axis."""
    kspace, _, _, _ = scan(height=64, width=40, slices=1, mask=lines(40, 16, 2))
    found = run(write_file(tmp_path / "scan.h5", kspace, recon=(32, 32)), samples=2)
    assert found.magnitude.shape == (1, 32, 32)
    for written in (*found.save(tmp_path / "out.png"), found.report(tmp_path / "out.html")):
        assert written.stat().st_size > 5000
    big = Prior(PRIOR, "clean", {}, {"image_shape": [32, 32]}, name="big")
    assert not any("pixels" in text for text in run(tmp_path / "scan.h5", prior=big).settings["warnings"])


@pytest.mark.filterwarnings("ignore:.*nothing but zeros", "ignore:.*zero everywhere")
def test_slices_and_coils_without_signal_are_told_and_leave_the_residual_alone() -> None:
    kspace, _, _, _ = scan(slices=2, coils=4)
    kspace[1] = 0
    kspace[:, 2] = 0
    found = run(kspace, noise_std=NOISE)
    assert np.isnan(found.residual[1]) and metrics.mean_of_known(found.residual) == found.residual[0] > 0
    told = " ".join(found.settings["warnings"])
    assert "slices [1] hold nothing but zeros" in told and "coils [2] are zero everywhere" in told
    assert np.isnan(metrics.mean_of_known(found.residual[1:]))


@pytest.mark.filterwarnings("ignore:.*zero everywhere")
def test_silent_coils_count_for_nothing() -> None:
    """They hold no noise either: the residual would be too small, and a right noise level look too high."""
    kspace, _, maps, _ = scan(coils=4)
    dead = torch.cat([kspace, torch.zeros_like(kspace).repeat(1, 5, 1, 1)], dim=1)
    alone, among = (run(k, noise_std=NOISE) for k in (kspace, dead))
    assert np.allclose(alone.residual, among.residual, rtol=1e-4) and np.allclose(alone.mean, among.mean, rtol=1e-3)
    assert "too high" not in " ".join(among.settings["warnings"])
    given = run(dead, noise_std=NOISE, coil_maps=torch.cat([maps, torch.zeros(20, *maps.shape[1:])]))
    assert np.allclose(given.mean, run(kspace, noise_std=NOISE, coil_maps=maps).mean, rtol=1e-3)


def test_noise_alone_is_no_image() -> None:
    kspace, _, _, _ = scan()
    noise = NOISE * complex_randn(kspace.shape, generator=keyed_generator("noise")) * (kspace != 0)
    with pytest.warns(ReconstructionWarning, match=r"signal is [0-2]\.\d times the noise of a sample: is this a noise"):
        run(noise, steps=2)
    # A slice without signal among others is a slice at the end of the volume.
    told = run(torch.cat([kspace, noise]), steps=2).settings["warnings"]
    assert "noise scan" not in " ".join(told)


def test_slices_that_were_scaled_one_by_one_are_told_of() -> None:
    kspace, _, maps, _ = scan(slices=3)
    factors = torch.tensor([1.0, 0.1, 0.4])[:, None, None, None]
    options = {"coil_maps": maps, "samples": 2, "steps": 2}
    with pytest.warns(ReconstructionWarning, match=r"differ by a factor of (9|10|11), as if each had its own scale"):
        run(kspace * factors, **options)
    # A volume whose slices hold less and less, under one noise.
    fading = kspace * factors + NOISE * complex_randn(kspace.shape, generator=keyed_generator("fading")) * (kspace != 0)
    for volume in (kspace, fading):
        assert "its own scale" not in " ".join(run(volume, **options).settings["warnings"])


def test_a_band_of_lines_that_a_mask_leaves_is_no_full_scan(tmp_path: Path) -> None:
    full, _, maps, _ = scan(mask=torch.ones(1, 1, 1, 36, dtype=torch.bool))
    band, half = np.zeros(36, dtype=bool), np.zeros(36, dtype=bool)
    band[12:24], half[:24] = True, True
    np.savez(tmp_path / "k.npz", kspace=full.numpy())
    np.savez(tmp_path / "m.npz", kspace=full.numpy(), mask=band)
    options = {"coil_maps": maps, "noise_std": NOISE, "steps": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        found = [run(s, **options, **m) for s, m in (
            (full, {"mask": band}), (tmp_path / "k.npz", {"mask": band}), (tmp_path / "m.npz", {}))]  # fmt: skip
    assert [r.settings["acceleration"] for r in found] == [pytest.approx(3.0)] * 3
    partial = run(full * torch.from_numpy(half), **options)
    assert "nothing is missing" not in " ".join(w for r in (*found, partial) for w in r.settings["warnings"])


def test_arrays_as_numpy_gives_them() -> None:
    """Views that run backwards, another byte order; half precision of torch."""
    kspace, _, maps, mask = scan()
    wanted = run(kspace, mask=mask, coil_maps=maps, noise_std=NOISE)
    line = mask.numpy()[0, 0, 0]
    swapped = lambda a: a.astype(a.dtype.newbyteorder())  # noqa: E731
    backwards = run(
        np.ascontiguousarray(kspace.numpy()[..., ::-1])[..., ::-1],
        mask=line[::-1].copy()[::-1],
        coil_maps=np.ascontiguousarray(maps.numpy()[..., ::-1])[..., ::-1],
        noise_std=NOISE,
    )
    other = run(
        swapped(kspace.numpy()),
        mask=swapped(line.astype(np.int32)),
        coil_maps=swapped(maps.numpy()),
        noise_std=swapped(np.array([NOISE], dtype=np.float32)),
    )
    for found in (backwards, other):
        assert np.allclose(found.mean, wanted.mean, rtol=1e-3, atol=1e-3 * np.abs(wanted.mean).max())


def test_slices_are_chosen_before_anything_is_looked_at(tmp_path: Path) -> None:
    """Of arrays as of files; masks and maps of the whole volume go with the slices that were chosen."""
    kspace, _, maps, _ = scan(slices=3, mask=torch.ones(1, 1, 1, 36, dtype=torch.bool))
    mask = lines(36, 16, 2)
    masks = torch.cat([mask[:, 0], mask[:, 0].roll(1, -1), mask[:, 0].roll(2, -1)]).expand(3, 32, 36)
    kspace = kspace.clone()
    kspace[1, 0, 3, 4] = torch.nan
    np.save(tmp_path / "k.npy", kspace.numpy())
    options = {"noise_std": NOISE, "steps": 2, "slices": [0, 2]}
    own = {"mask": masks, "coil_maps": maps[None].repeat(3, 1, 1, 1)}
    by_array, by_file = (run(source, **options, **own) for source in (kspace, tmp_path / "k.npy"))
    single = run(kspace[[0, 2]], **{**options, "slices": None}, mask=masks[[0, 2]], coil_maps=maps)
    assert by_array.settings["slices"] == by_file.settings["slices"] == [0, 2]
    assert np.array_equal(by_array.mask, single.mask) and np.allclose(by_array.mean, by_file.mean)
    with pytest.raises(DataError, match=r"slices are numbers, not flags: pass numpy\.flatnonzero"):
        run(kspace, slices=np.array([True, False, True]))


def test_a_mask_undersamples_a_file(tmp_path: Path) -> None:
    full, _, _, _ = scan(mask=torch.ones(1, 1, 1, 36, dtype=torch.bool))
    kspace, _, maps, mask = full, None, scan()[2], lines(36, 16, 2)
    path = write_file(tmp_path / "full.h5", kspace, recon=(32, 36))
    by_file = run(path, mask=mask.numpy()[0, 0, 0], coil_maps=maps)
    by_array = run(kspace * mask, coil_maps=maps)
    assert np.allclose(by_file.mean, by_array.mean, atol=1e-3 * UNIT)
    assert np.array_equal(by_file.mask, mask.numpy())


def test_few_acs_lines_and_none_are_warned_about() -> None:
    kspace, _, maps, _ = scan(mask=lines(36, 8, 2))
    with pytest.warns(ReconstructionWarning, match="coil maps come from .* ACS lines"):
        few = run(kspace, noise_std=NOISE)
    assert few.settings["warnings"]
    assert run(kspace, coil_maps=maps, noise_std=NOISE).settings["warnings"] == []
    offset = torch.zeros(1, 1, 1, 36, dtype=torch.bool)
    offset[..., 1::2] = True
    kspace, _, _, _ = scan(mask=offset)
    with pytest.warns(ReconstructionWarning, match=r"no ACS lines .* a chi\^2 near 1 says nothing"):
        none = run(kspace, noise_std=NOISE)
    assert np.isfinite(none.mean).all() and none.settings["coil_maps"] == "joint without calibration lines"
    with pytest.warns(ReconstructionWarning, match="no ACS lines"):
        assert run(kspace, noise_std=NOISE, coil_maps="espirit").settings["coil_maps"] == "low_resolution"
    with pytest.raises(AmbientMRIError, match="coil_maps must be one of 'espirit', 'joint'"):
        run(kspace, coil_maps="sense")


def test_maps_that_are_cropped_or_not_normalised_are_normalised_with_a_warning() -> None:
    kspace, truth, maps, _ = scan()
    cropped = maps * 3
    cropped[:, :, :4] = 0
    with pytest.warns(ReconstructionWarning, match=r"did not have sum \|S\|\^2 = 1"):
        found = run(kspace, coil_maps=cropped, noise_std=NOISE)
    assert not found.mean[..., :4].any()
    assert nrmse(truth[..., 8:].numpy(), found.mean[..., 8:]) < 0.3


def test_a_fully_sampled_scan_is_told_that_nothing_is_missing() -> None:
    kspace, _, maps, _ = scan(mask=torch.ones(1, 1, 1, 36, dtype=torch.bool))
    with pytest.warns(ReconstructionWarning, match=r"fully sampled \(R = 1\): nothing is missing"):
        run(kspace, coil_maps=maps, noise_std=NOISE)


def test_a_prior_of_another_size_is_warned_about() -> None:
    kspace, _, maps, _ = scan()
    prior = Prior(PRIOR, "clean", {}, {"image_shape": [128, 128]}, name="big")
    with pytest.warns(ReconstructionWarning, match="32 x 36 pixels, the prior 'big' was trained on 128 x 128"):
        run(kspace, prior=prior, coil_maps=maps)


def test_the_effective_noise_is_the_noise_with_right_maps_and_more_with_wrong_ones() -> None:
    kspace, _, maps, mask = scan(coils=8)

    def found(coil_maps: Tensor, acs: Tensor = mask) -> EffectiveNoise:
        one = torch.ones(1)
        return effective_noise_std(Measurement(kspace / UNIT, acs, coil_maps[None], one * 0.02, one, ("0",)))

    right, shifted = found(maps), found(maps.roll(6, -1))
    assert 0.02 <= float(right.level) <= float(right.of_calibration) < 0.02 * 1.1
    assert float(shifted.of_calibration) > 1.7 * float(right.of_calibration)
    assert 1.1 * float(right.level) < float(shifted.level) < float(shifted.of_calibration)
    estimated = found(estimate_coil_maps(kspace, mask).maps[0])
    assert float(right.of_calibration) < float(estimated.of_calibration) * 1.2
    off_centre = lines(36, 0, 36)
    assert float(found(maps.roll(6, -1), off_centre).level) == pytest.approx(0.02)  # no calibration lines
    wrong = run(kspace, coil_maps=maps.roll(6, -1), noise_std=NOISE)
    assert wrong.noise_std[0] == pytest.approx(NOISE, rel=1e-4)
    assert wrong.settings["effective_noise_std_scaled"][0] * wrong.scale > 1.1 * NOISE


def test_maps_or_a_noise_level_that_the_calibration_lines_contradict_are_told() -> None:
    kspace, _, maps, _ = scan(coils=8)
    with pytest.warns(ReconstructionWarning, match=r"contradict coil_maps \(.*\); leave it out, .* times the noise"):
        run(kspace, coil_maps=maps.flip(0), noise_std=None)
    with pytest.warns(ReconstructionWarning, match=r"contradict noise_std \(given; its units\?\); leave it out"):
        run(kspace, noise_std=NOISE / 50)
    with pytest.warns(ReconstructionWarning, match=r"noise_std \(given\) is 0, but the calibration lines are not free"):
        run(kspace, noise_std=0)


def test_a_noise_level_that_the_calibration_lines_contradict_is_told() -> None:
    kspace, _, maps, _ = scan()
    with pytest.warns(ReconstructionWarning, match=r"noise_std \(given\) looks about 2\.\d times too high"):
        run(kspace, coil_maps=maps, noise_std=2.2 * NOISE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ReconstructionWarning)
        run(kspace, coil_maps=maps, noise_std=NOISE)


def test_solve_denoises_exactly() -> None:
    prior, levels = WhiteDenoiser(0.3), torch.tensor([0.1, 0.2])
    truth = 0.3 * complex_randn((2, 1, 16, 16), generator=keyed_generator("solve"))
    noise = complex_randn(truth.shape, generator=keyed_generator("noise"))
    y = truth + levels.reshape(2, 1, 1, 1) * noise
    found = solve(
        y,
        Identity(),
        prior,
        noise_std=levels,
        samples=200,
        sampler=SplitGibbs(25),
        batch_size=150,
        keep_samples=True,
    )
    assert nrmse(prior(y, levels).numpy(), found.mean.numpy()) < 0.06
    assert found.samples.shape == (2, 200, 1, 16, 16) and found.std is not None
    variance = 2 * 0.09 * levels.square() / (0.09 + levels.square())
    assert torch.allclose(found.std.square().mean(dim=(1, 2, 3)), variance, rtol=0.05)
    # The data's distance to the mean and the posterior's spread together make one.
    assert found.residual.shape == (2,) and (found.residual - 1).abs().max() < 0.2
    assert found.settings["operator"].startswith("Identity")


def test_solve_inpaints_in_any_batch() -> None:
    truth = PRIOR.draw(2, (16, 16), keyed_generator("inpaint"))
    operator = Mask(torch.rand(1, 1, 16, 16, generator=keyed_generator("pixels")) < 0.6)
    y = operator.forward(truth)
    first = solve(y, operator, PRIOR, noise_std=0.0, samples=4, sampler=DDS(15))
    second = solve(y, operator, PRIOR, noise_std=0.0, samples=4, sampler=DDS(15), batch_size=1)
    assert torch.allclose(first.samples, second.samples, atol=1e-4)
    hidden = operator.mask.expand(truth.shape).logical_not()
    assert torch.allclose(operator.forward(first.mean), y, atol=1e-3)
    assert (first.mean - truth)[hidden].norm() < 0.8 * truth[hidden].norm()
    assert first.residual.isnan().all()  # no noise, no scale for the residual


def test_real_images_are_solved_for() -> None:
    y = torch.ones(1, 3, 8, 8)
    found = solve(y, Identity(), WhiteDenoiser(1.0), noise_std=1.0, samples=20, steps=20, keep_samples=True)
    assert not found.samples.is_complex() and found.mean.shape == (1, 3, 8, 8)
    assert found.mean.mean() == pytest.approx(0.5, abs=0.05)


MAPS = torch.ones(8, 32, 36, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scan": torch.ones(4, dtype=torch.complex64)}, DataError, r"'kspace' must be \(H, W\), \(coils, H, W\)"),
        ({"scan": torch.ones(4, 32, 36)}, DataError, "'kspace' must be complex; got float32"),
        ({"coil_maps": MAPS[:3]}, AmbientMRIError, r"shape \(1, 8, 32, 36\); got \(1, 3, 32, 36\).*another scan"),
        ({"coil_maps": torch.ones(4, 32, 36)}, AmbientMRIError, "coil_maps must be complex"),
        ({"coil_maps": MAPS * torch.nan}, AmbientMRIError, "coil_maps holds 9216 non-finite"),
        ({"scan": MAPS * torch.nan}, DataError, r"'kspace' holds .* non-finite values"),
        ({"mask": torch.zeros(36, dtype=torch.bool)}, DataError, "mask selects no k-space location"),
        ({"mask": torch.ones(35, dtype=torch.bool)}, DataError, r"'mask' has shape \(35,\).*another matrix size"),
        ({"noise_std": -1.0}, AmbientMRIError, "noise_std must be zero or a positive finite number"),
        ({"noise_std": torch.ones(5)}, AmbientMRIError, "must be one number, or one for each of the 1 slices"),
        ({"sampler": "one_step", "steps": None}, PriorError, "one_step is not valid for a prior of kind 'clean'"),
        ({"sampler": "gibbs"}, AmbientMRIError, "sampler must be one of 'split_gibbs', 'dds', 'one_step'"),
        ({"prior": "no_such_prior"}, PriorError, "no prior 'no_such_prior'"),
        ({"samples": 0}, AmbientMRIError, "samples must be at least 1"),
        ({"samples": 2.5}, AmbientMRIError, r"samples must be a whole number; got 2\.5"),
        ({"scale": "1"}, AmbientMRIError, "scale must be a positive finite number; got '1'"),
        ({"batch_size": 0}, AmbientMRIError, "batch_size must be at least 1"),
        ({"batch_size": "all"}, AmbientMRIError, "batch_size must be one of 'auto'"),
        ({"slices": "0:2"}, DataError, r"slices must be a number, numbers or slice\(first, end\); got '0:2'"),
        ({"slices": slice(5, 6)}, DataError, "the selection 5:6 picks none of the 1 slices"),
        ({"prior": None}, PriorError, "prior must be a name, a prior folder, a Prior or a Denoiser; got NoneType"),
        ({"noise_std": "a"}, AmbientMRIError, "noise_std must be a number; got 'a'"),
        ({"device": "nowhere"}, AmbientMRIError, "device nowhere cannot be used"),
        ({"sampler": "one_step"}, AmbientMRIError, "one_step has one step, whatever the prior; got steps=8"),
        ({"slices": [3]}, DataError, "slice 3 does not exist|slice .3. does not exist"),
    ],
)  # fmt: skip
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"scan": scan()[0], **changes}
    with pytest.raises(error, match=message):
        run(arguments.pop("scan"), **arguments)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.h5: no such file"):
        run(tmp_path / "missing.h5")
    path = write_file(tmp_path / "cut.h5", scan()[0], recon=(32, 36))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut.h5: HDF5 cannot read it .*truncated"):
        run(path)
    (tmp_path / "prior").mkdir()
    with pytest.raises(PriorError, match="is not a prior folder"):
        run(scan()[0], prior=tmp_path / "prior")


def test_solve_refuses_ambient_priors_and_bad_data() -> None:
    y = torch.ones(1, 1, 8, 8, dtype=torch.complex64)
    with pytest.raises(PriorError, match=r"solve\(\) needs a clean prior"):
        solve(y, Identity(), ambient_prior(), noise_std=0.1)
    with pytest.raises(AmbientMRIError, match="y holds 1 non-finite values"):
        solve(torch.where(torch.arange(8) == 3, torch.nan, y[..., :1, :]), Identity(), PRIOR, noise_std=0.1)


def test_the_public_surface_is_what_it_says() -> None:
    assert set(ambient_mri.__all__) <= set(dir(ambient_mri))
    for name in ambient_mri.__all__:
        assert getattr(ambient_mri, name) is not None
    assert callable(ambient_mri.reconstruct) and callable(ambient_mri.load)
    assert isinstance(ambient_mri.__version__, str)
    with pytest.raises(AttributeError, match="no attribute 'recon'"):
        ambient_mri.recon  # noqa: B018
    # The function keeps its name, whichever import comes first.
    code = "import ambient_mri.reconstruct.run; import ambient_mri; print(callable(ambient_mri.reconstruct))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
