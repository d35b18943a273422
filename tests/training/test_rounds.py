"""Expectation-maximisation from the command's configuration: what it leaves behind, refuses, and survives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.datasets import read_images
from ambient_mri.prior import load_prior
from ambient_mri.train import compose
from ambient_mri.training import em
from ambient_mri.training.module import TrainingModule
from ambient_mri.training.rounds import expectation_maximisation, stop_reason
from tests.training.test_run import arguments

EM = (
    "objective=em", "em.steps=3", "em.assess.slices=2", "em.assess.samples=2", "em.batch_size=3",
    "trainer.val_check_interval=4", "checkpoint_every=2", "em.min_improvement=null",
)  # fmt: skip


def rounds(scans: Path, run_dir: Path, *overrides: str) -> Path:
    return expectation_maximisation(compose(arguments(scans, run_dir, *EM, *overrides)))


def images(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: read_images(p).images for p in sorted((folder / "reconstructions").glob("*.h5"))}


@pytest.fixture(scope="module")
def straight(scan_folder: Path, ambient_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("straight")
    rounds(scan_folder, run_dir, f"init={ambient_run}")
    return run_dir


def test_two_rounds_leave_everything_behind(straight: Path) -> None:
    report = {k: json.loads((straight / f"round_{k}.json").read_text()) for k in range(3)}
    assert report[0]["kind"] == "ambient" and report[0]["sampler"] == "one_step" and report[0]["sample_std"] is None
    for k in (1, 2):
        assert report[k]["kind"] == "clean" and report[k]["samples"] == 2 and report[k]["slices"] == 2
        assert 0 < report[k]["held_out_error"] < 2 and report[k]["data_residual"] > 0 and report[k]["sample_std"] > 0
        assert len(report[k]["power"]["mean"]) == 12 and len(report[k]["error_curve"]["sigma"]) > 2
        assert report[k]["with_references"] is None and (straight / f"round_{k}.png").stat().st_size > 1000
        assert set(images(straight / f"round_{k}")) == {f"v{i}.h5" for i in range(6)}
        assert not list((straight / f"round_{k}").glob("**/*.npy")), "finished slices are put together"
    best = min((1, 2), key=lambda k: report[k]["held_out_error"])
    prior = load_prior(straight / "prior")
    assert prior.kind == "clean" and prior.metadata["em_round"] == best
    assert prior.model.sd == load_prior(straight / "round_1" / "prior").model.sd
    chosen = load_file(straight / f"round_{best}" / "prior" / "weights.safetensors")
    exported = load_file(straight / "prior" / "weights.safetensors")
    assert all(bool((chosen[k] == exported[k]).all()) for k in chosen)


def test_the_second_round_reconstructs_under_the_first_rounds_prior(straight: Path) -> None:
    made_by = [json.loads((straight / f"round_{k}/reconstructions/made_by.json").read_text()) for k in (1, 2)]
    assert made_by[0]["method"] == "one_step" and made_by[1]["method"] == "split_gibbs"
    assert "error" not in made_by[0] and made_by[1]["error"] == "local"
    first, second = images(straight / "round_1"), images(straight / "round_2")
    assert all(not np.allclose(first[k], second[k], rtol=1e-2) for k in first)


def test_samples_without_their_last_noise(scan_folder: Path, straight: Path, tmp_path: Path) -> None:
    first = straight / "round_1" / "prior"
    rounds(scan_folder, tmp_path, f"init={first}", "em.rounds=1", "em.final=mean")
    made_by = json.loads((tmp_path / "round_1" / "reconstructions" / "made_by.json").read_text())
    assert made_by["final"] == "mean" and made_by["method"] == "split_gibbs"
    noisy, quiet = images(straight / "round_2"), images(tmp_path / "round_1")
    # The same streams: what differs is the noise of the last level.
    assert all(0 < np.linalg.norm(quiet[k] - noisy[k]) < 0.3 * np.linalg.norm(noisy[k]) for k in noisy)
    with pytest.raises(AmbientMRIError, match="final must be one of 'sample', 'mean'"):
        rounds(scan_folder, tmp_path / "other", f"init={first}", "em.rounds=1", "em.final=median")


def test_the_last_round_may_learn_from_means_of_samples(scan_folder: Path, ambient_run: Path, tmp_path: Path) -> None:
    rounds(scan_folder, tmp_path / "run", f"init={ambient_run}", "em.average=3")
    made_by = [json.loads((tmp_path / f"run/round_{k}/reconstructions/made_by.json").read_text()) for k in (1, 2)]
    assert "average" not in made_by[0] and made_by[1]["average"] == 3
    with pytest.raises(AmbientMRIError, match=r"round 2 of .* learned from means .* Leave em\.rounds at 2"):
        rounds(scan_folder, tmp_path / "run", f"init={ambient_run}", "em.average=3", "em.rounds=3")
    with pytest.raises(AmbientMRIError, match=r"em\.average must be at least 1; got 0"):
        rounds(scan_folder, tmp_path / "other", f"init={ambient_run}", "em.average=0")
    with pytest.raises(AmbientMRIError, match="the first round has none"):
        rounds(scan_folder, tmp_path / "single", f"init={ambient_run}", "em.average=3", "em.rounds=1")
    with h5py.File(next((tmp_path / "run/round_2/reconstructions").glob("*.h5"))) as file:
        assert str(file.attrs["made_by"]).endswith("mean of 3")


KILLED = """
import os, signal
from ambient_mri.training import estep
from ambient_mri.training.module import TrainingModule
def counted(name, function):
    calls = []
    def call(*arguments):
        calls.append(name)
        with open(os.environ["CALLS"], "a") as file:
            file.write(name)
        if name == os.environ["KILLED_IN"] and len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call
estep.reconstruct_rows = counted("E", estep.reconstruct_rows)
TrainingModule.training_step = counted("M", TrainingModule.training_step)
from ambient_mri.train import main
main()
"""


def test_sigkill_in_the_e_step_and_in_the_m_step_changes_nothing(
    scan_folder: Path, ambient_run: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 inside the second volume, then at the last step: a batch of slices and the steps since a checkpoint are
    done again, and nothing else; the same images and weights come out.
    """
    run_dir, calls = tmp_path / "run", tmp_path / "calls"
    overrides = arguments(scan_folder, run_dir, *EM, f"init={ambient_run}", "em.rounds=1")

    def killed_in(step: str) -> None:
        # As many threads as here: equal to the last bit is equal in the order of sums, too.
        here = {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        environment = {**os.environ, **here, "CALLS": str(calls), "KILLED_IN": step}
        command = [sys.executable, "-c", KILLED, *overrides]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]

    killed_in("E")
    folder = run_dir / "round_1" / "reconstructions"
    assert [p.name for p in folder.glob("*.h5")] == ["v0.h5"] and len(list(folder.glob("parts/v1/*.npy"))) == 3
    killed_in("M")
    # Two batches for each of six volumes; the three that were whole when it was killed are not made again.
    assert calls.read_text() == "EEEE" + "E" * (12 - 3) + "MMMM"
    assert [p.name for p in (run_dir / "round_1" / "checkpoints").glob("step*")] == ["step00000002.ckpt"]
    assert not (run_dir / "round_1.json").is_file()
    steps, step = [], TrainingModule.training_step
    monkeypatch.setattr(TrainingModule, "training_step", lambda *a: steps.append(a[2]) or step(*a))
    expectation_maximisation(compose(overrides))
    assert len(steps) == 2, "the steps after the last checkpoint"
    wanted, found = images(straight / "round_1"), images(run_dir / "round_1")
    assert all(np.array_equal(wanted[k], found[k]) for k in wanted)
    first, second = (load_file(p / "round_1" / "prior" / "weights.safetensors") for p in (straight, run_dir))
    assert max(float((first[k] - second[k]).abs().max()) for k in first) < 1e-6


def test_finished_rounds_are_left_alone_and_more_can_follow(
    scan_folder: Path, ambient_run: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(straight, tmp_path / "r")
    monkeypatch.setattr("ambient_mri.training.rounds.train", lambda *_: pytest.fail("a finished round was run again"))
    rounds(scan_folder, tmp_path / "r", f"init={ambient_run}")
    with pytest.raises(AmbientMRIError, match=r"holds another run: it differs in em\.steps"):
        rounds(scan_folder, tmp_path / "r", f"init={ambient_run}", "em.steps=4")
    with pytest.raises(AmbientMRIError, match=r"holds another run: it differs in init"):
        rounds(scan_folder, tmp_path / "r", f"init={ambient_run / 'prior'}")
    with pytest.raises(pytest.fail.Exception, match="run again"):
        rounds(scan_folder, tmp_path / "r", f"init={ambient_run}", "em.rounds=3")


def test_without_a_prior_to_begin_with(scan_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AmbientMRIError, match="objective=em begins with a prior: give init=RUN"):
        rounds(scan_folder, tmp_path)


def test_scans_of_one_name_in_both_parts(scan_folder: Path, ambient_run: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(scan_folder / part, tmp_path / part)
    (tmp_path / "val" / "v5.h5").rename(tmp_path / "val" / "v0.h5")
    with pytest.raises(AmbientMRIError, match="have the file names of training scans, such as v0"):
        rounds(tmp_path, tmp_path / "run", f"init={ambient_run}")


def test_images_of_another_e_step_are_not_mixed(tmp_path: Path) -> None:
    em.claim(tmp_path, {"method": "one_step", "weights": "a"})
    em.claim(tmp_path, {"method": "one_step", "weights": "a"})
    with pytest.raises(AmbientMRIError, match="holds images of another E-step: it differs in weights"):
        em.claim(tmp_path, {"method": "one_step", "weights": "b"})


def test_wavelet_reconstructions_as_the_e_step(scan_folder: Path, tmp_path: Path) -> None:
    settings = [o for o in EM if not o.startswith("objective")]
    overrides = arguments(scan_folder, tmp_path, "objective=wavelet_edm", *settings)
    prior = load_prior(expectation_maximisation(compose(overrides)))
    assert prior.kind == "clean" and prior.metadata["em_round"] == 1
    made_by = json.loads((tmp_path / "round_1" / "reconstructions" / "made_by.json").read_text())
    assert made_by == {"method": "l1_wavelet"}
    recorded, truth = images(tmp_path / "round_1")["v0.h5"], read_images(scan_folder / "references" / "v0.h5").images
    assert np.linalg.norm(recorded - truth) < 0.2 * np.linalg.norm(truth)
    assert not (tmp_path / "round_0.json").is_file(), "there is no prior to begin with"


@pytest.mark.parametrize(
    ("errors", "share", "stops"),
    [([0.3], 0.0, False), ([0.3, 0.29], 0.0, False), ([0.3, 0.29], 0.05, True), ([0.3, 0.3], 0.0, True),
     ([0.3, 0.31], 0.0, True), ([0.3, 0.31], None, False), ([0.3, 0.2, 0.21], 0.0, True)],
)  # fmt: skip
def test_the_rounds_end_when_held_out_lines_no_longer_improve(
    errors: list[float], share: float | None, stops: bool
) -> None:
    assert bool(stop_reason(errors, share)) is stops
    assert not stops or "held-out data went from 0." in stop_reason(errors, share)
