"""Benchmarks of the samplers: they run, resume, and draw curves over common cases; the page on samplers is current."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ambient_mri._checks import AmbientMRIError
from ambient_mri.prior import Prior, build_model, load_prior
from ambient_mri.report.cost import cost_curves, cost_figure
from ambient_mri.report.records import Row, read_records
from ambient_mri.sampling import SAMPLERS
from benchmarks.quality.cases import simulated_cases
from tests.test_benchmarks import load


@pytest.fixture
def prior(tmp_path: Path) -> Path:
    network = {"name": "UNet", "channels": 8, "multipliers": [1], "fold": 2}
    architecture = {"kind": "clean", "network": network, "sd": 0.3, "precision": "fp32"}
    return Prior(build_model(architecture), "clean", architecture, name="tiny").save(tmp_path / "prior")


def test_samplers_without_data_measures_phantoms_and_resumes(
    tmp_path: Path, prior: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
    benchmark = load("quality/samplers")
    arguments = ["--prior", str(prior), "--samplers", "dds", "--num-steps", "2", "--samples", "2"]
    arguments += ["--masks", "random", "poisson", "--accelerations", "4", "--scans", "1", "--out", str(tmp_path)]
    arguments += ["--noise-factors", "1", "2"]
    benchmark.main(arguments)
    first = read_records(tmp_path / "samplers.json")
    assert "Simulated" in first.settings["data"]
    assert {row["method"] for row in first.rows} == {"em/dds/mean2"}
    assert {(row["mask"], row["noise_factor"]) for row in first.rows} == {
        (mask, factor) for mask in ("random", "poisson") for factor in (1, 2)
    }
    assert {row["metric"] for row in first.rows} >= {"psnr", "ssim", "nrmse", "variance_ratio", "chi2_residual"}
    # Twice the noise level, a quarter of chi^2 at the same residual: the factor reached the sampler.
    chi2 = {
        (r["mask"], r["noise_factor"]): r["value"] for r in first.select(metric="chi2_residual", method="em/dds/mean2")
    }
    assert chi2["random", 2] < chi2["random", 1]
    assert (tmp_path / "figures" / "samplers_evaluations.png").is_file()

    monkeypatch.setattr(benchmark, "run", lambda *_: pytest.fail("a finished run was made again"))
    benchmark.main(arguments)
    assert read_records(tmp_path / "samplers.json").rows == first.rows


def test_every_sampler_for_clean_priors_is_in_the_plan() -> None:
    benchmark = load("quality/samplers")
    clean = {name for name, cls in SAMPLERS.items() if "clean" in cls.accepts}
    assert set(benchmark.STEPS) == set(benchmark.HOUR_CURVES) == set(benchmark.HOUR) | {"dps"} == clean


def test_an_hour_makes_the_claims_of_the_full_design_with_less() -> None:
    """Every sampler but dps under every mask and R, curves of all, coverage of 32 samples, a wrong noise level."""
    benchmark = load("quality/samplers")
    options = benchmark.parse(["--prior", "brain128", "--budget", "hour"])
    assert (options.scans, options.samples) == (1, 4)
    cells = {(law, r): benchmark.plan(options, law, r) for law in options.masks for r in options.accelerations}
    assert len(cells) == 12
    for cell, planned in cells.items():
        assert len(set(planned)) == len(planned)
        samplers = {p.sampler for p in planned if p.samples == 4 and p.noise_factor == 1}
        assert samplers == set(benchmark.STEPS) - (set() if cell == ("random", 4) else {"dps"})
    curves = [p for p in cells["random", 4] if p.samples == 4 and p.noise_factor == 1]
    assert all(sum(p.sampler == name for p in curves) >= 2 for name in benchmark.STEPS)
    assert {p.noise_factor for p in cells["random", 4]} == {0.5, 1, 2}
    covered = {cell: {p.sampler for p in planned if p.samples >= 32} for cell, planned in cells.items()}
    assert {cell for cell, names in covered.items() if names} == {("random", 4), ("random", 8)}
    assert covered["random", 8] >= {"split_gibbs", "dds", "daps"}
    with pytest.raises(SystemExit):
        benchmark.parse(["--prior", "brain128", "--budget", "hour", "--num-steps", "5"])


def test_an_hour_draws_its_curves_from_the_cell_that_has_them(
    tmp_path: Path, prior: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
    benchmark = load("quality/samplers")
    monkeypatch.setattr(benchmark, "HOUR_CURVES", {"dds": (1, 2), "split_gibbs": (2,)})
    monkeypatch.setattr(benchmark, "HOUR", {"dds": 2, "split_gibbs": 2})
    drawn: list[Row] = []
    monkeypatch.setattr(benchmark, "cost_figure", lambda rows, *_, **__: drawn.extend(rows))
    arguments = ["--prior", str(prior), "--budget", "hour", "--samplers", "dds", "--masks", "random", "poisson"]
    benchmark.main([*arguments, "--samples", "2", "--accelerations", "4", "--out", str(tmp_path)])
    found = read_records(tmp_path / "samplers.json")
    assert found.settings["budget"] == "hour"
    made = {(r["mask"], r["method"], r["steps"], r["noise_factor"]) for r in found.rows}
    two, many = "em/dds/mean2", "em/dds/mean32"
    assert made == {
        *(("random", two, n, 1) for n in (1, 2)),
        *(("random", two, 2, factor) for factor in (0.5, 2)),
        ("random", many, 2, 1),
        ("poisson", two, 2, 1),
    }
    assert {r["method"] for r in found.select(metric="coverage90")} == {many}
    assert all(r["processor_seconds"] > 0 for r in found.rows)
    assert {r["method"] for r in drawn} == {two} and {r["noise_factor"] for r in drawn} == {1}
    assert "| poisson | em/dds/mean2 | 2 | 1 |" in (tmp_path / "samplers.md").read_text()


def test_speed_compares_samplers_with_the_bare_network(
    tmp_path: Path, prior: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With forwards of the network for a clock, so that nothing depends on the machine: samplers take as many."""
    benchmark = load("speed/samplers")
    forwards = 0

    def counted(folder: Path) -> Prior:
        loaded = load_prior(folder)

        def count(*_: object) -> None:
            nonlocal forwards
            forwards += 1

        loaded.model.network.register_forward_hook(count)
        return loaded

    def timed(run: Callable[[], object]) -> dict[str, float]:
        before = forwards
        run()
        return {"wall": float(forwards - before), "processor": float(forwards - before)}

    monkeypatch.setattr(benchmark, "load_prior", counted)
    monkeypatch.setattr(benchmark, "timed", timed)
    arguments = ["--prior", str(prior), "--size", "32", "--coils", "2", "--batch", "2", "--steps", "3"]
    benchmark.main([*arguments, "--repeats", "1", "--out", str(tmp_path)])
    result = read_records(tmp_path / "speed_samplers.json")
    ratios = result.select(metric="ratio")
    assert len(ratios) == 16 and {row["clock"] for row in ratios} == {"wall", "processor"}
    assert {row["value"] for row in ratios} == {1.0}
    assert {row["value"] for row in result.select(method="network", metric="seconds")} == {1.0}  # a step is a forward
    assert {row["iterations_per_step"] for row in result.select(error="white", metric="ratio")} == {0.0}
    assert all(row["iterations_per_step"] >= 1 for row in result.select(error="local", metric="ratio"))


def test_local_error_without_data_measures_a_phantom_and_resumes(
    tmp_path: Path, prior: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
    benchmark = load("quality/local_error")
    arguments = ["--prior", str(prior), "--samples", "2", "--num-steps", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(benchmark, "simulated_cases", lambda rates: list(simulated_cases(rates))[:1])
    benchmark.main(arguments)
    table = capsys.readouterr().out
    assert "| tiny/dds/mean2 | 2 | white |" in table and "random, R = 4" in table
    first = read_records(tmp_path / "local_error.json")
    assert {(row["method"], row["error"]) for row in first.rows} == {
        (f"tiny/{sampler}/mean2", error) for sampler in ("split_gibbs", "dds") for error in ("local", "white")
    }
    ratios = {(row["method"], row["error"]): row["value"] for row in first.select(metric="variance_ratio")}
    assert all(value > 0 for value in ratios.values()) and len(set(ratios.values())) == 4
    benchmark.main(arguments)
    assert read_records(tmp_path / "local_error.json").rows == first.rows


def cost_row(sampler: str, steps: int, case: str, value: float, gradients: int = 0) -> Row:
    return {
        "case": case,
        "acceleration": 4,
        "mask": "random",
        "method": f"em/{sampler}/mean8",
        "metric": "psnr",
        "value": value,
        "n": 1,
        "ci95": None,
        "steps": steps,
        "nfe": steps,
        "gradients": gradients,
        "seconds": 0.1 * steps,
    }


def test_curves_hold_common_cases_and_count_a_gradient_twice(tmp_path: Path) -> None:
    rows = [cost_row("dds", 10, "a", 30.0), cost_row("dds", 10, "easy", 90.0), cost_row("dds", 50, "a", 32.0)]
    rows += [cost_row("mmps", 10, "a", 31.0, gradients=60)]
    assert cost_curves(rows, "psnr") == {"dds": ([10.0, 50.0], [30.0, 32.0]), "mmps": ([130.0], [31.0])}
    assert cost_curves(rows, "psnr", "seconds")["dds"] == ([1.0, 5.0], [30.0, 32.0])
    assert cost_figure(rows, tmp_path / "cost.png", metric="psnr", cost="seconds").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(AmbientMRIError, match="no case was run with every sampler"):
        cost_curves([*rows, cost_row("dps", 100, "b", 20.0)], "psnr")
    with pytest.raises(AmbientMRIError, match="cost must be one of"):
        cost_curves(rows, "psnr", "money")


def test_the_page_on_samplers_is_current(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("which_sampler")
    assert script.main(["--check"]) == 0
    text = script.page()
    assert all(f"**`{name}`**" in text for name in SAMPLERS)
    # By hand from the record: mean over cases of NRMSE over the exact one.
    record = read_records(script.RECORD)
    ratios = []
    for row in record.select(method="gaussian/dds/mean48", metric="nrmse", domain="image", error="white"):
        if row["case"].startswith("object"):
            continue
        exact = record.select(method="gaussian/exact/point", metric="nrmse", case=row["case"], domain="image")[0]
        ratios.append(row["value"] / exact["value"])
    assert len(ratios) == 4 and f"| `dds`, white | 50 | 50 | 0 | {sum(ratios) / len(ratios):.3f} |" in text
    assert script.verdict(1.2, 1.0) == "comparison" and script.verdict(1.0, 0.7) == "means"
    monkeypatch.setattr(script, "page", lambda: text + "changed")
    assert script.main(["--check"]) == 1
    assert "out of date: run python benchmarks/which_sampler.py" in capsys.readouterr().err
