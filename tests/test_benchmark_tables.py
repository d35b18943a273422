"""The scripts of the quality tables run, resume, merge and print; their cases and means are what they say."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ambient_mri.data.phantom import BrainPhantom
from ambient_mri.data.simulate import Simulation
from ambient_mri.prior import Prior, build_model
from ambient_mri.report.records import Row, read_records
from benchmarks.quality import cases, cost, prior_evaluation, reconstruct, robustness, shifts, tables
from benchmarks.quality.ledger import Ledger, provenance, recorded_command
from tests.data.fastmri_files import header_xml

TINY = {"name": "UNet", "channels": 8, "multipliers": [1], "fold": 4}


@pytest.fixture(autouse=True)
def without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)


def saved(folder: Path, kind: str, fill: float | None = None, **more: Any) -> Path:
    architecture = {"kind": kind, "network": TINY, "sd": 0.3, "precision": "fp32", **more}
    model = build_model(architecture)
    for tensor in model.state_dict().values() if fill is not None else ():
        tensor.fill_(fill)
    return Prior(model, kind, architecture, name="tiny").save(folder)


def test_drawn_masks_differ_and_are_the_same_in_every_run() -> None:
    for law in ("random", "equispaced"):
        for rate in (2, 4, 6, 8):
            first, second = cases.drawn_masks(law, rate, 2, (128, 128))
            assert not np.array_equal(first, second)
            again = cases.drawn_masks(law, rate, 2, (128, 128))
            assert np.array_equal(first, again[0]) and np.array_equal(second, again[1])
            lines = cases.ACS[rate]
            start = (128 - lines + 1) // 2
            assert first[start : start + lines].all()
            if law == "random":
                assert first.sum() == second.sum() == round(128 / rate)
            else:
                outer = np.flatnonzero(np.delete(np.arange(128) * first, np.arange(start, start + lines)))
                assert outer.size >= (128 - lines) // rate - 1


@pytest.mark.parametrize(("width", "lines"), [(180, 16), (256, 24), (48, 4)])
def test_masks_of_other_widths_have_calibration_lines_in_proportion(width: int, lines: int) -> None:
    (mask,) = cases.drawn_masks("random", 4, 1, (33, width))
    start = (width - lines + 1) // 2
    assert mask.sum() == width // 4 and mask[start : start + lines].all()


def test_support_is_the_object_dilated_without_holes() -> None:
    image = np.zeros((64, 64))
    image[20:40, 20:40] = 1.0
    image[28:31, 28:31] = 0.0  # a hole
    image[5, 5] = 0.04  # below the fraction
    expected = np.zeros_like(image, dtype=bool)
    expected[20:40, 20:40] = True
    rows, columns = np.indices(image.shape)
    for r, c in np.argwhere(expected):  # the diamond of two steps
        expected |= np.abs(rows - r) + np.abs(columns - c) <= 2
    assert np.array_equal(cases.support(image), expected)


def test_errors_inside_and_outside_add_up() -> None:
    generator = np.random.default_rng(0)
    reference = np.zeros((32, 32))
    reference[8:24, 8:24] = 1 + generator.random((16, 16))
    reference += 0.01
    case = cases.Case("x", 4, 0, np.zeros((1, 1, 32, 32), np.complex64), np.ones(32, bool), reference)
    image = reference + 0.1 * generator.random((32, 32))
    found, whole = cases.regional_scores(case, image), cases.score(case, image)
    energy = {
        region: np.sum(reference[pixels] ** 2)
        for region, pixels in (("inside", case.support), ("outside", ~case.support))
    }
    squares = sum(found[region, "nrmse"] ** 2 * energy[region] for region in energy)
    assert squares / sum(energy.values()) == pytest.approx(whole["nrmse"] ** 2)


def row(case: str, mask: int, method: str, value: float, **factors: object) -> Row:
    base = {"case": case, "acceleration": 4, "law": "random", "mask": mask, "masks": "masks_128", "seconds": 1.0}
    return {**base, "method": method, "metric": "psnr", "value": value, "n": 1, "ci95": None, **factors}


def test_a_method_that_lacks_a_case_is_left_out_of_the_mean() -> None:
    rows = [row("a", m, method, 30.0) for m in (0, 1) for method in ("zero_filled", "cg_sense")]
    rows += [row("a", 0, "adps", 99.0), row("b", 0, "adps", 20.0)]
    kept, lost = tables.complete(rows, ("case",))
    assert lost == {"adps"} and {r["method"] for r in kept if r["case"] == "a"} == {"zero_filled", "cg_sense"}
    assert [r["value"] for r in kept if r["method"] == "adps"] == [20.0]


def test_the_standard_table_holds_published_masks_and_whole_images_alone(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "r.json", "c", {})
    book.add(
        [
            row("a", 0, "zero_filled", 20.0),
            row("a", 1, "zero_filled", 22.0),
            row("a", 2, "zero_filled", 90.0, masks="drawn"),
            row("a", 0, "zero_filled", 90.0, law="equispaced", masks="drawn"),
            row("a", 0, "zero_filled", 90.0, region="inside"),
        ]
    )
    assert "| a | 4 | 21.00 |" in tables.standard_table(read_records(book.path))


def test_runs_share_a_record_and_a_name_stands_for_one_prior(tmp_path: Path) -> None:
    path, settings = tmp_path / "r.json", {"samples": 2}
    first = Ledger(path, "one", settings, {"priors": {"em": {"weights": "a"}}})
    second = Ledger(path, "two", settings, {"priors": {"other": {"weights": "b"}}})
    first.add([row("a", 0, "em/dds/point", 1.0)])
    second.add([row("a", 0, "other/dds/point", 2.0)])
    found = read_records(path)
    assert found.settings["priors"] == {"em": {"weights": "a"}, "other": {"weights": "b"}}
    assert found.command == "one && two" and len(found.rows) == 2
    assert second.has("em/dds/point", case="a", mask=0) and not second.has("em/dds/point", case="a", mask=1)
    second.remember("adps", "x", {"likelihood_weight": 3.0})
    second.add([row("a", 1, "other/dds/point", 2.0)])
    assert Ledger(path, "three", settings).recalled("adps", "x") == {"likelihood_weight": 3.0}
    with pytest.raises(SystemExit, match=r"another 'em' \(priors: weights differ\)"):
        Ledger(path, "four", settings, {"priors": {"em": {"weights": "c"}}})
    with pytest.raises(SystemExit, match=r"other settings \(samples differ\)"):
        Ledger(path, "five", {"samples": 3})


def test_provenance_knows_the_weights(tmp_path: Path) -> None:
    from ambient_mri.prior import load_prior

    one, same, other = (load_prior(saved(tmp_path / n, "clean", s)) for n, s in (("a", 0.1), ("b", 0.1), ("c", 0.2)))
    assert provenance(one) == provenance(same) and provenance(one)["weights"] != provenance(other)["weights"]


def test_commands_are_recorded_without_places() -> None:
    inside = reconstruct.ROOT / "benchmarks" / "priors" / "em1"
    arguments = ["--out", "/elsewhere/x", "--clean", f"em1={inside}", "--ssdu", "s=/far/away/run/prior", "--full"]
    expected = "python s.py --clean em1=benchmarks/priors/em1 --ssdu s=run/prior --full"
    assert recorded_command("s.py", arguments) == expected


def test_the_full_table_is_filled_prior_by_prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ["--full", "--scans", "simulated_phantom_0", "--accelerations", "8", "--part", "0/2", "--steps", "1"]
    common += ["--samples", "2", "--out", str(tmp_path)]
    reconstruct.main([*common, "--no-baselines", "--ssdu", str(saved(tmp_path / "ssdu", "feedforward"))])
    clean = ["--no-baselines", "--clean", f"tiny={saved(tmp_path / 'clean', 'clean')}"]
    published = saved(tmp_path / "edm", "ambient", preconditioning="edm")
    adps = ["--adps", str(published), "--adps-steps", "2", "--adps-cases", "1", "--adps-tuning", "1"]
    reconstruct.main([*common, *clean, *adps])
    path = tmp_path / "reconstruct_full.json"
    result = read_records(path)
    everywhere = {"zero_filled", "ssdu_weighted", "tiny/dds/point"}
    everywhere |= {"tiny/split_gibbs/mean2", "tiny/split_gibbs/sample"}
    for law in ("random", "equispaced"):
        (mask,) = {r["mask"] for r in result.rows if r["law"] == law}
        found = {r["method"] for r in result.select(law=law, mask=mask)}
        assert found - {"ambient_published/adps/mean2", "ambient_published/adps/sample"} == everywhere
    adps_rows = result.select(method="ambient_published/adps/mean2", metric="psnr", region=None)
    (tuned,) = result.settings["adps"].values()
    assert {r["law"] for r in adps_rows} == {"random"} and {r["regularisation"] for r in adps_rows} == {
        tuned["likelihood_weight"]
    }
    assert tuned["tuned_on"] == ["held_out_phantom_0"]
    assert {r.get("region") for r in result.select(metric="nrmse")} == {None, "inside", "outside"}
    text = (tmp_path / "reconstruct_full.md").read_text()
    assert "## Heads, inside and outside the object" in text and "## Seconds a slice" in text

    monkeypatch.setattr(reconstruct, "run_case", lambda *_: pytest.fail("a finished case was computed again"))
    reconstruct.main([*common, *clean, *adps])
    assert read_records(path).rows == result.rows


def test_robustness_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--prior", str(saved(tmp_path / "prior", "clean")), "--samples", "4", "--steps", "1"]
    arguments += ["--shifts", "noise", "told", "--limit", "2", "--no-baseline", "--out", str(tmp_path)]
    robustness.main([*arguments, "--accelerations", "4"])
    result = read_records(tmp_path / "robustness.json")
    assert {(r["shift"], r["setting"]) for r in result.rows} == {
        ("noise", "x 1"),
        ("noise", "x 2"),
        ("told noise level", "x 0.5"),
        ("told noise level", "x 2"),
    }
    inside = result.select(region="inside")
    assert {r["metric"] for r in inside} >= {"nrmse", "nstd", "coverage90", "chi2_residual"}
    assert all(0 <= r["value"] <= 1 for r in inside if r["metric"] == "coverage90")
    # Twice the level that the sampler was told, a quarter of chi^2 at about the same residual.
    chi2 = {r["setting"]: r["value"] for r in inside if r["metric"] == "chi2_residual" and "told" in r["shift"]}
    assert chi2["x 2"] < chi2["x 0.5"]
    text = (tmp_path / "robustness.md").read_text()
    assert "| noise | x 2 | 4 | 1, simulated |" in text and (tmp_path / "figures" / "robustness.png").is_file()

    monkeypatch.setattr(robustness, "rows_of", lambda *_: pytest.fail("a finished condition was measured again"))
    robustness.main([*arguments, "--accelerations", "4"])
    assert read_records(tmp_path / "robustness.json").rows == result.rows


def test_added_noise_has_the_level_that_it_says() -> None:
    reference = np.ones((64, 64))
    case = cases.Case("x", 4, 0, np.zeros((1, 4, 64, 64), np.complex64), np.ones(64, bool), reference)
    assert shifts.noisier(case, 0.5, 1) is case
    added = shifts.noisier(case, 0.5, 4).kspace
    assert np.std(added.real) == pytest.approx(0.5 * 15**0.5, rel=0.02)
    assert np.std(added.imag) == pytest.approx(0.5 * 15**0.5, rel=0.02)


def test_resized_is_the_same_object_with_fewer_pixels() -> None:
    import torch

    from ambient_mri.operators.fourier import fft, ifft

    rows, columns = np.indices((256, 320))
    image = np.exp(-((rows - 128) ** 2 + (columns - 160) ** 2) / (2 * 24.0**2)).astype(np.complex64)
    small = shifts.resized(fft(torch.from_numpy(image)[None, None]).numpy(), 128)
    found = ifft(torch.from_numpy(small))[0, 0].abs().numpy()
    rows, columns = np.indices((128, 128))
    expected = np.exp(-((rows - 64) ** 2 + (columns - 64) ** 2) / (2 * 12.0**2))
    assert np.abs(found / found.max() - expected).max() < 1e-3


def test_cost_plans_every_method_and_draws_its_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = str(saved(tmp_path / "prior", "clean"))

    def measured(spec: cost.Spec, name: str | None) -> list[Row]:
        """In this process, and of the cheap ones."""
        assert (name is None) == (spec.sampler is None)
        shared = {**vars(spec), "case": "x", "acceleration": 4, "mask": 0, "n": 1, "ci95": None, "seconds": 2.0}
        shared |= {"nfe": spec.steps, "gradients": 0}
        scores = [{**shared, "metric": m, "value": 30.0} for m in ("psnr", "ssim") if spec.part == "quality"]
        clocks = [{**shared, "metric": "seconds", "clock": c, "value": 2.0} for c in ("wall", "processor")]
        return [*scores, *clocks, {**shared, "metric": "peak_memory_mb", "value": 500.0}]

    monkeypatch.setattr(cost, "rows_of", measured)
    arguments = ["--prior", prior, "--label", "em", "--baselines", "l1_wavelet", "--steps", "2", "5"]
    arguments += ["--adps", f"published={saved(tmp_path / 'edm', 'ambient', preconditioning='edm')}"]
    arguments += ["--ssdu", f"ssdu_weighted={saved(tmp_path / 'ssdu', 'feedforward')}"]
    cost.main([*arguments, "--out", str(tmp_path)])
    assert set(read_records(tmp_path / "cost.json").settings["priors"]) == {"em", "published", "ssdu_weighted"}
    text = (tmp_path / "cost.md").read_text()
    assert "| published/adps/sample | 500 | cpu | 30.00 |" in text and "| ssdu_weighted | 1 | cpu | 30.00 |" in text
    assert "| em/split_gibbs/mean8 | 5 | cpu | 30.00 | 30.000 | 2 s | 2 s | 500 MiB |" in text
    for factor, value in (("coils", 32), ("size", 256), ("samples", 16), ("slices", 4)):
        assert f"| {factor} | {value} | em/split_gibbs | cpu | 2 s |" in text
    assert "| samples | 4 | l1_wavelet" not in text and (tmp_path / "figures" / "cost.png").is_file()
    monkeypatch.setattr(cost, "rows_of", lambda *_: pytest.fail("measured again"))
    cost.main([*arguments, "--out", str(tmp_path)])


def test_a_cost_is_measured(tmp_path: Path) -> None:
    prior = str(saved(tmp_path / "prior", "clean"))
    spec = cost.Spec("growth", "em/split_gibbs/sample", steps=2, samples=1, coils=2, size=32, slices=2)
    found = cost.measure_here(spec, prior)
    assert found["wall"] > 0 and found["processor"] > 0 and found["peak_memory_mb"] > 50
    assert cost.measure_here(cost.Spec("growth", "zero_filled", coils=2, size=32), None)["factors"] == {}


def test_published_methods_are_measured_as_ours_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "speed_adps.json"
    Ledger(record, "c", {"likelihood_weight": {"weight": 0.7}}).add([row("a", 0, "ambient/adps/sample", 1.0)])
    monkeypatch.setattr(cost, "ADPS_RECORD", record)
    spec = cost.Spec("growth", "published/adps/sample", steps=2, samples=1, coils=2, size=32)
    case = cost.grown(spec)
    run, factors = cost.work(spec, case, str(saved(tmp_path / "edm", "ambient", preconditioning="edm")))
    assert factors == {"nfe": 2, "gradients": 2, "regularisation": 0.7}
    two, one = run(2), run(1)
    assert two.shape == (32, 32) and np.isfinite(two).all() and not np.allclose(one, two)
    monkeypatch.setattr(cost, "step_length", lambda: 1e-6)  # the data have next to no say
    free, _ = cost.work(spec, case, str(tmp_path / "edm"))
    assert not np.allclose(free(2), two)
    spec = cost.Spec("growth", "ssdu_weighted", steps=1, samples=1, coils=2, size=32)
    found = cost.measure_here(spec, str(saved(tmp_path / "ssdu", "feedforward")))
    assert found["factors"] == {"nfe": 1, "gradients": 0} and found["wall"] > 0
    monkeypatch.undo()
    monkeypatch.setattr(cost, "ADPS_RECORD", tmp_path / "none.json")
    with pytest.raises(SystemExit, match=r"run `python benchmarks/speed/adps\.py` first"):
        cost.step_length()


def test_the_native_table_takes_every_scan_at_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    root = tmp_path / "data"
    (root / "multicoil_val").mkdir(parents=True)
    for index, shape in enumerate(((33, 48), (48, 32))):
        image = BrainPhantom(48, seed=3).volume(index, 3)[1:2, : shape[0], : shape[1]]
        scanner = Simulation(coils=(4, 4), noise_std=(0.01, 0.01), turn=False)
        _, kspace, _ = cases.simulated("x", image, scanner, f"native {index}")
        with h5py.File(root / "multicoil_val" / f"head_{index}.h5", "w") as handle:
            handle["kspace"] = kspace
            handle["ismrmrd_header"] = header_xml(encoded=shape, recon=shape).encode()
            handle.attrs["acquisition"] = "AXT1"
    with pytest.raises(SystemExit):
        reconstruct.main(["--native"])  # no data folder
    monkeypatch.setenv("AMBIENT_MRI_DATA", str(root))
    clean = saved(tmp_path / "clean", "clean")
    arguments = ["--native", "--clean", f"tiny={clean}", "--out", str(tmp_path)]
    default = reconstruct.parse(arguments)
    assert default.baselines == ["l1_wavelet"] and (default.samples, default.steps) == (8, 25)
    reconstruct.main([*arguments, "--samples", "2", "--steps", "1", "--accelerations", "4", "--no-baselines"])
    result = read_records(tmp_path / "reconstruct_native.json")
    assert {r["case"] for r in result.rows} == {"head_0_33x48", "head_1_48x32"}
    assert {r["law"] for r in result.rows} == {"random", "equispaced"} and {r["masks"] for r in result.rows} == {
        "drawn"
    }
    methods = {"zero_filled", "tiny/split_gibbs/mean2", "tiny/split_gibbs/sample"}
    assert {r["method"] for r in result.rows} == methods
    assert result.settings["data"] == "multicoil_val at native sizes, drawn masks (real scans)"
    text = (tmp_path / "reconstruct_native.md").read_text()
    assert "| head_0_33x48 | equispaced | 4 |" in text and "tiny/split_gibbs/sample" not in text


@pytest.mark.parametrize("path", sorted(reconstruct.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_records_name_no_folder_of_the_machine(path: Path) -> None:
    assert re.findall(r"[\s\"'=]/\w[^\s\"']*", path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("best", prior_evaluation.ADPS_WEIGHTS)
def test_the_step_of_adps_is_climbed_to_wherever_it_is_best(best: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def quality(prior: Any, sampler: Any, samples: int, keep: tuple[float, float]) -> Any:
        weight = sampler.likelihood_weight
        # A step far beyond the best one diverges.
        value = float("-inf") if weight > 20 * best else -abs(np.log(weight / best))
        return lambda m: [value]

    monkeypatch.setattr(prior_evaluation, "_posterior", quality)
    monkeypatch.setattr(prior_evaluation, "_scored", lambda truth, value: value)
    (mask,) = cases.drawn_masks("random", 4, 1, (64, 64))
    scored: Any = [(SimpleNamespace(mask=torch.from_numpy(mask)), torch.zeros(1))]
    held = prior_evaluation.HeldOut(scored=scored, tuning=scored, acs_lines=6)
    sampler, keep = prior_evaluation.adps_weight(Prior.__new__(Prior), held, name="adps", steps=3)
    assert vars(sampler)["likelihood_weight"] == best
    # A further mask of R + 1: 6 calibration lines, and so many of the 10 others that 64 / 5 are left.
    assert 6 + 10 * keep == pytest.approx(64 / 5)
