"""Every comparator trains from the command's configuration, and its prior says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ambient_mri.comparators import FeedForward, ProjectedNoiseDenoiser
from ambient_mri.prior import load_prior
from tests.training.test_run import run


@pytest.mark.parametrize(
    ("objective", "kind", "model", "domain"),
    [
        ("ambient_published", "ambient", ProjectedNoiseDenoiser, "image"),
        ("ssdu", "feedforward", FeedForward, "kspace"),
        ("ssdu_weighted", "feedforward", FeedForward, "kspace"),
    ],
)
def test_a_run(objective: str, kind: str, model: type, domain: str, scan_folder: Path, tmp_path: Path) -> None:
    folder = run(scan_folder, tmp_path / "r", f"objective={objective}", "trainer.val_check_interval=4")
    prior = load_prior(folder)
    assert prior.kind == kind and type(prior.model) is model
    assert json.loads((folder / "prior.json").read_text())["noise_domain"] == domain
    assert (tmp_path / "r" / "samples" / "step00000004.png").is_file()
