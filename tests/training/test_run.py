"""Whole runs, tiny: what they leave behind, what they refuse, and that an interruption changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.datasets import ImageDataset
from ambient_mri.data.schema import write_prepared
from ambient_mri.denoiser import CleanDenoiser, ConditionalDenoiser
from ambient_mri.masks import RandomLines
from ambient_mri.prior import load_prior
from ambient_mri.train import compose
from ambient_mri.training.error_curve import error_curve
from ambient_mri.training.export import newest_checkpoint
from ambient_mri.training.loggers import read_metrics
from ambient_mri.training.run import IDENTITY, check_same_run, train, write_configuration
from tests.training.conftest import make_scan

TINY = (
    "network=unet_small", "network.channels=8", "network.multipliers=[1]", "model.precision=fp32",
    "corruption.law.acceleration=2", "corruption.law.acs_lines=4", "corruption.core=2",
    "loader.batch_size=4", "trainer.log_every_n_steps=1",
)  # fmt: skip


def run(scans: Path, run_dir: Path, *overrides: str) -> Path:
    """A run of a few steps on the prepared scans."""
    return train(compose(arguments(scans, run_dir, *overrides)))


def arguments(scans: Path, run_dir: Path, *overrides: str) -> list[str]:
    return ["data=prepared", f"data.root={scans}", f"run_dir={run_dir}", "trainer.max_steps=4", *TINY, *overrides]


def losses(run_dir: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run_dir / "metrics.csv") if "train/loss" in row]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "prior" / "weights.safetensors")


def test_an_ambient_run_leaves_everything_behind(scan_folder: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    folder = run(scan_folder, tmp_path / "r", "trainer.val_check_interval=2", "checkpoint_every=2")
    assert bool((torch.get_rng_state() == state).all()), "the global random state was touched"
    prior = load_prior(folder)
    assert isinstance(prior.model, ConditionalDenoiser) and prior.model.sd == pytest.approx(8**-0.5, rel=0.1)
    card = prior.metadata
    assert card["steps"] == 4 and card["images_seen"] == 16 and card["seed"] == 0
    assert card["sampling_law"] == {"law": "RandomLines", "acceleration": 2, "acs_lines": 4}
    assert card["data"]["volumes"] == 5 and not card["simulated"] and "torch" in card["versions"]
    assert str(scan_folder) not in json.dumps(card) and str(tmp_path) not in json.dumps(card)
    names = {p.name for p in (tmp_path / "r").iterdir()}
    assert {"config.yaml", "provenance.json", "scans.json", "metrics.csv", "checkpoints", "samples", "prior"} <= names
    assert [p.name for p in sorted((tmp_path / "r" / "samples").iterdir())] == ["step00000002.png", "step00000004.png"]
    rows = read_metrics(tmp_path / "r" / "metrics.csv")
    assert len(losses(tmp_path / "r")) == 4 and {"train/lr", "train/images_per_second"} <= rows[0].keys()
    assert "val/ambient_residual" in rows[1] and "val_loss" not in rows[1]


def test_a_supervised_run_needs_references_and_uses_them(scan_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AmbientMRIError, match="have no reference images"):
        run(scan_folder, tmp_path / "a", "objective=supervised")
    given = f"data.references={scan_folder / 'references'}"
    folder = run(scan_folder, tmp_path / "b", "objective=supervised", given, "trainer.val_check_interval=4")
    prior = load_prior(folder)
    assert isinstance(prior.model, CleanDenoiser) and prior.kind == "clean"
    assert prior.model.sd == pytest.approx(8**-0.5, rel=1e-3)
    assert len(prior.model.error_sigmas) > 2, "a clean prior carries its error curve"
    assert "val/clean_objective" in read_metrics(tmp_path / "b" / "metrics.csv")[-1]
    assert str(scan_folder) not in json.dumps(prior.metadata)


def test_the_exported_curve_is_that_of_the_network_as_it_is_used(scan_folder: Path, tmp_path: Path) -> None:
    """Without dropout; and every batch that a step gathers is counted."""
    overrides = ["objective=supervised", f"data.references={scan_folder / 'references'}", "network.dropout=0.5"]
    overrides += ["trainer.val_check_interval=4", "trainer.accumulate_grad_batches=2"]
    prior = load_prior(run(scan_folder, tmp_path / "r", *overrides))
    held_out = [Path(p).name for p in json.loads((tmp_path / "r" / "scans.json").read_text())["val"]]
    assert isinstance(prior.model, CleanDenoiser) and held_out
    sigmas, errors = error_curve(prior.model, ImageDataset([scan_folder / "references" / name for name in held_out]))
    assert torch.allclose(sigmas, prior.model.error_sigmas) and torch.allclose(errors, prior.model.error_values)
    assert prior.metadata["steps"] == 4 and prior.metadata["images_seen"] == 32


def test_folders_of_a_run_may_be_spelled_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create({"data": {"references": "runs/a"}, "init": "runs/b/prior"})
    write_configuration(cfg, tmp_path / "config.yaml")
    whole = {"data": {"references": str(tmp_path / "runs/a")}, "init": str(tmp_path / "runs" / ".." / "runs/b/prior")}
    check_same_run(tmp_path, OmegaConf.create(whole), (*IDENTITY, "init"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    check_same_run(tmp_path, cfg, (*IDENTITY, "init"))  # the very words, from another folder
    monkeypatch.chdir(tmp_path)
    for key, value in (("init", "runs/c/prior"), ("data.references", "runs/b")):
        other = OmegaConf.create(whole)
        OmegaConf.update(other, key, value)
        with pytest.raises(AmbientMRIError, match=f"differs in {key}"):
            check_same_run(tmp_path, other, (*IDENTITY, "init"))


def test_warm_start_begins_with_the_weights_of_another_run(scan_folder: Path, tmp_path: Path) -> None:
    run(scan_folder, tmp_path / "a")
    overrides = [f"init={tmp_path / 'a'}", "training.lr=0.0"]
    run(scan_folder, tmp_path / "b", *overrides)
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(bool((first[k] == second[k]).all()) for k in first)


def test_another_law_than_the_scans_is_refused(scan_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AmbientMRIError, match=r"undersampled by \{.*RandomLines.*but corruption\.law is .*Independent"):
        run(scan_folder, tmp_path, "corruption=independent_lines")


def test_the_law_can_be_estimated_from_the_masks(tmp_path: Path) -> None:
    for i in range(16):
        write_prepared(tmp_path / f"s{i:02d}.h5", make_scan(f"s{i}", slices=1, size=(16, 20))[0])
    tiny = [o for o in TINY if not o.startswith("corruption.law")]
    overrides = ["data=prepared", f"data.root={tmp_path}", f"run_dir={tmp_path / 'r'}", "trainer.max_steps=1", *tiny]
    prior = load_prior(train(compose([*overrides, "corruption=observed"])))
    assert prior.metadata["sampling_law"] == {"law": "ObservedMasks", "scans": 15, "acceleration": pytest.approx(2.0)}


def test_one_mask_for_every_scan_is_no_random_law(tmp_path: Path) -> None:
    for i in range(16):
        scan = make_scan("the same", slices=1, size=(16, 20))[0]
        write_prepared(tmp_path / f"s{i:02d}.h5", replace(scan, source=f"s{i}", sampling_law={}))
    overrides = ["data=prepared", f"data.root={tmp_path}", f"run_dir={tmp_path / 'r'}", *TINY]
    with pytest.raises(AmbientMRIError, match=r"all of \d+ volumes have the same mask"):
        train(compose(overrides))


def test_an_unlearnable_law_fails_at_the_start(tmp_path: Path) -> None:
    write_prepared(tmp_path / "hole.h5", make_scan("hole", law=WithoutCentre(2.0, 0))[0])
    cfg = compose(arguments(tmp_path, tmp_path / "run", "corruption.core=0", "corruption.law.acs_lines=0"))
    cfg.corruption.law._target_ = "tests.training.test_run.WithoutCentre"
    with pytest.raises(AmbientMRIError, match=r"never samples k-space lines \[12, 13\], inside the sampled region"):
        train(cfg)


@pytest.mark.parametrize("every", [4, 100])
def test_a_finished_run_is_left_alone(every: int, scan_folder: Path, tmp_path: Path) -> None:
    run(scan_folder, tmp_path / "r", f"checkpoint_every={every}")
    before = weights(tmp_path / "r")
    run(scan_folder, tmp_path / "r", f"checkpoint_every={every}")
    after = weights(tmp_path / "r")
    assert all(bool((before[k] == after[k]).all()) for k in before)
    assert len(losses(tmp_path / "r")) == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.lr=1e-5", r"holds another run: it differs in training\.lr"),
        ("corruption.core=3", r"holds another run: it differs in corruption\.core"),
        ("corruption.law=observed", r"holds another run: it differs in corruption\.law,"),
        ("augmentation=null", r"holds another run: it differs in augmentation"),
        ("loader.batch_size=2", r"holds another run: it differs in loader\.batch_size"),
        ("ema_half_life=0.1", r"holds another run: it differs in ema_half_life"),
        ("trainer.gradient_clip_val=2.0", r"holds another run: it differs in trainer\.gradient_clip_val"),
        ("resume=false", "holds a run already"),
    ],
)
def test_a_run_folder_keeps_its_run(override: str, words: str, scan_folder: Path, tmp_path: Path) -> None:
    run(scan_folder, tmp_path, "trainer.max_steps=2", "checkpoint_every=1")
    with pytest.raises(AmbientMRIError, match=words):
        run(scan_folder, tmp_path, override)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.precision=bf16-mixed", r"trainer\.precision must be 32-true; got bf16-mixed\. .* model\.precision"),
        ("training.lr=-1.0", r"training\.lr must be a number, not negative; got -1\.0"),
        ("loader.batch_size=0", r"loader\.batch_size must be a whole number of at least 1; got 0"),
        ("trainer.log_every_n_steps=0", r"trainer\.log_every_n_steps must be a whole number"),
        ("trainer.val_check_interval=0.5", r"trainer\.val_check_interval must be a whole number .*; got 0\.5"),
        ("ema_half_life=-1", r"ema_half_life must be a number, not negative; got -1"),
    ],
)
def test_impossible_numbers_are_refused_before_any_data_are_read(override: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(AmbientMRIError, match=words):
        run(tmp_path / "nowhere", tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


def folder_of_scans(folder: Path, numbers: range) -> Path:
    folder.mkdir(exist_ok=True)
    for i in numbers:
        write_prepared(folder / f"s{i:02d}.h5", make_scan(f"s{i}", slices=1, size=(16, 20))[0])
    return folder


def test_a_run_that_has_begun_lacks_none_of_its_scans(tmp_path: Path) -> None:
    """A new list would hold out subjects that it was trained on."""
    scans = folder_of_scans(tmp_path / "scans", range(12))
    run(scans, tmp_path / "run", "trainer.max_steps=2", "checkpoint_every=1")
    gone = scans / "s05.h5"
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(AmbientMRIError, match=r"1 of the scans that .* are gone, the first is .*s05\.h5"):
        run(scans, tmp_path / "run")
    gone.write_bytes(content)
    run(scans, tmp_path / "run", "checkpoint_every=1")
    assert len(losses(tmp_path / "run")) == 4


def test_simulated_scans_that_are_gone_are_made_again(tmp_path: Path) -> None:
    overrides = [f"run_dir={tmp_path / 'run'}", f"data.cache={tmp_path / 'cache'}", "data.size=32", *TINY]
    overrides += ["data.train_volumes=2", "data.val_volumes=1", "data.slices=2", "checkpoint_every=1"]
    train(compose([*overrides, "trainer.max_steps=1"]))
    (gone,) = tmp_path.glob("cache/*/scans/train_00001.h5")
    gone.unlink()
    train(compose([*overrides, "trainer.max_steps=2"]))
    assert gone.is_file() and len(losses(tmp_path / "run")) == 2


def test_a_start_that_was_killed_early_takes_the_scans_that_are_there_now(tmp_path: Path) -> None:
    scans = folder_of_scans(tmp_path / "scans", range(12))
    with pytest.raises(AmbientMRIError, match="no prior '/nowhere'"):
        run(scans, tmp_path / "run", "init=/nowhere")
    folder_of_scans(scans, range(12, 20))
    run(scans, tmp_path / "run", "trainer.max_steps=1")
    recorded = json.loads((tmp_path / "run" / "scans.json").read_text())
    assert len(recorded["train"]) == 18 and len(recorded["val"]) == 2


def test_a_checkpoint_that_is_cut_short_is_passed_over(scan_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    run(scan_folder, tmp_path / "run", "trainer.max_steps=2", "checkpoint_every=1")
    run(scan_folder, tmp_path / "run", "trainer.max_steps=3", "checkpoint_every=1")
    before, last = sorted(folder.glob("step*.ckpt"))  # a run that goes on leaves the checkpoint that it began with
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    assert newest_checkpoint(folder) == before
    run(scan_folder, tmp_path / "run", "checkpoint_every=1")
    assert load_prior(tmp_path / "run" / "prior").metadata["steps"] == 4
    for path in folder.glob("*.ckpt"):
        path.write_bytes(b"PK\x03\x04")
    with pytest.raises(AmbientMRIError, match=r"no checkpoint in .* is whole: delete the folder"):
        run(scan_folder, tmp_path / "run")


def test_a_run_keeps_its_data_and_a_failed_start_keeps_nothing(scan_folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(scan_folder, tmp_path / "run", "trainer.max_steps=2", "checkpoint_every=1")
    with pytest.raises(AmbientMRIError, match=r"was begun with data\.root=.*; now it is .*Choose another run_dir"):
        run(elsewhere, tmp_path / "run")
    with pytest.raises(AmbientMRIError, match=r"no \*\.h5, \*\.npz, \*\.npy file in .*, which holds nothing"):
        run(elsewhere, tmp_path / "failed")
    # A start that fails after its scans were recorded, then one on other scans.
    other = tmp_path / "other"
    other.mkdir()
    for file in sorted((scan_folder / "train").glob("*.h5"))[:2]:
        (other / file.name).write_bytes(file.read_bytes())
    with pytest.raises(AmbientMRIError, match="no prior '/nowhere'"):
        run(scan_folder, tmp_path / "failed", "init=/nowhere")
    run(other, tmp_path / "failed", "trainer.max_steps=1")
    recorded = json.loads((tmp_path / "failed" / "scans.json").read_text())
    assert all("other" in str(path) for path in recorded["train"])


KILLED = """
import os, signal, sys
from ambient_mri.training.module import TrainingModule
step = TrainingModule.training_step
def killed(self, batch, batch_idx):
    if "torchvision" in sys.modules:
        sys.exit("training imports torchvision")
    if batch_idx == 18:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
TrainingModule.training_step = killed
from ambient_mri.train import main
main()
"""


def test_a_killed_run_goes_on_as_if_nothing_had_happened(scan_folder: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of an epoch, three steps after a checkpoint: the same losses and weights, bit for bit."""
    twelve = ["trainer.max_steps=12", "checkpoint_every=6", "trainer.val_check_interval=8", "loader.batch_size=3"]
    twelve += ["trainer.accumulate_grad_batches=2"]
    run(scan_folder, tmp_path / "straight", *twelve)
    command = [sys.executable, "-c", KILLED, *arguments(scan_folder, tmp_path / "killed", *twelve)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [p.name for p in (tmp_path / "killed" / "checkpoints").glob("step*")] == ["step00000006.ckpt"]
    run(scan_folder, tmp_path / "killed", *twelve)
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "straight"), abs=1e-6)
    assert len(losses(tmp_path / "killed")) == 12
    straight, killed = weights(tmp_path / "straight"), weights(tmp_path / "killed")
    assert max(float((straight[k] - killed[k]).abs().max()) for k in straight) < 1e-6


class WithoutCentre(RandomLines):
    """A law that never samples the two central lines."""

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
        mask = super().draw(shape, generator)
        mask[..., shape[1] // 2 : shape[1] // 2 + 2] = False
        return mask

    def inclusion_probability(self, shape: tuple[int, int]) -> torch.Tensor:
        found = super().inclusion_probability(shape)
        found[..., shape[1] // 2 : shape[1] // 2 + 2] = 0
        return found
