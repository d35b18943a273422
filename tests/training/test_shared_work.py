"""Pieces of work under ``Trainer.predict``: every missing file once, dealt out evenly, whatever is there already."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from ambient_mri._checks import AmbientMRIError
from ambient_mri.training.shared_work import SharedWork, processes_on, share


def files(folder: Path, present: tuple[int, ...], count: int = 10) -> list[Path]:
    found = [folder / f"{i}.txt" for i in range(count)]
    for i in present:
        found[i].touch()
    return found


def quiet_trainer() -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, inference_mode=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip


@pytest.mark.parametrize("processes", [1, 3, 8])
def test_what_is_missing_is_dealt_out_evenly_and_once(processes: int, tmp_path: Path) -> None:
    """All that is there lies at even places, where dealing by number alone would leave half of the processes idle."""
    pieces, missing = files(tmp_path, (0, 2, 4, 6, 8)), [1, 3, 5, 7, 9]
    told: list[list[int]] = []

    def broadcast(own: list[int]) -> list[int]:
        told.append(own)
        return told[0]  # of the first process, as Strategy.broadcast gives it

    dealt = []
    for rank in range(processes):
        work = SharedWork("test", pieces, lambda index, device: None)
        strategy = SimpleNamespace(broadcast=broadcast)
        work.trainer = SimpleNamespace(global_rank=rank, world_size=processes, strategy=strategy)  # type: ignore[assignment]
        dealt.append(list(work.predict_dataloader()))
        for index in dealt[0]:  # the first process has written its files when the others look
            pieces[index].touch()
    assert sorted(index for part in dealt for index in part) == missing
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_only_what_is_missing_is_made_and_a_second_call_makes_nothing(tmp_path: Path) -> None:
    pieces, made = files(tmp_path, (1,), 3), []

    def make(index: int, device: torch.device) -> None:
        made.append((index, device.type, network.weight.requires_grad, torch.is_inference_mode_enabled()))
        pieces[index].touch()

    network = torch.nn.Linear(1, 1)
    for _ in range(2):
        share(SharedWork("test", pieces, make, [network]), quiet_trainer())
    assert made == [(0, "cpu", True, False), (2, "cpu", True, False)]


def test_a_gpu_for_every_process() -> None:
    too_many = torch.cuda.device_count() + 1
    with pytest.raises(AmbientMRIError, match=f"{too_many} processes need as many GPUs; PyTorch sees"):
        processes_on(torch.device("cuda"), too_many)


def test_one_gpu_by_name_is_not_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(AmbientMRIError, match="cuda:1 is one GPU, and 2 processes take one each: say cuda"):
        processes_on(torch.device("cuda:1"), 2)


def test_sigterm_ends_the_work_after_the_file_in_hand(tmp_path: Path) -> None:
    pieces, made = files(tmp_path, (), 4), []

    def make(index: int, device: torch.device) -> None:
        made.append(index)
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        pieces[index].touch()

    with pytest.raises(SystemExit):
        share(SharedWork("test", pieces, make), quiet_trainer())
    assert made == [0, 1]
    share(SharedWork("test", pieces, make), quiet_trainer())
    assert made == [0, 1, 2, 3]
