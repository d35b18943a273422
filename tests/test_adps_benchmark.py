"""The benchmark of A-DPS beside this project's samplers: it runs without data, resumes, and relates the costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ambient_mri.prior import Prior, build_model
from ambient_mri.report.records import read_records
from tests.test_benchmarks import load


def saved_prior(folder: Path, kind: str) -> Path:
    network = {"name": "UNet", "channels": 8, "multipliers": [1], "fold": 2}
    architecture = {"kind": kind, "network": network, "sd": 0.3, "precision": "fp32"}
    return Prior(build_model(architecture), kind, architecture, name=kind).save(folder / kind)


def test_adps_without_data_measures_a_phantom_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
    benchmark = load("speed/adps")
    priors = [str(saved_prior(tmp_path, kind)) for kind in ("ambient", "clean")]
    arguments = ["--ambient", priors[0], "--clean", priors[1], "--steps", "3", "--tuning-steps", "2", "--weights", "1"]
    arguments += ["--accelerations", "4", "--out", str(tmp_path)]
    benchmark.main(arguments)
    assert "AMBIENT_MRI_DATA is not set" in capsys.readouterr().err
    found = read_records(tmp_path / "speed_adps.json")
    value = {(row["method"], row["metric"]): row["value"] for row in found.rows}
    published = value["ambient/adps/sample", "seconds"]
    for method in ("ambient/one_step/point", "ambient/split_gibbs/point", "em/split_gibbs/point", "em/dds/point"):
        assert value[method, "ratio"] == pytest.approx(published / value[method, "seconds"])
    assert found.settings["likelihood_weight"]["weight"] == 1.0 and "Simulated" in found.settings["data"]
    benchmark.main(arguments)
    assert read_records(tmp_path / "speed_adps.json").rows == found.rows
