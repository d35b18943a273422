"""Two CPU processes under DDP: the same weights and reconstructions as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from ambient_mri.data.datasets import read_images
from ambient_mri.train import compose
from ambient_mri.training.rounds import expectation_maximisation
from tests.training.test_run import arguments

DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.log_every_n_steps=1")
EM = (
    "objective=em", "em.rounds=2", "em.steps=2", "em.assess.slices=1", "em.assess.samples=2",
    "em.min_improvement=null", "trainer.val_check_interval=3", "trainer.max_steps=3",
)  # fmt: skip


def command(*overrides: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own; it starts the other one."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "ambient_mri.train", *overrides],
        capture_output=True, text=True, check=False, env=environment, timeout=400,
    )  # fmt: skip


@pytest.mark.slow
def test_two_rounds_of_em(scan_folder: Path, ambient_run: Path, tmp_path: Path) -> None:
    """Two E-steps and two M-steps: the processes are started once and meet four times."""
    one, two = tmp_path / "one", tmp_path / "two"
    expectation_maximisation(compose([*arguments(scan_folder, one), *EM, f"init={ambient_run}"]))
    done = command(*arguments(scan_folder, two, *DDP), *EM, f"init={ambient_run}")
    assert done.returncode == 0, done.stderr[-3000:]
    for k in (1, 2):
        files = sorted((one / f"round_{k}" / "reconstructions").glob("*.h5"))
        assert len(files) == 6
        for file in files:
            wanted = read_images(file).images
            found = read_images(two / f"round_{k}" / "reconstructions" / file.name).images
            assert np.allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())
        cards = [json.loads((r / f"round_{k}" / "prior" / "prior.json").read_text()) for r in (one, two)]
        assert [card["processes"] for card in cards] == [1, 2]
        weights = [load_file(r / f"round_{k}" / "prior" / "weights.safetensors") for r in (one, two)]
        assert max(float((weights[0][n] - weights[1][n]).abs().max()) for n in weights[0]) < 1e-4
