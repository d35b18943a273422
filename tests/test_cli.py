"""The command line: every command does its job, and every mistake ends with one clear line and status 2."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import ambient_mri
from ambient_mri import cli
from ambient_mri.cli import doctor, prepare
from ambient_mri.cli.files import load_array
from ambient_mri.cli.parser import make_parser, slice_range
from ambient_mri.data.fastmri_masks import KINDS
from ambient_mri.data.schema import read_prepared
from ambient_mri.data.writers import read_reconstruction
from ambient_mri.denoiser import computes_in_bf16
from ambient_mri.masks import RandomLines
from ambient_mri.operators.fourier import fft, ifft
from ambient_mri.prior import Prior, build_model
from ambient_mri.reconstruct import ReconstructionWarning
from ambient_mri.report.records import read_records
from ambient_mri.tensors import complex_randn, keyed_generator
from tests.data.fastmri_files import header_xml
from tests.training.conftest import smooth_images

SIZE = 32
ARCHITECTURE = {
    "kind": "clean",
    "network": {"name": "UNet", "channels": 8, "multipliers": [1]},
    "sd": 0.3,
    "sigma_min": 0.002,
    "sigma_max": 5.0,
    "profile_bins": 4,
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``prior/`` and ``full.h5`` (fully sampled, fastMRI's layout), ``scan.npz`` (R = 2), ``masks.npz``."""
    root = tmp_path_factory.mktemp("cli")
    generator = keyed_generator("cli")
    maps = smooth_images(4, (SIZE, SIZE), generator).reshape(1, 4, SIZE, SIZE)
    maps = maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()
    kspace = fft(maps * smooth_images(2, (SIZE, SIZE), generator))
    kspace = kspace + 0.02 * complex_randn(kspace.shape, generator=generator)
    mask = RandomLines(2.0, 8).draw((SIZE, SIZE), generator)
    np.savez(root / "scan.npz", kspace=(kspace * mask).numpy(), mask=mask.numpy())
    np.savez(root / "masks.npz", R2=np.stack([mask.flatten(), torch.ones(SIZE, dtype=torch.bool)]), other=np.ones(3))
    np.save(root / "maps.npy", maps[0].numpy())
    with h5py.File(root / "full.h5", "w") as handle:
        handle["kspace"] = kspace.numpy()
        handle["reconstruction_rss"] = ifft(kspace).abs().square().sum(dim=1).sqrt().numpy()
        handle["ismrmrd_header"] = header_xml(encoded=(SIZE, SIZE), recon=(SIZE, SIZE)).encode()
        handle.attrs["acquisition"] = "AXT1"
    torch.manual_seed(0)
    Prior(build_model(ARCHITECTURE), "clean", ARCHITECTURE, {"licence": "none"}, name="tiny").save(root / "prior")
    return root


def run(*arguments: object) -> int:
    return cli.main([str(a) for a in arguments])


def stopped(*arguments: object) -> int | str | None:
    """Status of a call that argparse ends."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    return stop.value.code


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped("--help") == 0
    text = capsys.readouterr().out
    for command in ("demo", "reconstruct", "prepare", "train", "info", "doctor", "evaluate"):
        assert re.search(rf"^ +{command}\b", text, re.MULTILINE)
        assert stopped(command, "--help") == 0 if command != "train" else True
    assert "--prior" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped("--version") == 0
    assert capsys.readouterr().out.startswith("ambient-mri ")


def test_help_loads_nothing_heavy() -> None:
    """`ambient-mri --help` answers at once: neither torch nor numpy is imported."""
    script = (
        "import sys; from ambient_mri import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: print('loaded:', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("loaded:")[2].split())
    assert "argparse" in loaded and "usage" in done.stdout
    assert not loaded & {"torch", "numpy", "h5py", "sigpy", "hydra", "pytorch_lightning", "matplotlib", "scipy", "rich"}


@pytest.mark.parametrize(
    "name", ["__init__", "parser", "commands", "files", "options", "terminal", "prepare", "doctor", "sample"]
)
def test_the_command_line_imports_no_torch_by_itself(name: str) -> None:
    source = (Path(cli.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    top = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {alias.name if isinstance(node, ast.Import) else str(node.module) for node in top for alias in node.names}
    light = ("ambient_mri._checks", "ambient_mri.cli", "__future__", "collections.abc")
    assert all(module.startswith(light) or module in sys.stdlib_module_names for module in found), found


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["reconstruct", "no.h5", "--prior", "{prior}"], r"no\.h5: no such file"),
        (["reconstruct", "{scan}", "--prior", "nowhere"], "no prior 'nowhere'"),
        (["reconstruct", "{scan}", "--prior", "{prior}", "--out", "x.gif"], r"x\.gif: the ending must be one of \.h5"),
        (["reconstruct", "{scan}", "--prior", "{prior}", "--out", "no/x.h5"], "the folder no does not exist"),
        (["reconstruct", "{scan}", "--prior", "{prior}", "--report", "r.pdf"], r"r\.pdf: the ending must be"),
        (["reconstruct", "{scan}", "--prior", "{prior}", "--device", "gpu"], "device gpu cannot be used"),
        (["reconstruct", "{scan}", "--prior", "{prior}", "--mask", "{masks}"], "no array 'mask'; it holds R2, other"),
        (["reconstruct", "{scan}", "--prior", "{prior}", "--mask", "{masks}:R2:5"], "there is no entry 5"),
        (["reconstruct", "{scan}", "--prior", "{prior}", "--mask", "{masks}:other"], "dataset 'mask' has shape|mask"),
        (["reconstruct", "{scan}", "--prior", "{prior}", "--sampler", "one_step"], "one_step is not valid"),
        (["reconstruct", "{scan}", "--prior", "{prior}", "--samples", "0"], "samples must be at least 1"),
        (["reconstruct", "{scan}", "--prior", "{prior}", "--slices", "7:9"], "picks none of the 2 slices"),
        (["reconstruct", "{scan}", "--prior", "{prior}", "--noise-std=-1"], "noise_std must be"),
        (["prepare", "{empty}", "--out", "{empty}"], "no k-space file"),
        (["prepare", "{full}", "--out", "{empty}", "--acceleration", "0.5"], "acceleration must be at least 1"),
        (["prepare", "{full}", "--out", "{empty}", "--slices", "1:"], "needs both ends of --slices"),
        (
            ["prepare", "{full}", "--out", "{empty}", "--acs-lines", "12"],
            "--acs-lines: nothing is undersampled without --acceleration R",
        ),
        (
            ["prepare", "{full}", "--out", "{empty}", "--acceleration", "2", "--center-fraction", "0.04"],
            "of the fastmri_ laws, not of --law random_lines",
        ),
        (
            ["prepare", "{full}", "--out", "{empty}", "--acceleration", "2", "--by-name"],
            "--by-name: of the fastmri_ laws",
        ),
        (
            ["prepare", "{full}", "--out", "{empty}", "--acceleration=4", "--law=fastmri_random", "--acs-lines=24"],
            "--acs-lines: --law fastmri_random has --center-fraction F in its place",
        ),
        (
            ["prepare", "{full}", "--out", "{empty}", "--law", "poisson", "--seed", "5"],
            "--law, --seed: nothing is undersampled without --acceleration R",
        ),
        (["prepare", "{full}", "--out", "{empty}", "--compression", "geometric"], "--compression: .* with --coils N"),
        (["sample", "--prior", "{prior}", "--guides", "9"], "--guides: of --sampler guidance"),
        (["demo", "--fresh", "--minutes", "2"], "--minutes, --fresh: of training; give --train, too"),
        (["demo", "--train", "--prior", "brain128"], "--prior: --train trains the prior"),
        (["info", "no.h5"], r"no\.h5: no such file"),
        (["info", "{empty}"], "is not a prior folder"),
        (["evaluate", "{full}", "{full}"], "dataset 'reconstruction' is missing"),
        (
            ["evaluate", "{full}", "{full}", "--slices", "0:1", "--processes", "-3"],
            "--slices, --processes: options of scans that are reconstructed first, with --prior",
        ),
        (["demo", "--minutes", "0", "--out", "{empty}"], "minutes must be a positive"),
        (["train", "data=phantoms"], "data=phantoms is unknown; .* Did you mean 'phantom'"),
        (["--debug-not", "train"], None),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], line: str | None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"scan": "scan.npz", "prior": "prior", "masks": "masks.npz", "full": "full.h5"}
    places = {key: str(folder / name) for key, name in names.items()} | {"empty": str(tmp_path)}
    filled = [argument.format(**places) for argument in arguments]
    status = stopped(*filled) if line is None else run(*filled)
    found = capsys.readouterr().err
    assert status == 2 and found.startswith("error: ") and found.count("\n") == 1
    assert "Traceback" not in found and re.search(line or "error", found)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["reconstruct"], "required: SCAN, --prior"),
        (["reconstrukt"], "invalid choice: 'reconstrukt'"),
        (["info", "x", "--slices", "a:b"], "'a:b' is not A:B or a number"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(*arguments) == 2
    found = capsys.readouterr().err
    assert found.count("\n") == 1 and line in found and "--help" in found


def test_debug_shows_the_traceback(folder: Path) -> None:
    with pytest.raises(ambient_mri._checks.DataError, match="no such file"):
        run("info", "no.h5", "--debug")


def test_a_bug_is_told_from_a_mistake(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(path: str, slices: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("ambient_mri.cli.info.describe", broken)
    assert run("info", "x") == 1
    assert capsys.readouterr().err == "internal error: KeyError: 'oops' (--debug shows where it happened)\n"


def test_reconstruct_writes_what_was_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = [tmp_path / name for name in ("a.h5", "a.npz", "a.png")]
    given = [argument for path in outputs for argument in ("--out", path)]
    options = [
        "--prior",
        folder / "prior",
        "--samples",
        2,
        "--steps",
        3,
        "--slices",
        "1",
        "--seed",
        4,
        "--save-samples",
    ]
    assert run("reconstruct", folder / "scan.npz", *options, *given, "--report", tmp_path / "a.html") == 0
    text = capsys.readouterr().out
    assert all(path.is_file() for path in outputs) and "<!DOCTYPE html>" in (tmp_path / "a.html").read_text()
    assert "split_gibbs, 3 noise levels, 2 samples a slice" in text and "tiny (clean)" in text
    found = read_reconstruction(outputs[0])
    assert found["samples"].shape == (1, 2, SIZE, SIZE) and found["settings"]["slices"] == [1]
    # The network is untrained and walks three levels.
    misfit = pytest.warns(ReconstructionWarning, match="the images do not fit the data")
    with misfit, pytest.warns(ReconstructionWarning, match="8 ACS lines"):
        direct = ambient_mri.reconstruct(
            folder / "scan.npz", prior=folder / "prior", samples=2, steps=3, slices=slice(1, 2), seed=4
        )
    np.testing.assert_array_equal(found["mean"], direct.mean)


@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")
def test_nothing_that_is_there_is_written_over_and_what_can_be_written_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    scan = shutil.copy(folder / "scan.npz", tmp_path / "scan.npz")
    quick = ("reconstruct", scan, "--prior", folder / "prior", "--samples", 2, "--steps", 2)
    for wrong, words in (
        (["--out", scan], r"scan\.npz is what is read: it is not written over"),
        (["--mask", f"{folder}/masks.npz:R2:0", "--out", folder / "masks.npz"], r"masks\.npz is what is read"),
        (
            ["--out", "a.h5", "--report", folder / "prior" / "a.htm", "--out", tmp_path / "made.h5"],
            "made.h5 is a folder",
        ),
        (["--out", "/proc/a.h5"], "nothing can be written to /proc"),
        (["--out", "a.png", "--save-samples"], "--save-samples needs an --out that can hold them"),
    ):
        (tmp_path / "made.h5").mkdir(exist_ok=True)
        content = Path(scan).read_bytes()
        assert run(*quick, *wrong) == 2 and re.search(words, capsys.readouterr().err)
        assert Path(scan).read_bytes() == content and not (tmp_path / "a.h5").exists()
    assert run(*quick) == 0 and run(*quick) == 0
    first, second = tmp_path / "scan_recon.h5", tmp_path / "scan_recon_2.h5"
    assert np.array_equal(read_reconstruction(first)["mean"], read_reconstruction(second)["mean"])
    assert run(*quick, "--out", "A.NPZ") == 0 and set(np.load(tmp_path / "A.NPZ").files) >= {"mean", "std"}
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.filterwarnings("ignore::ambient_mri.reconstruct.ReconstructionWarning")
def test_an_output_that_fails_takes_no_other_with_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ambient_mri.data.writers.reconstruction._write_npz", full)
    outputs = ("--out", tmp_path / "a.npz", "--out", tmp_path / "a.h5")
    assert run("reconstruct", folder / "scan.npz", "--prior", folder / "prior", "--steps", 2, *outputs) == 2
    assert re.search(r"not all could be written: .*No space left on device", capsys.readouterr().err)
    assert read_reconstruction(tmp_path / "a.h5")["mean"].shape == (2, SIZE, SIZE)


def test_mask_maps_and_noise_may_be_given(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.h5"
    options = ["--prior", folder / "prior", "--sampler", "dds", "--samples", 1, "--steps", 2, "--out", out]
    given = ["--mask", f"{folder / 'masks.npz'}:R2:0", "--coil-maps", folder / "maps.npy", "--noise-std", 0.02]
    assert run("reconstruct", folder / "full.h5", *options, *given) == 0
    settings = read_reconstruction(out)["settings"]
    assert settings["coil_maps"] == "given" and settings["noise_source"] == "given"
    assert settings["acceleration"] == pytest.approx(2.0)


def test_a_network_is_compiled_where_that_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr("ambient_mri.prior.compile_network", lambda network: compiled.append(type(network).__name__))
    sampling = ("--steps", 2, "--samples", 1, "--prior", folder / "prior")
    out = tmp_path / "recon.h5"
    assert run("reconstruct", folder / "scan.npz", "--out", out, *sampling) == 0
    assert compiled == []
    assert run("reconstruct", folder / "scan.npz", "--out", out, *sampling, "--compile") == 0
    assert compiled == ["UNet"]


def test_warnings_are_lines(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prior", folder / "prior", "--samples", 1, "--steps", 2, "--out", tmp_path / "r.h5"]
    assert run("reconstruct", folder / "scan.npz", *options) == 0
    found = capsys.readouterr().err
    assert re.search(r"^warning: scan: coil maps come from 8 ACS lines", found, re.MULTILINE)
    assert "ReconstructionWarning" not in found


def test_prepare_then_keep(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    (raw / "one.h5").write_bytes((folder / "full.h5").read_bytes())
    options = ["--out", out, "--acceleration", 2, "--acs-lines", 8, "--slices", "0:1", "--seed", 3]
    assert run("prepare", raw, *options) == 0
    scan = read_prepared(out / "one.h5")
    assert len(scan) == 1 and scan.mask.sum() == SIZE // 2
    assert scan.sampling_law == RandomLines(2.0, 8).describe()
    said = " ".join(capsys.readouterr().out.split())
    # What is to be run next holds the law that the weights of the loss follow from.
    law = "corruption=random_lines corruption.law.acceleration=2 corruption.law.acs_lines=8"
    assert "1 files" in said and law in said
    assert run("prepare", raw, *options) == 0
    assert re.search(r"there already +1", capsys.readouterr().out)
    (raw / "two.h5").write_bytes(b"no HDF5")
    assert run("prepare", raw, *options) == 1
    assert "two.h5" in caplog.text and re.search(r"skipped +1", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scan.npz", ["2 slices, 4 coils, 32 x 32", "columns (the last axis)", "R = 2.00, 16 of 32 lines", "8 lines"]),
        ("full.h5", ["AXT1", "full", "32 lines", "per real part", "raw units per unit"]),
        ("prior", ["clean", "UNet", "sigma 0.002 to 5", "million", "licence"]),
    ],
)
def test_info(name: str, words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", folder / name) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(word in text for word in words), text


def test_evaluate_and_info_of_a_reconstruction(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference itself, stored as a reconstruction of slice 1, scores without error."""
    with h5py.File(folder / "full.h5") as handle:
        reference = handle["reconstruction_rss"][()]
    with h5py.File(tmp_path / "r.h5", "w") as handle:
        handle["reconstruction"] = 0.9 * reference[1:]
        handle.attrs["settings"] = '{"slices": [1], "prior": "tiny"}'
    assert run("evaluate", tmp_path / "r.h5", folder / "full.h5") == 0
    text = capsys.readouterr().out
    assert re.search(r"NRMSE +0\.100", text) and re.search(r"NMSE +0\.0100", text) and "fastMRI" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.h5"]
    assert run("evaluate", tmp_path / "r.h5", folder / "full.h5", "--out", tmp_path / "scores") == 0
    record = read_records(tmp_path / "scores" / "evaluation.json")
    assert {row["metric"]: round(row["value"], 3) for row in record.rows}["nrmse"] == 0.1
    assert {row["n"] for row in record.rows} == {len(reference[1:])}
    assert "r" in (tmp_path / "scores" / "evaluation.md").read_text()
    capsys.readouterr()
    assert run("info", tmp_path / "r.h5") == 0
    assert re.search(r"prior +tiny", capsys.readouterr().out)


def test_train_says_what_it_does(tmp_path: Path) -> None:
    """In a process of its own: pytest captures the log of this one."""
    small = ["data.size=16", "data.train_volumes=2", "data.val_volumes=1", "data.slices=1", "network=unet_light"]
    small += ["corruption.law.acceleration=2", "corruption.law.acs_lines=4", f"data.cache={tmp_path / 'cache'}"]
    small += ["trainer.max_steps=1", "loader.batch_size=2", "loader.val_items=1", "model.precision=fp32"]
    command = [sys.executable, "-m", "ambient_mri.cli", "train", "data=phantom", *small, f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout + done.stderr
    assert "learnable:" in said and f"prior: {tmp_path / 'run' / 'prior'}" in said and "litlogger" not in said


def test_train_hands_its_overrides_to_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("ambient_mri.train.main", lambda: seen.append(sys.argv[1:]))
    before = list(sys.argv)
    assert run("train", "data=phantom", "--cfg", "job", "--debug") == 0
    assert seen == [["data=phantom", "--cfg", "job"]] and sys.argv == before


def test_demo_gets_its_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[object] = []
    monkeypatch.setattr("ambient_mri.demo.run_demo", lambda out, **options: seen.append((out, options)))
    assert run("demo", "--out", tmp_path, "--seed", 2) == 0
    assert run("demo", "--out", tmp_path, "--train", "--minutes", 1.5, "--fresh") == 0
    assert run("demo", "--out", tmp_path, "--prior", "my/prior") == 0
    given = {"prior": "brain128", "seed": 2, "minutes": 3.0, "fresh": False}
    trained = {"prior": None, "seed": 0, "minutes": 1.5, "fresh": True}
    assert seen == [(tmp_path, given), (tmp_path, trained), (tmp_path, {**given, "seed": 0, "prior": "my/prior"})]


def test_an_interrupt_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(out: Path, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ambient_mri.demo.run_demo", interrupted)
    assert run("demo") == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2:5", slice(2, 5)),
        (":5", slice(None, 5)),
        ("2:", slice(2, None)),
        ("3", slice(3, 4)),
        ("-2:", slice(-2, None)),
    ],
)
def test_slice_range(text: str, expected: slice) -> None:
    assert slice_range(text) == expected


def test_load_array(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "one.npz", only=array)
    with h5py.File(tmp_path / "a.h5", "w") as handle:
        handle["mask"], handle["other"] = array, 2 * array
    for source, expected in (
        ("a.npy", array),
        ("one.npz", array),
        ("one.npz:only:1", array[1]),
        ("a.h5", array),
        ("a.h5:other", 2 * array),
        ("a.h5:other:-1", 2 * array[-1]),
    ):
        np.testing.assert_array_equal(load_array(str(tmp_path / source), "mask"), expected)
    np.save(tmp_path / "a:b:1.npy", array[0])
    np.testing.assert_array_equal(load_array(str(tmp_path / "a:b:1.npy"), "mask"), array[0])
    (tmp_path / "text.npy").write_text("none")
    with pytest.raises(ambient_mri._checks.DataError, match=r"text\.npy: not a \.npy, \.npz or \.h5 file"):
        load_array(str(tmp_path / "text.npy"), "mask")


def test_every_law_has_its_name() -> None:
    laws = []
    for name in prepare.LAWS:
        options = make_parser().parse_args(["prepare", "x", "--out", "y", "--acceleration", "4", "--law", name])
        laws.append(prepare.make_law(options))
    names = [type(law).__name__ for law in laws[:4]]
    assert names == ["RandomLines", "IndependentLines", "EquispacedLines", "PoissonDisc"]
    assert [law.describe()["kind"] for law in laws[4:] if law] == list(KINDS)


def test_options_that_need_a_law_say_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", folder / "full.h5", "--out", tmp_path, "--by-name") == 2
    assert "--by-name: nothing is undersampled without --acceleration R" in capsys.readouterr().err


def findings() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}


class TestDoctor:
    def test_a_line_for_everything_and_status_zero(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("FASTMRI_KNEE_ROOT", str(tmp_path))
        monkeypatch.setenv("AMBIENT_MRI_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("FASTMRI_BRAIN_ROOT", raising=False)
        monkeypatch.delenv("AMBIENT_MRI_DATA", raising=False)
        (tmp_path / "multicoil_train").mkdir()
        assert run("doctor") == 0
        text = capsys.readouterr().out
        lines = {line.split()[1]: line for line in text.splitlines()[:-1]}
        assert {"python", "torch", "h5py", "torchvision", "gpu", "bart", "nibabel", "configuration", "cache"} <= set(
            lines
        )
        assert "multicoil_train" in lines["FASTMRI_KNEE_ROOT"] and lines["FASTMRI_BRAIN_ROOT"].startswith("note")
        native = computes_in_bf16("cuda" if torch.cuda.is_available() else "cpu")
        assert lines["bfloat16"].startswith("ok" if native else "note")
        assert text.endswith("nothing is wrong\n") and torch.__version__ in lines["torch"]

    def test_a_problem_makes_the_status_one_and_names_its_fix(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("FASTMRI_BRAIN_ROOT", "/nowhere/at/all")
        assert run("doctor") == 1
        text = capsys.readouterr().out
        assert "/nowhere/at/all is not a folder: correct it" in text and "1 problem found" in text

    def test_a_torchvision_of_another_torch_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        versions = {"torchvision": "0.17.0", "torch": "2.6.0+cu124"}
        monkeypatch.setattr(doctor, "_version", versions.get)
        for pin, status in (("torch (==2.2.0)", "problem"), ("torch==2.6.0", "ok")):
            monkeypatch.setattr(doctor.metadata, "requires", lambda name, pin=pin: ["numpy", pin])
            found = doctor._torchvision()
            assert found.status == status
            assert ("pip uninstall torchvision" in found.text) == (status == "problem")

    def test_versions_are_held_against_what_the_package_asks_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "_version", {"numpy": "1.26.4", "ambient-mri": "0.1"}.get)
        monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["numpy>=2", "h5py>=3.11", 'x; extra == "dev"'])
        found = {f.name: f for f in doctor._packages()}
        assert found["numpy"].status == "problem" and "pip install 'numpy>=2'" in found["numpy"].text
        assert found["h5py"].text == "not installed: pip install 'h5py>=3.11'" and "x" not in found

    def test_a_driver_without_a_cuda_build(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
        found = findings()
        assert found["gpu"].status == "problem" and "install a CUDA build of torch" in found["gpu"].text
        assert found["bart"].status == "ok"
        monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
        found = findings()
        assert found["gpu"].status == "note" and found["bart"].status == "note"
