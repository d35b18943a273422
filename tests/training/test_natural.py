"""Training on images: every corruption through its experiment, what belongs to an image, and the prior that is left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import ambient_mri
from ambient_mri import cli
from ambient_mri._checks import AmbientMRIError, DataError, PriorError
from ambient_mri.corruption import ImageCorruption, PixelMasking, RandomBlur, RandomProjections
from ambient_mri.denoiser import CleanDenoiser, ConditionalDenoiser
from ambient_mri.measurement import Measurement
from ambient_mri.operators import Mask, gaussian_blur
from ambient_mri.prior import load_prior
from ambient_mri.sampling import SplitGibbs
from ambient_mri.sampling.full_view import FullView
from ambient_mri.tensors import keyed_generator
from ambient_mri.train import compose, config_dir
from ambient_mri.training.loggers import read_metrics
from ambient_mri.training.natural import CorruptedImages, ImageFolder, sd_of_measurements
from ambient_mri.training.run import train
from ambient_mri.training.setup import build

TINY = (
    "network=unet_small", "network.channels=8", "network.multipliers=[1]", "model.precision=fp32",
    "loader.batch_size=4", "loader.val_items=4", "trainer.max_steps=2", "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
)  # fmt: skip

EXPERIMENTS = sorted(p.stem for p in (config_dir() / "experiment").glob("cifar10_*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen random colour images in the layout of CIFAR-10, smooth enough to have a low-frequency part."""
    root = tmp_path_factory.mktemp("images")
    coarse = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)
    split = np.array(["train"] * 12 + ["val"] * 4)
    np.savez(root / "cifar10_10k.npz", images=images, split=split)
    return root


def run(folder: Path, run_dir: Path, *overrides: str) -> Path:
    return train(compose([*overrides, f"data.root={folder}", f"run_dir={run_dir}", *TINY]))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains_and_leaves_a_prior(name: str, folder: Path, tmp_path: Path) -> None:
    more = ["corruption.count=24"] if name == "cifar10_projections" else []
    prior = load_prior(run(folder, tmp_path / "r", f"experiment={name}", *more))
    clean = name == "cifar10_supervised"
    assert isinstance(prior.model, CleanDenoiser if clean else ConditionalDenoiser)
    rows = [r for r in read_metrics(tmp_path / "r" / "metrics.csv") if "train/loss" in r]
    assert len(rows) == 2 and all(np.isfinite(r["train/loss"]) for r in rows)
    assert (tmp_path / "r" / "samples" / "step00000002.png").is_file()
    card = prior.metadata
    assert card["sampling_law"]["law"] and card["image_shape"] == [32, 32] and card["data"]["images"] == 12
    assert str(folder) not in json.dumps(card)
    assert prior.architecture["image_channels"] == 3
    # What the clean images have, estimated from the corrupted ones.
    images = np.load(folder / "cifar10_10k.npz")["images"][:12] / 127.5 - 1
    assert prior.model.sd == pytest.approx(float(np.sqrt((images**2).mean())), rel=0.25)


def test_consistency_goes_with_missing_pixels(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "r", "experiment=cifar10_noisy_inpainting", "objective=ambient_consistent")
    row = next(r for r in read_metrics(tmp_path / "r" / "metrics.csv") if "train/loss" in r)
    assert np.isfinite(row["train/loss"]) and "train/consistency" in row


def test_there_is_an_experiment_for_every_corruption_of_images() -> None:
    used = {compose([f"experiment={name}"]).corruption._target_.rsplit(".", 1)[-1] for name in EXPERIMENTS}
    known = {c.__name__ for c in ImageCorruption.__subclasses__() if not c.__name__.startswith("_")}
    assert known | {"RandomBoxes", "RandomPatches"} == used


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_have_settings_for_no_scanner(name: str) -> None:
    cfg = compose([f"experiment={name}"])
    assert cfg.run_dir == f"runs/{name}" and cfg.augmentation is None
    assert isinstance(build(cfg.corruption), ImageCorruption)
    assert OmegaConf.missing_keys(cfg) == set()


def test_grey_pictures_in_a_folder_train_and_restore(tmp_path: Path) -> None:
    """From pictures to a restored one: the prior's network as the denoiser of a sampler, under another operator."""
    from PIL import Image

    values = np.random.default_rng(1)
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        coarse = values.integers(0, 256, (4, 5), dtype=np.uint8)
        Image.fromarray(coarse.repeat(4, axis=0).repeat(4, axis=1)).save(tmp_path / "pictures" / f"{i:02d}.png")
    overrides = ["+images=base", "data=image_folder", "data.channels=1", "corruption=pixels", "objective=ambient"]
    prior = load_prior(run(tmp_path / "pictures", tmp_path / "r", *overrides, "data.noise_std=0.05"))
    assert prior.architecture["image_channels"] == 1 and prior.architecture["mask_channels"] == 1
    corruption = PixelMasking(1.0, keep=(0.8, 0.9))
    image = torch.zeros(1, 1, 16, 20)
    m = corruption.measure(image, noise_std=0.05, key="new", generator=keyed_generator(0))
    denoiser = prior.model.as_denoiser(corruption, m, [keyed_generator(1)])
    for operator in (Mask(m.mask), gaussian_blur(1.0)):
        y = operator(image)
        result = SplitGibbs(3).sample(denoiser, operator, y, 0.05, generators=[keyed_generator(2)])
        assert result.x.shape == (1, 1, 16, 20) and result.x.dtype == torch.float32


def test_a_network_of_noisy_images_is_a_prior_for_solve(folder: Path, tmp_path: Path) -> None:
    prior = load_prior(run(folder, tmp_path / "r", "experiment=cifar10_denoising"))
    assert isinstance(prior.model, ConditionalDenoiser)
    denoiser, x_t, sigma = FullView(prior.model), torch.ones(2, 3, 32, 32), torch.tensor([0.1, 1.0])
    full, rate = Mask(torch.ones(2, 1, 32, 32, dtype=torch.bool)), torch.ones(2)
    assert prior.model.stationary is not None
    with torch.no_grad():
        gap = denoiser(x_t, sigma) - prior.model.stationary.posterior_mean(full, x_t, sigma, rate, iterations=16)
    assert float(gap.abs().max()) < 0.1, "two steps of training are little more than the linear part"
    operator = gaussian_blur(1.0)
    y = operator(torch.linspace(-1, 1, 32).expand(1, 3, 32, 32))  # a white picture would be warned about
    found = [ambient_mri.solve(y, operator, p, noise_std=0.05, samples=2, steps=3) for p in (denoiser, prior)]
    assert found[0].mean.shape == (1, 3, 32, 32) and found[0].mean.dtype == torch.float32
    assert torch.equal(found[0].mean, found[1].mean)  # the card says that it is one
    plain = load_prior(run(folder, tmp_path / "p", "experiment=cifar10_denoising", "objective=ambient"))
    with pytest.raises(PriorError, match="refine it, objective=em"):  # below the noise it was taught nothing
        ambient_mri.solve(y, operator, plain, noise_std=0.05)
    sheet = tmp_path / "sheet.png"
    assert (
        cli.main(["sample", "--prior", str(tmp_path / "r"), "--count", "2", "--steps", "2", "--out", str(sheet)]) == 0
    )


def test_measurements_are_drawn_once_an_image(folder: Path) -> None:
    split = ImageFolder("cifar10", str(folder), file="cifar10_10k.npz", noise_std=(0.05, 0.2), seed=3).load()
    corruption = PixelMasking(0.5, per="colour")
    one, two = (split.drawn_by(corruption).corrupted("train") for _ in range(2))
    assert one is not None and two is not None
    assert len(one) == 12 and one.sizes == [(32, 32)] * 12
    for i in (0, 7):
        assert torch.equal(one[i].y, one[i].y) and torch.equal(one[i].y, two[i].y)
        assert one[i].mask.shape == (1, 3, 32, 32) and 0.05 <= float(one[i].noise_std) <= 0.2
    assert not torch.equal(one[0].mask, one[1].mask) and float(one[0].noise_std) != float(one[1].noise_std)
    other = CorruptedImages(split.images, split.images.train, corruption, noise_std=(0.05, 0.2), seed=4)
    assert not torch.equal(one[0].mask, other[0].mask)
    batch = Measurement.collate([one[i] for i in range(3)])
    assert batch.y.shape == (3, 3, 32, 32) and batch.mask.shape == (3, 3, 32, 32)
    assert one[0].key == ("cifar10_10k.npz/0",)


def test_batches_keep_the_parameters_of_each_row(folder: Path) -> None:
    split = ImageFolder("npz", str(folder / "cifar10_10k.npz")).load()
    for corruption in (RandomBlur((0.2, 0.6)), RandomProjections(12)):
        data = split.drawn_by(corruption).corrupted("val")
        assert data is not None
        batch = Measurement.collate([data[i] for i in range(4)])
        clean = split.clean("val")
        assert clean is not None and batch.parameters is not None
        images = torch.cat([clean[i].images for i in range(4)])
        assert torch.allclose(corruption.forward_operator(batch).forward(images), batch.y, atol=1e-5)
        row = batch[2]
        assert torch.allclose(corruption.forward_operator(row).forward(images[2:3]), row.y, atol=1e-5)
        assert sd_of_measurements(data) == pytest.approx(float(images.square().mean().sqrt()), rel=0.25)


def test_other_images_in_a_begun_run_are_refused(folder: Path, tmp_path: Path) -> None:
    overrides = ["experiment=cifar10_inpainting"]
    run(folder, tmp_path / "r", *overrides)
    np.savez(tmp_path / "cifar10_10k.npz", images=np.zeros((16, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(AmbientMRIError, match="was begun with other images"):
        run(tmp_path, tmp_path / "r", *overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=cifar10", "corruption=random_lines"], "are images: choose a corruption of images.*Undersampling"),
        (["data=cifar10", "corruption=pixels"], "data=cifar10 needs augmentation=null"),
        (["experiment=cifar10_boxes", "corruption.size=16"], "leave no place for a second one"),
        (["experiment=cifar10_blur", "corruption.bandwidth=[2.0,3.0]"], "a pure low-pass"),
        (["experiment=cifar10_patches", "corruption.rows=[0,0]", "corruption.columns=[0,0]"], "the one fixed patch"),
        (["experiment=cifar10_denoising", "data.noise_std=0.0"], "noise leaves the images clean: give data.noise_std"),
        (["experiment=cifar10_denoising", "data.noise_std=[0.0,0.1]"], "noise_std must be zero, a positive number"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(overrides: list[str], words: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AmbientMRIError, match=words) as caught:
        run(folder, tmp_path / "r", *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10", "image_folder", "npz"])
def test_a_missing_root_names_the_command(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
    cfg = compose([f"data={name}"])
    with pytest.raises(DataError, match=rf"data={name} needs images: run `python .* data={name} data.root=/path/to"):
        build(cfg.data).load()
    cfg.data.root = str(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"does not exist|not found in"):
        build(cfg.data).load()
