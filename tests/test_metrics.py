"""Metrics against closed forms, fastMRI's own evaluation code and scikit-image."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ambient_mri import metrics
from ambient_mri._checks import AmbientMRIError

Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def volume() -> Pair:
    """A smooth reference (3, 40, 51), maximum 1e-3 as in fastMRI's files, and a noisy, blurred image of it."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(7)
    reference = gaussian_filter(np.abs(rng.normal(size=(3, 40, 51))), (0, 2, 2))
    reference *= 1e-3 / reference.max()
    return reference, gaussian_filter(reference, (0, 0.7, 0.7)) + 3e-5 * rng.normal(size=reference.shape)


@pytest.mark.parametrize("name", ["psnr", "ssim", "nmse"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parity_with_fastmri(volume: Pair, name: str, dtype: type) -> None:
    evaluate = pytest.importorskip("fastmri.evaluate", reason="fastmri is an optional parity check")
    reference, image = (x.astype(dtype) for x in volume)
    theirs = float(np.squeeze(getattr(evaluate, name)(reference, image)))
    assert getattr(metrics, name)(reference, image) == pytest.approx(theirs, rel=1e-6, abs=1e-6)


def test_parity_with_scikit_image(volume: Pair) -> None:
    from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio, structural_similarity

    reference, image = volume
    peak = reference.max()
    assert metrics.psnr(*volume) == pytest.approx(peak_signal_noise_ratio(*volume, data_range=peak), abs=1e-9)
    each = [structural_similarity(a, b, data_range=peak) for a, b in zip(reference, image, strict=True)]
    assert metrics.ssim(*volume) == pytest.approx(np.mean(each), abs=1e-12)
    assert metrics.nrmse(*volume) == pytest.approx(normalized_root_mse(*volume, normalization="euclidean"), rel=1e-9)


def test_the_data_range_is_that_of_the_volume_not_of_the_slice(volume: Pair) -> None:
    reference, image = volume
    dim = int(np.argmin(reference.max(axis=(1, 2))))
    alone = metrics.psnr(reference[dim], image[dim])
    given = metrics.psnr(reference[dim], image[dim], data_range=float(reference.max()))
    expected = 20 * math.log10(reference.max() / reference[dim].max())
    assert given - alone == pytest.approx(expected) and expected > 0.1


def test_psnr_of_known_noise() -> None:
    rng = np.random.default_rng(0)
    reference = np.zeros((200, 200))
    reference[50:150, 50:150] = 2.0
    image = reference + 0.02 * rng.normal(size=reference.shape)
    # 20 log10(2 / 0.02) = 40 dB; the sampling error of the mean square of 40 000 values is 0.7 %, or 0.03 dB.
    assert metrics.psnr(reference, image) == pytest.approx(40, abs=0.1)
    assert metrics.psnr(reference, reference) == math.inf
    assert metrics.ssim(reference, reference) == pytest.approx(1)


def test_complex_errors() -> None:
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(1, 8, 9)) + 1j * rng.normal(size=(1, 8, 9))
    assert metrics.nrmse(reference, reference * (1 + 0.1j)) == pytest.approx(0.1)
    assert metrics.nmse(reference, reference * (1 + 0.1j)) == pytest.approx(0.01)
    assert metrics.fit_scale(reference * -0.25, reference) == pytest.approx(-4)
    # A phase has no real factor: Re<x, x0> = 0.
    assert metrics.fit_scale(1j * reference, reference) == pytest.approx(0, abs=1e-12)


def test_support_scores_inside_alone(volume: Pair) -> None:
    reference, image = volume
    support = np.zeros(reference.shape[1:], dtype=bool)
    support[10:30, 12:40] = True
    spoiled = np.where(support, image, image + 1e-3)
    for name in ("psnr", "nmse", "nrmse"):
        metric = getattr(metrics, name)
        assert metric(reference, spoiled, support=support) == metric(reference, image, support=support)
        assert metric(reference, spoiled) != metric(reference, image)
    inside = np.s_[..., 10:30, 12:40]
    expected = metrics.psnr(reference[inside], image[inside], data_range=float(reference.max()))
    assert metrics.psnr(reference, image, support=support) == pytest.approx(expected)
    assert metrics.nmse(reference, image, support=support) == pytest.approx(
        metrics.nmse(reference[inside], image[inside])
    )
    # SSIM over all pixels is SSIM over the support that is everywhere; deep inside, windows do not see the spoiling.
    assert metrics.ssim(reference, image, support=np.ones_like(support)) == metrics.ssim(reference, image)
    deep = np.zeros_like(support)
    deep[13:27, 15:37] = True
    assert metrics.ssim(reference, spoiled, support=deep) == pytest.approx(metrics.ssim(reference, image, support=deep))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_and_arrays_give_the_same_float(volume: Pair, dtype: torch.dtype) -> None:
    reference, image = (torch.from_numpy(1e3 * x).to(dtype) for x in volume)
    pair = (reference.double().numpy(), image.double().numpy())
    for metric in (metrics.psnr, metrics.ssim, metrics.nmse, metrics.nrmse, metrics.fit_scale):
        value = metric(reference.requires_grad_(), image)
        assert isinstance(value, float) and value == metric(*pair)
    z = torch.complex(reference.detach().float(), image.detach().float())
    assert metrics.nmse(z.conj(), z) == pytest.approx(metrics.nmse(z.conj().resolve_conj().numpy(), z.numpy()))


def gaussian_posterior(samples: int, pixels: int = 20000, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """K exact complex samples and a reference of the same law, (K, 1, n) and (1, n), unit variance per real part."""
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=(samples + 1, 2, 1, pixels))
    draws = draws[:, 0] + 1j * draws[:, 1]
    return draws[1:], draws[0]


# 40 000 independent trials: the standard error of a coverage of 0.9 is 0.0015.
@pytest.mark.parametrize(("level", "samples"), [(0.9, 32), (0.9, 100), (0.5, 33)])
def test_coverage_of_exact_samples_is_the_level(level: float, samples: int) -> None:
    x, reference = gaussian_posterior(samples)
    assert metrics.coverage(x, reference, level) == pytest.approx(level, abs=0.007)
    assert metrics.coverage(x.real, reference.real, level) == pytest.approx(level, abs=0.01)


def test_coverage_counts_the_noise_of_the_reference() -> None:
    x, reference = gaussian_posterior(40)
    noisy = reference + 0.7 * gaussian_posterior(0, seed=1)[1]
    assert metrics.coverage(x, noisy, noise_std=0.7) == pytest.approx(0.9, abs=0.007)
    # Without it, Var[x0 + n] = 1.49: Pr(|z| < 1.645 / 1.22) = 0.822.
    assert metrics.coverage(x, noisy) == pytest.approx(0.825, abs=0.02)
    assert metrics.coverage(x, reference, noise_std=1e-9) == pytest.approx(metrics.coverage(x, reference))


def test_coverage_shows_too_narrow_and_too_wide_samples() -> None:
    x, reference = gaussian_posterior(64)
    # Pr(|z| < 1.645 / 2) = 0.589 and Pr(|z| < 3.29) = 0.999.
    assert metrics.coverage(0.5 * x, reference) == pytest.approx(0.59, abs=0.02)
    assert metrics.coverage(2 * x, reference) > 0.99
    # An empty background, where everything is zero, neither raises nor lowers it.
    assert metrics.coverage(np.zeros((32, 1, 5)), np.zeros((1, 5))) == pytest.approx(0.9)
    assert metrics.coverage(np.zeros((32, 1, 5)), np.ones((1, 5))) == 0


def test_variance_ratio_and_correlation() -> None:
    x, reference = gaussian_posterior(8)
    spread = np.linspace(0.1, 3, x.shape[-1])
    x, reference = x * spread, reference * spread
    assert metrics.variance_ratio(x, reference) == pytest.approx(1, abs=0.03)
    centre = x.mean(axis=0)
    assert metrics.variance_ratio(centre + 0.5 * (x - centre), reference) == pytest.approx(0.25, abs=0.01)
    noisy = reference + 0.5 * gaussian_posterior(0, seed=2)[1]
    assert metrics.variance_ratio(x, noisy, noise_std=0.5) == pytest.approx(1, abs=0.04)
    assert math.isnan(metrics.variance_ratio(x, noisy, noise_std=50.0))
    # Rayleigh errors of a scale uniform in [0.1, 3]: the scale's correlation with the error is 0.673, and 0.624
    # for a std estimated from 8 complex samples (14 degrees of freedom), by simulation.
    assert metrics.std_error_correlation(x, reference) == pytest.approx(0.624, abs=0.03)
    assert abs(metrics.std_error_correlation(x / spread, reference / spread)) < 0.03
    assert math.isnan(metrics.std_error_correlation(np.zeros((4, 2, 3)), np.ones((2, 3))))


def test_chi2_of_pure_noise_is_one(generator: torch.Generator) -> None:
    from ambient_mri.tensors import complex_randn

    std = torch.tensor([0.1, 3.0])
    residual = complex_randn((2, 4, 64, 64), generator=generator) * std.reshape(2, 1, 1, 1)
    mask = torch.zeros(1, 1, 1, 64, dtype=torch.bool)
    mask[..., ::4] = True
    # 16 384 real numbers of variance one: the standard error is sqrt(2 / 16384) = 0.011.
    assert metrics.chi2_residual(residual, std, mask) == pytest.approx(1, abs=0.04)
    assert metrics.chi2_residual(residual[:1] / 2, 0.1) == pytest.approx(0.25, abs=0.02)
    assert metrics.chi2_residual(residual[:1].real, 0.1) == pytest.approx(1, abs=0.05)
    assert metrics.chi2_residual(residual * mask, std, mask) == metrics.chi2_residual(residual, std, mask)


ONES = np.ones((8, 9))
BAD: list[tuple[Callable[[], float], str]] = [
    (lambda: metrics.psnr(ONES, ONES[:, :8]), r"same shape .*\(8, 9\) and \(8, 8\)"),
    (lambda: metrics.psnr(ONES, ONES * 1j), "image is complex.*abs"),
    (lambda: metrics.nmse(ONES, ONES * 1j), "both be complex or both be magnitude"),
    (lambda: metrics.ssim(ONES, ONES * np.nan), "image holds 72 non-finite values"),
    (lambda: metrics.ssim(ONES[:6], ONES[:6]), "at least 7 x 7 pixels; got 6 x 9"),
    (lambda: metrics.psnr(0 * ONES, ONES), "data range .* must be positive; got 0"),
    (lambda: metrics.nmse(0 * ONES, ONES), "reference is zero"),
    (lambda: metrics.fit_scale(0 * ONES, ONES), "x is zero"),
    (lambda: metrics.psnr(ONES, ONES, support=ONES < 0), "selects no value"),
    (lambda: metrics.psnr(ONES, ONES, support=ONES), "support must be a bool mask; got float64"),
    (lambda: metrics.psnr(ONES, ONES, support=ONES[:, :4] > 0), r"support \(8, 4\) does not broadcast to \(8, 9\)"),
    (lambda: metrics.coverage(np.ones((31, 8, 9)), ONES), "at least 32 samples; got 31"),
    (lambda: metrics.coverage(np.ones((32, 8, 9)), ONES, level=90), "level must lie between 0 and 1; got 90"),
    (lambda: metrics.coverage(np.ones((32, 8, 9)), ONES, noise_std=-1), "noise_std must not be negative"),
    (lambda: metrics.variance_ratio(np.ones((4, 8, 8)), ONES), "sample axis in front"),
    (lambda: metrics.variance_ratio(np.ones((4, 8, 9)) * 1j, ONES), "both be complex or both be magnitudes"),
    (lambda: metrics.std_error_correlation(np.ones((1, 8, 9)), ONES), "at least 2 samples; got 1"),
    (lambda: metrics.chi2_residual(ONES, 0.0), "positive noise_std"),
    (lambda: metrics.chi2_residual(ONES, np.ones(9)), "one number or one per row"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_errors_say_what_was_wrong(call: Callable[[], float], message: str) -> None:
    with pytest.raises(AmbientMRIError, match=message):
        call()


def test_import_is_light() -> None:
    code = (
        "import sys, ambient_mri.metrics;"
        "heavy = {'skimage', 'scipy', 'matplotlib', 'sigpy', 'h5py', 'pytorch_lightning'} & set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_metric_of_a_table_is_defined() -> None:
    helpers = {"DEFINITIONS", "coverage", "fit_scale", "frechet_distance", "kernel_distance", "mean_of_known"}
    functions = set(metrics.__all__) - helpers
    named = functions | {"coverage90", "frechet", "kernel"}
    assert named == set(metrics.DEFINITIONS)


def test_kernel_distance_is_unbiased_and_sees_a_shift() -> None:
    draw = np.random.default_rng(0)
    same = [metrics.kernel_distance(draw.normal(size=(40, 6)), draw.normal(size=(60, 6))) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 200**0.5, "its mean is zero for sets of one law"
    pairs = [(draw.normal(size=(300, 6)) + 1, draw.normal(size=(300, 6))) for _ in range(40)]
    shifted = np.mean([metrics.kernel_distance(*pair) for pair in pairs])
    # x.y/d has mean 0 and variance 1/6 for means of zero, 2/6 where one set is shifted; both shifted: by simulation.
    both = (draw.normal(size=(10**6, 6)) + 1) * (draw.normal(size=(10**6, 6)) + 1)
    wanted = float(((both.mean(1) + 1) ** 3).mean()) + 1 + 3 / 6 - 2 * (1 + 3 * (2 / 6))
    assert shifted == pytest.approx(wanted, rel=0.1)


def test_frechet_distance_of_gaussians_in_closed_form() -> None:
    """Commuting covariances: ||m1 - m2||^2 + sum (s1 - s2)^2; zero for a set and itself; symmetric."""
    rng = np.random.default_rng(0)
    white = rng.standard_normal((200_000, 3))
    first, second = white * [1.0, 2.0, 3.0], white[::-1] * [2.0, 2.0, 1.0] + [1.0, 0.0, -1.0]
    assert metrics.frechet_distance(first, second) == pytest.approx(2 + 1 + 0 + 4, rel=0.02)
    assert metrics.frechet_distance(second, first) == pytest.approx(metrics.frechet_distance(first, second), rel=1e-6)
    assert metrics.frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"features must be \(n, d\) and \(m, d\)"):
        metrics.frechet_distance(first, second[:, :2])
