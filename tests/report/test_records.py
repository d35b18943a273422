"""Result records: round trip, validation, resuming, atomicity."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ambient_mri._checks import AmbientMRIError, DataError
from ambient_mri.report import records
from ambient_mri.report.records import append_records, read_records, row_key, write_records

SETTINGS = {"samples": 8, "masks": ("a", "b"), "prior": Path("brain128")}


def row(**changes: Any) -> dict[str, Any]:
    entries = {"case": "head", "method": "l1_wavelet", "metric": "psnr", "value": 30.0, "n": 2, "ci95": None}
    return {**entries, "acceleration": 4, "mask": "R4", **changes}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "results" / "quality.json"
    rows = [row(), row(metric="ssim", value=np.float32(0.5), ci95=0.1), row(method="em/split_gibbs/mean8", value=None)]
    written = write_records(path, "quality", "python quality.py", SETTINGS, rows=rows)
    assert read_records(path) == written
    content = json.loads(path.read_text())
    assert list(content) == [
        "benchmark", "command", "created", "git", "versions", "machine", "settings", "definitions", "rows",
    ]  # fmt: skip
    assert content["settings"] == {"samples": 8, "masks": ["a", "b"], "prior": "brain128"}
    assert set(content["definitions"]) == {"psnr", "ssim"}
    assert content["rows"][1]["value"] == 0.5 and {"torch", "numpy", "python"} <= set(content["versions"])
    assert {"processor", "cores", "gpus"} <= set(content["machine"])
    # One row a line: a change of one number is a change of one line.
    assert sum(line.startswith('    {"case"') for line in path.read_text().splitlines()) == 3


def test_empty_and_overridden_definitions(tmp_path: Path) -> None:
    assert (
        write_records(tmp_path / "a.json", "b", "c", {}, rows=[]).rows == read_records(tmp_path / "a.json").rows == []
    )
    mine = write_records(tmp_path / "a.json", "b", "c", {}, definitions={"psnr": "of the support"}, rows=[row()])
    assert mine.definitions == {"psnr": "of the support"}


def test_append_continues_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    first = append_records(path, "quality", "one", SETTINGS, rows=[row(), row(mask="R8")])
    assert first.has(mask="R8") and not first.has(mask="R8", metric="ssim") and len(first.select(case="head")) == 2
    second = append_records(
        path, "quality", "two", SETTINGS, rows=[row(value=31.0, n=3), row(metric="ssim", value=0.5)]
    )
    assert [r["value"] for r in second.rows] == [31.0, 30.0, 0.5]
    assert second == read_records(path) and second.command == "two" and set(second.definitions) == {"psnr", "ssim"}


def test_append_refuses_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    append_records(path, "quality", "one", SETTINGS, rows=[row()])
    with pytest.raises(AmbientMRIError, match=r"other settings \(samples differ\)"):
        append_records(path, "quality", "one", {**SETTINGS, "samples": 1}, rows=[row(mask="new")])
    with pytest.raises(AmbientMRIError, match="holds the benchmark 'quality', not 'speed'"):
        append_records(path, "speed", "one", SETTINGS, rows=[row(mask="new")])
    assert len(read_records(path).rows) == 1


def test_the_key_is_what_was_not_measured() -> None:
    assert row_key(row()) == row_key(row(value=1.0, n=9, ci95=0.2, seconds=3.0))
    assert row_key(row()) != row_key(row(seed=1))
    assert row_key(row(acceleration=4)) != row_key(row(acceleration="4"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "PSNR"}, "metric must be one of .*'psnr'.*; got 'PSNR'"),
        ({"method": "ours"}, "method must be one of zero_filled.*<objective>/<sampler>/<estimate>.*got 'ours'"),
        ({"method": "em/split_gibbs/mean0"}, "got 'em/split_gibbs/mean0'"),
        ({"value": float("nan")}, "value of l1_wavelet / psnr must be a finite number.*got nan"),
        ({"value": float("inf")}, "must be a finite number.*got inf"),
        ({"value": "30"}, "must be a finite number.*got '30'"),
        ({"ci95": -1.0}, "ci95 is a half width"),
        ({"n": 0}, "n must count what was averaged; got 0"),
        ({"n": True}, "n must count what was averaged; got True"),
        ({"case": ""}, "case must be a name"),
        ({"mask": [1, 2]}, r"factor 'mask' must be a string, number, bool or None; got \[1, 2\]"),
    ],
)
def test_malformed_rows_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AmbientMRIError, match=message):
        write_records(tmp_path / "r.json", "b", "c", {}, rows=[row(**changes)])
    assert not list(tmp_path.iterdir())


def test_missing_entries_and_twins_are_refused(tmp_path: Path) -> None:
    incomplete = row()
    del incomplete["ci95"], incomplete["n"]
    with pytest.raises(AmbientMRIError, match="lacks n, ci95"):
        write_records(tmp_path / "r.json", "b", "c", {}, rows=[incomplete])
    with pytest.raises(AmbientMRIError, match=r"two rows have one key.*Add the factor"):
        write_records(tmp_path / "r.json", "b", "c", {}, rows=[row(), row(value=2.0)])


def test_names_of_methods() -> None:
    for method in (*records.BASELINES, "em/split_gibbs/mean8", "ambient/dds/sample", "supervised/split_gibbs/point"):
        records.check_row(row(method=method))
    # Costs compare implementations, which have names of their own.
    records.check_row(row(method="torch/compiled", metric="seconds", value=0.1))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.json: no such result file"):
        read_records(tmp_path / "gone.json")
    (tmp_path / "cut.json").write_text('{"benchmark": ')
    with pytest.raises(DataError, match=r"cut.json is not a result file: Expecting value"):
        read_records(tmp_path / "cut.json")
    (tmp_path / "other.json").write_text('{"benchmark": "b", "rows": []}')
    with pytest.raises(DataError, match=r"lacks command, created"):
        read_records(tmp_path / "other.json")


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    write_records(path, "b", "c", {}, rows=[row()])
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_records(path, "b", "c", {}, rows=[row(), row(mask="new")])
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_records_and_tables_do_not_load_matplotlib() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from ambient_mri.report import markdown_table, read_records;"
        "sys.exit('matplotlib' in sys.modules or 'rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
