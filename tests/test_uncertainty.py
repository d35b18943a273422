"""Uncertainty: principal components against SciPy's SVD, recalibration against worlds whose posterior is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from ambient_mri._checks import AmbientMRIError
from ambient_mri.prior import Prior, build_model, load_prior
from ambient_mri.reconstruct import Reconstruction, measure_recalibration, reconstruct, store_recalibration
from ambient_mri.sampling import DDS
from ambient_mri.uncertainty import Recalibration, principal_components, recalibrate
from tests.oracles import PosteriorScene

K = 8


def covered(error: np.ndarray, std: np.ndarray, level: float, samples: int) -> float:
    """Share of the errors inside the predictive interval of ``level``."""
    bound = student.ppf(0.5 * (1 + level), samples - 1) * np.sqrt(1 + 1 / samples)
    return float(np.mean(np.abs(error) <= bound * std))


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_principal_components_are_those_of_the_svd(dtype: type) -> None:
    generator = np.random.default_rng(0)
    samples = generator.standard_normal((7, 5, 6)).astype(dtype)
    if dtype is np.complex128:
        samples = samples + 1j * generator.standard_normal((7, 5, 6))
    images, std = principal_components(samples, 3)
    centred = (samples - samples.mean(0)).reshape(7, -1)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    assert images.dtype == dtype and images.shape == (3, 5, 6)
    assert np.allclose(std, values[:3] / np.sqrt(6))
    # The same lines in space; the phase of either is free.
    assert np.allclose(np.abs(images.reshape(3, -1) @ vectors[:3].conj().T), np.eye(3), atol=1e-9)


def test_the_first_component_is_the_direction_that_the_samples_were_given() -> None:
    generator = np.random.default_rng(1)
    direction = generator.standard_normal((4, 9))
    direction /= np.linalg.norm(direction)
    samples = 3 * generator.standard_normal((400, 1, 1)) * direction + 0.01 * generator.standard_normal((400, 4, 9))
    images, std = principal_components(samples, 2)
    assert abs(np.sum(images[0] * direction)) > 0.9999
    assert std[0] == pytest.approx(3, rel=0.12) and std[1] < 0.03


def test_too_few_samples_for_components_are_named() -> None:
    with pytest.raises(AmbientMRIError, match="two samples at least; got 1"):
        principal_components(np.zeros((1, 3, 3)), 1)
    with pytest.raises(AmbientMRIError, match="3 samples have 2 principal components; 3 were asked for"):
        principal_components(np.zeros((3, 3, 3)), 3)


def test_an_under_dispersed_sampler_is_recalibrated_to_nominal_coverage() -> None:
    """DDS in a Gaussian world: the factor from some truths makes the intervals of the others honest."""
    scene = PosteriorScene.make(10, 0.05, lines=(1, 4, 5, 8), truths=40)
    samples = scene.run(DDS(20), K)[0][:, :, 0].numpy()
    truth, values = scene.truth[:, 0].real.numpy(), samples.real
    error, std = values.mean(1) - truth, values.std(1, ddof=1)
    everywhere = np.ones(error.shape[1:], dtype=bool)
    found = recalibrate([(error[i], std[i], everywhere) for i in range(20)], K)
    before, after = (covered(error[20:], factor * std[20:], 0.9, K) for factor in (1.0, found.factor))
    assert before < 0.85 and found.coverage == pytest.approx(before, abs=0.04)
    assert found.factor > 1.1 and after == pytest.approx(0.9, abs=0.025)
    assert (found.cases, found.pixels, found.samples) == (20, 2000, K)


@pytest.mark.parametrize("noise_std", [0.0, 0.5])
def test_the_factor_is_the_one_that_the_spread_was_divided_by(noise_std: float) -> None:
    """Exact samples, their spread scaled by 1 / 1.5; the reference's own noise is not mistaken for a narrow spread."""
    generator = np.random.default_rng(2)
    mean, width = generator.standard_normal((2, 200, 200)) * 3, 1 + generator.random((200, 200))
    samples = mean[0] + width * generator.standard_normal((K, 200, 200))
    truth = mean[0] + width * generator.standard_normal((200, 200)) + noise_std * generator.standard_normal((200, 200))
    error, std = samples.mean(0) - truth, samples.std(0, ddof=1) / 1.5
    found = recalibrate([(error, std, np.ones((200, 200), bool))], K, noise_std=[noise_std])
    # With noise the sum is no exact Student variable.
    assert found.factor == pytest.approx(1.5, rel=0.02 if noise_std == 0 else 0.06)


def test_what_cannot_be_recalibrated_is_named() -> None:
    case = (np.ones((2, 2)), np.zeros((2, 2)), np.ones((2, 2), bool))
    with pytest.raises(AmbientMRIError, match="one scan with its reference at least"):
        recalibrate([], K)
    with pytest.raises(AmbientMRIError, match="three samples a slice at least; got 2"):
        recalibrate([case], 2)
    with pytest.raises(AmbientMRIError, match="do not differ anywhere"):
        recalibrate([case], K)
    with pytest.raises(AmbientMRIError, match="noise of the references explains all errors"):
        recalibrate([(case[0], 0.1 * np.ones((2, 2)), case[2])], K, noise_std=[5.0])


def reconstruction(samples: np.ndarray, settings: dict[str, object] | None = None) -> Reconstruction:
    count, _, height, width = samples.shape
    factor = ((settings or {}).get("recalibration") or {}).get("factor", 1.0)  # type: ignore[attr-defined]
    return Reconstruction(
        mean=samples.mean(1),
        std=factor * samples.std(1, ddof=1),
        samples=samples,
        residual=np.ones(count),
        zero_filled=samples.mean(1),
        mask=np.ones((1, 1, 1, width), dtype=bool),
        phase=np.zeros((count, height, width)),
        scale=1.0,
        noise_std=np.zeros(count),
        recon_shape=(height, width),
        settings=settings or {},
    )


def test_a_reconstruction_is_recalibrated_in_all_that_it_says_of_its_spread() -> None:
    generator = np.random.default_rng(3)
    samples = (10 + generator.standard_normal((2, K, 12, 12))).astype(np.complex64)
    plain, wide = reconstruction(samples), reconstruction(samples, {"recalibration": {"factor": 2.0}})
    assert plain.magnitude_std is not None and wide.magnitude_std is not None
    assert np.allclose(wide.magnitude_std, 2 * plain.magnitude_std)
    middle = plain.quantile(0.5)
    assert np.allclose(wide.quantile(0.9) - middle, 2 * (plain.quantile(0.9) - middle), atol=1e-5)
    assert np.allclose(plain.quantile(0.9), np.quantile(np.abs(samples), 0.9, axis=1), atol=1e-5)
    images, std = wide.principal_components(2)
    assert images.shape == (2, 2, 12, 12) and np.allclose(std, 2 * plain.principal_components(2)[1])
    with pytest.raises(AmbientMRIError, match="a quantile lies between 0 and 1"):
        plain.quantile(1.5)


@pytest.mark.filterwarnings("ignore:.*fully sampled", "ignore:.*the calibration lines contradict")
def test_the_factor_is_measured_stored_with_the_prior_and_applied(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    centre = 10 + generator.standard_normal((3, 1, 24, 24))
    truth = np.abs(centre[:, 0] + generator.standard_normal((3, 24, 24)))
    samples = (centre + 0.5 * generator.standard_normal((3, K, 24, 24))).astype(np.complex64)
    found = measure_recalibration([(reconstruction(samples), truth)])
    # The mean of samples half as wide misses the truth by its whole width: sqrt((1 + 1/32) / (1 + 1/8)) of twice.
    assert found.factor == pytest.approx(2 * np.sqrt((1 + 1 / 32) / (1 + 1 / 8)), rel=0.1)
    again = measure_recalibration([(reconstruction(samples, {"recalibration": {"factor": 3.0}}), truth)])
    assert again.factor == pytest.approx(found.factor, rel=1e-6)

    architecture = {"kind": "clean", "network": {"name": "UNet", "channels": 8, "multipliers": [1]}, "sd": 0.3}
    folder = Prior(build_model(architecture), "clean", architecture).save(tmp_path / "prior")
    store_recalibration(folder, "dds", Recalibration(1.5, 0.9, 0.6, K, 3, 100), steps=4)
    store_recalibration(folder, "split_gibbs", Recalibration(1.1, 0.9, 0.85, K, 3, 100))
    prior = load_prior(folder)
    assert prior.metadata["recalibration"]["dds"]["factor"] == 1.5
    kspace = (generator.standard_normal((2, 16, 16)) + 1j * generator.standard_normal((2, 16, 16))).astype(np.complex64)
    kspace[:, 8, 8] = 30
    maps = np.full((2, 16, 16), 2**-0.5, dtype=np.complex64)
    options = {"coil_maps": maps, "noise_std": 0.01, "samples": 3, "steps": 2, "progress": False}
    result = reconstruct(kspace, prior=prior, sampler="dds", **options)  # type: ignore[arg-type]
    assert result.settings["recalibration"]["factor"] == result.recalibration_factor == 1.5
    assert result.std is not None and np.allclose(result.std, 1.5 * result.samples.std(1, ddof=1), rtol=1e-4)
    assert reconstruct(kspace, prior=prior, sampler="mmps", **options).recalibration_factor == 1  # type: ignore[arg-type]
    with pytest.raises(AmbientMRIError, match="is not a prior folder"):
        store_recalibration(tmp_path / "none", "dds", found)
    assert store_recalibration(tmp_path, "mmps", found) == folder / "prior.json", "of a run folder"
