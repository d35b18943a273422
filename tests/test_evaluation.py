"""Folders of scans and references: every slice once, resumed where it stopped, scores equal to those of the volume."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from ambient_mri import Reconstruction, cli, metrics, reconstruct
from ambient_mri._checks import AmbientMRIError, DataError
from ambient_mri.data.readers import read_reference
from ambient_mri.data.schema import read_prepared, write_prepared
from ambient_mri.data.writers import read_reconstruction
from ambient_mri.evaluation import Evaluation, pair_files
from ambient_mri.operators.fourier import fft, ifft
from ambient_mri.prepare import Preparation, prepare_file
from ambient_mri.prior import Prior, build_model, load_prior
from ambient_mri.reconstruct import volume
from ambient_mri.reconstruct.shared import SharedSlice
from ambient_mri.report.records import read_records
from ambient_mri.tensors import complex_randn, keyed_generator
from tests.data.fastmri_files import header_xml
from tests.oracles import StationaryDenoiser, smooth_coils

SIZE, SLICES = 24, 3
ARCHITECTURE = {"kind": "clean", "network": {"name": "UNet", "channels": 8, "multipliers": [1]}, "sd": 0.3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``scans/a.h5`` and ``b.h5`` (fully sampled, with references), ``mask.npy`` (R = 2.4), ``prior/``."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "scans").mkdir()
    maps = smooth_coils(4, SIZE, SIZE).to(torch.complex64)
    for name in "ab":
        generator = keyed_generator("evaluation", name)
        images = (1 + StationaryDenoiser(0.3, 0.1).draw(SLICES, (SIZE, SIZE), generator)) * torch.tensor([1.0, 2, 1.5])[
            :, None, None, None
        ]
        kspace = fft(maps * images)
        kspace = kspace + 0.02 * complex_randn(kspace.shape, generator=generator)
        with h5py.File(folder / "scans" / f"{name}.h5", "w") as handle:
            handle["kspace"] = kspace.numpy()
            handle["reconstruction_rss"] = ifft(kspace).abs().square().sum(dim=1).sqrt().numpy()
            handle["ismrmrd_header"] = header_xml(encoded=(SIZE, SIZE), recon=(SIZE, SIZE)).encode()
            handle.attrs["acquisition"] = "AXT1"
    mask = np.zeros(SIZE, dtype=bool)
    mask[::4], mask[9:15] = True, True
    np.save(folder / "mask.npy", mask)
    torch.manual_seed(0)
    Prior(build_model(ARCHITECTURE), "clean", ARCHITECTURE, name="tiny").save(folder / "prior")
    return folder


@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")
def test_every_slice_is_made_once_and_scores_are_those_of_the_volume(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, prior = np.load(root / "mask.npy"), load_prior(root / "prior")
    pairs = pair_files(root / "scans", root / "scans")
    assert [scan.stem for scan, _ in pairs] == ["a", "b"]
    plan = Evaluation(tmp_path / "out", samples=2, steps=3, mask=mask)
    first = plan.run(pairs, [prior], ["split_gibbs", "dds"])
    files = sorted((tmp_path / "out").rglob("*.h5"))
    assert len(files) == 2 * 2 * SLICES and files[0].name == "slice_0000.h5"

    # The same as the volume at once: one scale, one noise level, the same streams.
    whole = reconstruct(pairs[1][0], mask=mask, prior=prior, samples=2, steps=3, progress=False)
    with h5py.File(tmp_path / "out/tiny/split_gibbs/b/slice_0001.h5") as handle:
        assert np.allclose(handle["mean"][0], whole.mean[1], atol=1e-3 * np.abs(whole.mean).max())
    truth = read_reference(pairs[1][1])
    row = first.select(case="b", method="tiny/split_gibbs/mean2", metric="psnr")[0]
    assert row["value"] == pytest.approx(metrics.psnr(truth, whole.magnitude), abs=0.01)
    assert row["n"] == SLICES and row["nfe"] == 3
    assert "tiny/dds/mean2" in (tmp_path / "out/evaluation.md").read_text()

    # An interrupted run: two slices are missing, and nothing else is made again.
    made: list[int] = []
    original = SharedSlice.reconstruct

    def counted(self: SharedSlice, *args: Any, **options: Any) -> Reconstruction:
        made.append(self.raw.slice_indices[0])
        return original(self, *args, **options)

    monkeypatch.setattr(SharedSlice, "reconstruct", counted)
    for name in ("a/slice_0002.h5", "b/slice_0000.h5"):
        (tmp_path / "out/tiny/dds" / name).unlink()
    again = plan.run(pairs, [prior], ["split_gibbs", "dds"])
    assert made == [2, 0]
    values = lambda result: {(r["case"], r["method"], r["metric"]): r["value"] for r in result.rows}  # noqa: E731
    assert values(again) == pytest.approx(values(first), rel=1e-5)

    changed: dict[str, dict[str, Any]] = {"steps 3, now 4": {"steps": 4}, "samples 2, now 3": {"samples": 3}}
    changed |= {"seed 0, now 1": {"seed": 1}, r"slices \[0, 1, 2\], now \[0, 1\]": {"slices": slice(0, 2)}}
    for told, options in changed.items():
        with pytest.raises(DataError, match=rf"h5 was made with other settings \({told}\)\. Choose another --out, or"):
            replace(plan, **options).run(pairs, [prior], ["dds"])
    assert made == [2, 0]


def one_pair(root: Path) -> list[tuple[Path, Path]]:
    return [(root / "scans" / "a.h5", root / "scans" / "a.h5")]


def denser(mask: np.ndarray) -> np.ndarray:
    """R = 1.6 of R = 2.4."""
    return mask | (np.arange(SIZE) % 2 == 0)


@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")
def test_files_of_another_mask_or_prior_or_scan_are_never_taken_for_results(root: Path, tmp_path: Path) -> None:
    mask, prior = np.load(root / "mask.npy"), load_prior(root / "prior")
    plan = Evaluation(tmp_path / "out", samples=1, steps=2, mask=denser(mask), slices=slice(0, 1))
    first = plan.run(one_pair(root), [prior], ["dds"])
    assert first is not None
    values = lambda result: {row["metric"]: row["value"] for row in result.rows}  # noqa: E731
    with pytest.raises(DataError, match=r"slice_0000\.h5 was made with other settings \(another mask\)\. Choose"):
        replace(plan, mask=mask).run(one_pair(root), [prior], ["dds"])
    other = replace(plan, out=tmp_path / "other", mask=mask).run(one_pair(root), [prior], ["dds"])
    assert other is not None and abs(values(other)["psnr"] - values(first)["psnr"]) > 0.1

    torch.manual_seed(1)
    twin = Prior(build_model(ARCHITECTURE), "clean", ARCHITECTURE, name="tiny")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"other settings \(other weights\)"):
        plan.run(one_pair(root), [twin], ["dds"])
    louder = Prior(prior.model, "clean", {**ARCHITECTURE, "sd": 0.4}, name="tiny")
    with pytest.raises(DataError, match=r"other settings \(another architecture\)"):
        plan.run(one_pair(root), [louder], ["dds"])

    (tmp_path / "a").mkdir()
    shutil.copy(root / "scans" / "b.h5", tmp_path / "a" / "a.h5")
    with pytest.raises(DataError, match=r"other settings \(another scan\)"):
        plan.run([(tmp_path / "a" / "a.h5", root / "scans" / "a.h5")], [prior], ["dds"])
    # The same scan in another place is the same scan, and the same weights in another object are the same prior.
    shutil.copy(root / "scans" / "a.h5", tmp_path / "a" / "a.h5")
    moved = plan.run([(tmp_path / "a" / "a.h5", root / "scans" / "a.h5")], [load_prior(root / "prior")], ["dds"])
    assert moved is not None and values(moved) == values(first)

    with h5py.File(tmp_path / "out/tiny/dds/a/slice_0000.h5", "r+") as handle:
        handle.attrs["settings"] = "{}"
    with pytest.raises(DataError, match=r"slice_0000\.h5 does not say what it was made of: an earlier version"):
        plan.run(one_pair(root), [prior], ["dds"])


@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")
def test_coil_maps_are_estimated_once_a_slice(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two priors, two samplers; with 4 ACS lines the joint maps of each prior once, too."""
    counts = {"espirit": 0, "joint": 0}

    def count(name: str, attribute: str) -> None:
        original = getattr(volume, attribute)

        def counted(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(volume, attribute, counted)

    count("espirit", "estimate_coil_maps")
    count("joint", "joint_coil_maps")
    mask, one = np.load(root / "mask.npy"), load_prior(root / "prior")
    other = Prior(one.model, "clean", ARCHITECTURE, name="other")
    plan = Evaluation(tmp_path / "out", samples=2, steps=2, mask=mask, slices=slice(0, 2))
    plan.run(one_pair(root), [one, other], ["split_gibbs", "dds"])
    assert counts == {"espirit": 2, "joint": 0}
    few = np.arange(SIZE) % 3 == 0
    few[10:14] = True
    monkeypatch.setattr(volume, "JointSettings", partial(volume.JointSettings, chains=1, steps=2, sweeps=1))
    joint = replace(plan, out=tmp_path / "joint", mask=few, slices=slice(0, 1))
    joint.run(one_pair(root), [one, other], ["split_gibbs", "dds"])
    assert counts == {"espirit": 3, "joint": 2}
    # What the second sampler got is what it would have estimated.
    alone = reconstruct(root / "scans" / "a.h5", mask=few, slices=0, prior=one, sampler="dds", samples=2, steps=2)
    made = read_reconstruction(tmp_path / "joint/tiny/dds/a/slice_0000.h5")
    assert np.allclose(made["mean"], alone.mean, atol=1e-4 * np.abs(alone.mean).max())
    assert made["settings"]["coil_maps"] == alone.settings["coil_maps"] == "joint from espirit/torch"
    assert made["settings"]["noise_source"] == alone.settings["noise_source"] != "given"


@pytest.mark.filterwarnings("ignore:.*k-space of slices .0. is zero everywhere")
@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")
def test_a_slice_without_signal_is_zero_and_the_others_go_on(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "scans" / "a.h5", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as handle:
        handle["kspace"][0] = 0
    plan = Evaluation(tmp_path / "out", samples=2, steps=2, mask=np.load(root / "mask.npy"), slices=slice(0, 2))
    found = plan.run([(tmp_path / "a.h5", root / "scans" / "a.h5")], [load_prior(root / "prior")], ["dds"])
    empty, other = (read_reconstruction(tmp_path / f"out/tiny/dds/a/slice_000{i}.h5") for i in range(2))
    assert not empty["mean"].any() and not empty["std"].any() and other["mean"].any() and other["std"].any()
    assert "hold nothing but zeros" in empty["settings"]["warnings"][0]
    assert found is not None
    row = found.select(metric="chi2_residual")[0]
    assert row["value"] == pytest.approx(float(other["residual"][0])) and row["nfe"] == 2


@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")
def test_automatic_steps_are_those_of_the_volume(root: Path, tmp_path: Path) -> None:
    mask, prior = np.load(root / "mask.npy"), load_prior(root / "prior")
    plan = Evaluation(tmp_path / "out", samples=1, steps="auto", mask=mask, slices=slice(0, 1))
    found = plan.run(one_pair(root), [prior], ["dds"])
    options: Any = {"mask": mask, "slices": slice(0, 1), "prior": prior, "sampler": "dds", "samples": 1}
    alone = reconstruct(root / "scans" / "a.h5", steps="auto", **options)
    made = read_reconstruction(tmp_path / "out/tiny/dds/a/slice_0000.h5")
    assert made["settings"]["sampler"] == alone.settings["sampler"]
    assert found is not None and found.rows[0]["nfe"] == alone.settings["sampler"]["steps"]
    with pytest.raises(DataError, match=r"other settings \(steps auto, now \d+\)"):
        replace(plan, steps=None).run(one_pair(root), [prior], ["dds"])
    with pytest.raises(AmbientMRIError, match="steps must be one of 'auto'; got 'many'"):
        replace(plan, steps="many").run(one_pair(root), [prior], ["dds"])


def test_files_are_paired_by_name_and_never_by_position(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "scans" / "b.h5", tmp_path / "b.h5")
    with pytest.raises(DataError, match=r"no reference for a\.h5\. Scan and reference are paired by the name"):
        pair_files(root / "scans", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        pair_files(root / "scans", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no k-space file"):
        pair_files(tmp_path / "empty", tmp_path)
    assert len(pair_files(root / "scans" / "a.h5", tmp_path / "b.h5")) == 1


@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")
def test_a_part_of_a_volume_is_scored_against_the_same_slices(root: Path, tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    reference, scan = root / "scans" / "a.h5", tmp_path / "part" / "a.h5"
    prepare_file(reference, scan, settings=Preparation(slices=(1, 3)))
    plan = Evaluation(tmp_path / "out", mask=np.load(root / "mask.npy"), samples=2, steps=3)
    rows = plan.run([(scan, reference)], [load_prior(root / "prior")], ["split_gibbs"])
    files = sorted((tmp_path / "out").rglob("*.h5"))
    assert rows is not None and [p.name for p in files] == ["slice_0001.h5", "slice_0002.h5"]
    image = np.concatenate([read_reconstruction(file)["reconstruction"] for file in files])
    (value,) = (row["value"] for row in rows.rows if row["metric"] == "psnr")
    right, wrong = (metrics.psnr(read_reference(reference, chosen), image) for chosen in ([1, 2], [0, 1]))
    assert value == pytest.approx(right, abs=1e-3) and abs(right - wrong) > 0.1


def test_a_whitened_scan_is_not_compared(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w").mkdir()
    reference, scan = root / "scans" / "a.h5", tmp_path / "w" / "a.h5"
    raw = prepare_file(reference, scan)
    known = read_prepared(raw)
    write_prepared(scan, replace(known, preparation={**known.preparation, "whitening": {"source": "noise scan"}}))
    assert cli.main(["calibrate", str(scan.parent), str(root / "scans"), "--prior", str(root / "prior")]) == 2
    assert "the scan was whitened when it was prepared" in capsys.readouterr().err
    with pytest.raises(DataError, match="Prepare it without --whiten to compare"):
        Evaluation(tmp_path / "e", samples=2, steps=2).run([(scan, reference)], [load_prior(root / "prior")], ["dds"])
    out = str(tmp_path / "r.h5")
    quick = ["--samples", "2", "--steps", "2", "--out", out]
    assert cli.main(["reconstruct", str(scan), "--prior", str(root / "prior"), *quick]) == 0
    assert cli.main(["evaluate", out, str(reference)]) == 2
    assert "r.h5: the scan was whitened" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prior", "brain128"], r"load_prior\('brain128'\)\.save\('my_prior'\)"),
        (["--samples", "2"], "calibrate needs --samples 3 at least; got 2"),
        (["--level", "90"], "--level must lie between 0 and 1, such as 0.9; got 90"),
    ],
)
def test_calibrate_finds_mistakes_before_it_reconstructs(
    arguments: list[str], words: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ambient_mri.evaluation.reconstructed", lambda *_, **__: pytest.fail("it reconstructs"))
    scans = str(root / "scans")
    assert cli.main(["calibrate", scans, scans, "--prior", str(root / "prior"), *arguments]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_two_priors_of_one_name_are_refused(root: Path, tmp_path: Path) -> None:
    prior = load_prior(root / "prior")
    with pytest.raises(AmbientMRIError, match=r"priors must have different names, .*; got tiny, tiny"):
        Evaluation(tmp_path).run([], [prior, prior], ["dds"])
    # Records would hold one row for both.
    named = [replace(prior, name=name) for name in ("EM-1", "em_1")]
    with pytest.raises(AmbientMRIError, match=r"priors must have different names, .*; got EM-1, em_1"):
        Evaluation(tmp_path).run([], named, ["dds"])


@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")
def test_the_commands_evaluate_and_calibrate(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root / "prior", tmp_path / "prior")
    scans, shared = str(root / "scans"), ["--mask", str(root / "mask.npy"), "--slices", "1:2", "--steps", "auto"]
    shared += ["--prior", str(tmp_path / "prior"), "--sampler", "dds", "--samples", "4"]
    assert cli.main(["evaluate", scans, scans, *shared, "--out", str(tmp_path / "out")]) == 0
    assert "evaluation.json" in capsys.readouterr().out
    rows = read_records(tmp_path / "out" / "evaluation.json").rows
    assert {(row["case"], row["n"]) for row in rows} == {("a", 1), ("b", 1)}

    assert cli.main(["calibrate", scans, scans, *shared]) == 0
    assert "by which reconstruct() multiplies" in " ".join(capsys.readouterr().out.split())
    stored = json.loads((tmp_path / "prior" / "prior.json").read_text())["recalibration"]["dds"]
    assert stored["factor"] > 0 and stored["cases"] == 2 and stored["samples"] == 4
    assert stored["steps"] == "auto"
    # Either the intervals covered too little and are widened, or they are narrowed.
    assert (stored["coverage"] < 0.9) == (stored["factor"] > 1)
    assert load_prior(tmp_path / "prior").metadata["recalibration"]["dds"] == stored

    assert cli.main(["evaluate", scans, scans]) == 2
    assert "name the prior with --prior" in capsys.readouterr().err


def in_two_processes(*arguments: object) -> str:
    """``ambient-mri evaluate`` in a process of its own, which starts the other one; what it says."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ambient_mri.cli", "evaluate", *map(str, arguments), "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")
def test_two_processes_write_the_slices_and_records_of_one(root: Path, tmp_path: Path) -> None:
    """DDP on the CPU, a sampler that differentiates the network among two; then with less left to do than processes."""
    mask, scans, one, two = root / "mask.npy", root / "scans", tmp_path / "one", tmp_path / "two"
    samplers, pairs = ["split_gibbs", "dps"], pair_files(root / "scans", root / "scans")
    wanted = Evaluation(one, samples=2, steps=3, mask=np.load(mask), device="cpu").run(
        pairs, [load_prior(root / "prior")], samplers
    )
    arguments = [scans, scans, "--prior", root / "prior", "--mask", mask, "--samples", 2, "--steps", 3, "--out", two]
    arguments += ["--device", "cpu", *(word for name in samplers for word in ("--sampler", name))]
    assert in_two_processes(*arguments).count("evaluation.json") == 1
    files = sorted(path.relative_to(one) for path in one.rglob("*.h5"))
    assert len(files) == 2 * 2 * SLICES and files == sorted(path.relative_to(two) for path in two.rglob("*.h5"))

    times = {file: (two / file).stat().st_mtime_ns for file in files}
    (two / files[-1]).unlink()
    in_two_processes(*arguments)
    assert [file for file in files if (two / file).stat().st_mtime_ns != times[file]] == [files[-1]]
    for file in files:
        with h5py.File(one / file) as first, h5py.File(two / file) as second:
            assert np.allclose(first["mean"], second["mean"], atol=1e-4 * np.abs(first["mean"]).max())
    values = lambda result: {  # noqa: E731
        (row["case"], row["method"], row["metric"]): row["value"] for row in result.rows
    }
    assert values(read_records(two / "evaluation.json")) == pytest.approx(values(wanted), rel=1e-4)
