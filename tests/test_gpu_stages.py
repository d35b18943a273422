"""benchmarks/gpu: what goes wrong in one stage neither spoils its files nor stops those after it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ambient_mri.data.datasets import ImageBatch
from ambient_mri.data.simulate import Simulation
from ambient_mri.masks import RandomLines
from ambient_mri.objectives.base import Loss
from ambient_mri.prior import Prior, build_model, load_prior
from ambient_mri.report.records import append_records

ARCHITECTURE = {"kind": "clean", "network": {"channels": 8, "multipliers": [1]}, "sd": 0.3}


def save_prior(state: Path, stage: str, *, done: bool, steps: int = 12) -> None:
    prior = Prior(build_model(ARCHITECTURE), "clean", ARCHITECTURE, name=stage, metadata={"steps": steps})
    prior.save(state / "stages" / stage / "prior")
    if done:
        (state / "stages" / stage / "done.json").write_text("{}")


@pytest.fixture
def scans(gpu_module: Callable[[str], Any], tmp_path: Path) -> Any:
    images = np.random.default_rng(0).random((6, 24, 20), dtype=np.float32)
    law, scanner = RandomLines(2, 4), Simulation(coils=(2, 2))
    simulation = gpu_module("simulation")
    task = simulation.Task("v0", images, law, 5, scanner, "volume", 0, tmp_path / "data")
    assert simulation.simulate([task], processes=1)
    return gpu_module("resident").load_scans(tmp_path / "data", "cpu")


def test_images_of_an_e_step_that_was_made_otherwise_are_made_anew(
    gpu_module: Callable[[str], Any], scans: Any, tmp_path: Path
) -> None:
    """Batches are told by their number alone: with other rows they were taken for what they are not."""
    expectation, folder = gpu_module("stages").expectation, tmp_path / "images"
    save_prior(tmp_path, "em1", done=True)
    prior = load_prior(tmp_path / "stages" / "em1" / "prior")
    whole = expectation(prior, scans, tmp_path / "whole", steps=2, batch_size=6)
    assert expectation(prior, scans, folder, steps=2, batch_size=2).key == scans.key
    (folder / "0002.pt").unlink()  # as if time had run out before it
    found = expectation(prior, scans, folder, steps=2, batch_size=3)
    assert found.key == scans.key and sorted(p.name for p in folder.glob("*.pt")) == ["0000.pt", "0001.pt"]
    torch.testing.assert_close(found.images, whole.images, rtol=1e-3, atol=1e-4)
    before = (folder / "0000.pt").stat().st_mtime_ns
    expectation(prior, scans, folder, steps=2, batch_size=3)
    assert (folder / "0000.pt").stat().st_mtime_ns == before, "what is there is kept"
    more = expectation(prior, scans, folder, steps=3, batch_size=3)
    assert not torch.allclose(more.images, found.images, atol=1e-3)


def test_compiling_is_timed_on_images_too(
    gpu_module: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches of a clean stage are images alone, and a compiler may fail without a word."""
    seen: list[Any] = []

    def objective(model: Any, images: torch.Tensor, generators: Any) -> Loss:
        seen.append((tuple(images.shape), len(generators)))
        return Loss(model(images, torch.ones(len(images))).abs().square().mean(), {})

    def fails(self: torch.nn.Module) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.nn.Module, "compile", fails)
    batch = ImageBatch(torch.randn(3, 1, 16, 16, dtype=torch.complex64), ("a", "b", "c"))
    stored = tmp_path / "compile.json"
    assert not gpu_module("compiling").faster_compiled(ARCHITECTURE, objective, batch, stored, timed_steps=1)
    assert set(seen) == {((3, 1, 16, 16), 3)} and json.loads(stored.read_text())["compiled"] is False


def test_real_heads_that_fail_are_no_time_that_ran_out(gpu_module: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "data" / "multicoil_val_128").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"(?s)reconstruct\.py failed: .*brain_t1_4ch\.h5: no such file"):
        gpu_module("evaluation").real_heads(tmp_path, tmp_path / "data")


def test_real_heads_are_shown_to_finished_priors_alone(gpu_module: Callable[[str], Any], tmp_path: Path) -> None:
    """The record holds a name and its weights: those of a stage that goes on would contradict it."""
    save_prior(tmp_path, "em1", done=True)
    save_prior(tmp_path, "em2", done=True)
    save_prior(tmp_path, "em3", done=False)
    save_prior(tmp_path, "supervised", done=False)
    assert list(gpu_module("evaluation")._finished(tmp_path)) == ["em2"]


def test_a_table_of_priors_that_went_on_shows_the_newest(gpu_module: Callable[[str], Any], tmp_path: Path) -> None:
    evaluation = gpu_module("evaluation")
    path = tmp_path / "records" / "gpu_quality.json"
    path.parent.mkdir()
    common = {"case": "held_out_simulated", "acceleration": 4, "device": "cpu", "n": 1, "ci95": None, "seconds": 1.0}
    for stage, value in (("em1", 20.0), ("em2", 30.0)):
        row = {**common, "stage": stage, "train_steps": 12, "metric": "psnr", "value": value}
        rows = [{**row, "method": "em/dds/point"}, {**row, "metric": "ssim", "value": 0.5, "method": "em/dds/point"}]
        append_records(path, "gpu_quality", "python benchmarks/gpu/run.py evaluate", {}, rows=rows)
    text = evaluation.table(tmp_path)
    assert "30.00" in text and "20.00" not in text
    shutil.rmtree(path.parent)
    assert evaluation.table(tmp_path) == ""
