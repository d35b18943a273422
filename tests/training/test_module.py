"""Learning rate, random streams, and the loss that must stay finite."""

from __future__ import annotations

import logging
import math
import warnings
from itertools import pairwise
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.datasets import ImageBatch
from ambient_mri.objectives import Loss
from ambient_mri.training.module import NonFiniteLossError, TrainingModule, learning_rate_factor, load_matching


class Scaling(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))


class Recorder:
    """An objective that notes its first random number of every row; its loss is not finite for the scan named "bad"."""

    kind = "clean"

    def __init__(self) -> None:
        self.drawn: list[list[float]] = []

    def __call__(self, model: Scaling, batch: torch.Tensor, generators: Any) -> Loss:
        self.drawn.append([float(torch.rand(1, generator=g)) for g in generators])
        return Loss((model.weight * batch.abs()).mean(), {"residual": batch.abs().mean()})


def images(*keys: str) -> ImageBatch:
    values = torch.ones(len(keys), 1, 4, 4, dtype=torch.complex64)
    for i, key in enumerate(keys):
        values[i] *= float("nan") if key == "bad" else 1.0
    return ImageBatch(values, keys)


def fit(objective: Recorder, batches: list[ImageBatch], **trainer: Any) -> tuple[TrainingModule, pl.Trainer]:
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    module = TrainingModule(Scaling(), objective, max_steps=len(batches), seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = pl.Trainer(
            accelerator="cpu",
            max_steps=len(batches),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **trainer,
        )
        run.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return module, run


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    factors = [learning_rate_factor(step, 1000, 100) for step in range(1001)]
    assert factors[0] == pytest.approx(0.01) and factors[99] == 1.0 and factors[100] == 1.0
    assert factors[550] == pytest.approx(0.5) and factors[1000] == pytest.approx(0.0, abs=1e-12)
    assert all(a >= b for a, b in pairwise(factors[100:]))


def test_warm_up_is_at_most_a_tenth_of_the_run() -> None:
    assert TrainingModule(Scaling(), Recorder(), max_steps=50, warmup_steps=200).warmup_steps == 5
    assert TrainingModule(Scaling(), Recorder(), max_steps=5, warmup_steps=200).warmup_steps == 1


def test_every_row_of_every_batch_has_its_own_stream_and_it_is_repeatable() -> None:
    first, second = Recorder(), Recorder()
    batches = [images("a", "b"), images("a", "b")]
    fit(first, batches)
    fit(second, batches)
    assert first.drawn == second.drawn
    flat = [value for row in first.drawn for value in row]
    assert len(set(flat)) == 4


def test_a_non_finite_loss_stops_training_and_names_the_scans() -> None:
    with pytest.raises(NonFiniteLossError, match="the loss became nan at batch 1, on the scans good, bad"):
        fit(Recorder(), [images("fine"), images("good", "bad"), images("fine")])


def test_losses_wait_on_a_gpu_and_are_checked_before_a_checkpoint() -> None:
    module = TrainingModule(Scaling(), Recorder(), max_steps=10)
    module._pending = [(torch.tensor(1.0), ("a",), 0), (torch.tensor(math.inf), ("b",), 1)]
    with pytest.raises(NonFiniteLossError, match="inf at batch 1, on the scans b"):
        module.on_save_checkpoint({})


def test_unknown_objective_kind() -> None:
    objective = Recorder()
    objective.kind = "cleen"
    with pytest.raises(AmbientMRIError, match="Did you mean 'clean'"):
        TrainingModule(Scaling(), objective, max_steps=10)


def test_weights_that_fit_are_taken_over() -> None:
    small, large = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    taken, fresh = load_matching(large, small.state_dict())
    assert taken == ["0.bias", "0.weight"] and fresh == ["1.bias", "1.weight"]
    torch.testing.assert_close(large[0].weight, small[0].weight)


class WithNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = Doubling()


class Doubling(Scaling):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.weight * x


class ThroughTheNetwork:
    kind = "clean"

    def __call__(self, model: WithNetwork, batch: torch.Tensor, generators: Any) -> Loss:
        return Loss(model.network(batch.abs()).mean())


def test_validation_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[bool] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(torch.is_grad_enabled())
        return graph.forward

    monkeypatch.setattr("ambient_mri.training.module.compile_network", lambda network: network.compile(backend=backend))
    torch.compiler.reset()
    module = TrainingModule(WithNetwork(), ThroughTheNetwork(), max_steps=2, compile=True)
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "generators", lambda *_: [])
    module.on_validation_start()
    with torch.no_grad():
        module.validation_step(images("a"), 0)
        module.model.network(torch.ones(2, 2))  # a callback's
    module.on_validation_end()
    assert graphs == []
    module.training_step(images("a"), 0)
    assert graphs == [True]
