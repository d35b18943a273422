"""Image sets: every layout gives volumes by subject, splits never run through a subject, and bad files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.io import imsave

from ambient_mri._checks import AmbientMRIError, DataError
from ambient_mri.data.images import load_image_set, split_by_subject


@pytest.fixture
def magnitudes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 12, 10), dtype=np.uint8)


def save(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "set.npz", **arrays)  # type: ignore[arg-type]
    return folder / "set.npz"


def test_magnitudes_with_subjects_and_split(tmp_path: Path, magnitudes: np.ndarray) -> None:
    subject, number = [4, 4, 4, 11, 11, 2, 2], [2, 0, 1, 5, 4, 0, 1]
    split = ["train"] * 5 + ["val"] * 2
    found = load_image_set(save(tmp_path, images=magnitudes, subject=subject, slice=number, split=split))
    assert len(found) == 7
    assert not found.is_complex
    assert found.subjects("val") == ("2",)
    assert found.subjects("train") == ("11", "4")
    volume = found.volume("4")
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume, magnitudes[[1, 2, 0]])
    assert [(name, len(v)) for name, v in found.volumes("train")] == [("11", 2), ("4", 3)]
    assert len(found.select("val")) == 2


def test_complex_images_stored_as_integers(tmp_path: Path) -> None:
    parts = np.random.default_rng(1).integers(-3000, 3000, (3, 8, 9, 2)).astype(np.int16)
    scale = np.array([1000.0, 2000.0, 500.0], np.float32)
    found = load_image_set(save(tmp_path, real_imag=parts, scale=scale, subject=[0, 0, 1]))
    assert found.is_complex
    expected = (parts[..., 0] + 1j * parts[..., 1]) / scale[:, None, None]
    np.testing.assert_allclose(found.images, expected, rtol=1e-6)
    assert found.volume("0").dtype == np.complex64


def test_plain_arrays_are_one_volume(tmp_path: Path, magnitudes: np.ndarray) -> None:
    np.save(tmp_path / "stack.npy", magnitudes)
    np.save(tmp_path / "one.npy", magnitudes[0] * 1j)
    for path in (tmp_path / "stack.npy", save(tmp_path, anything=magnitudes)):
        found = load_image_set(path)
        np.testing.assert_array_equal(found.volume("0"), magnitudes)
        assert found.subjects("train") == ("0",)
    assert load_image_set(tmp_path / "one.npy").images.shape == (1, 12, 10)


def test_folders_of_images(tmp_path: Path, magnitudes: np.ndarray) -> None:
    for subject, numbers in (("anna", (1, 2, 10)), ("ben", (3, 4))):
        (tmp_path / subject).mkdir()
        for i, number in enumerate(numbers):
            imsave(tmp_path / subject / f"slice_{number}.png", magnitudes[i], check_contrast=False)
    (tmp_path / "notes.txt").write_text("not an image")
    found = load_image_set(tmp_path)
    assert found.subjects() == ("anna", "ben")
    np.testing.assert_array_equal(found.volume("anna"), magnitudes[:3])  # 10 after 2


def test_flat_folders_take_subjects_from_names(tmp_path: Path, magnitudes: np.ndarray) -> None:
    colour = np.repeat(magnitudes[2][..., None], 3, axis=-1)
    for name, image in (("a-01", magnitudes[0]), ("a-02", magnitudes[1].astype(np.uint16) * 200), ("b-01", colour)):
        imsave(tmp_path / f"{name}.png", image, check_contrast=False)
    found = load_image_set(tmp_path)
    assert found.subjects() == ("a", "b")
    np.testing.assert_array_equal(found.volume("b")[0], magnitudes[2])
    assert found.volume("a").max() > 255


def test_the_split_is_by_subject_and_stable() -> None:
    names = tuple(f"s{i}" for i in range(40))
    held_out = split_by_subject(names, 0.1)
    assert len(held_out) == 4
    assert held_out == split_by_subject(tuple(reversed(names)), 0.1)
    assert set(held_out) < set(names)
    assert split_by_subject(("only",), 0.5) == ()
    assert len(split_by_subject(("a", "b"), 0.01)) == 1
    assert len(split_by_subject(("a", "b"), 0.99)) == 1
    assert split_by_subject(names, 0) == ()


def test_sets_without_a_split_hold_subjects_out(tmp_path: Path, magnitudes: np.ndarray) -> None:
    found = load_image_set(save(tmp_path, images=magnitudes, subject=[0, 0, 1, 1, 2, 2, 2]), val_fraction=0.34)
    assert len(found.subjects("val")) == 1
    assert not set(found.subjects("val")) & set(found.subjects("train"))


def test_one_subject_cannot_be_split(tmp_path: Path, magnitudes: np.ndarray) -> None:
    found = load_image_set(save(tmp_path, images=magnitudes))
    with pytest.raises(DataError, match=r"no image belongs to the split 'val'.*number of subjects: 1.*`subject` array"):
        found.select("val")
    with pytest.raises(AmbientMRIError, match="split must be one of 'train', 'val'; got 'test'"):
        found.select("test")
    with pytest.raises(DataError, match="no subject 'x'"):
        found.volume("x")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.ones((2, 4, 4, 3))}, r"must be numbers of shape \(n, H, W\).*Colour"),
        ({"images": np.full((1, 4, 4), np.nan)}, "set.npz.*images"),
        ({"images": -np.ones((1, 4, 4))}, "magnitudes must not be negative; the smallest is -1"),
        (
            {"images": np.ones((2, 4, 4)), "subject": [1]},
            r"subject must have one entry for each of the 2 images; got \(1,\)",
        ),
        (
            {"images": np.ones((2, 4, 4)), "split": ["train", "test"]},
            r"split may be 'train' or 'val'; found \['test'\]",
        ),
        ({"images": np.ones((2, 4, 4)), "split": ["train", "val"]}, "train and val share the subjects 0"),
        ({"real_imag": np.ones((2, 4, 4))}, r"real_imag must have shape \(n, H, W, 2\)"),
        ({"real_imag": np.ones((2, 4, 4, 2)), "scale": np.zeros(2)}, "scale must be positive"),
        ({"a": np.ones((2, 4, 4)), "b": np.ones((2, 4, 4))}, r"found a \(2, 4, 4\), b \(2, 4, 4\); expected `images`"),
    ],
)
def test_wrong_contents_are_named(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_image_set(save(tmp_path, **arrays))


def test_wrong_files_are_named(tmp_path: Path, magnitudes: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"nowhere.npz: no such file"):
        load_image_set(tmp_path / "nowhere.npz")
    (tmp_path / "set.mat").write_bytes(b"x")
    with pytest.raises(DataError, match=r"set.mat: image sets are .npz or .npy files"):
        load_image_set(tmp_path / "set.mat")
    path = save(tmp_path, images=magnitudes)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"cannot be read as NumPy arrays.*complete"):
        load_image_set(path)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"objects.npy: cannot be read as NumPy arrays"):
        load_image_set(tmp_path / "objects.npy")


def test_wrong_folders_are_named(tmp_path: Path, magnitudes: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"holds no \.png"):
        load_image_set(tmp_path)
    imsave(tmp_path / "a_1.png", magnitudes[0], check_contrast=False)
    imsave(tmp_path / "a_2.png", magnitudes[0, :6], check_contrast=False)
    with pytest.raises(DataError, match=r"a_2.png: is \(6, 10\), a_1.png is \(12, 10\)"):
        load_image_set(tmp_path)
    imsave(tmp_path / "a_2.png", np.stack([magnitudes[0], magnitudes[1], magnitudes[2]], -1), check_contrast=False)
    with pytest.raises(DataError, match=r"a_2\.png: is a colour image"):
        load_image_set(tmp_path)
    (tmp_path / "a_2.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"a_2\.png: cannot be read as an image"):
        load_image_set(tmp_path)


@pytest.mark.parametrize(("name", "count"), [("brain_flair_128", 3067), ("brain_t2_complex_128", 180)])
def test_real_sets(data_root: Path, name: str, count: int) -> None:
    found = load_image_set(data_root / "images" / f"{name}.npz")
    assert len(found) == count
    assert not set(found.subjects("train")) & set(found.subjects("val"))
    assert found.volume(found.subjects("val")[0]).shape[1:] == (128, 128)
