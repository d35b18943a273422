"""The brain phantom: reproducible, never the same twice, any size, and made like a head."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.phantom import BrainPhantom, phantom_slice


def test_a_slice_is_a_function_of_seed_and_index() -> None:
    forwards = [phantom_slice(i, shape=(48, 48), seed=3) for i in range(6)]
    backwards = [phantom_slice(i, shape=(48, 48), seed=3) for i in reversed(range(6))]
    for one, other in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_index_and_every_seed_shows_another_head() -> None:
    slices = [phantom_slice(i, shape=(48, 48), seed=seed) for seed in (0, 1) for i in range(40)]
    assert len({hashlib.sha256(s.tobytes()).hexdigest() for s in slices}) == 80
    flat = np.stack([s.ravel() / np.linalg.norm(s) for s in slices])
    similarity = flat @ flat.T - np.eye(80)
    assert similarity.max() < 0.99


def test_global_random_state_is_neither_read_nor_moved() -> None:
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    one = phantom_slice(5, shape=(32, 32))
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index] # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(one, phantom_slice(5, shape=(32, 32)))


@pytest.mark.parametrize("shape", [(64, 64), (63, 51), (90, 64), (64, 90), (16, 16)])
def test_any_shape_gives_a_head_inside_the_field_of_view(shape: tuple[int, int]) -> None:
    for index in range(8):
        image = phantom_slice(index, shape=shape)
        assert image.shape == shape
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert 0.3 < image.max() <= 1
        assert 0.05 < (image > 0.03).mean() < 0.8
        if min(shape) > 50:  # below, the air around is thinner than a pixel
            edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            assert edge.max() == 0


def test_the_same_head_at_two_matrix_sizes_is_the_same_object() -> None:
    for index in range(4):
        fine = phantom_slice(index, shape=(256, 256), level=0.5)
        coarse = phantom_slice(index, shape=(64, 64), level=0.5)
        # Pixel n//2 of both grids is the centre: 4 x 4 blocks on a coarse pixel, half weights at their ends.
        weight = np.array([0.5, 1, 1, 1, 0.5]) / 4
        padded = np.pad(fine, 2)
        blocks = sum(
            weight[i] * weight[j] * padded[i : i + 256 : 4, j : j + 256 : 4] for i in range(5) for j in range(5)
        )
        assert np.linalg.norm(blocks - coarse) / np.linalg.norm(coarse) < 0.12


def test_pixels_at_edges_hold_shares_not_steps() -> None:
    image = phantom_slice(2, shape=(128, 128), level=0.6)
    row = image[64]
    first = int(np.argmax(row > 0.005))
    assert 0 < row[first] < 0.8 * row[first : first + 4].max()


def test_neighbouring_slices_of_a_volume_are_alike_and_distant_ones_are_not() -> None:
    volume = BrainPhantom(64, seed=2).volume(1, 24, levels=(0.45, 0.7))
    assert volume.shape == (24, 64, 64)

    def difference(i: int, j: int) -> float:
        return float(np.linalg.norm(volume[i] - volume[j]) / np.linalg.norm(volume[i]))

    near = [difference(i, i + 1) for i in range(23)]
    assert max(near) < 0.2
    assert difference(0, 23) > 2 * np.mean(near)


def test_the_head_narrows_towards_the_vertex() -> None:
    area = [(phantom_slice(0, shape=(64, 64), level=z) > 0.03).mean() for z in (0.5, 0.7, 0.85, 1.0)]
    assert area == sorted(area, reverse=True)
    assert area[-1] < 0.6 * area[0]


def test_contrasts_vary_from_head_to_head() -> None:
    levels = [np.median(phantom_slice(i, shape=(64, 64), level=0.6)[28:36, 20:44]) for i in range(40)]
    assert max(levels) - min(levels) > 0.2


def test_the_indexable_set() -> None:
    phantom = BrainPhantom((40, 36), seed=4)
    np.testing.assert_array_equal(phantom[7], phantom_slice(7, shape=(40, 36), seed=4))
    np.testing.assert_array_equal(
        phantom.volume(7, 1, levels=(0.5, 0.5))[0], phantom_slice(7, shape=(40, 36), seed=4, level=0.5)
    )
    assert repr(phantom) == "BrainPhantom(size=(40, 36), seed=4)"


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(AmbientMRIError, match=r"at least 16 x 16 pixels; got \(8, 32\)"):
        BrainPhantom((8, 32))
    with pytest.raises(AmbientMRIError, match="at least 16 x 16"):
        phantom_slice(0, shape=(32, 15))
    with pytest.raises(AmbientMRIError, match=r"level must lie in \[0, 1\].*got 1.5"):
        phantom_slice(0, level=1.5)
    with pytest.raises(AmbientMRIError, match="num_slices must be at least 1; got 0"):
        BrainPhantom(32).volume(0, 0)
    with pytest.raises(AmbientMRIError, match=r"levels must lie in \[0, 1\]"):
        BrainPhantom(32).volume(0, 2, levels=(-0.1, 0.5))
