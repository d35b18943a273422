"""A run with a learned uncertainty keeps it beside the curve of held-out images."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ambient_mri.prior import load_prior
from tests.training.test_run import run


def test_a_run_writes_what_it_learned(scan_folder: Path, tmp_path: Path) -> None:
    settings = ("objective=supervised_uncertainty", "trainer.val_check_interval=4")
    folder = run(scan_folder, tmp_path / "r", *settings, f"data.references={scan_folder / 'references'}")
    card = json.loads((folder / "prior.json").read_text())
    learned = card["learned_error_curve"]
    model = load_prior(folder).model
    expected = model.learned_error(torch.tensor(learned["sigma"]))  # type: ignore[union-attr]
    assert torch.allclose(torch.tensor(learned["error"]), expected, rtol=1e-4)
    assert card["error_curve"]["error"] != learned["error"], "samplers get the curve of held-out images"
