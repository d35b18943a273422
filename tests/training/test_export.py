"""From weights to a prior folder and back, and what a warm start takes over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ambient_mri._checks import PriorError
from ambient_mri.prior import build_model, load_prior
from ambient_mri.training.export import export_checkpoint, export_prior, newest_checkpoint, warm_start

NETWORK = {"name": "UNet", "channels": 8, "multipliers": [1], "fold": 2}
AMBIENT = {"kind": "ambient", "network": NETWORK, "sd": 0.3, "precision": "fp32"}
CLEAN = {"kind": "clean", "network": NETWORK, "sd": 0.3, "precision": "fp32"}


def random_model(architecture: dict) -> torch.nn.Module:
    model = build_model(architecture)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(bool((left[k] == right[k]).all()) for k in left)


def test_a_prior_goes_out_and_comes_back(tmp_path: Path) -> None:
    model = random_model(AMBIENT)
    folder = export_prior(model, AMBIENT, {"licence": "none", "steps": 3}, tmp_path / "prior", "mine")
    prior = load_prior(folder)
    assert same(prior.model, model) and prior.name == "mine" and prior.kind == "ambient"
    assert prior.metadata["licence"] == "none" and prior.metadata["steps"] == 3


def test_a_checkpoint_is_exported_with_its_averaged_weights(tmp_path: Path) -> None:
    averaged, current = random_model(AMBIENT), random_model(AMBIENT)
    weights = {
        "state_dict": {f"model.{k}": v for k, v in averaged.state_dict().items()},
        "current_model_state": {f"model.{k}": v for k, v in current.state_dict().items()},
    }
    torch.save(weights, tmp_path / "step00000007.ckpt")
    export_checkpoint(tmp_path / "step00000007.ckpt", AMBIENT, tmp_path / "prior", {})
    assert same(load_prior(tmp_path / "prior").model, averaged)
    other = {**AMBIENT, "network": {**NETWORK, "channels": 16}}
    with pytest.raises(PriorError, match="does not fit the architecture"):
        export_checkpoint(tmp_path / "step00000007.ckpt", other, tmp_path / "prior", {})


def test_newest_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing") is None
    for step in (90, 100, 20):
        torch.save({}, tmp_path / f"step{step:08d}.ckpt")
    torch.save({}, tmp_path / "last.ckpt")
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.name == "step00000100.ckpt"
    found.write_bytes(found.read_bytes()[:-40])
    before = newest_checkpoint(tmp_path)
    assert before is not None and before.name == "step00000090.ckpt"


@pytest.mark.parametrize("place", ["prior", "run", "checkpoint"])
def test_warm_start_of_a_clean_network_from_an_ambient_one(place: str, tmp_path: Path) -> None:
    ambient = random_model(AMBIENT)
    export_prior(ambient, AMBIENT, {}, tmp_path / "run" / "prior", "run")
    torch.save({"state_dict": {f"model.{k}": v for k, v in ambient.state_dict().items()}}, tmp_path / "a.ckpt")
    source = {"prior": tmp_path / "run" / "prior", "run": tmp_path / "run", "checkpoint": tmp_path / "a.ckpt"}[place]
    clean = build_model(CLEAN)
    said = warm_start(clean, source)
    assert same(clean, ambient) and "fresh" not in said


def test_warm_start_names_what_is_fresh(tmp_path: Path) -> None:
    export_prior(random_model(AMBIENT), AMBIENT, {}, tmp_path, "small")
    wide = build_model({**AMBIENT, "network": {**NETWORK, "multipliers": [1, 2]}})
    assert "fresh: network.down.1" in warm_start(wide, tmp_path)


def test_warm_start_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(PriorError, match="no prior 'nowhere'"):
        warm_start(build_model(AMBIENT), "nowhere")
    torch.save({"state_dict": {"model.other": torch.ones(1)}}, tmp_path / "a.ckpt")
    with pytest.raises(PriorError, match=r"nothing in .* fits the network"):
        warm_start(build_model(AMBIENT), tmp_path / "a.ckpt")
