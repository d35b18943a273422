"""Data sets in fastMRI's layout: which files, prepared once whatever happens on the way, and what the manifest says."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from ambient_mri import cli
from ambient_mri._checks import AmbientMRIError, DataError
from ambient_mri.data.fastmri_layout import acquisition_names, find_parts, list_volumes, read_split
from ambient_mri.data.fastmri_masks import FastMRIMask
from ambient_mri.data.readers import read_scan
from ambient_mri.data.schema import read_prepared
from ambient_mri.masks import RandomLines
from ambient_mri.prepare import (
    Preparation,
    find_sources,
    prepare_dataset,
    prepare_file,
    prepare_files,
    read_manifest,
)
from ambient_mri.prepare import dataset as preparation_dataset
from ambient_mri.prepare import files as preparation_files
from ambient_mri.train import compose
from ambient_mri.training.setup import build
from tests.data.fastmri_files import knee, with_size, write_brains, write_knees

ROOT = Path(__file__).resolve().parents[1]
LAW = RandomLines(2.0, 8)


@pytest.fixture(scope="module")
def knees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_knees(tmp_path_factory.mktemp("knees"))


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_brains(tmp_path_factory.mktemp("brains"))


def names(sources: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {part: [p.stem for p in files] for part, files in sources.items()}


class TestLayout:
    def test_parts_of_the_original_layout(self, knees: Path) -> None:
        assert {part: f.name for part, f in find_parts(knees).items()} == {
            "train": "multicoil_train",
            "val": "multicoil_val",
            "test": "multicoil_test",
        }
        assert find_parts(knees, "singlecoil") == {}
        assert {part: len(files) for part, files in find_sources(knees).items()} == {"train": 4, "val": 1, "test": 1}

    def test_one_folder_is_the_part_of_its_name(self, knees: Path) -> None:
        assert list(find_sources(knees / "multicoil_val")) == ["val"]
        assert list(find_sources(knees / "multicoil_val", parts=["val"])) == ["val"]

    @pytest.mark.parametrize("ending", ["_v2", "_full"])
    def test_folders_of_later_releases(self, ending: str, tmp_path: Path) -> None:
        (tmp_path / f"singlecoil_test{ending}").mkdir()
        assert find_parts(tmp_path, "singlecoil")["test"].name == f"singlecoil_test{ending}"

    @pytest.mark.parametrize(
        ("wanted", "count"),
        [(["PD"], 2), (["pdfs"], 2), (["CORPD_FBK", "PDFS"], 4), ([], 4)],
    )
    def test_acquisitions_by_official_and_short_name(self, wanted: list[str], count: int, knees: Path) -> None:
        assert len(find_sources(knees, parts=["train"], acquisitions=wanted)["train"]) == count

    def test_short_names(self, brains: Path) -> None:
        assert acquisition_names(["T1", "axflair", "MINE"]) == ("AXT1", "AXT1PRE", "AXT1POST", "AXFLAIR", "MINE")
        chosen = find_sources(brains, parts=["train"], acquisitions=["T1"])["train"]
        assert [re.search("AX[A-Z0-9]+", p.name)[0] for p in chosen] == ["AXT1POST", "AXT1PRE"]  # type: ignore[index]

    def test_an_acquisition_that_is_not_there(self, knees: Path) -> None:
        with pytest.raises(DataError, match=r"train: no volume is of acquisition AXT2; there are CORPDFS_FBK"):
            find_sources(knees, acquisitions=["AXT2"])

    def test_a_damaged_file_is_not_filtered_away(self, tmp_path: Path) -> None:
        write_knees(tmp_path, train=2, val=0, test=0)
        (tmp_path / "multicoil_train" / "file2.h5").write_bytes(b"no HDF5")
        (tmp_path / "multicoil_train" / "file3.h5").write_bytes(b"\x89HDF\r\n\x1a\nhalf")
        found = names(find_sources(tmp_path, acquisitions=["PD"]))
        assert found["train"] == ["file1000000", "file2", "file3"]

    def test_split_lists(self, knees: Path, tmp_path: Path) -> None:
        path = tmp_path / "split.json"
        path.write_text(json.dumps({"train": ["file1000014.h5", "file1001000"], "val": ["file1000000"]}))
        assert names(find_sources(knees, split=path)) == {
            "train": ["file1000014", "file1001000"],
            "val": ["file1000000"],
        }
        for text, words in (
            ('{"train": ["file7"]}', r"names volume \['file7'\] that the data do not hold"),
            ('{"train": ["a"], "val": ["a.h5"]}', r"volume \['a'\] is listed twice"),
            ('{"training": ["a"]}', "a split list maps train, val, test, challenge to lists"),
            ("file1\nfile2", r"split\.json: no JSON"),
        ):
            path.write_text(text)
            with pytest.raises(DataError, match=words):
                find_sources(knees, split=path)

    def test_mistakes(self, knees: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"is not a folder\. Name the one that holds multicoil_train"):
            find_sources(tmp_path / "nowhere")
        with pytest.raises(DataError, match="nor in singlecoil_train and the like below it"):
            find_sources(knees, kind="singlecoil")
        with pytest.raises(DataError, match="has no part challenge: it has train, val, test"):
            find_sources(knees, parts=["challenge"])
        with pytest.raises(DataError, match=r"part \['trian'\] is unknown"):
            find_sources(knees, parts=["trian"])


@pytest.mark.parametrize("kind", ["multicoil", "singlecoil"])
def test_a_data_set_with_its_manifest(kind: str, tmp_path: Path) -> None:
    root, out = write_knees(tmp_path / "raw", kind=kind), tmp_path / "out"
    summaries = prepare_dataset(find_sources(root, kind=kind), out, law=LAW)
    assert {part: len(s.done) for part, s in summaries.items()} == {"train": 4, "val": 1, "test": 1}
    manifest = read_manifest(out)
    assert manifest.law == LAW.describe() and manifest.settings == Preparation().describe()
    assert (
        manifest.split
        == json.loads((out / "split.json").read_text())
        == {k: list(v) for k, v in read_split(out / "split.json").items()}
    )
    for part, entries in manifest.files.items():
        for entry in entries:
            content = (out / entry["file"]).read_bytes()
            raw = (root / f"{kind}_{part}" / f"{entry['name']}.h5").read_bytes()
            assert entry["sha256"] == hashlib.sha256(content).hexdigest()
            assert entry["source_sha256"] == hashlib.sha256(raw).hexdigest()
            assert entry["slices"] == 2 and entry["coils"] == (4 if kind == "multicoil" else 1)
    assert {tuple(e["matrix"]) for e in manifest.files["train"]} == {(64, 37), (64, 36)}
    first = read_prepared(out / "train" / "file1000000.h5")
    assert first.acquired_extent == ((0, 64), (2, 35)) and not first.mask[..., :2].any()
    # 33 acquired lines: the effective acceleration leaves the padding out.
    assert manifest.files["train"][0]["acceleration"] == pytest.approx(33 / first.mask.sum())
    test = read_prepared(out / "test" / "file1002000.h5")
    assert test.sampling_law == {} and not test.preparation["retrospective"]


def test_every_acquired_line_is_kept_without_a_law(tmp_path: Path) -> None:
    source = with_size(64, 37, 4, lines=33).write(tmp_path / "a.h5")
    scan = read_prepared(prepare_file(source, tmp_path / "out.h5"))
    assert scan.preparation["acceleration"] == 1 and scan.mask.sum() == 33
    np.testing.assert_array_equal(scan.kspace, read_scan(source).kspace)


def test_the_mask_of_a_volume_is_fastmris_where_it_is_asked_for(tmp_path: Path) -> None:
    law = FastMRIMask("random", 4, 0.1, by_name=True)
    source = with_size(64, 40, 3, lines=33).write(tmp_path / "file1000273.h5")
    for seed in (0, 1):
        scan = read_prepared(prepare_file(source, tmp_path / f"{seed}.h5", law=law, settings=Preparation(seed=seed)))
        drawn = law.draw_for_file((64, 40), "file1000273.h5").numpy()
        np.testing.assert_array_equal(scan.mask, drawn & read_scan(source).mask)


def test_several_processes_do_what_one_does_and_name_a_bad_file(
    knees: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = list_volumes(knees / "multicoil_train")[2:]
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    one = prepare_files(files, tmp_path / "one", law=LAW)
    seen: list[Path] = []
    two = prepare_files(
        [*files, bad], tmp_path / "two", law=LAW, workers=2, progress=lambda p: (seen.append(x) or x for x in p)
    )
    assert sorted(seen) == sorted([*files, bad]) and [p.name for p in two.done] == [p.name for p in one.done]
    for a, b in zip(one.done, two.done, strict=True):
        first, second = read_prepared(a), read_prepared(b)
        np.testing.assert_array_equal(first.kspace, second.kspace)
        np.testing.assert_allclose(first.coil_maps, second.coil_maps, atol=1e-5)
    assert two.failed[0][0] == bad and "bad.h5: HDF5 cannot read it" in two.failed[0][1]
    assert "skipped" in caplog.text and "bad.h5" in caplog.text


def test_a_folder_holds_scans_of_one_preparation(tmp_path: Path) -> None:
    source, out = knee().write(tmp_path / "a.h5"), tmp_path / "out"
    prepare_files([source], out, law=LAW)
    with pytest.raises(DataError, match=r"a\.h5 was prepared with other settings: calib 24 instead of 16"):
        prepare_files([source], out, law=LAW, settings=Preparation(calib=16))
    with pytest.raises(DataError, match=r"other settings: the law .*'acceleration': 2.*instead of .*'acceleration': 3"):
        prepare_files([source], out, law=RandomLines(3.0, 8))
    with pytest.raises(DataError, match=r"instead of none\. Choose another folder, or remove the file"):
        prepare_files([source], out)


def test_a_source_that_changed_is_prepared_again(tmp_path: Path) -> None:
    source = knee().write(tmp_path / "a.h5")
    target = prepare_file(source, tmp_path / "out.h5", law=LAW)
    before = target.stat().st_mtime_ns
    os.utime(source, ns=(1, 1))  # the same content at another time
    assert prepare_file(source, target, law=LAW).stat().st_mtime_ns == before
    knee(coils=3).write(source)
    assert read_prepared(prepare_file(source, target, law=LAW)).kspace.shape[1] == 3


def test_what_a_killed_run_was_writing_is_no_volume(tmp_path: Path) -> None:
    (tmp_path / "file1.h5").write_bytes(b"")
    (tmp_path / ".tmp-0123-file2.h5").write_bytes(b"half")
    assert [p.name for p in list_volumes(tmp_path)] == ["file1.h5"]
    old = tmp_path / ".tmp-0456-file3.h5"
    old.write_bytes(b"half")
    os.utime(old, (1, 1))
    raw = tmp_path / "raw"
    raw.mkdir()
    (tmp_path / "file1.h5").rename(raw / "file1.h5")
    with pytest.raises(DataError, match="none of the 1 files"):
        prepare_files([raw / "file1.h5"], tmp_path)
    assert not old.exists() and (tmp_path / ".tmp-0123-file2.h5").exists()


KILLED = """
import os, signal, sys
from ambient_mri.data import schema
from ambient_mri.prepare import files, find_sources, prepare_dataset
from ambient_mri.masks import RandomLines
write, count = files.write_prepared, [0]
def killed(path, scan):
    count[0] += 1
    if count[0] == 3:  # in the middle of the third file
        check = schema._write_by_slice
        def half(handle, name, array, compression):
            if name == "coil_maps":
                handle.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            check(handle, name, array, compression)
        schema._write_by_slice = half
    write(path, scan)
files.write_prepared = killed
prepare_dataset(find_sources(sys.argv[1]), sys.argv[2], law=RandomLines(2.0, 8))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_killed_in_the_middle_of_a_file_nothing_is_lost_or_repeated(knees: Path, tmp_path: Path) -> None:
    """SIGKILL while a file is being written: two files are whole, the third is not there under its name."""
    straight = prepare_dataset(find_sources(knees), tmp_path / "straight", law=LAW)
    command = [sys.executable, "-c", KILLED, str(knees), str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = {p.name: p.stat().st_mtime_ns for p in list_volumes(tmp_path / "killed" / "train")}
    assert len(kept) == 2 and len(list((tmp_path / "killed" / "train").glob(".tmp-*"))) == 1
    assert not (tmp_path / "killed" / "manifest.json").exists()
    again = prepare_dataset(find_sources(knees), tmp_path / "killed", law=LAW)
    assert again["train"].kept == 2 and {k: len(s.done) for k, s in again.items()} == {"train": 4, "val": 1, "test": 1}
    for name, stamp in kept.items():
        assert (tmp_path / "killed" / "train" / name).stat().st_mtime_ns == stamp
    for part, summary in straight.items():
        for path in summary.done:
            first, second = read_prepared(path), read_prepared(tmp_path / "killed" / part / path.name)
            for field in ("kspace", "mask", "coil_maps", "noise_std", "scale"):
                np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    hashes = [e["source_sha256"] for part in read_manifest(tmp_path / "killed").files.values() for e in part]
    assert len(hashes) == 6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_a_killed_parent(knees: Path, tmp_path: Path) -> None:
    """SIGKILL of the parent while two workers run; the next run finishes the work."""
    script = (
        "import sys; from pathlib import Path; from ambient_mri.prepare import prepare_files\n"
        "if __name__ == '__main__':\n"
        "    prepare_files(sorted(Path(sys.argv[1]).glob('*.h5')), sys.argv[2], workers=2)\n"
    )
    (tmp_path / "run.py").write_text(script)
    out = tmp_path / "out"
    command = [sys.executable, str(tmp_path / "run.py"), str(knees / "multicoil_train"), str(out)]
    parent = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 90
    children: list[int] = []
    while time.monotonic() < limit and not (out.is_dir() and list_volumes(out)):
        children = children_of(parent.pid) or children
        time.sleep(0.02)
    children = children_of(parent.pid) or children
    parent.kill()
    parent.wait()
    while time.monotonic() < limit and any(is_alive(pid) for pid in children):
        time.sleep(0.05)
    assert children and not any(is_alive(pid) for pid in children)
    summary = prepare_files(list_volumes(knees / "multicoil_train"), out)
    assert len(summary.done) == 4 and summary.kept >= 1


def children_of(pid: int) -> list[int]:
    """Direct children of a process, from /proc."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in found.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def die(job: object) -> None:
    """What a worker does that the system kills."""
    os._exit(9)


def test_a_dead_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [knee().write(tmp_path / f"{i}.h5") for i in range(2)]
    monkeypatch.setattr(preparation_files, "_attempt_quietly", die)
    with pytest.raises(AmbientMRIError, match=r"one of the 2 worker processes was killed.*with fewer workers"):
        prepare_files(sources, tmp_path / "out", workers=2)


class TestCommands:
    def run(self, *arguments: object) -> int:
        return cli.main([str(a) for a in arguments])

    def test_prepare_a_root(self, brains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ["--acceleration", 2, "--acs-lines", 8, "--acquisitions", "T1", "AXT2", "--parts", "train", "val"]
        assert self.run("prepare", brains, "--out", tmp_path, *options) == 0
        text = capsys.readouterr().out
        assert (
            re.search(r"written +4 files in .*\(train 3, val 1\)", " ".join(text.split()).replace("\n", " "))
            or "train 3" in text
        )
        assert {e["acquisition"] for e in read_manifest(tmp_path).files["train"]} == {"AXT2", "AXT1PRE", "AXT1POST"}

    def test_a_bad_file_makes_the_status_one(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        root = write_knees(tmp_path / "raw", train=2, test=0)
        (root / "multicoil_train" / "file9.h5").write_bytes(b"no HDF5")
        assert self.run("prepare", root, "--out", tmp_path / "out", "--acceleration", 2, "--acs-lines", 8) == 1
        assert "file9.h5" in caplog.text and "file9.h5: not a k-space file" in " ".join(capsys.readouterr().out.split())
        failed = read_manifest(tmp_path / "out").failed["train"]
        assert [entry["source"] for entry in failed] == ["file9.h5"]

    def test_the_script_is_the_command_with_fastmris_masks(self, knees: Path, tmp_path: Path) -> None:
        script = load_script()
        options = ["--parts", "val", "--acceleration", "3", "--crop-readout", "--coils", "2", "--limit", "1"]
        assert script.main([str(knees), str(tmp_path), *options]) == 0
        (entry,) = read_manifest(tmp_path).files["val"]
        assert entry["matrix"] == [32, 37] and entry["coils"] == 2
        assert read_manifest(tmp_path).law["kind"] == "equispaced_fraction"

    def test_the_script_says_how_it_is_used(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert load_script().main(["--acceleration", "4"]) == 2
        assert "usage: python data_prep/fastmri.py ROOT OUT" in capsys.readouterr().err


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("data_prep_fastmri", ROOT / "data_prep" / "fastmri.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestWhatComesBack:
    """Files that are prepared again, from prepared ones, or beside others."""

    @staticmethod
    def arrays(path: Path, coils: int = 6, **more: np.ndarray) -> Path:
        generator = np.random.default_rng(coils)
        shape = (3, coils, 96, 80)
        noise = (generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(np.complex64)
        decay = np.exp(-np.hypot(*np.meshgrid(np.arange(96) - 48, np.arange(80) - 40, indexing="ij")) / 8)
        np.savez(path, kspace=noise * decay.astype(np.float32), **more)
        return path

    def test_a_law_is_not_taken_as_drawn_where_none_was(self, tmp_path: Path) -> None:
        source, out = self.arrays(tmp_path / "v.npz"), tmp_path / "out"
        prepare_files([source], out)
        with pytest.raises(DataError, match="no law instead of"):
            prepare_files([source], out, law=LAW)
        assert prepare_files([source], out).kept == 1

    def test_one_set_of_maps_serves_all_slices(self, tmp_path: Path) -> None:
        maps = np.full((6, 96, 80), 6**-0.5, dtype=np.complex64)
        mask = np.random.default_rng(0).random((96, 80)) < 0.4
        mask[40:56, 32:48] = True
        source = self.arrays(tmp_path / "v.npz", coil_maps=maps, mask=mask)
        prepare_file(source, tmp_path / "v.h5")
        assert read_prepared(tmp_path / "v.h5").noise_std.shape == (3,)

    def test_maps_of_one_coil_are_made_again_where_more_is_left_out(self, tmp_path: Path) -> None:
        source, law = self.arrays(tmp_path / "v.npz", coils=1), RandomLines(4.0, 4)
        prepare_file(source, tmp_path / "full.h5")
        (tmp_path / "once").mkdir()
        prepare_file(source, tmp_path / "once" / "full.h5", law=law)
        # By way of the whole scan, and of a second copy of it: the maps know no more than the lines that are left.
        prepare_file(tmp_path / "full.h5", tmp_path / "again.h5")
        (tmp_path / "twice").mkdir()
        for name in ("full", "again"):
            prepare_file(tmp_path / f"{name}.h5", tmp_path / "twice" / f"{name}.h5", law=law)
        whole, direct = read_prepared(tmp_path / "full.h5"), read_prepared(tmp_path / "once" / "full.h5")
        first = read_prepared(tmp_path / "twice" / "full.h5")
        assert first.preparation["maps"] == direct.preparation["maps"] == "single_coil" and first.phase_absorbed
        assert np.abs(first.coil_maps - whole.coil_maps).max() > 0.1
        assert not np.array_equal(read_prepared(tmp_path / "twice" / "again.h5").coil_maps, whole.coil_maps)

    def test_any_failure_is_of_its_file_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sources = [self.arrays(tmp_path / f"{name}.npz") for name in "abc"]
        real = preparation_files.prepare_scan

        def fails(raw: object, *arguments: object) -> object:
            if getattr(raw, "name", "") == "b":
                raise RuntimeError("the device ran out")
            return real(raw, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(preparation_files, "prepare_scan", fails)
        summary = prepare_files(sources, tmp_path / "out")
        assert len(summary.done) == 2
        assert [reason for _, reason in summary.failed] == [f"{sources[1]}: RuntimeError: the device ran out"]

    @pytest.mark.parametrize("content", ["hdf5", "text"])
    def test_what_is_no_prepared_scan_is_not_written_over(self, content: str, tmp_path: Path) -> None:
        source, target = self.arrays(tmp_path / "v.npz"), tmp_path / "out" / "v.h5"
        target.parent.mkdir()
        if content == "text":
            target.write_text("notes")
        else:
            with h5py.File(target, "w") as handle:
                handle["reconstruction"] = np.zeros((1, 4, 4), dtype=np.float32)
        before = target.read_bytes()
        with pytest.raises(DataError, match="is no prepared scan: it is not written over"):
            prepare_files([source], target.parent)
        assert target.read_bytes() == before

    def test_parts_that_finish_together_are_all_listed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        summaries = {}
        for part in ("train", "val"):
            (tmp_path / part).mkdir()
            summaries[part] = prepare_files([self.arrays(tmp_path / f"{part}.npz")], tmp_path / part)
        real = preparation_dataset.sha256_of_file

        def slow(path: Path) -> str:  # the other command ends while this one hashes
            monkeypatch.setattr(preparation_dataset, "sha256_of_file", real)
            preparation_dataset.write_manifest(tmp_path, {"val": summaries["val"]})
            return real(path)

        monkeypatch.setattr(preparation_dataset, "sha256_of_file", slow)
        preparation_dataset.write_manifest(tmp_path, {"train": summaries["train"]})
        assert read_manifest(tmp_path).split == {"train": ["train"], "val": ["val"]}

    def test_arrays_have_no_acquisition(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = self.arrays(tmp_path / "v.npz")
        assert cli.main(["prepare", str(source), "--out", str(tmp_path / "out"), "--acquisitions", "T1"]) == 2
        assert "no volume is of acquisition" in capsys.readouterr().err

    @pytest.mark.parametrize("law", ["fastmri_equispaced_fraction", "fastmri_random", "random_lines"])
    def test_the_next_command_knows_the_law(
        self, law: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "400")
        source, out = self.arrays(tmp_path / "v.npz"), tmp_path / "two words"
        options = ["--acceleration", "2", "--law", law]
        assert cli.main(["prepare", str(source), "--out", str(out), *options]) == 0
        told = shlex.split(capsys.readouterr().out.partition("ambient-mri train ")[2].splitlines()[0])
        cfg = compose(told)
        assert cfg.data.root == str(out)
        assert build(cfg.corruption.law).describe() == read_prepared(out / "v.h5").sampling_law


def test_the_script_takes_test_files_as_they_are(knees: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "data_prep" / "fastmri.py"), str(knees / "multicoil_test"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path).law == {}
