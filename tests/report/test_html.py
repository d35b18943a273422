"""The HTML report is one well-formed, self-contained file."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ambient_mri._checks import DataError
from ambient_mri.report.html import Section, reconstruction_sections, write_html
from ambient_mri.report.plots import sample_sheet

VOID = {"meta", "img", "br"}


class Balance(HTMLParser):
    """Checks that elements close in order and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return sample_sheet(np.ones((1, 8, 8)), tmp_path / "picture.png")


def test_report_of_a_reconstruction(picture: Path, tmp_path: Path) -> None:
    sections = reconstruction_sections(
        picture,
        {
            "prior": "brain128",
            "sigma": (10.0, 0.0123456),
            "sampler": {"name": "split_gibbs", "steps": 50, "<script>": 1},
            "seed": None,
        },
        metrics={"psnr": 31.415, "ssim": None},
        residual=0.98,
        warnings=["k-space is simulated & <noisy>"],
    )
    page = write_html(tmp_path / "report.html", "Scan <7>", sections).read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    for text in ("Scan <7>", "k-space is simulated & <noisy>", "31.41", "10, 0.01235", "name = split_gibbs, steps = 50",
                 "0.98 (near 1", "max of the whole reference volume"):  # fmt: skip
        assert text in parser.text
    assert "<noisy>" not in page
    encoded = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert encoded is not None and base64.b64decode(encoded[1]) == picture.read_bytes()
    # Nothing is loaded from elsewhere, and nothing runs.
    assert not re.search(r"https?://|<script|<link|url\(", page)


@pytest.mark.parametrize(("residual", "verdict"), [(0.2, "noise is being fitted"), (5.0, "does not explain the data")])
def test_residuals_are_judged(picture: Path, tmp_path: Path, residual: float, verdict: str) -> None:
    sections = reconstruction_sections(picture.read_bytes(), {}, residual=residual)
    assert verdict in write_html(tmp_path / "r.html", "t", sections).read_text()


def test_empty_parts_are_left_out(tmp_path: Path) -> None:
    page = write_html(tmp_path / "r.html", "t", [Section("A", text="one\n\ntwo"), Section("B")]).read_text()
    assert page.count("<p>") == 2 and "<table>" not in page and "<figure>" not in page


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.png: no such picture"):
        write_html(tmp_path / "r.html", "t", [Section("A", images=[(tmp_path / "gone.png", "")])])
    with pytest.raises(DataError, match="the picture is not a PNG file"):
        write_html(tmp_path / "r.html", "t", [Section("A", images=[(b"GIF89a", "")])])
    assert not (tmp_path / "r.html").exists()
