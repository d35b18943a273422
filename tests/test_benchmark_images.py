"""The benchmark on natural images: its baselines against oracles, its feature space, and a rehearsal of all of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_mri.report.records import read_records
from ambient_mri.tensors import keyed_generator
from tests.test_benchmarks import BENCHMARKS, load


@pytest.fixture(autouse=True)
def _beside_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS / "quality"), *sys.path])


def smooth(count: int) -> Tensor:
    """Colour images of low frequencies in [-1, 1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=keyed_generator("smooth")) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(24, 24), mode="bicubic").clamp(-1, 1)


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean())


def test_every_interpolation_fills_in_smooth_images_and_keeps_what_is_there() -> None:
    baselines, truth = load("quality/image_baselines"), smooth(2)
    mask = torch.rand(2, 1, 24, 24, generator=keyed_generator("mask")) < 0.5
    seen = set()
    for name, _, restore in baselines.candidates(0.0, 0.5):
        found = restore(truth * mask, mask)
        assert torch.allclose(found * mask, truth * mask, atol=1e-6)
        assert error(found, truth) < 0.05 * error(truth * mask, truth), name
        seen.add(name)
    assert seen == {"gaussian_interpolation", "biharmonic", "total_variation"}


def test_every_denoiser_takes_noise_away() -> None:
    baselines, truth = load("quality/image_baselines"), smooth(1)
    y = truth + 0.2 * torch.randn(truth.shape, generator=keyed_generator("noise"))
    best: dict[str, float] = {}
    for name, _, restore in baselines.candidates(0.2, 0.0):
        best[name] = min(best.get(name, 1.0), error(restore(y, torch.ones(1, 1, 24, 24) > 0), truth))
    assert set(best) == {"total_variation", "nonlocal_means", "wavelet_threshold"}
    assert all(value < 0.5 * 0.04 for value in best.values()), best


def test_total_variation_keeps_an_edge_that_linear_interpolation_blurs() -> None:
    baselines = load("quality/image_baselines")
    edge = torch.ones(1, 1, 16, 16)
    edge[..., 8:] = -1
    mask = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    mask[..., 6:8, 2:7] = False
    assert torch.allclose(baselines.total_variation_inpainting(edge * mask, mask), edge, atol=1e-2)
    gradient = baselines._gradient(edge)
    other = torch.randn(gradient.shape, generator=keyed_generator("dual"))
    assert float((gradient * other).sum()) == pytest.approx(float((edge * baselines._gradient_adjoint(other)).sum()))


def test_the_classifier_learns_and_is_read_again(tmp_path: Path) -> None:
    features = load("quality/image_features")
    images = smooth(40)
    labels = (images.mean(dim=(1, 2, 3)) > 0).long()
    space = features.trained_classifier(images, labels, tmp_path / "f.pt", steps=15)
    again = features.trained_classifier(images, labels, tmp_path / "f.pt", steps=0)
    assert torch.equal(space.features(images), again.features(images))
    assert space.features(images).shape == (40, features.DIMENSION) and space.accuracy(images, labels) > 0.8


def test_without_a_data_folder_there_are_patches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
    benchmark = load("quality/images")
    with np.load(benchmark.source("cpu", tmp_path)) as found:
        assert found["images"].shape[1:] == (32, 32, 3) and len(found["images"]) == len(found["labels"]) > 100
    assert [c.name for c in benchmark.CASES][2:5] == ["missing_60", "missing_80", "noise_0.1"]


@pytest.mark.slow
def test_a_rehearsal_measures_everything_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = load("quality/images")
    arguments = ["--budget", "rehearsal", "--out", str(tmp_path), "--only", "missing_60"]
    benchmark.main(arguments)
    first = read_records(tmp_path / "images.json")
    methods = {row["method"] for row in first.rows if row["case"] == "missing_60"}
    assert methods == {
        "gaussian_interpolation", "biharmonic", "total_variation", "supervised/split_gibbs/mean2",
        "supervised/split_gibbs/sample", "ambient/one_step/point", "ambient/fixed_mask/sample",
        "em/split_gibbs/mean2", "em/split_gibbs/sample", "em/heun/sample",
    }  # fmt: skip
    assert (tmp_path / "figures" / "images.png").stat().st_size > 10_000
    benchmark.main(arguments)
    assert read_records(tmp_path / "images.json").rows == first.rows
    assert "biharmonic" in capsys.readouterr().out
