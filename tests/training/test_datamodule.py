"""Loaders: where a resumed run begins, what validation looks at, and how processes share it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.datasets import ImageDataset, ScanDataset
from ambient_mri.data.schema import write_prepared
from ambient_mri.training.datamodule import TrainingData
from tests.training.conftest import make_scan


def loaders(folder: Path, *, step: int = 0, rank: int = 0, world_size: int = 1, **options: Any) -> TrainingData:
    scans = ScanDataset(sorted(folder.glob("*.h5")))
    data = TrainingData(scans, scans, **{"max_steps": 10, "batch_size": 4, "seed": 1, **options})
    trainer = SimpleNamespace(accumulate_grad_batches=1, global_step=step, global_rank=rank, world_size=world_size)
    data.trainer = trainer  # type: ignore[assignment]
    return data


def keys(loader: Any) -> list[tuple[str, ...]]:
    return [batch.key for batch in loader]


def test_a_resumed_loader_begins_at_the_step_reached(scan_folder: Path) -> None:
    train = scan_folder / "train"
    straight = loaders(train).train_dataloader()
    resumed = loaders(train, step=7).train_dataloader()
    assert len(straight) == len(resumed) == 10
    assert keys(resumed) == keys(straight)[7:]


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_workers_change_nothing(scan_folder: Path) -> None:
    train = scan_folder / "train"
    assert keys(loaders(train, num_workers=1).train_dataloader()) == keys(loaders(train).train_dataloader())


def test_processes_share_a_batch(scan_folder: Path) -> None:
    train = scan_folder / "train"
    parts = [keys(loaders(train, rank=r, world_size=2).train_dataloader()) for r in range(2)]
    whole = keys(loaders(train).train_dataloader())
    assert [tuple(k for pair in zip(a, b, strict=True) for k in pair) for a, b in zip(*parts, strict=True)] == whole


def test_validation_is_evenly_spaced_and_one_size_a_batch(tmp_path: Path) -> None:
    for i, size in enumerate([(16, 20), (16, 20), (12, 20)]):
        write_prepared(tmp_path / f"s{i}.h5", make_scan(f"s{i}", size=size)[0])
    assert keys(loaders(tmp_path, val_items=6).val_dataloader()) == [("s2/0", "s2/2"), ("s0/0", "s0/2", "s1/0", "s1/2")]
    found = keys(loaders(tmp_path, val_items=100).val_dataloader())
    assert sorted(k for batch in found for k in batch) == [f"s{i}/{j}" for i in range(3) for j in range(4)]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_every_process_validates_as_many_batches(world_size: int, scan_folder: Path) -> None:
    """Else the collective calls of logging would wait for ever."""
    found = [
        loaders(scan_folder / "train", rank=r, world_size=world_size, batch_size=world_size) for r in range(world_size)
    ]
    assert len({len(data.val_dataloader()) for data in found}) == 1


def test_without_held_out_scans(scan_folder: Path) -> None:
    images = ImageDataset([scan_folder / "references" / "v0.h5"])
    assert TrainingData(images, None, max_steps=2).val_dataloader() == []


def test_a_run_has_steps(scan_folder: Path) -> None:
    with pytest.raises(AmbientMRIError, match="max_steps must be positive; got -1"):
        loaders(scan_folder / "train", max_steps=-1)
