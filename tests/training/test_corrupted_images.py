"""Images that are corrupted already: their own masks and noise, the law of them, training, EM, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ambient_mri._checks import AmbientMRIError
from ambient_mri.corruption import PixelMasking
from ambient_mri.masks import ObservedMasks
from ambient_mri.prior import load_prior
from ambient_mri.train import compose
from ambient_mri.training.natural import ImageFolder
from ambient_mri.training.rounds import expectation_maximisation
from ambient_mri.training.run import train
from ambient_mri.training.setup import image_split
from tests.training.test_natural import TINY
from tests.training.test_natural_em import EM

SHARE, LEVEL = 0.6, 0.1


def clean_images(count: int = 16) -> np.ndarray:
    """(n, 32, 32, 3) bytes, smooth enough to have a low-frequency part."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def corrupted_file(folder: Path, *, per: str = "pixel", noise_std: float = LEVEL, count: int = 16) -> Path:
    """A set as a user would have it, made from what the simulation measures of clean images."""
    np.savez(folder / "clean.npz", images=clean_images(count))
    split = ImageFolder("npz", str(folder / "clean.npz"), noise_std=noise_std, val_share=0.3).load()
    drawn = split.drawn_by(PixelMasking(SHARE, per=per))
    rows = {data.numbers[i]: data[i] for data in drawn.corrupted_parts(held_out=None) for i in range(len(data))}
    arrays = {
        "images": np.stack([(rows[i].y[0].permute(1, 2, 0).numpy() + 1) / 2 for i in range(count)]),
        "mask": np.stack([rows[i].mask[0].permute(1, 2, 0).numpy() for i in range(count)]),
        "split": np.array(["train" if i in split.images.train else "val" for i in range(count)]),
    }
    if noise_std:
        arrays["noise_std"] = np.array(noise_std)
    np.savez(folder / "corrupted.npz", **arrays)
    return folder / "corrupted.npz"


def run(file: Path, run_dir: Path, *overrides: str) -> Path:
    head = ["+images=base", "data=npz", f"data.root={file}", f"run_dir={run_dir}", "network=unet_light"]
    return train(compose([*head, "corruption=observed_pixels", "objective=ambient", *TINY, *overrides]))


@pytest.mark.parametrize("per", ["pixel", "colour"])
def test_the_files_own_measurements_are_those_of_the_simulation(per: str, tmp_path: Path) -> None:
    file = corrupted_file(tmp_path, per=per)
    simulated = ImageFolder("npz", str(tmp_path / "clean.npz"), noise_std=LEVEL, val_share=0.3).load()
    cfg = compose(["data=npz", f"data.root={file}", "corruption=observed_pixels", f"corruption.per={per}"])
    own = image_split(cfg)
    assert own.images.corrupted and not simulated.images.corrupted
    for part in ("train", "val"):
        expected = simulated.drawn_by(PixelMasking(SHARE, per=per)).corrupted(part)
        found = own.corrupted(part)
        assert expected is not None and found is not None and found.numbers == expected.numbers and len(found) > 1
        for i in range(len(found)):
            assert torch.allclose(found[i].y, expected[i].y, atol=1e-6)
            assert torch.equal(found[i].mask, expected[i].mask)
            assert float(found[i].noise_std) == pytest.approx(LEVEL)
    assert isinstance(own.corruption, PixelMasking) and isinstance(own.corruption.law, ObservedMasks)
    share = float(own.corruption.law.inclusion_probability((32, 32)).mean())
    assert share == pytest.approx(SHARE, abs=0.02)


def test_training_and_em_on_images_of_which_no_clean_one_exists(tmp_path: Path) -> None:
    file = corrupted_file(tmp_path)
    prior = load_prior(run(file, tmp_path / "r"))
    card = prior.metadata
    assert card["sampling_law"]["law"] == "ObservedMasks" and card["simulated"] is False
    assert card["data"]["noise_std"] == [LEVEL, LEVEL] and card["draws"][0]["how"] == {}
    split = image_split(compose(["data=npz", f"data.root={file}", "corruption=observed_pixels"]))
    truth = clean_images()[list(split.images.train)] / 127.5 - 1
    assert prior.model.sd == pytest.approx(float(np.sqrt((truth**2).mean())), rel=0.25)
    head = ["+images=base", "data=npz", f"data.root={file}", "corruption=observed_pixels", "network=unet_light"]
    options = ["objective=em", f"init={tmp_path / 'r'}", f"run_dir={tmp_path / 'em'}", "em.rounds=2", *TINY, *EM]
    refined = load_prior(expectation_maximisation(compose([*head, *options])))
    assert refined.kind == "clean"
    reports = [json.loads((tmp_path / "em" / f"round_{k}.json").read_text()) for k in (1, 2)]
    assert all(r["with_references"] is None and 0 < r["held_out_error"] < 3 for r in reports)


def test_noisy_images_with_a_noise_of_their_own(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    levels = generator.uniform(0.1, 0.3, 12)
    noisy = clean_images(12) / 255 + levels[:, None, None, None] / 2 * generator.standard_normal((12, 32, 32, 3))
    assert noisy.min() < 0 and noisy.max() > 1
    np.savez(tmp_path / "noisy.npz", images=noisy, noise_std=levels)
    overrides = ["corruption=noise", "objective=ambient_consistent", "data.val_share=0.3"]
    prior = load_prior(run(tmp_path / "noisy.npz", tmp_path / "r", *overrides))
    low, high = prior.metadata["data"]["noise_std"]
    assert levels.min() <= low + 1e-9 and high <= levels.max() + 1e-9
    data = ImageFolder("npz", str(tmp_path / "noisy.npz")).load()
    assert data.images.noise_std is not None and np.allclose(data.images.noise_std, levels)
    # In a folder: no array can say it, so the configuration does.
    (tmp_path / "folder").mkdir()
    for i, picture in enumerate(noisy):
        Image.fromarray((picture * 255).clip(0, 255).astype(np.uint8)).save(tmp_path / "folder" / f"{i}.png")
    split = ImageFolder("f", str(tmp_path / "folder"), noise_std=0.2, corrupted=True).load()
    assert split.images.corrupted and split.noise_std == (0.2, 0.2) and split.images.mask is not None
    assert split.images.mask.all()


def test_transparent_pixels_are_missing_ones(tmp_path: Path) -> None:
    known = np.random.default_rng(2).random((5, 8, 6)) < 0.7
    pictures = np.random.default_rng(3).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    for i in range(4):
        alpha = np.where(known[i], 255, 0).astype(np.uint8)[..., None]
        Image.fromarray(np.concatenate([pictures[i], alpha], axis=-1)).save(tmp_path / f"{i}.png")
    Image.fromarray(pictures[4]).save(tmp_path / "4.png")
    (tmp_path / "._0.png").write_bytes(b"what a Mac leaves beside a picture")
    images = ImageFolder("f", str(tmp_path), corrupted=True).load().images
    assert images.mask is not None and np.array_equal(images.mask[:4, ..., 0], known[:4]) and images.mask[4].all()
    assert np.array_equal(images.images[:4][known[:4]], pictures[:4][known[:4]])
    half = np.full((8, 6, 1), 100, np.uint8)
    Image.fromarray(np.concatenate([pictures[0], half], axis=-1)).save(tmp_path / "5.png")
    with pytest.raises(AmbientMRIError, match=r"5\.png: has half transparent pixels"):
        ImageFolder("f", str(tmp_path), corrupted=True).load()


def test_grey_pictures_stay_grey(tmp_path: Path) -> None:
    """Three copies of a grey level would have one noise in common, which no model of ours knows."""
    grey = np.random.default_rng(3).integers(0, 256, (3, 8, 6), dtype=np.uint8)
    for i, picture in enumerate(grey):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    assert ImageFolder("f", str(tmp_path), corrupted=True, noise_std=0.1).load().images.shape == (1, 8, 6)
    with pytest.raises(AmbientMRIError, match="its 1 channels are corrupted one by one"):
        ImageFolder("f", str(tmp_path), corrupted=True, noise_std=0.1, channels=3).load()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["corruption=pixels", "corruption.probability=0.3"],
            r"(59|60)\..% of the pixels are known.*=0\.(59|60)",
        ),
        (["corruption=boxes"], "11 of 11 masks are not one box of 8 x 8.*choose corruption=observed_pixels"),
        (["corruption=patches"], "masks are not one patch"),
        (["corruption=noise"], "40% of the pixels are missing.*choose corruption=observed_pixels"),
        (["corruption=blur"], "what RandomBlur measures is no image"),
        (["corruption.per=colour"], "have a mask for all colours: give corruption.per=pixel"),
        (["objective=supervised"], "there is no clean one to train on"),
        (["data.noise_std=0.2"], "says its own noise_std: leave data.noise_std out"),
        (["data.channels=1"], "its 3 channels are corrupted one by one"),
    ],
)
def test_what_does_not_fit_is_one_line(overrides: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(AmbientMRIError, match=words) as caught:
        run(corrupted_file(tmp_path), tmp_path / "r", *overrides)
    assert "\n" not in str(caught.value)


def test_laws_that_fit_are_taken(tmp_path: Path) -> None:
    prior = load_prior(
        run(corrupted_file(tmp_path), tmp_path / "r", "corruption=pixels", f"corruption.probability={SHARE}")
    )
    assert prior.metadata["sampling_law"]["law"] == "IndependentPixels"
    boxes = np.ones((16, 32, 32), bool)
    for i, (top, left) in enumerate(np.random.default_rng(4).integers(0, 25, (16, 2))):
        boxes[i, top : top + 8, left : left + 8] = False
    np.savez(tmp_path / "boxes.npz", images=clean_images(), mask=boxes)
    assert load_prior(run(tmp_path / "boxes.npz", tmp_path / "b", "corruption=boxes")).kind == "ambient"


def test_masks_from_which_nothing_can_be_learned(tmp_path: Path) -> None:
    """One mask for all; two that share nothing; pixels that go missing together where each is taken by itself."""
    first = np.random.default_rng(5).random((32, 32)) < 0.5
    blocks = np.random.default_rng(6).random((16, 8, 8)).repeat(4, axis=1).repeat(4, axis=2) < 0.5
    sets = {
        "pixels are missing in every image": np.stack([first] * 16),
        "never shows these pixels together": np.stack([first, ~first] * 8),
    }
    for words, mask in sets.items():
        np.savez(tmp_path / "a.npz", images=clean_images(), mask=mask)
        with pytest.raises(AmbientMRIError, match=words) as caught:
            run(tmp_path / "a.npz", tmp_path / "r")
        assert "{" not in str(caught.value)  # a sentence, not the representation of an object
    np.savez(tmp_path / "a.npz", images=clean_images(), mask=blocks)
    with pytest.raises(AmbientMRIError, match="neighbouring pixels are missing together"):
        run(tmp_path / "a.npz", tmp_path / "r", "corruption=pixels", f"corruption.probability={blocks.mean():.3f}")


def test_clean_images_have_no_law_of_their_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "clean.npz", images=clean_images())
    with pytest.raises(AmbientMRIError, match=r"brings no `mask`\. Choose corruption=pixels"):
        run(tmp_path / "clean.npz", tmp_path / "r")
