"""Rows of natural images: what is drawn, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ambient_mri._checks import AmbientMRIError
from ambient_mri.report.images import image_rows


def test_colours_and_values_are_those_of_the_images(tmp_path: Path) -> None:
    from PIL import Image

    red = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1).expand(2, 3, 8, 8)
    grey = torch.zeros(2, 1, 8, 8)
    rows = {"masking": {"training images": red, "grey": grey}, "noise": {"samples": 3 * red}}
    path = image_rows(rows, tmp_path / "new" / "rows.png", title="A title", captions={"grey": ["20 dB", "21 dB"]})
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    for colour in ([255, 0, 0], [128, 128, 128]):
        share = float(np.isclose(pixels, colour, atol=1).all(axis=1).mean())
        assert share > 0.05, f"{colour} covers {share:.3f}"


@pytest.mark.parametrize(
    ("groups", "captions", "words"),
    [
        ({}, None, "at least one row"),
        ({"a": {"b": torch.zeros(2, 2, 4, 4)}}, None, r"row 'b' must be real images \(n, 1 or 3, H, W\)"),
        ({"a": {"b": torch.zeros(2, 1, 4, 4)}}, {"b": ["one"]}, "needs a caption for each"),
    ],
)
def test_what_is_no_row_is_refused(groups: dict, captions: dict | None, words: str, tmp_path: Path) -> None:  # type: ignore[type-arg]
    with pytest.raises(AmbientMRIError, match=words):
        image_rows(groups, tmp_path / "x.png", captions=captions)
