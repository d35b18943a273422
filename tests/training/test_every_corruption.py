"""Every corruption of the configuration, by its name on the command line, trains two steps and leaves a prior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from ambient_mri.data.schema import write_prepared
from ambient_mri.denoiser import ConditionalDenoiser
from ambient_mri.masks import RandomLines
from ambient_mri.prior import load_prior
from ambient_mri.train import compose, config_dir
from ambient_mri.training.loggers import read_metrics
from ambient_mri.training.run import train
from tests.training.conftest import make_scan
from tests.training.test_corrupted_images import corrupted_file
from tests.training.test_natural import TINY

EVERY = sorted(p.stem for p in (config_dir() / "corruption").glob("*.yaml"))
KSPACE = [n for n in EVERY if "backend" in compose([f"corruption={n}"]).corruption]
# What a size of 32 asks of the settings, which are for whole scans and pictures.
FEW = ["corruption.law.acs_lines=4", "corruption.core=2"]
SMALL = {
    "poisson": FEW,
    "equispaced": [*FEW, "corruption.law.acceleration=2"],
    "independent_lines": FEW,
    "random_lines": FEW,
}
SMALL["projections"] = ["corruption.count=24"]


def train_two_steps(run_dir: Path, overrides: list[str]) -> dict[str, object]:
    """The card of what is left, once the two losses are known to be finite."""
    prior = load_prior(train(compose([*overrides, f"run_dir={run_dir}", *TINY])))
    losses = [row["train/loss"] for row in read_metrics(run_dir / "metrics.csv") if "train/loss" in row]
    assert isinstance(prior.model, ConditionalDenoiser) and len(losses) == 2 and np.isfinite(losses).all()
    return dict(prior.metadata["sampling_law"])


@pytest.mark.parametrize("name", KSPACE)
def test_kspace(name: str, tmp_path: Path) -> None:
    scans = ["data=phantom", "data.size=32", "data.train_volumes=3", "data.val_volumes=1", "data.slices=1"]
    scans += [f"data.cache={tmp_path / 'cache'}", "data.scanner.coils=[4,4]"]
    if name == "observed":
        for i in range(16):
            write_prepared(tmp_path / f"s{i:02d}.h5", make_scan(f"s{i}", slices=1, law=RandomLines(2, 8))[0])
        scans = ["data=prepared", f"data.root={tmp_path}"]
    law = train_two_steps(tmp_path / "r", [*scans, f"corruption={name}", *SMALL.get(name, [])])
    configured = compose([f"corruption={name}"]).corruption.law
    assert law["law"] == ("ObservedMasks" if name == "observed" else configured._target_.rsplit(".", 1)[-1])


@pytest.mark.parametrize("name", [n for n in EVERY if n not in KSPACE])
def test_pictures(name: str, tmp_path: Path) -> None:
    file = corrupted_file(tmp_path)
    pictures = file if name == "observed_pixels" else tmp_path / "clean.npz"
    noise = ["data.noise_std=0.1"] if name == "noise" else []
    train_two_steps(
        tmp_path / "r",
        ["+images=base", "data=npz", f"data.root={pictures}", f"corruption={name}", *noise, *SMALL.get(name, [])],
    )


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_pixels_of_each_colour(noise_std: float, tmp_path: Path) -> None:
    corrupted_file(tmp_path)
    overrides = ["+images=base", "data=npz", f"data.root={tmp_path / 'clean.npz'}", "corruption=pixels"]
    train_two_steps(tmp_path / "r", [*overrides, "corruption.per=colour", f"data.noise_std={noise_std}"])
    stored = OmegaConf.load(tmp_path / "r" / "config.yaml")
    assert stored.corruption.per == "colour"
    assert load_prior(tmp_path / "r" / "prior").architecture["mask_channels"] == 3
