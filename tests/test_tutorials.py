"""The tutorials run as written: every block of Python and bash, in order, in an empty folder, without any data set.

A ```text block is what the block before it prints: the same words, and numbers within two per cent. Commands run in
this process, through the functions behind ``ambient-mri`` and ``python -m ambient_mri.train``.

    python tests/test_tutorials.py      draws the pages' figures again, into docs/figures
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import re
import runpy
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ambient_mri import metrics
from ambient_mri.cli import main
from ambient_mri.data.readers import DataWarning
from ambient_mri.reconstruct import ReconstructionWarning

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = ("your_own_kspace", "train_on_your_scans", "reading_the_uncertainty", "your_own_operator")
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?")


@dataclass
class Told:
    """What a page said while it ran."""

    printed: str = ""
    warned: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)


def blocks(page: Path, section: str = "") -> Iterator[tuple[str, str, str]]:
    """Kind, content and place of every fenced block of a page, or of the section under one of its headings."""
    text = page.read_text(encoding="utf-8")
    first = text.index(section)
    end = text.find("\n## ", first + 1) if section else -1
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if found.start() < first or (end >= 0 and found.start() > end):
            continue
        line = text[: found.start()].count("\n") + 2
        yield found[1], found[2], f"{page.relative_to(ROOT)}:{line}"


def run_page(page: str) -> Told:
    """Run the page in the current folder."""
    told, last = Told(), ""
    for kind, content, place in blocks(DOCS / f"{page}.md"):
        assert kind in ("python", "bash", "text"), f"{place}: a block of {kind or 'no kind'} that nothing checks"
        if kind == "text":
            assert same(last, content), f"{place}: the page says\n{content}\nand its code prints\n{last}"
            continue
        shown = io.StringIO()
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(shown):
            for category in (DataWarning, ReconstructionWarning):
                warnings.simplefilter("always", category)
            if kind == "python":
                first = int(place.rpartition(":")[2]) - 1
                exec(compile("\n" * first + content, str(DOCS / f"{page}.md"), "exec"), told.names)
            else:
                for command in commands(content):
                    run_command(command, place)
        strange = [w for w in caught if not issubclass(w.category, DataWarning | ReconstructionWarning)]
        assert not strange, f"{place}: {strange[0].message}"
        told.warned += [str(w.message) for w in caught]
        last = shown.getvalue()
        told.printed += last
    return told


def commands(content: str) -> list[list[str]]:
    """The commands of a bash block as words; comments and continued lines as in a shell."""
    lines = content.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_command(words: list[str], place: str) -> None:
    if words[0] == "ambient-mri":
        assert main(words[1:]) == 0, f"{place}: {shlex.join(words)} failed"
        return
    assert words[:3] == ["python", "-m", "ambient_mri.train"], f"{place}: cannot run {shlex.join(words)}"
    from ambient_mri.train import compose
    from ambient_mri.training.rounds import expectation_maximisation
    from ambient_mri.training.run import train

    # What main() does, without Hydra's hold on the process's logging; other commands are quieter than training.
    logging.getLogger("ambient_mri").setLevel(logging.INFO)
    cfg = compose(words[3:])
    expectation_maximisation(cfg) if "em" in cfg else train(cfg)


def same(printed: str, claimed: str) -> bool:
    """Whether two texts have the same words, and numbers within two per cent of each other."""
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (printed, claimed)]
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (printed, claimed)]
    return words[0] == words[1] and all(math.isclose(a, b, rel_tol=0.02) for a, b in zip(*numbers, strict=True))


def test_the_comparison_itself() -> None:
    assert same("R = 4.00, (1, 8)\n", "R = 4.01,  (1, 8)")
    assert not same("R = 4.00, (1, 8)", "R = 4.00, (1, 9)")
    assert not same("R = 4.00", "R is 4.00")
    assert commands("# no\na -b 'c d' \\\n   e  # no\n\nf") == [["a", "-b", "c d", "e"], ["f"]]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and a machine on which no data set is known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("AMBIENT_MRI_CACHE", str(tmp_path / "cache"))
    for variable in [name for name in os.environ if name == "AMBIENT_MRI_DATA" or name.startswith("FASTMRI_")]:
        monkeypatch.delenv(variable)
    return tmp_path


def first_column(page: str, heading: str) -> list[str]:
    """What stands in backticks in the first column of the table below a heading."""
    section = (DOCS / f"{page}.md").read_text().partition(heading)[2].partition("\n## ")[0]
    rows = re.findall(r"^\|([^|]*)\|", section, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_your_own_kspace(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run_page("your_own_kspace")
    lines = first_column("your_own_kspace", "## 3. Look")
    assert len(lines) > 5 and all(name in told.printed for name in lines)
    said = " ".join(told.warned) + capsys.readouterr().err
    for text in ("coil maps come from 12 ACS lines (16 are enough)", "dataset 'ismrmrd_header' is missing"):
        assert text in said and text in (DOCS / "your_own_kspace.md").read_text()
    assert len(list(fresh.glob("recon.*"))) == 3 and len(list(fresh.glob("again.*"))) == 4
    error = told.names["rec"].magnitude[0] - told.names["reference"]
    assert np.linalg.norm(error) < 0.3 * np.linalg.norm(told.names["reference"]), "the head, the right way up"


def test_train_on_your_scans(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ambient_mri")
    run_page("train_on_your_scans")
    entries = set(first_column("train_on_your_scans", "## 5. Watch"))
    assert "mean loss" in entries
    for entry in entries - {"val/one_step_psnr"}:
        assert entry in caplog.text, f"the log never says {entry!r}"
    assert (fresh / "runs/mine_em/prior/weights.safetensors").is_file() and (fresh / "recon.png").is_file()
    assert "going on from" in caplog.text


def test_reading_the_uncertainty(fresh: Path) -> None:
    told = run_page("reading_the_uncertainty")
    names = told.names
    reference, images, inside = names["reference"], names["images"], names["inside"]
    assert names["single"] > metrics.nrmse(reference, names["mean"]), "the mean has the smaller error"
    assert metrics.std_error_correlation(images, reference, support=inside) > 0
    low, high = np.quantile(images, [0.05, 0.95], axis=0)
    drawn_between = ((low <= reference) & (reference <= high))[inside].mean()
    covered = metrics.coverage(images, reference, 0.9, support=inside)
    assert abs(drawn_between - covered) < 0.1, "two counts of one thing"
    assert names["rec"].recalibration_factor > 1.2 and drawn_between + 0.05 < names["between"] < 0.97
    assert names["spread_of_it"] > names["std"][names["region"]].mean() / 8, "neighbours go wrong together"
    assert names["again"].recalibration_factor == names["found"]["factor"] > 0
    for figure in drawn():
        assert (fresh / figure).stat().st_size > 10_000 and (DOCS / "figures" / figure).is_file()


def test_your_own_operator(fresh: Path) -> None:
    names = run_page("your_own_operator").names
    source = next(content for _, content, _ in blocks(DOCS / "your_own_operator.md")).partition("class Ghost")[2]
    assert 5 < len([line for line in source.splitlines() if line.strip()]) <= 15
    head, rec = names["head"], names["rec"]
    assert float((rec.mean - head).norm()) < 0.25 * float((names["A"].H(names["y"]) - head).norm())
    assert 0.5 < float(rec.residual.mean()) < 2, "the samples explain the data"


def drawn() -> list[str]:
    """The figures that the pages show and that their own code draws."""
    found = [name for page in PAGES for name in re.findall(r"\]\(figures/([^)]+)\)", (DOCS / f"{page}.md").read_text())]
    assert found
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere_and_names_exist(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("http") or (DOCS / target).exists(), f"{page} links to {target}"
    for script in re.findall(r"`(benchmarks/[\w/.]+)`", text):
        assert (ROOT / script).is_file(), script
    for group in ("data", "objective", "corruption", "network", "trainer"):
        for choice in set(re.findall(rf"(?<![\w.]){group}=([a-z]\w*)", text)):
            assert (ROOT / "configs" / group / f"{choice}.yaml").is_file(), f"{group}={choice}"


def test_the_table_of_masks_names_corruptions() -> None:
    text = (DOCS / "train_on_your_scans.md").read_text().partition("## 3. Which masks")[2].partition("\n## ")[0]
    named = re.findall(r"^\| [^|]*\| `(\w+)", text, re.MULTILINE)
    assert "random_lines" in named and "observed" in named
    for name in set(named) - {"corruption"}:
        assert (ROOT / "configs" / "corruption" / f"{name}.yaml").is_file(), name


def test_commands_run_where_the_package_is_only_on_the_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ambient-mri", "--version"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("ambient_mri.cli", run_name="__main__")
    assert stopped.value.code == 0 and capsys.readouterr().out.startswith("ambient-mri ")


def refresh() -> None:
    """Run the page with figures in a temporary folder and keep what it drew."""
    (DOCS / "figures").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run_page("reading_the_uncertainty")
        for figure in drawn():
            shutil.copy(figure, DOCS / "figures" / figure)


if __name__ == "__main__":
    refresh()
