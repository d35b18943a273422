"""Training reads what was measured and nothing else; the order of items is a function of (seed, step)."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ambient_mri._checks import AmbientMRIError, DataError
from ambient_mri.data.datasets import ImageBatch, ImageDataset, ScanDataset, StepSampler, read_images, write_images
from ambient_mri.data.schema import PreparedScan, read_prepared, write_prepared
from ambient_mri.measurement import Measurement
from ambient_mri.operators.fourier import fft
from ambient_mri.tensors import complex_randn

MASKS = {
    "columns": (1, 1, 1, 12),
    "rows": (1, 1, 10, 1),
    "two-dimensional": (1, 1, 10, 12),
    "one for each slice": (3, 1, 1, 12),
}


def write_scan(
    path: Path, generator: torch.Generator, *, mask_shape: tuple[int, ...] = MASKS["columns"], shared_maps: bool = False
) -> PreparedScan:
    maps = complex_randn((1 if shared_maps else 3, 2, 10, 12), generator=generator)
    maps = maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()
    mask = torch.rand(mask_shape, generator=generator) < 0.6
    mask[..., :1] = True
    kspace = fft(maps * complex_randn((3, 1, 10, 12), generator=generator)) * mask
    scan = PreparedScan(
        kspace=kspace.numpy(),
        mask=mask.numpy(),
        coil_maps=maps.numpy(),
        noise_std=np.array([0.1, 0.2, 0.3], dtype=np.float32),
        scale=4.0,
        source=path.stem,
    )
    write_prepared(path, scan)
    return scan


@pytest.mark.parametrize("mask_shape", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("shared_maps", [True, False])
def test_items_are_what_the_schema_reads(
    mask_shape: tuple[int, ...], in_memory: bool, shared_maps: bool, tmp_path: Path, generator: torch.Generator
) -> None:
    for name in ("a", "b"):
        write_scan(tmp_path / f"{name}.h5", generator, mask_shape=mask_shape, shared_maps=shared_maps)
    data = ScanDataset(sorted(tmp_path.glob("*.h5")), in_memory=in_memory)
    assert len(data) == 6 and data.sizes == [(10, 12)] * 6
    expected = [read_prepared(tmp_path / f"{name}.h5").measurement(i) for name in ("a", "b") for i in range(3)]
    for i, want in enumerate(expected):
        got = data[i].check()
        assert got.key == want.key == (f"{'ab'[i // 3]}/{i % 3}",)
        for name in ("y", "coil_maps", "noise_std", "scale"):
            torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=0, atol=0)
        assert bool((got.mask == want.mask).all())
    batch = Measurement.collate([data[0], data[4]]).check()
    assert batch.key == ("a/0", "b/1")


def test_only_sampled_locations_are_ever_read(tmp_path: Path, generator: torch.Generator) -> None:
    """The union over two epochs of the locations that hold data is exactly P, volume by volume."""
    files = [tmp_path / f"{name}.h5" for name in ("a", "b", "c")]
    masks = {f.stem: np.broadcast_to(write_scan(f, generator).mask, (1, 1, 10, 12)) for f in files}
    data = ScanDataset(files)
    sampler = StepSampler(data.sizes, 3, 6, seed=1)
    seen = {name: np.zeros((1, 1, 10, 12), dtype=bool) for name in masks}
    for batch in sampler:
        for item in (data[i] for i in batch):
            seen[item.key[0].split("/")[0]] |= (item.y.numpy() != 0).any(axis=1, keepdims=True)
    for name, mask in masks.items():
        np.testing.assert_array_equal(seen[name], mask)


def test_memory_budget_decides_what_is_held(tmp_path: Path, generator: torch.Generator) -> None:
    files = [tmp_path / f"{i}.h5" for i in range(3)]
    for file in files:
        write_scan(file, generator)
    data = ScanDataset(files, memory_gb=1e-9)
    assert [v.arrays is not None for v in data.volumes] == [True, False, False]
    torch.testing.assert_close(data[8].y, ScanDataset(files)[8].y)


def test_few_open_files_serve_many_and_survive_pickling(tmp_path: Path, generator: torch.Generator) -> None:
    files = [tmp_path / f"{i}.h5" for i in range(4)]
    for file in files:
        write_scan(file, generator)
    data = ScanDataset(files, in_memory=False, open_files=2)
    first = data[0].y
    for i in range(len(data)):
        data[i]
    assert len(data._pool._files) == 2
    torch.testing.assert_close(pickle.loads(pickle.dumps(data))[0].y, first)


def test_no_files() -> None:
    with pytest.raises(DataError, match="at least one prepared scan"):
        ScanDataset([])


def test_a_truncated_file_is_named(tmp_path: Path, generator: torch.Generator) -> None:
    file = tmp_path / "broken.h5"
    write_scan(file, generator)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"broken\.h5: HDF5 cannot read it"):
        ScanDataset([file])


def test_images_are_scaled_and_keyed(tmp_path: Path, generator: torch.Generator) -> None:
    images = complex_randn((3, 1, 8, 6), generator=generator)
    write_images(tmp_path / "v.h5", images.numpy(), ["v/0", "v/1", "v/2"], scale=2.0, attrs={"made_by": "test"})
    data = ImageDataset([tmp_path / "v.h5"])
    batch = ImageDataset.collate([data[2], data[0]])
    assert isinstance(batch, ImageBatch) and batch.key == ("v/2", "v/0") and data.sizes == [(8, 6)] * 3
    torch.testing.assert_close(batch.images, images[[2, 0]] / 2)
    torch.testing.assert_close(data.by_key()["v/1"], images[1:2] / 2)
    assert read_images(tmp_path / "v.h5").attrs == {"made_by": "test"}


@pytest.mark.parametrize(
    ("images", "keys", "words"),
    [
        (np.zeros((2, 8, 6), np.complex64), ["a", "b"], "must be complex"),
        (np.zeros((2, 1, 8, 6), np.float32), ["a", "b"], "must be complex"),
        (np.zeros((2, 1, 8, 6), np.complex64), ["a"], "2 images, but 1 keys"),
        (np.full((1, 1, 8, 6), np.nan, np.complex64), ["a"], "48 non-finite values"),
    ],
)
def test_images_that_cannot_be_written(images: np.ndarray, keys: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        write_images(tmp_path / "v.h5", images, keys)
    assert not list(tmp_path.iterdir())


def test_an_image_file_without_keys_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "v.h5", "w") as handle:
        handle["images"] = np.zeros((1, 1, 4, 4), np.complex64)
    with pytest.raises(DataError, match=r"v\.h5: dataset 'key' is missing"):
        read_images(tmp_path / "v.h5")


SIZES = [(8, 8)] * 10 + [(8, 6)] * 7 + [(9, 9)] * 2


def test_an_epoch_visits_every_item_at_most_once_and_one_size_a_batch() -> None:
    sampler = StepSampler(SIZES, 4, 1000, seed=3)
    assert sampler.batches_per_epoch == 2 + 1 + 1
    epoch = [sampler.batch(step) for step in range(4)]
    for batch in epoch:
        assert len(batch) == 4 and len({SIZES[i] for i in batch}) == 1
    visits = Counter(i for batch in epoch for i in batch)
    assert all(count == 1 for i, count in visits.items() if SIZES[i] != (9, 9))
    # Two items make a batch of four by coming twice.
    assert visits[17] == visits[18] == 2
    later = Counter(i for step in range(400) for i in sampler.batch(step))
    assert set(later) == set(range(19))


def test_batches_are_a_function_of_seed_and_step() -> None:
    straight = list(StepSampler(SIZES, 4, 20, seed=3))
    assert list(StepSampler(SIZES, 4, 20, seed=3, start=13)) == straight[13:]
    assert list(StepSampler(SIZES, 4, 20, seed=4)) != straight
    assert straight[:4] != straight[4:8]
    backwards = StepSampler(SIZES, 4, 20, seed=3)
    assert [backwards.batch(step) for step in reversed(range(20))] == straight[::-1]


def test_length_is_that_of_the_whole_run() -> None:
    assert len(StepSampler(SIZES, 4, 20, seed=3, start=13)) == 20


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_a_batch(world_size: int) -> None:
    ranks = [StepSampler(SIZES, 4, 9, seed=3, rank=r, world_size=world_size) for r in range(world_size)]
    whole = StepSampler(SIZES, 4, 9, seed=3)
    for step in range(9):
        parts = [rank.batch(step) for rank in ranks]
        assert [parts[i % world_size][i // world_size] for i in range(4)] == whole.batch(step)


def test_batch_size_must_fit_the_processes() -> None:
    with pytest.raises(AmbientMRIError, match="multiple of the 3 processes"):
        StepSampler(SIZES, 4, 9, seed=0, world_size=3)
