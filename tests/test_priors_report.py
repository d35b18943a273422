"""Tables and differences of the benchmark of priors, from rows whose answer is known."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ambient_mri._checks import AmbientMRIError
from ambient_mri.report.records import check_row, write_records

QUALITY = Path(__file__).resolve().parent.parent / "benchmarks" / "quality"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(QUALITY))
    import priors_report

    return sys.modules[priors_report.__name__]


def row(
    method: str, values: list[float], acceleration: int = 4, trained: int | None = 4, **more: Any
) -> dict[str, Any]:
    found = {"case": "held_out", "method": method, "metric": "psnr", "noise_std": 0.01, "acceleration": acceleration}
    mean = sum(values) / len(values)
    found |= {"value": mean, "values": values, "n": len(values), "ci95": None}
    return found if trained is None else {**found, "train_acceleration": trained}


def test_differences_are_taken_slice_by_slice(report: ModuleType) -> None:
    rows = [
        row("em/split_gibbs/mean32", [30.0, 20.0, 25.0]),
        row("em/split_gibbs/sample", [1.0, 1.0, 1.0]),
        row("ambient/one_step/point", [29.0, 19.0, 24.0]),
        row("ambient/dds/point", [20.0, 20.0, 20.0]),
        row("supervised/split_gibbs/mean32", [30.5, 21.5, 25.0]),
    ]
    found = {d["rival"]: d for d in report.differences(rows)}
    assert found.keys() == {"ambient/one_step/point", "supervised/split_gibbs/mean32"}
    # Every slice is one better: the scenes' own spread of 5 dB is no part of the interval.
    ambient = found["ambient/one_step/point"]
    assert ambient["value"] == pytest.approx(1.0) and ambient["ci95"] == pytest.approx(0.0) and ambient["n"] == 3
    supervised = found["supervised/split_gibbs/mean32"]
    assert supervised["value"] == pytest.approx(-2 / 3)
    assert supervised["ci95"] == pytest.approx(
        4.302652729749464 * (0.5 * ((1 / 6) ** 2 + (5 / 6) ** 2 + (2 / 3) ** 2)) ** 0.5 / 3**0.5
    )


def test_tables_show_training_r_against_inference_r(report: ModuleType, tmp_path: Path) -> None:
    rows = [row("l1_wavelet", [20.0, 22.0], rate, None) for rate in (4, 8)]
    for trained in (4, 8):
        for rate in (4, 8):
            rows += [row("em/split_gibbs/mean32", [30.0 - trained - rate, 31.0], rate, trained)]
            rows += [row("ambient_published/adps/mean2", [10.0, 11.0], rate, trained)]
    rows += [row("supervised/split_gibbs/mean32", [33.0, 34.0], rate, 4) for rate in (4, 8)]
    seen = {"case": "training", "method": "em", "metric": "training_images", "n": 4, "ci95": None, "noise_std": 0.01}
    rows += [{**seen, "value": 48000, "train_acceleration": trained} for trained in (4, 8)]
    rows += [{**r, "metric": "ssim", "value": 0.5, "values": [0.5, 0.5]} for r in rows if r["metric"] == "psnr"]
    path = tmp_path / "priors.json"
    write_records(path, "priors", "a command", {}, rows=rows)
    text = report.tables(path)
    matrix = text.split("### Training R x inference R")[1]
    assert "| em/split_gibbs/mean32 | 8 | **24.50 (0.500)** | **22.50 (0.500)** |" in matrix
    assert "| supervised/split_gibbs/mean32 | – | 33.50 (0.500) | 33.50 (0.500) |" in matrix
    assert "l1_wavelet" not in matrix.split("###")[0]
    assert "| supervised | -7.00 ± 50.82 (split_gibbs mean32) |" in text


def test_figures_show_what_was_kept(report: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "priors.json"
    method = "em/split_gibbs/mean32"
    write_records(path, "priors", "a command", {}, rows=[row(method, [30.0, 31.0])])
    images = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    report.save_pictures(tmp_path, "reference", {"acceleration": 4, "noise_std": 0.01}, images)
    report.save_pictures(tmp_path, method, row(method, [30.0]), images)
    report.figures(path, [], tmp_path)
    found = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert found == ["psnr.png", "reconstructions_R4_0.png", "reconstructions_R4_1.png"]


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], "12", [1.0, "a"]])
def test_the_numbers_behind_a_mean_are_checked(values: Any) -> None:
    check_row(row("l1_wavelet", [1.0, 2.0]))
    with pytest.raises(AmbientMRIError, match="values must be the 2 finite numbers"):
        check_row({**row("l1_wavelet", [1.0, 2.0]), "values": values})
