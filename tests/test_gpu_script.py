"""benchmarks/gpu: the script for lent GPU machines, rehearsed on the CPU at its smallest size."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.simulate import Simulation, simulate_scan
from ambient_mri.masks import IndependentLines, SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.prior import Prior, build_model, load_prior
from ambient_mri.report.records import read_records
from ambient_mri.sampling import make_sampler
from ambient_mri.train import compose
from ambient_mri.training.draws import Draw, draw_of, draws_of_card
from ambient_mri.training.em import reconstruct_rows

GPU = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"


def command(phase: str, folder: Path, *options: str) -> list[str]:
    script = [sys.executable, str(GPU / "run.py"), phase, "--device", "cpu", "--tiny", "--state", str(folder / "state")]
    return [*script, "--out", str(folder / "out"), "--data", str(folder), "--restore", str(folder), *options]


def run(phase: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.run(
        command(phase, folder, *options), capture_output=True, text=True, env=environment, check=False
    )


def test_rehearsal_from_start_to_finish_interrupted_and_resumed(gpu_module: object, tmp_path: Path) -> None:
    load_scans = gpu_module("resident").load_scans  # type: ignore[operator]
    killed = subprocess.Popen(command("all", tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # Somewhere in the middle of the first training stage, or a little later: it must not matter where.
        while killed.poll() is None and not list((tmp_path / "state").glob("stages/ambient/checkpoints/*.ckpt")):
            time.sleep(0.1)
    finally:
        killed.kill()
        killed.wait()
    finished = run("all", tmp_path, "--minutes", "5")
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert "everything is done" in finished.stdout
    out = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert out == ["ambient.tar", "em1.tar", "em2.tar", "em3.tar", "report.tar.gz", "sheet.png", "supervised.tar"]
    state = tmp_path / "state"
    for stage in ("ambient", "em1", "em2", "em3", "supervised"):
        assert json.loads((state / "stages" / stage / "done.json").read_text())["steps"] == 12
    em, ambient = (load_prior(state / "stages" / stage / "prior") for stage in ("em3", "ambient"))
    assert em.metadata["draws"] == ambient.metadata["draws"] and len(draws_of_card(em.metadata)) == 1
    assert em.kind == "clean" and ambient.kind == "ambient" and em.model.sd == ambient.model.sd
    assert len(em.model.error_sigmas) > 0  # type: ignore[arg-type]
    found = torch.load(state / "stages" / "em3" / "images" / "val" / "0000.pt", weights_only=True)
    scans, before = load_scans(state / "data" / "val", torch.device("cpu")), load_prior(state / "stages/em2/prior")
    sampler, batch = make_sampler("split_gibbs", steps=3, eta=1.0), scans.batch(range(len(found)))
    means, samples = (reconstruct_rows(before, batch, sampler, 3, n) for n in (2, 1))
    assert torch.allclose(found, means, atol=1e-4) and not torch.allclose(found, samples, atol=1e-2)
    methods = {row["method"] for row in read_records(state / "records" / "gpu_quality.json").rows}
    assert {"zero_filled", "cg_sense", "ambient/one_step/point", "em/split_gibbs/sample"} <= methods
    speeds = {(row["method"], row["metric"]) for row in read_records(state / "records" / "gpu_speed.json").rows}
    assert ("split_gibbs", "ratio") in speeds and ("torch", "ratio") in speeds


def test_another_network_needs_another_state(
    gpu_module: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, job = gpu_module("run").parse, gpu_module("job")  # type: ignore[operator]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    common = ["setup", "--device", "cpu", "--state", str(tmp_path)]
    job.Job(parse([*common, "--network", "unet_small"]))
    assert job.Job(parse(common)).options.network == "unet_small"  # what is not said again stays
    with pytest.raises(SystemExit, match="was made with network = unet_small, not unet_large"):
        job.Job(parse([*common, "--network", "unet_large"]))


def test_the_cpu_budget_is_that_of_the_experiments(
    gpu_module: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, job = gpu_module("run").parse, gpu_module("job")  # type: ignore[operator]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for name in ("state", "other"):
        (tmp_path / name).mkdir()
    common = ["setup", "--state", str(tmp_path / "state")]
    first = job.Job(parse([*common, "--budget", "cpu"]))
    stages = {"ambient": "", "em1": "_em1", "em2": "_em2", "em3": "_em3", "em4": "_em3", "supervised": "_em2"}
    assert {stage: first.budget.experiment(stage) for stage in stages} == {
        stage: f"brain_R4_cpu{end}" for stage, end in stages.items()
    }
    for stage, experiment in (("ambient", "brain_R4_cpu"), ("supervised", "brain_R4_cpu_em2")):
        found, expected = first.config(stage), compose([f"experiment={experiment}"])
        assert found.objective == expected.objective
        for name in ("network", "training", "trainer", "loader", "augmentation", "corruption", "checkpoint_every"):
            assert found[name] == expected[name], (stage, name)
    again = job.Job(parse(common))  # what is not said again stays
    assert again.device.type == "cpu" and again.options.minutes > 60 and again.options.em_steps == 20
    with pytest.raises(SystemExit, match="was made with budget = cpu, not gpu"):
        job.Job(parse([*common, "--budget", "gpu", "--device", "cpu"]))
    planned = job.Job(parse(["setup", "--state", str(tmp_path / "other"), "--device", "cpu"]))
    assert (planned.options.budget, planned.options.minutes, planned.options.batch_size) == ("gpu", 9.0, 128)
    assert planned.config("ambient").checkpoint_every == 500


def test_a_stage_of_the_cpu_budget_has_a_fixed_length(
    gpu_module: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, job = gpu_module("run").parse, gpu_module("job")  # type: ignore[operator]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (tmp_path / "state").mkdir()
    folders = ["--state", str(tmp_path / "state"), "--out", str(tmp_path / "out"), "--data", str(tmp_path)]
    small = job.Job(parse(["all", "--budget", "cpu", "--tiny", "--max-steps", "4", *folders]))
    assert small.run("ambient") and small.run("em1")
    for stage in ("ambient", "em1"):
        folder = tmp_path / "state" / "stages" / stage
        plan, card = (json.loads((folder / name).read_text()) for name in ("plan.json", "prior/prior.json"))
        assert plan == {"max_steps": 4, "warmup_steps": 1, "batch_size": 8}
        assert card["steps"] == card["planned_steps"] == 4 and card["training"]["training"]["lr"] == 3e-4
    assert "4 of 4 steps" in small.summary()


def test_a_stage_does_not_start_from_another_draw_of_its_subjects(
    gpu_module: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, job = gpu_module("run").parse, gpu_module("job")  # type: ignore[operator]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    common = ["setup", "--device", "cpu", "--tiny", "--state", str(tmp_path), "--init", str(tmp_path / "prior")]
    first = job.Job(parse(common))
    assert first.simulate()
    own = draw_of(json.loads((tmp_path / "data" / "done.json").read_text()))
    assert own is not None

    def start(*draws: Draw) -> None:
        architecture = {"kind": "clean", "network": {"channels": 8, "multipliers": [1]}, "sd": 0.3}
        card = {"draws": [draw.plain() for draw in draws]}
        Prior(build_model(architecture), "clean", architecture, name="start", metadata=card).save(tmp_path / "prior")

    start(own)
    assert first.chain("ambient") == [own]
    other = replace(own, how={**own.how, "law": {**own.how["law"], "acceleration": 2.0}})
    start(other)
    message = "prior learned from another draw of the same subjects .* corruption.law.acceleration is 2.0 there and 4"
    with pytest.raises(AmbientMRIError, match=message):
        first.train("ambient")
    assert first.chain("supervised") == [own], "it starts from nothing"
    assert not (tmp_path / "stages").exists()
    first.options.overrides = ["allow_second_draw=true"]
    assert first.chain("ambient") == [other, own]


@pytest.mark.parametrize("mask_per", ["volume", "slice"])
def test_resident_batches_are_the_measurements(mask_per: str, gpu_module: object, tmp_path: Path) -> None:
    simulation, resident = gpu_module("simulation"), gpu_module("resident")  # type: ignore[operator]
    law = IndependentLines(3.0, 4)  # another number of lines in every mask
    expected, tasks = [], []
    for index, size in enumerate((3, 2)):
        name = f"v{index}"
        images = np.random.default_rng(index).random((size, 24, 20), dtype=np.float32)
        scanner = Simulation(coils=(2 + 2 * index, 2 + 2 * index))
        tasks.append(simulation.Task(name, images, law, 5, scanner, mask_per, 0, tmp_path))
        expected += slices_of(images, law, name, scanner, mask_per)
    assert simulation.simulate(tasks, processes=1)
    scans = resident.load_scans(tmp_path, "cpu")
    assert len(scans) == 5 and scans.sizes == [(24, 20)] * 5
    found = scans.batch([4, 0, 2])
    reference = Measurement.collate([expected[i] for i in (4, 0, 2)]).cancel_readout()
    assert found.check().key == reference.key and found.axes == reference.axes
    for name in ("y", "mask", "coil_maps", "noise_std", "scale"):
        torch.testing.assert_close(getattr(found, name), getattr(reference, name), rtol=0, atol=1e-6)


def slices_of(images: np.ndarray, law: SamplingLaw, name: str, scanner: Simulation, mask_per: str) -> list[Measurement]:
    scan = simulate_scan(images, law=law, seed=5, scan_id=name, settings=scanner, mask_per=mask_per).scan
    m = scan.measurement()
    return [m[i] for i in range(len(m))]


def test_simulation_stops_at_its_deadline_and_goes_on(gpu_module: object, tmp_path: Path) -> None:
    simulation, resident = gpu_module("simulation"), gpu_module("resident")  # type: ignore[operator]
    images = np.random.default_rng(0).random((2, 16, 16), dtype=np.float32)
    task = simulation.Task("v", images, IndependentLines(2.0, 4), 0, Simulation(), "volume", 1, tmp_path)
    assert not simulation.simulate([task], processes=1, deadline=0.0)
    assert simulation.simulate([task], processes=1) and len(resident.load_scans(tmp_path, "cpu")) == 1
    with pytest.raises(ValueError, match="run the phase 'simulate' first"):
        resident.load_scans(tmp_path / "elsewhere", "cpu")


def test_priors_come_back_in_parts_and_are_restored(
    gpu_module: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = gpu_module("outbox")  # type: ignore[operator]
    monkeypatch.setattr(outbox, "PART_BYTES", 30_000)
    architecture = {"kind": "clean", "network": {"channels": 8, "multipliers": [1]}, "sd": 0.3}
    architecture |= {"sigma_min": 0.01, "sigma_max": 10.0}
    prior = Prior(build_model(architecture), "clean", architecture, name="em1")
    prior.save(tmp_path / "state" / "stages" / "em1" / "prior")
    (tmp_path / "state" / "stages" / "em1" / "plan.json").write_text("{}")
    assert outbox.deliver(tmp_path / "state", tmp_path / "out") == []
    parts = sorted(p for p in (tmp_path / "out").iterdir() if p.name.startswith("em1"))
    assert len(parts) > 1 and max(p.stat().st_size for p in parts) <= 30_000
    assert outbox.restore(tmp_path / "out", tmp_path / "next") == ["em1"]
    assert not (tmp_path / "next" / "stages" / "em1" / "plan.json").exists()  # its checkpoint is gone
    again = load_prior(tmp_path / "next" / "stages" / "em1" / "prior")
    for name, tensor in prior.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor, rtol=1e-2, atol=1e-3)
    assert outbox.restore(tmp_path / "out", tmp_path / "next") == []


def test_packing_leaves_out_whole_training_subjects_until_it_fits(gpu_module: object, tmp_path: Path) -> None:
    pack = gpu_module("pack")  # type: ignore[operator]
    numbers = np.random.default_rng(0)
    subjects = np.repeat(np.arange(20, dtype=np.int16), 2)
    split = np.where(subjects < 16, "train", "val")
    for name in pack.IMAGES:
        images = numbers.integers(0, 255, (40, 16, 16), dtype=np.uint8)
        np.savez(tmp_path / name, images=images, subject=subjects, slice=np.tile([0, 1], 20), split=split)
    out = tmp_path / "packed"
    out.mkdir()
    whole = 2 * 40 * 256
    pack.pack_images(tmp_path, out, 0.8 * whole)
    assert sum((out / name).stat().st_size for name in pack.IMAGES) <= 0.8 * whole
    for name in pack.IMAGES:
        with np.load(out / name) as packed, np.load(tmp_path / name) as source:
            kept = np.isin(subjects, np.unique(packed["subject"]))
            assert np.array_equal(packed["images"], source["images"][kept])
            assert set(packed["subject"][packed["split"] == "val"].tolist()) == {16, 17, 18, 19}


def test_missing_packages_are_unpacked_from_wheels(
    gpu_module: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = gpu_module("run")  # type: ignore[operator]
    monkeypatch.setattr(script, "CARRIED", ("hydra", "omegaconf", "antlr4", "carried_example"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "wheels").mkdir()
    for name in ("carried_example", "not_needed"):
        with zipfile.ZipFile(tmp_path / "wheels" / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "answer = 42\n")
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Name: {name}\nVersion: 1.0\n")
    script.install_wheels(tmp_path / "wheels", tmp_path / "site")
    assert importlib.import_module("carried_example").answer == 42
    assert not (tmp_path / "site" / "not_needed").exists()
