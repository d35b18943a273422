"""The benchmark scripts run, resume, and write records from which the table is made."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from ambient_mri.prior import Prior, build_model
from ambient_mri.report.records import read_records

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), BENCHMARKS / f"{path}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_reconstruct_without_data_measures_phantoms_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
    benchmark = load("quality/reconstruct")
    architecture = {"kind": "clean", "network": {"name": "UNet", "channels": 8, "multipliers": [1, 2]}, "sd": 0.3}
    prior = Prior(build_model(architecture), "clean", architecture).save(tmp_path / "prior")
    arguments = ["--accelerations", "4", "--baselines", "cg_sense", "--samples", "2", "--steps", "3"]
    arguments += ["--clean", f"untrained={prior}", "--out", str(tmp_path), "--figures", str(tmp_path / "figures")]
    benchmark.main(arguments)
    first = read_records(tmp_path / "reconstruct.json")
    methods = {row["method"] for row in first.rows}
    assert methods == {
        "zero_filled",
        "cg_sense",
        "untrained/split_gibbs/mean2",
        "untrained/split_gibbs/sample",
        "untrained/dds/point",
    }
    assert "simulated" in first.settings["data"]
    by_method = {row["method"]: row["value"] for row in first.select(metric="psnr", region=None)}
    assert by_method["cg_sense"] > by_method["zero_filled"]
    assert len(list((tmp_path / "figures").glob("*.png"))) == 2
    assert "simulated_phantom_0" in capsys.readouterr().out

    monkeypatch.setattr(benchmark, "run_case", lambda *_: pytest.fail("a finished case was computed again"))
    benchmark.main(arguments)
    assert read_records(tmp_path / "reconstruct.json").rows == first.rows


def test_the_plan_of_the_priors_benchmark() -> None:
    """Everything that is to be compared, each once, and an ambient run before the EM that begins with it."""
    benchmark = load("quality/priors")
    runs = benchmark.plan(benchmark.BUDGETS["cpu"])
    names = [run.name for run in runs]
    assert len(set(names)) == len(names)
    at_four = {run.objective for run in runs if (run.acceleration, run.noise_std) == (4, 0.01)}
    comparators = {"supervised", "ambient_published", "ssdu", "ssdu_weighted", "wavelet_edm", "wavelet_em"}
    assert at_four == {"ambient", "em", "em_mean", *comparators}
    for other in (2, 6, 8):
        found = {run.objective for run in runs if run.acceleration == other}
        assert found == {"ambient", "em", "ambient_published", "ssdu_weighted"}
    assert {run.objective for run in runs if run.noise_std == 0.05} == {"ambient", "em", "ambient_noise_blind"}
    for run in runs:
        if run.objective in benchmark.AFTER_AMBIENT:
            before = names.index(replace(run, objective="ambient").name)
            assert before < names.index(replace(run, objective="em").name) <= names.index(run.name)
    for size in (32, 64, 128):
        for acceleration in benchmark.BUDGETS["cpu"].accelerations:
            assert 2 <= benchmark.acs_lines(size, acceleration) < size / acceleration


def test_rounds_that_two_runs_share_are_copied_once(tmp_path: Path) -> None:
    benchmark = load("quality/priors")
    source, target = tmp_path / "em", tmp_path / "em_mean"
    benchmark.take_over(source, target, rounds=2)
    for number in range(4):
        (source / f"round_{number}" / "prior").mkdir(parents=True)
        (source / f"round_{number}.json").write_text(str(number))
    benchmark.take_over(source, target, rounds=2)
    assert not target.exists(), "the run is not finished"
    (source / "done.txt").touch()
    benchmark.take_over(source, target, rounds=2)
    names = [f"round_{k}{end}" for k in range(3) for end in ("", ".json")]
    assert sorted(path.name for path in target.iterdir()) == names and (target / "round_2/prior").is_dir()
    (target / "round_1.json").write_text("its own")
    benchmark.take_over(source, target, rounds=2)
    assert (target / "round_1.json").read_text() == "its own"


def test_every_chain_of_the_priors_benchmark_sees_the_same_number_of_images() -> None:
    benchmark = load("quality/priors")
    for budget in benchmark.BUDGETS.values():
        assert budget.em_first_steps + budget.em_rounds * budget.em_steps == budget.steps
        assert 0.35 < budget.em_first_steps / budget.steps < 0.5
        assert 0 <= budget.steps - (budget.em_rounds + 1) * budget.steps_of("wavelet_em") <= budget.em_rounds
    assert "em.min_improvement=null" in next(r for r in benchmark.plan(budget) if r.objective == "em").overrides


def test_a_prior_whose_scores_are_there_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The records alone are enough to go on: of the two runs asked for, one is in them."""
    benchmark = load("quality/priors")
    trained: list[str] = []
    monkeypatch.setattr(benchmark, "train", lambda run, budget, out, *, compiled: trained.append(run.name))
    evaluation = benchmark.Evaluation("rehearsal", benchmark.BUDGETS["rehearsal"], tmp_path, "a command")
    row = {"case": "training", "method": "em", "noise_std": 0.01, "train_acceleration": 4, "n": 4, "ci95": None}
    evaluation.append([{**row, "metric": "training_images", "value": 80}])
    names = ["em_R4_n0.01", "supervised_R4_n0.01"]
    with pytest.raises(SystemExit, match="1 runs failed"):  # the stand-in trains nothing
        benchmark.main(["--budget", "rehearsal", "--out", str(tmp_path), "--only", *names])
    assert trained == ["supervised_R4_n0.01"] and "| em | 0.01 | 80 |" in capsys.readouterr().out


def test_learning_rates_are_compared_and_no_training_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = load("quality/learning_rate")
    trained: list[str] = []

    def stand_in(folder: Path, overrides: list[str]) -> bool:
        trained.append(folder.name)
        rate = next(float(o.split("=")[1]) for o in overrides if o.startswith("training.lr="))
        assert f"training.betas=[0.9,{folder.name.split('_b')[1].split('_')[0]}]" in overrides
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step,train/loss,val/clean_objective\n4,3,\n9,2,{1 - 100 * rate}\n")
        return True

    monkeypatch.setattr(benchmark, "train_once", stand_in)
    arguments = ["--budget", "rehearsal", "--objectives", "supervised", "--betas", "0.99", "--out", str(tmp_path)]
    benchmark.main([*arguments, "--rates", "5e-4", "4e-3"])
    benchmark.main([*arguments, "--rates", "5e-4", "2e-3", "4e-3"])
    assert trained == [f"supervised_lr{rate}_b0.99_1000" for rate in ("0.0005", "0.004", "0.002")]
    rows = read_records(tmp_path / "learning_rate.json").rows
    assert {row["learning_rate"]: row["value"] for row in rows} == pytest.approx({5e-4: 0.95, 4e-3: 0.6, 2e-3: 0.8})
    assert "supervised" in capsys.readouterr().out


def test_adps_is_tuned_on_subjects_that_are_not_scored() -> None:
    load("quality/features")
    sys.path.insert(0, str(BENCHMARKS / "quality"))
    try:
        split = load("quality/prior_evaluation").split_by_subject
    finally:
        sys.path.remove(str(BENCHMARKS / "quality"))
    files = [Path(f"brain_{kind}_128_{i:04d}.h5") for i in range(11) for kind in ("flair", "t1pre")]
    scored, tuning = split(files)
    assert sorted([*scored, *tuning]) == sorted(files) and len(tuning) == 4
    assert {p.stem[-4:] for p in scored}.isdisjoint(p.stem[-4:] for p in tuning)
    with pytest.raises(SystemExit, match="different subjects"):
        split([Path("brain_flair_128_0001.h5"), Path("brain_t1pre_128_0001.h5")])


def test_parity_says_what_is_the_same_and_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load("quality/parity")
    name, kspace = next(iter(benchmark.scans(None)))
    monkeypatch.setattr(benchmark.shutil, "which", lambda name: None)
    monkeypatch.setattr(benchmark, "scans", lambda root: [(name, kspace[..., 24:104, 20:104])])
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
    benchmark.main(["--out", str(tmp_path)])
    found = read_records(tmp_path / "parity.json")
    assert found.select(method="sigpy")[0]["value"] > 0.999
    assert all(row["value"] > 0.9 for row in found.select(metric="kept")) and len(found.select(metric="kept")) == 3
    masks = found.select(metric="agreement", method="fastmri")
    assert all(row["value"] == 1 for row in masks)
    # Maps of another scan are told from these.
    other = benchmark.unexplained(kspace.flip(1) / kspace.norm(dim=1, keepdim=True), kspace)
    assert other > 0.3
