"""EM on natural images: what a round leaves behind, restorations in both rounds, resuming, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, DataError
from ambient_mri.corruption import AdditiveNoise, PixelMasking
from ambient_mri.denoiser import Denoiser
from ambient_mri.measurement import Measurement
from ambient_mri.operators import Mask
from ambient_mri.prior import Prior, load_prior
from ambient_mri.sampling import make_sampler
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.sampling.split_gibbs import SplitGibbs
from ambient_mri.tensors import keyed_generator
from ambient_mri.train import compose
from ambient_mri.training import natural_em
from ambient_mri.training.assess import Settings
from ambient_mri.training.natural import CorruptedImages, ImageFolder
from ambient_mri.training.natural_em import assess_images, restore_rows
from ambient_mri.training.restored import RestoredImages
from ambient_mri.training.rounds import expectation_maximisation
from ambient_mri.training.run import train
from tests.training.test_natural import TINY, folder  # noqa: F401

EM = ("em.steps=3", "em.assess.slices=3", "em.assess.samples=2", "em.batch_size=5", "em.min_improvement=null")


def rounds(images: Path, run_dir: Path, *overrides: str) -> Path:
    head = ["experiment=cifar10_inpainting", "objective=em", f"data.root={images}", f"run_dir={run_dir}"]
    return expectation_maximisation(compose([*head, *TINY, *EM, *overrides]))


@pytest.fixture(scope="module")
def ambient(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    run_dir = tmp_path_factory.mktemp("ambient")
    train(compose(["experiment=cifar10_inpainting", f"data.root={folder}", f"run_dir={run_dir}", *TINY]))
    return run_dir


@pytest.fixture(scope="module")
def straight(folder: Path, ambient: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    run_dir = tmp_path_factory.mktemp("em")
    rounds(folder, run_dir, f"init={ambient}", "em.rounds=2")
    return run_dir


def test_rounds_that_nothing_can_judge(ambient: Path, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pictures, split=np.array(["train"] * 4))
    with pytest.raises(AmbientMRIError, match=r"held-out scans or pictures: there is none.*data\.val_share"):
        rounds(tmp_path / "a.npz", tmp_path / "em", f"init={ambient}")


def restorations(run_dir: Path, number: int) -> np.ndarray:
    (file,) = sorted((run_dir / f"round_{number}" / "reconstructions").glob("images_*.npz"))
    with np.load(file) as loaded:
        assert loaded["numbers"].tolist() == list(range(16)), "training images, then held-out ones"
        return np.asarray(loaded["images"])


def test_two_rounds_on_images(straight: Path, folder: Path) -> None:  # noqa: F811
    prior = load_prior(straight / "prior")
    assert prior.kind == "clean" and prior.architecture["image_channels"] == 3
    assert prior.metadata["data"]["settings"]["restorations"]["method"] in ("one_step", "split_gibbs")
    methods = []
    for k in (1, 2):
        report = json.loads((straight / f"round_{k}.json").read_text())
        assert report["slices"] == 3 and 0 < report["held_out_error"] < 3 and report["sample_std"] > 0
        assert len(report["power"]["mean"]) == len(report["power"]["cycles_per_pixel"]) == 12
        assert len(report["error_curve"]["sigma"]) == len(report["error_curve"]["error"]) > 2
        found = report["with_references"]
        assert "no decision rests on it" in found["note"] and found["psnr_mean"] >= found["psnr_sample"] > 5
        methods.append(json.loads((straight / f"round_{k}/reconstructions/made_by.json").read_text())["method"])
        images = restorations(straight, k)
        assert images.shape == (16, 3, 32, 32) and images.dtype == np.float32 and np.isfinite(images).all()
        # What was measured without noise is in the restoration.
        split = ImageFolder("cifar10", str(folder), file="cifar10_10k.npz").load()
        data = split.drawn_by(PixelMasking(0.4)).corrupted("train")
        assert data is not None
        m = data[3]
        assert float(((torch.from_numpy(images[3:4]) - m.y) * m.mask).abs().max()) < 0.05
    assert methods == ["one_step", "split_gibbs"]
    assert not np.allclose(restorations(straight, 1), restorations(straight, 2), atol=1e-2)


def test_an_interrupted_round_goes_on(
    folder: Path,  # noqa: F811
    ambient: Path,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(natural_em, "_IMAGES_A_FILE", 8)
    calls: list[int] = []
    restore = natural_em.restore_rows

    def stop(prior: Prior, m: Measurement, *rest: Any) -> Tensor:
        calls.append(len(m))
        if len(calls) == 4:
            raise InterruptedError
        return restore(prior, m, *rest)

    monkeypatch.setattr(natural_em, "restore_rows", stop)
    with pytest.raises(InterruptedError):
        rounds(folder, tmp_path, f"init={ambient}", "em.rounds=1", "em.assess.slices=3")
    assert calls == [3, 5, 3, 5], "round 0 is judged first, then two batches a file"
    assert len(list((tmp_path / "round_1" / "reconstructions").glob("*.npz"))) == 1
    monkeypatch.setattr(natural_em, "restore_rows", restore)
    rounds(folder, tmp_path, f"init={ambient}", "em.rounds=1")
    parts = [np.load(f)["images"] for f in sorted((tmp_path / "round_1" / "reconstructions").glob("*.npz"))]
    assert len(parts) == 2 and np.allclose(np.concatenate(parts), restorations(straight, 1), atol=1e-4)


def test_the_m_step_is_an_ordinary_run(straight: Path, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    references = straight / "round_1" / "reconstructions"
    arguments = ["experiment=cifar10_supervised", f"data.root={folder}", f"run_dir={tmp_path / 'r'}", *TINY]
    prior = load_prior(train(compose([*arguments, f"data.references={references}"])))
    images = restorations(straight, 1)[:12]
    assert prior.model.sd == pytest.approx(float(np.sqrt((images**2).mean())), rel=1e-3)
    assert str(references) not in json.dumps(prior.metadata)
    with pytest.raises(AmbientMRIError, match=r"differs in data\.references"):
        train(compose([*arguments, f"data.references={straight / 'round_2' / 'reconstructions'}"]))


def test_missing_restorations_are_one_line(straight: Path, tmp_path: Path) -> None:
    references = straight / "round_1" / "reconstructions"
    with pytest.raises(DataError, match=r"holds 16 restorations and lacks 1 of the 2 images, the first is image 99"):
        RestoredImages(references, [3, 99], "set")
    with pytest.raises(DataError, match=r"holds no images_\*\.npz"):
        RestoredImages(tmp_path, [3], "set")
    (tmp_path / "images_00000.npz").write_bytes((references / "images_00000.npz").read_bytes()[:200])
    with pytest.raises(DataError, match=r"images_00000\.npz: cannot be read"):
        RestoredImages(tmp_path, [3], "set")


def test_baselines_of_k_space_do_not_restore_images(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(AmbientMRIError, match=r"em\.first=l1_wavelet reconstructs k-space"):
        rounds(folder, tmp_path, "em.first=l1_wavelet")


class Wiener(Denoiser):
    """The exact denoiser of white images of variance one."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__(1.0, 0.002, 20.0)
        self.weight, self.gain = torch.nn.Parameter(torch.zeros(1)), gain

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self.gain * x_t / (1 + sigma[:, None, None, None].square())


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_noise_is_split_so_that_the_error_is_that_against_the_truth(gain: float) -> None:
    """Held-out error of denoising = error against the clean images, which it never sees; a worse denoiser is worse."""
    corruption, truth = AdditiveNoise(), torch.randn(6, 1, 64, 64, generator=keyed_generator("truth"))
    rows = [
        corruption.measure(truth[i : i + 1], noise_std=0.5, key=str(i), generator=keyed_generator("noise", i))
        for i in range(6)
    ]

    class Data(CorruptedImages):
        def __init__(self) -> None:
            self.corruption, self.numbers = corruption, tuple(range(6))

        def __getitem__(self, index: int) -> Measurement:
            return rows[index]

    prior, sampler = Prior(Wiener(gain), "clean", {}), make_sampler("dds", steps=8)
    settings, known = Settings(slices=6, samples=1), {str(i): truth[i : i + 1] for i in range(6)}
    found = assess_images(prior, Data(), sampler=sampler, settings=settings, references=known)
    m = Measurement.collate(rows)
    level = torch.full((6,), 0.5 * 1.25**0.5)
    noise = (level[:, None, None, None].square() - 0.25).sqrt() * torch.randn(truth.shape)
    seen = replace(m, y=m.y + noise, noise_std=level)
    error = restore_rows(prior, seen, corruption, sampler, 0) - truth
    wanted = float(error.square().mean().sqrt() / truth.square().mean().sqrt())
    assert found.values["held_out_error"] == pytest.approx(wanted, rel=0.05)
    # Restored from y itself, noise 0.5: white images of variance one, so that the spectrum is flat.
    restored = restore_rows(prior, m, corruption, sampler, 0)
    power, psnr = found.values["power"]["mean"], found.values["with_references"]["psnr_mean"]
    assert power == pytest.approx([float(restored.square().mean())] * len(power), rel=0.15)
    mean_squared = (restored - truth).square().mean(dim=(1, 2, 3))
    assert psnr == pytest.approx(float((10 * torch.log10(4 / mean_squared)).mean()), abs=1e-3)
    without = assess_images(prior, Data(), sampler=sampler, settings=settings)
    assert without.values["with_references"] is None and without.values["error_curve"] is None


def test_one_step_of_noisy_images_is_the_denoiser(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """No solve gives the noise back: with a full mask the network has seen all of y."""
    train(compose(["experiment=cifar10_denoising", f"data.root={folder}", f"run_dir={tmp_path / 'r'}", *TINY]))
    prior = load_prior(tmp_path / "r" / "prior")
    corruption = AdditiveNoise()
    m = corruption.measure(torch.zeros(1, 3, 32, 32), noise_std=0.2, key="k", generator=keyed_generator(0))
    found = restore_rows(prior, m, corruption, make_sampler("one_step"), 0)
    kept = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(found, prior.model(m.y, m.noise_std, Mask(kept), kept))  # type: ignore[operator]
    assert float(found.square().mean()) < 0.5 * float(m.y.square().mean())


def test_an_e_step_of_noisy_images_starts_at_the_image() -> None:
    """Later rounds sample by the reverse diffusion from y: nothing is solved, and no level is above the noise."""

    class Shrinking(Denoiser):
        def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
            return x_t * 0.5

    prior = Prior(Shrinking(0.5, 0.002, 80.0), "clean", {})  # type: ignore[arg-type]
    m = AdditiveNoise().measure(torch.zeros(1, 3, 16, 16), noise_std=0.2, key="k", generator=keyed_generator(0))
    levels: list[Level] = []

    class Watched(SplitGibbs):
        def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
            levels.append(level)
            return super().step(problem, level, x_t)

    restore_rows(prior, m, AdditiveNoise(), Watched(4), 0)
    assert float(levels[0].sigma) == pytest.approx(0.2) and len(levels) == 4
