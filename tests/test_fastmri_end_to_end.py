"""From raw files in fastMRI's layout to a reconstruction, one command each, interrupted and resumed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ambient_mri import cli
from ambient_mri.data.fastmri_layout import list_volumes
from ambient_mri.data.schema import read_prepared
from ambient_mri.data.writers import read_reconstruction
from ambient_mri.prepare import files
from ambient_mri.prior import load_prior
from ambient_mri.train import compose
from ambient_mri.training.loggers import read_metrics
from ambient_mri.training.run import train
from tests.data.fastmri_files import write_brains, write_knees

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "network=unet_small", "network.channels=8", "network.multipliers=[1]", "model.precision=fp32",
    "corruption.law.acceleration=2", "corruption.law.acs_lines=8", "corruption.core=4", "loader.batch_size=2",
    "trainer.log_every_n_steps=1", "trainer.max_steps=2", "trainer.val_check_interval=2", "checkpoint_every=1",
)  # fmt: skip

# The program of `python -m ambient_mri.train`, ended by SIGKILL where the test says.
KILLED_IN_TRAINING = """
import os, signal
from ambient_mri.training.module import TrainingModule
step = TrainingModule.training_step
def killed(self, batch, index):
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)
TrainingModule.training_step = killed
from ambient_mri.train import main
main()
"""


def overrides(data: str, root: Path, where: Path) -> list[str]:
    return [f"data={data}", f"data.root={root}", f"data.cache={where / 'cache'}", f"run_dir={where / 'run'}", *TINY]


def volumes(where: Path, part: str) -> list[Path]:
    (folder,) = (where / "cache").iterdir()
    return list_volumes(folder / part)


def reconstruct(scan: Path, prior: Path, out: Path) -> np.ndarray:
    """`ambient-mri reconstruct` of a test file; its image."""
    arguments = ["reconstruct", scan, "--prior", prior, "--samples", 1, "--sampler", "one_step", "--out", out]
    assert cli.main([str(a) for a in arguments]) == 0
    return np.asarray(read_reconstruction(out)["reconstruction"])


@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")  # few ACS lines
def test_knees_killed_while_training(tmp_path: Path) -> None:
    root = write_knees(tmp_path / "knee")
    arguments = overrides("fastmri_knee", root, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED_IN_TRAINING, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=180)
    assert done.returncode == -signal.SIGKILL, done.stderr
    prepared = {p: p.stat().st_mtime_ns for part in ("train", "val") for p in volumes(tmp_path, part)}
    assert len(prepared) == 5
    prior = train(compose(arguments))
    steps = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.csv") if "train/loss" in row]
    assert len(steps) == 2 and steps[1] == steps[0] + 1
    assert {p: p.stat().st_mtime_ns for p in prepared} == prepared
    card = load_prior(prior).metadata
    assert card["steps"] == 2 and card["data"]["set"] == "fastmri_knee" and not card["simulated"]
    assert card["data"]["volumes"] == 4 and card["data"]["held_out_volumes"] == 1
    assert str(tmp_path) not in (prior / "prior.json").read_text()
    image = reconstruct(root / "multicoil_test" / "file1002000.h5", prior, tmp_path / "recon.h5")
    assert image.shape == (2, 32, 32) and np.isfinite(image).all() and image.max() > 0


@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")
def test_brains_interrupted_while_preparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_brains(tmp_path / "brain")
    arguments = [*overrides("fastmri_brain", root, tmp_path), "data.acquisitions=[T1,AXT2]", "data.settings.calib=16"]
    write, written = files.write_prepared, []

    def interrupted(path: Path, scan: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, scan)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_prepared", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(compose(arguments))
    before = {p: p.stat().st_mtime_ns for p in volumes(tmp_path, "train")}
    assert len(before) == 2 and not (tmp_path / "run" / "prior").exists()
    prior = train(compose(arguments))
    assert {p: p.stat().st_mtime_ns for p in before} == before
    found = [read_prepared(p) for p in volumes(tmp_path, "train")]
    assert sorted(s.acquisition for s in found) == ["AXT1POST", "AXT1PRE", "AXT2"]
    assert all(s.acquired_extent == ((0, 48), (4, 37)) and s.preparation["calib"] == 16 for s in found)
    assert {s.kspace.shape[1] for s in found} == {3, 4}
    (scan,) = list_volumes(root / "multicoil_test")
    image = reconstruct(scan, prior, tmp_path / "recon.h5")
    assert image.shape == (2, 24, 24) and np.isfinite(image).all() and image.max() > 0
