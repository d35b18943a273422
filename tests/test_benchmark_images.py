"""The benchmark on natural images: its baselines against oracles, its feature space, and a rehearsal of all of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_mri.measurement import Measurement
from ambient_mri.report.records import check_row, read_records
from ambient_mri.tensors import keyed_generator
from ambient_mri.train import compose
from ambient_mri.training.setup import image_split
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


def test_the_noise_that_is_left_is_measured() -> None:
    """Smooth images have none, white noise has its level, and a little noise is quieter than more of it."""
    noise, truth = load("quality/image_noise"), smooth(12)
    white = torch.randn(truth.shape, generator=keyed_generator("white"))
    assert float(noise.noise_levels(truth).max()) < 0.02
    for level in (0.1, 0.2):
        found = noise.noise_levels(truth + level * white)
        assert found.shape == (12,) and float(found.mean()) == pytest.approx(level, rel=0.05)
    training, base = noise.noise_levels(truth + 0.2 * white), {"case": "noise_0.2", "method": "em/heun/sample"}
    half = torch.cat([truth[:6] + 0.1 * white[:6], truth[6:] + 0.3 * white[6:]])
    level, quieter = noise.noise_rows(base, half, training)
    assert level["metric"] == "noise_level" and level["value"] == pytest.approx(0.2, rel=0.1) and level["ci95"] > 0
    assert quieter["metric"] == "quieter" and quieter["value"] == 0.5 and quieter["n"] == 12
    assert [row["metric"] for row in noise.noise_rows(base, half)] == ["noise_level"]
    for row in (level, quieter):
        check_row(row)


def test_the_figure_is_of_the_strongest_masking_and_noise() -> None:
    benchmark = load("quality/images")
    assert [c.name for c in benchmark.strongest(benchmark.CASES)] == ["missing_80", "noise_0.2"]
    assert [c.name for c in benchmark.strongest(benchmark.CASES[4:0:-1])] == ["missing_80", "noise_0.1"]
    assert [c.name for c in benchmark.strongest(benchmark.CASES[:2])] == ["missing_40"]


@pytest.mark.parametrize("name", ["missing_60", "noise_0.2"])
def test_the_training_images_that_are_shown_are_those_that_a_training_reads(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
    benchmark = load("quality/images")
    (case,) = [c for c in benchmark.CASES if c.name == name]
    evaluation = benchmark.Evaluation("rehearsal", benchmark.BUDGETS["rehearsal"], tmp_path, "")
    cfg = compose([*case.overrides, f"data.root={evaluation.file}", f"data.seed={benchmark.DATA_SEED}"])
    read = image_split(cfg).corrupted("train")
    shown = evaluation.training_images(case)
    assert len(shown) == len(read) and all(torch.equal(shown[i].y, read[i].y) for i in (0, 5))


def test_a_sample_has_its_share_of_the_seconds_of_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Samples are drawn once for two rows; each row tells what it would have cost alone."""
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
    benchmark = load("quality/images")
    (case,) = [c for c in benchmark.CASES if c.name == "missing_60"]
    evaluation = benchmark.Evaluation("rehearsal", benchmark.BUDGETS["rehearsal"], tmp_path, "")

    def slow(prior: object, m: Measurement, corruption: object, sampler: object, seed: int) -> Tensor:
        time.sleep(0.05)
        return m.y + 0.1 * seed

    monkeypatch.setattr(benchmark, "restore_rows", slow)
    evaluation.restorations(case, "em", None)
    rows = {row["method"]: row for row in read_records(evaluation.path).rows}
    mean, sample = rows["em/split_gibbs/mean2"], rows["em/split_gibbs/sample"]
    assert mean["seconds"] == pytest.approx(2 * sample["seconds"]) and mean["seconds"] >= 2 * 0.05 / 4
    assert mean["value"] != sample["value"]


def test_without_a_data_folder_there_are_patches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
    benchmark = load("quality/images")
    with np.load(benchmark.source("cpu", tmp_path)) as found:
        assert found["images"].shape[1:] == (32, 32, 3) and len(found["images"]) == len(found["labels"]) > 100
    assert [c.name for c in benchmark.CASES][2:5] == ["missing_60", "missing_80", "noise_0.1"]


@pytest.mark.slow
def test_a_rehearsal_measures_everything_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
    benchmark = load("quality/images")
    arguments = ["--budget", "rehearsal", "--out", str(tmp_path)]
    benchmark.main(arguments)
    first = read_records(tmp_path / "images.json")
    methods = {case: {row["method"] for row in first.select(case=case)} for case in ("missing_60", "noise_0.2")}
    both = {
        "total_variation", "supervised/split_gibbs/mean2", "supervised/split_gibbs/sample", "ambient/one_step/point",
        "em/split_gibbs/mean2", "em/split_gibbs/sample", "em/heun/sample",
    }  # fmt: skip
    assert methods["missing_60"] == both | {"gaussian_interpolation", "biharmonic", "ambient/fixed_mask/sample"}
    noisy = {"nonlocal_means", "wavelet_threshold", "ambient/heun/sample", "training_images/corrupted/sample"}
    assert methods["noise_0.2"] == both | noisy
    levels = {(row["case"], row["method"]): row["value"] for row in first.select(metric="noise_level")}
    noisy_images = levels.pop(("noise_0.2", "training_images/corrupted/sample"))
    assert noisy_images == pytest.approx(0.2, rel=0.15) and levels["clean", "training_images/none/sample"] < 0.1
    assert set(levels) == {
        ("clean", "training_images/none/sample"), ("clean", "supervised/heun/sample"),
        ("noise_0.2", "ambient/heun/sample"), ("noise_0.2", "em/heun/sample"),
    }  # fmt: skip
    assert {row["method"] for row in first.select(metric="quieter")} == {"ambient/heun/sample", "em/heun/sample"}
    assert (tmp_path / "figures" / "images.png").stat().st_size > 10_000
    benchmark.main(arguments)
    assert read_records(tmp_path / "images.json").rows == first.rows
    assert "Samples: noise_level" in capsys.readouterr().out


def test_what_is_restored_and_compared_is_of_every_class() -> None:
    """CIFAR's file is sorted by label: the first images are all of one class."""
    labels = [i // 100 for i in range(1000)]
    picked = load("quality/images").spread(tuple(range(0, 1000, 2)), 50)
    assert len(picked) == 50 and {labels[i] for i in picked} == set(range(10)) and not any(i % 2 for i in picked)
