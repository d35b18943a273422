"""The moving average against its closed form; metrics.csv across interruptions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ambient_mri._checks import AmbientMRIError
from ambient_mri.training.callbacks import EMA, checkpoints
from ambient_mri.training.loggers import MetricsFile, read_metrics


def average_of(values: list[float], half_life: float) -> float:
    """What EMA makes of a weight that takes ``values``."""
    ema, model = EMA(half_life), nn.Linear(1, 1, bias=False)
    averaged = AveragedModel(model, **ema._kwargs)
    for value in values:
        nn.init.constant_(model.weight, value)
        averaged.update_parameters(model)
    return float(averaged.module.weight.detach())


def test_average_is_the_recursion() -> None:
    values = torch.linspace(-1, 3, 50).tolist()
    expected = values[0]
    for n, value in enumerate(values[1:], start=1):
        expected += (1 - 0.5 ** (1 / (0.2 * n))) * (value - expected)
    assert average_of(values, 0.2) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("steps", [200, 1000])
def test_half_of_the_weight_lies_in_the_last_share_of_the_run(steps: int) -> None:
    """A step from 0 to 1, ``half_life`` of the run before its end, is half way through, however long the run."""
    late = int(0.05 * steps)
    assert average_of([0.0] * (steps - late) + [1.0] * late, 0.05) == pytest.approx(0.5, abs=0.02)


def test_half_life_must_be_positive() -> None:
    with pytest.raises(AmbientMRIError, match="half_life must be a positive"):
        EMA(0.0)


def test_checkpoint_names_sort_by_step(tmp_path: Path) -> None:
    names = [checkpoints(tmp_path, 5).format_checkpoint_name({"step": torch.tensor(s)}) for s in (9, 12345)]
    assert [Path(n).name for n in sorted(names)] == ["step00000009.ckpt", "step00012345.ckpt"]


def test_metrics_survive_interruption_and_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    first = MetricsFile(path)
    for step in range(6):
        first.log_metrics({"train/loss": 0.1 * step, "epoch": 0}, step)
    first.finalize("success")
    second = MetricsFile(path)
    second.log_metrics({"train/loss": 7.0}, 4)
    second.log_metrics({"val/objective": 2.0}, 4)
    second.finalize("success")
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[3] == {"step": 3, "train/loss": pytest.approx(0.3)}
    assert rows[4] == {"step": 4, "train/loss": 7.0, "val/objective": 2.0}
    assert not list(path.parent.glob(".*"))


def test_metrics_are_written_while_the_run_goes_on(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "metrics.csv", flush_every=2)
    log.log_metrics({"a": 1.0}, 0)
    assert read_metrics(tmp_path / "metrics.csv") == []
    log.log_metrics({"a": 2.0}, 1)
    assert len(read_metrics(tmp_path / "metrics.csv")) == 2
