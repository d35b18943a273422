"""Every configuration file makes what it names; mistakes on the command line are one line with the nearest match."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from ambient_mri import train as train_module
from ambient_mri._checks import AmbientMRIError
from ambient_mri.corruption import Undersampling
from ambient_mri.data.augment import Augmentation
from ambient_mri.masks import SamplingLaw
from ambient_mri.prior import build_model
from ambient_mri.sampling import SAMPLERS
from ambient_mri.train import compose, config_dir, main
from ambient_mri.training.module import TrainingModule
from ambient_mri.training.natural import ImageFolder
from ambient_mri.training.rounds import expectation_maximisation
from ambient_mri.training.run import train
from ambient_mri.training.setup import build
from ambient_mri.training.simulated import ImageFiles, Phantoms
from ambient_mri.training.sources import ScanFolder

ROOT = Path(__file__).resolve().parents[1]


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (ROOT / "configs" / group).glob("*.yaml"))


def law_of(cfg: DictConfig) -> SamplingLaw:
    return build(cfg.corruption.law)


def network_of(cfg: DictConfig, kind: str = "ambient") -> Any:
    return build_model({"kind": kind, "network": OmegaConf.to_container(cfg.network), "sd": 0.3})


def test_the_default_runs_anywhere() -> None:
    cfg = compose()
    assert cfg.data.name == "phantom" and cfg.trainer.accelerator == "cpu" and cfg.resume
    assert OmegaConf.missing_keys(cfg) == set()


KSPACE = [n for n in options("corruption") if "backend" in compose([f"corruption={n}"]).corruption]


@pytest.mark.parametrize("name", KSPACE)
@pytest.mark.parametrize("backend", ["torch", "sigpy"])
def test_corruption(name: str, backend: str) -> None:
    cfg = compose([f"corruption={name}", f"corruption.backend={backend}"])
    law = compose().corruption.law if name == "observed" else cfg.corruption.law
    corruption = build(cfg.corruption, law=build(law))
    assert isinstance(corruption, Undersampling) and corruption.backend == backend


@pytest.mark.parametrize("name", options("objective"))
def test_objective(name: str) -> None:
    cfg = compose([f"objective={name}"])
    given = {"corruption": build(cfg.corruption)} if "corruption" in cfg.objective else {}
    objective = build(cfg.objective, **given)
    feedforward = name.startswith("ssdu")
    assert objective.kind == ("ambient" if name.startswith("ambient") else "feedforward" if feedforward else "clean")
    assert isinstance(objective, get_class(cfg.objective._target_))


@pytest.mark.parametrize(
    ("name", "millions"), [("unet", (3.0, 3.6)), ("unet_small", (0.4, 0.8)), ("unet_large", (10, 20))]
)
def test_network(name: str, millions: tuple[float, float]) -> None:
    assert name in options("network")
    for kind in ("ambient", "clean"):
        count = sum(p.numel() for p in network_of(compose([f"network={name}"]), kind).parameters()) / 1e6
        assert millions[0] < count < millions[1]


@pytest.mark.parametrize("name", options("data"))
def test_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AMBIENT_MRI_DATA", "FASTMRI_KNEE_ROOT", "FASTMRI_BRAIN_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    cfg = compose([f"data={name}"])
    source = build({k: v for k, v in cfg.data.items() if k != "references"})
    assert isinstance(source, Phantoms | ImageFiles | ScanFolder | ImageFolder) and source.name == name
    if isinstance(source, ImageFolder):
        return  # tests/training/test_natural.py
    if not isinstance(source, Phantoms):
        with pytest.raises(AmbientMRIError, match=f"data={name} needs .* data={name} data.root=/path/to/"):
            source.prepare(law_of(cfg))


def test_data_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMRI_KNEE_ROOT", "/data/knee")
    assert compose(["data=fastmri_knee"]).data.root == "/data/knee"


@pytest.mark.parametrize("name", options("sampler"))
def test_sampler(name: str) -> None:
    cfg = compose([f"+sampler={name}"])
    assert type(build(cfg.sampler)) is SAMPLERS[name]


@pytest.mark.parametrize("name", options("trainer"))
def test_trainer(name: str) -> None:
    cfg = compose([f"trainer={name}"])
    settings = {**OmegaConf.to_container(cfg.trainer), "accelerator": "cpu", "devices": 1, "logger": False}
    trainer = build(settings, enable_checkpointing=False, enable_progress_bar=False)
    assert trainer.max_steps == cfg.trainer.max_steps and trainer.gradient_clip_val == 1.0
    assert cfg.trainer.accelerator == ("cpu" if name == "cpu" else "gpu")
    if name in ("ddp", "slurm"):
        assert build(cfg.trainer.strategy)._timeout == timedelta(days=1)
    else:
        assert cfg.trainer.strategy == "auto"


@pytest.mark.parametrize("name", options("experiment"))
def test_experiment(name: str) -> None:
    cfg = compose([f"experiment={name}"])
    assert cfg.run_dir == f"runs/{name}"
    assert "law" not in cfg.corruption or isinstance(law_of(cfg), SamplingLaw)
    network_of(cfg)


def test_the_rest_of_the_configuration() -> None:
    cfg = compose()
    assert isinstance(build(cfg.augmentation), Augmentation)
    corruption = build(cfg.corruption)
    module = TrainingModule(network_of(cfg), build(cfg.objective, corruption=corruption), max_steps=10, **cfg.training)
    assert module.betas == (0.9, 0.95)


def test_a_network_brings_its_learning_rate_and_an_experiment_or_the_user_may_change_it() -> None:
    """What one network learns fastest at makes another diverge."""
    rates = {name: compose([f"network={name}"]).training.lr for name in options("network")}
    assert rates.pop("unet_mp") == rates.pop("unet_complex_mp") == 2e-2 == compose().training.lr
    assert set(rates.values()) == {3e-4}
    assert compose(["experiment=cifar10_denoising"]).training.lr == 5e-4
    assert compose(["experiment=cifar10_denoising", "network=unet_mp", "training.lr=0.01"]).training.lr == 0.01


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("traning.lr=1", r"unknown key 'traning\.lr'\. Did you mean 'training\.lr'\?"),
        ("training.lrr=1", r"unknown key 'training\.lrr'\. Did you mean 'training\.lr'\?"),
        ("max_steps=10", r"unknown key 'max_steps'\. Did you mean 'trainer\.max_steps'\?"),
        ("data=fastmri_nee", r"data=fastmri_nee is unknown; data must be one of .*Did you mean 'fastmri_knee'\?"),
        ("objective=ambiant", "Did you mean 'ambient'"),
        ("experiment=nothing", "experiment=nothing is unknown; experiment must be one of brain_R4_ambient"),
        ("training.lr=[1", r"training\.lr=\[1"),
        (
            "trainer.max_steps=abc",
            r"trainer\.max_steps must be a whole number; got 'abc'\. Write trainer\.max_steps=1000",
        ),
        (
            "trainer.max_steps=2e4",
            r"trainer\.max_steps must be a whole number; got 20000\.0\. Write .*max_steps=20000,",
        ),
        ("trainer.max_steps=true", r"trainer\.max_steps must be a whole number; got True"),
        ("training.lr=fast", r"training\.lr must be a number; got 'fast'\. Write training\.lr=0\.02"),
        ("data.limit=few", r"unknown key 'data\.limit'"),
        ("resume=perhaps", r"resume must be true or false; got 'perhaps'\. Write resume=true"),
    ],
)
def test_a_mistake_is_one_line(override: str, words: str) -> None:
    with pytest.raises(AmbientMRIError, match=words) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("corruption.law.acceleration=0.5", "acceleration must be at least 1"),
        ("corruption.keep=[0.5,1.0]", "keep must satisfy"),
        ("corruption.backend=jax", "backend must be one of 'torch', 'sigpy'"),
        ("corruption.law.acceleration=two", r"corruption\.law\.acceleration must be a number; got 'two'"),
    ],
)
def test_a_wrong_value_is_one_line(override: str, words: str) -> None:
    with pytest.raises(AmbientMRIError, match=words) as caught:
        build(compose([override]).corruption)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "trainer.devices=auto",
        "corruption.law.acceleration=2.5",
        "data.seed=3",
        "training.lr=1",
        "model.sd=0.3",
        "init=x",
    ],
)
def test_a_right_value_passes(override: str) -> None:
    key, value = override.split("=")
    assert str(OmegaConf.select(compose([override]), key)) == value


def test_the_kind_of_a_value_follows_the_chosen_files() -> None:
    """``em.rounds`` stands in objective=em alone, and loader.batch_size in an experiment."""
    with pytest.raises(AmbientMRIError, match=r"em\.rounds must be a whole number; got 'two'\. Write em\.rounds=2"):
        compose(["objective=em", "em.rounds=two"])
    with pytest.raises(AmbientMRIError, match=r"a whole number; got 1\.5\. Write loader.batch_size=8"):
        compose(["experiment=brain_R4_cpu", "loader.batch_size=1.5"])


@pytest.mark.parametrize(
    ("cuda", "words"),
    [
        (None, r"accelerator=gpu needs a GPU; this PyTorch was built without CUDA: install .*, or choose trainer=cpu"),
        ("12.8", r"accelerator=gpu needs a GPU; PyTorch finds none: see that `nvidia-smi` .*, or choose trainer=cpu"),
    ],
)
@pytest.mark.parametrize("run", [train, expectation_maximisation])
def test_a_gpu_that_is_not_there_is_one_line(
    cuda: str | None, words: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", cuda)
    objective = "em" if run is expectation_maximisation else "ambient"
    with pytest.raises(AmbientMRIError, match=words) as caught:
        run(compose(["trainer=gpu", f"objective={objective}", "init=x", f"run_dir={tmp_path / 'r'}"]))
    assert "\n" not in str(caught.value) and not (tmp_path / "r").exists()


def test_more_gpus_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(AmbientMRIError, match=r"devices=4, but PyTorch sees 2 GPU\(s\): choose trainer\.devices=2"):
        train(compose(["trainer=ddp", "trainer.devices=4", f"run_dir={tmp_path / 'r'}"]))


def test_a_folder_of_the_user_is_searched_too(tmp_path: Path) -> None:
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "mine.yaml").write_text("name: UNet\nchannels: 16\n")
    cfg = compose(["network=mine"], extra_dir=tmp_path)
    assert cfg.network.channels == 16 and cfg.training.lr == 3e-4  # which a file without a rate leaves alone
    assert compose(["network=mine", "training.lr=1e-3"], extra_dir=tmp_path).training.lr == 1e-3
    with pytest.raises(AmbientMRIError, match="network=mine is unknown"):
        compose(["network=mine"])


def test_main_ends_with_one_line_and_status_two(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "data=nothing"])
    with pytest.raises(SystemExit, match="2"):
        main()
    printed = capsys.readouterr()
    assert printed.err.startswith("error: data=nothing is unknown") and printed.err.count("\n") == 1


def test_an_incomplete_installation_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config_dir() == ROOT / "configs"
    monkeypatch.setattr(train_module, "__file__", str(tmp_path / "ambient_mri" / "train.py"))
    with pytest.raises(AmbientMRIError, match="no configuration found in"):
        config_dir()
