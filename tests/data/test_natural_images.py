"""Natural images: layouts, values in [-1, 1], held-out images, and files that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ambient_mri._checks import DataError
from ambient_mri.data.natural_images import load_natural_images


def bytes_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_arrays_become_channels_in_minus_one_to_one(suffix: str, tmp_path: Path) -> None:
    stored = bytes_of(20, 5, 4, 3)
    path = tmp_path / f"a.{suffix}"
    np.savez(path, images=stored) if suffix == "npz" else np.save(path, stored)
    found = load_natural_images(path)
    assert found.shape == (3, 5, 4) and found.image(2).shape == (1, 3, 5, 4)
    assert torch.allclose(found.image(2)[0, 1], torch.from_numpy(stored[2, :, :, 1] / 127.5 - 1).float(), atol=1e-6)
    assert sorted((*found.train, *found.val)) == list(range(20)) and 0 < len(found.val) < 8
    assert load_natural_images(path).val == found.val and load_natural_images(path, val_share=0.0).val == ()


def test_reals_and_integers_of_other_sizes(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "f.npz", images=np.linspace(0, 1, 60).reshape(3, 4, 5), split=np.array(["train", "val", "train"])
    )
    found = load_natural_images(tmp_path / "f.npz")
    assert found.shape == (1, 4, 5) and found.val == (1,)
    assert float(found.image(0).min()) == -1 and float(found.image(2).max()) == pytest.approx(1)
    np.save(tmp_path / "u.npy", np.full((2, 4, 4), 65535, dtype=np.uint16))
    assert float(load_natural_images(tmp_path / "u.npy", val_share=0.0).image(1).min()) == 1


def test_channels_are_averaged_or_repeated(tmp_path: Path) -> None:
    stored = bytes_of(4, 5, 4, 3)
    np.savez(tmp_path / "a.npz", images=stored)
    grey = load_natural_images(tmp_path / "a.npz", channels=1)
    assert grey.shape == (1, 5, 4)
    assert np.abs(grey.images[..., 0] - stored.mean(-1)).max() <= 0.5
    np.savez(tmp_path / "g.npz", images=stored[..., 0])
    assert load_natural_images(tmp_path / "g.npz", channels=3).shape == (3, 5, 4)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    stored = bytes_of(3, 6, 5, 3)
    for i, picture in enumerate(stored):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    found = load_natural_images(tmp_path, val_share=0.0)
    assert np.array_equal(found.images, stored)
    assert load_natural_images(tmp_path, channels=1, val_share=0.0).shape == (1, 6, 5)
    Image.fromarray(stored[0][:4]).save(tmp_path / "small.png")
    with pytest.raises(DataError, match=r"small\.png: is \(4, 5, 3\), 0\.png is \(6, 5, 3\)"):
        load_natural_images(tmp_path)


def test_a_folder_of_grey_pictures_is_grey_unless_one_has_colours(tmp_path: Path) -> None:
    stored = bytes_of(3, 6, 5)
    for i, picture in enumerate(stored):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    grey = load_natural_images(tmp_path, val_share=0.0)
    assert grey.shape == (1, 6, 5) and np.array_equal(grey.images[..., 0], stored)
    assert load_natural_images(tmp_path, channels=3, val_share=0.0).shape == (3, 6, 5)
    Image.fromarray(bytes_of(6, 5, 3)).save(tmp_path / "9.png")
    mixed = load_natural_images(tmp_path, val_share=0.0)
    assert mixed.shape == (3, 6, 5) and np.array_equal(mixed.images[0], stored[0][..., None].repeat(3, axis=-1))
    assert load_natural_images(tmp_path, channels=1, val_share=0.0).shape == (1, 6, 5)
    with pytest.raises(DataError, match=r"holds grey pictures and coloured ones.*make two folders"):
        load_natural_images(tmp_path, corrupted=True, noise_std=0.1)


def test_what_is_wrong_with_a_picture_is_said_once(tmp_path: Path) -> None:
    Image.fromarray(bytes_of(4, 4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: has transparent pixels") as caught:
        load_natural_images(tmp_path)
    assert "cannot be read" not in str(caught.value) and str(caught.value).count("a.png") == 1


@pytest.mark.parametrize("fill", [0.0, np.nan, -1.0, 1e9])
def test_what_stands_in_a_missing_pixel_does_not_matter(fill: float, tmp_path: Path) -> None:
    images, known = np.random.default_rng(0).random((4, 5, 6)), np.random.default_rng(1).random((4, 5, 6)) < 0.5
    np.savez(tmp_path / "a.npz", images=np.where(known, images, fill), mask=known)
    found = load_natural_images(tmp_path / "a.npz", corrupted=None)
    assert np.array_equal(found.images[..., 0], np.where(known, images, 0.0))
    np.savez(tmp_path / "a.npz", images=np.where(known, images, np.nan), mask=known | (np.arange(6) == 0))
    with pytest.raises(DataError, match="NaN or infinite numbers where pixels are known"):
        load_natural_images(tmp_path / "a.npz", corrupted=None)


@pytest.mark.parametrize("fill", [0.0, 0.5, np.nan])
def test_an_inverted_mask_is_told(fill: float, tmp_path: Path) -> None:
    images, known = np.random.default_rng(0).random((4, 5, 6)), np.random.default_rng(1).random((4, 5, 6)) < 0.5
    np.savez(tmp_path / "a.npz", images=np.where(known, images, fill), mask=~known)
    with pytest.raises(DataError, match=r"it is inverted.*1 where a pixel is known"):
        load_natural_images(tmp_path / "a.npz", corrupted=None)
    np.savez(tmp_path / "a.npz", images=np.full((4, 5, 6), 7, np.uint8), mask=known)
    assert load_natural_images(tmp_path / "a.npz", corrupted=None).corrupted


@pytest.mark.parametrize("highest", [4095, 16383])
def test_fewer_bits_than_their_type_has_are_told(highest: int, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 4, 4), highest, dtype=np.uint16))
    with pytest.raises(DataError, match=f"no pixel is above {highest}: nearly black images.*reals in"):
        load_natural_images(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.eye(4, dtype=np.uint8)[None].repeat(2, axis=0))
    with pytest.raises(DataError, match="bytes are divided by 255, and these are 0 and 1"):
        load_natural_images(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": bytes_of(2, 3, 4, 5)}, r"Channels come last: images\.transpose\(0, 2, 3, 1\)"),
        ({"pixels": bytes_of(2, 4, 4)}, "needs an array `images` .* found pixels"),
        ({"images": bytes_of(2, 4, 4, 2)}, r"\(n, H, W, 1 or 3\); got uint8 \(2, 4, 4, 2\)"),
        ({"images": np.full((2, 4, 4), 3.0)}, r"must lie in \[0, 1\]; found 3 to 3"),
        ({"images": np.full((2, 4, 4), np.nan)}, "non-finite|NaN"),
        ({"images": bytes_of(2, 4, 4), "split": np.array(["train"])}, "one entry for each of the 2 images"),
        ({"images": bytes_of(2, 4, 4), "split": np.array(["val", "val"])}, "no image is left to train on"),
    ],
)
def test_other_arrays_are_refused(arrays: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=words):
        load_natural_images(tmp_path / "a.npz")


def test_what_is_no_image_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as NumPy arrays"):
        load_natural_images(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"image sets are \.npz or \.npy files, or folders"):
        load_natural_images(tmp_path / "a.h5")
    (tmp_path / "f").mkdir()
    with pytest.raises(DataError, match=r"holds no \.png"):
        load_natural_images(tmp_path / "f")
    (tmp_path / "f" / "x.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"x\.png: cannot be read as a picture"):
        load_natural_images(tmp_path / "f")


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.uint16])
def test_bytes_in_wider_integers_are_bytes(dtype: type, tmp_path: Path) -> None:
    stored = bytes_of(4, 5, 4, 3)
    stored[0, 0, 0, 0] = 255
    np.save(tmp_path / "wide.npy", stored.astype(dtype))
    np.save(tmp_path / "bytes.npy", stored)
    wide, plain = (load_natural_images(tmp_path / name, val_share=0.0) for name in ("wide.npy", "bytes.npy"))
    assert torch.equal(wide.image(0), plain.image(0))


def test_images_for_testing_are_neither_trained_on_nor_held_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=bytes_of(3, 4, 4), split=np.array(["train", "val", "test"]))
    found = load_natural_images(tmp_path / "a.npz")
    assert (found.train, found.val) == ((0,), (1,))


def test_what_would_be_cut_off_is_refused(tmp_path: Path) -> None:
    for values, words in (
        (np.full((2, 4, 4), 300), "int64, 300 to 300"),
        (np.full((2, 4, 4), -1, np.int8), "-1 to -1"),
    ):
        np.save(tmp_path / "a.npy", values)
        with pytest.raises(DataError, match=words):
            load_natural_images(tmp_path / "a.npy")
    np.savez(tmp_path / "s.npz", images=bytes_of(2, 4, 4), split=np.array(["train", "validation"]))
    with pytest.raises(DataError, match="train, val or test for every image; found validation"):
        load_natural_images(tmp_path / "s.npz")
    deep, clear, solid = tmp_path / "deep", tmp_path / "clear", tmp_path / "solid"
    for folder in (deep, clear, solid):
        folder.mkdir()
    Image.fromarray(np.full((4, 4), 4000, dtype=np.uint16)).save(deep / "a.png")
    with pytest.raises(DataError, match=r"a.png: has more than 8 bits a pixel \(mode I;16\)"):
        load_natural_images(deep)
    Image.fromarray(bytes_of(4, 4, 4)).save(clear / "a.png")
    with pytest.raises(DataError, match=r"a\.png: has transparent pixels"):
        load_natural_images(clear)
    palette = Image.fromarray(bytes_of(4, 4, 3)).convert("P")
    palette.save(clear / "a.png", transparency=palette.getpixel((0, 0)))
    with pytest.raises(DataError, match=r"a\.png: has transparent pixels"):
        load_natural_images(clear)
    picture = bytes_of(4, 4, 4)
    picture[..., 3] = 255
    Image.fromarray(picture).save(solid / "a.png")
    assert load_natural_images(solid, val_share=0.0).shape == (3, 4, 4)


def test_a_mask_of_grey_levels_is_told_how_to_become_one(tmp_path: Path) -> None:
    mask = np.where(np.random.default_rng(1).random((3, 4, 4)) < 0.5, 255, 0).astype(np.uint8)
    mask[:, 0, 0] = 255
    np.savez(tmp_path / "a.npz", images=bytes_of(3, 4, 4), mask=mask)
    with pytest.raises(DataError, match="got numbers up to 255: store mask > 0 if what is above 0 is known"):
        load_natural_images(tmp_path / "a.npz", corrupted=None)
    np.savez(tmp_path / "a.npz", images=bytes_of(3, 4, 4), mask=mask > 0)
    assert load_natural_images(tmp_path / "a.npz", corrupted=None, val_share=0.0).corrupted
