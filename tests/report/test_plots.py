"""Figures: layout, windows and pixels are read back from the PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from ambient_mri._checks import AmbientMRIError
from ambient_mri.reconstruct import Reconstruction
from ambient_mri.report import plots
from ambient_mri.report.plots import curve_figure, reconstruction_figure, sample_sheet

BLUE = np.array([59, 130, 246]) / 255


@pytest.fixture
def image() -> np.ndarray:
    rows, columns = np.mgrid[-1:1:64j, -1:1:80j]
    return np.exp(-3 * (rows**2 + columns**2))


def find(picture: np.ndarray, pixels: np.ndarray, repeat: int) -> list[tuple[int, int]]:
    """Where ``pixels``, each drawn as a block of ``repeat`` x ``repeat``, occur in the picture's first channel."""
    block = np.kron(pixels, np.ones((repeat, repeat)))
    height, width = block.shape
    corner = np.argwhere(np.abs(picture[: 1 - height, : 1 - width, 0] - block[0, 0]) < 1 / 255)
    hits = (tuple(c) for c in corner if np.abs(picture[c[0], c[1] : c[1] + width, 0] - block[0]).max() < 1.5 / 255)
    return [(y, x) for y, x in hits if np.abs(picture[y : y + height, x : x + width, 0] - block).max() < 1.5 / 255]


def test_every_pixel_is_drawn_whole_and_in_one_window(image: np.ndarray, tmp_path: Path) -> None:
    top = np.percentile(image, 99.8)
    path = reconstruction_figure({"half": 0.5j * image}, tmp_path / "f.png", reference=image)
    picture = imread(path)
    shown = np.floor(np.clip(image / top, 0, 1) * 256).clip(max=255) / 255
    half = np.floor(np.clip(0.5 * image / top, 0, 1) * 256).clip(max=255) / 255
    assert len(find(picture, shown, 4)) == 1 and len(find(picture, half, 4)) == 1
    assert (picture[0] == 1).all() and (picture[-1] == 1).all()


def test_with_everything(image: np.ndarray, tmp_path: Path) -> None:
    panels = {"Zero-filled": torch.from_numpy(image)[None, None] * 0.9, "A very long name of a method": image * 1.05}
    mask = torch.zeros(1, 1, 1, 80, dtype=torch.bool)
    mask[..., ::4] = True
    full = reconstruction_figure(
        panels, tmp_path / "sub" / "f.png", reference=image, std=0.1 * image, mask=mask, title="simulated"
    )
    assert full == tmp_path / "sub" / "f.png" and [p.name for p in full.parent.iterdir()] == ["f.png"]
    height, width = imread(full).shape[:2]
    # Four columns of 80 x 4 pixels and two rows of 64 x 4; what is left is text.
    assert 4 * 320 < width < 4 * 320 + 60 and 2 * 256 < height < 2 * 256 + 240
    single = reconstruction_figure(panels, tmp_path / "g.png", mask=mask)
    assert imread(single).shape[0] < 256 + 130


def test_the_acceleration_above_a_mask_is_the_scans(
    image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second of 40 lines, in a matrix that is zero padded to 80: R = 2, where the whole matrix counts 4."""
    mask = np.zeros((1, 1, 1, 80), dtype=bool)
    mask[..., 20:60:2] = True
    drawn: list[str] = []
    draw = plots._draw

    def spied(rows: list[list[plots._Cell]], *rest: object) -> Path:
        drawn.extend(line for row in rows for cell in row for line in cell.lines if "R = " in line)
        return draw(rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(plots, "_draw", spied)
    x = image[None].astype(np.complex64)
    result = Reconstruction(
        x, None, x[:, None], np.ones(1), x, mask, np.zeros_like(image[None]), 1.0, np.ones(1), image.shape,
        settings={"acceleration": 2.0, "slices": [0]},
    )  # fmt: skip
    result.figure(tmp_path / "f.png")
    reconstruction_figure({"x": image}, tmp_path / "g.png", mask=mask, acceleration=2.0, reference=image)
    reconstruction_figure({"x": image}, tmp_path / "h.png", mask=mask)
    assert drawn == ["R = 2.0", "Mask, R = 2.0", "R = 4.0"]


def test_non_finite_values_are_seen_and_harm_nothing(image: np.ndarray, tmp_path: Path) -> None:
    broken = image.copy()
    broken[10:20, 10:20] = np.nan
    broken[30, 30] = np.inf
    picture = imread(reconstruction_figure({"broken": broken}, tmp_path / "f.png", reference=image, std=broken))
    blue = np.abs(picture[..., :3] - BLUE).max(axis=-1) < 2 / 255
    # 101 pixels as blocks of 4 x 4, in the panel, its error, the std and the ratio.
    assert blue.sum() == 4 * 101 * 16
    assert (imread(sample_sheet(np.full((2, 8, 8), np.nan), tmp_path / "n.png")).shape[0]) > 0


def test_sample_sheet_has_rows_and_columns(image: np.ndarray, tmp_path: Path) -> None:
    stack = torch.from_numpy(np.stack([image] * 5))[:, None]
    height, width = imread(sample_sheet(stack, tmp_path / "s.png", names=[str(i) for i in range(5)])).shape[:2]
    assert 3 * 320 < width < 3 * 320 + 60 and 2 * 256 < height < 2 * 256 + 150
    assert imread(sample_sheet(stack, tmp_path / "t.png", num_columns=5)).shape[1] > 5 * 320


def test_curves(tmp_path: Path) -> None:
    curves = {"a": ([10, 20, 50], [1.0, 2.0, np.nan], [0.1, 0.1, 0.1]), "b": ([10, 20], [2.0, 3.0])}
    path = curve_figure(curves, tmp_path / "c.png", xlabel="evaluations", ylabel="PSNR (dB)", title="t", xscale="log")
    assert imread(path).shape == (520, 720, 4)


def test_the_same_figure_is_the_same_file(image: np.ndarray, tmp_path: Path) -> None:
    first, second = (reconstruction_figure({"x": image}, tmp_path / name) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()


def test_errors(image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "f.png"
    with pytest.raises(AmbientMRIError, match="at least one panel"):
        reconstruction_figure({}, path)
    with pytest.raises(AmbientMRIError, match=r"reference has shape \(64, 79\), the other images \(64, 80\)"):
        reconstruction_figure({"x": image}, path, reference=image[:, :79])
    with pytest.raises(AmbientMRIError, match=r"x must be one image .*got shape \(2, 64, 80\)"):
        reconstruction_figure({"x": np.stack([image, image])}, path)
    with pytest.raises(AmbientMRIError, match=r"mask must be that of one slice.*got shape \(2, 64, 80\)"):
        reconstruction_figure({"x": image}, path, mask=np.ones((2, 64, 80), dtype=bool))
    with pytest.raises(AmbientMRIError, match="at least one image"):
        sample_sheet([], path)
    with pytest.raises(AmbientMRIError, match="images of one shape"):
        sample_sheet([image, image[1:]], path)
    with pytest.raises(AmbientMRIError, match="1 images need as many names"):
        sample_sheet([image], path, names=["a", "b"])
    with pytest.raises(AmbientMRIError, match="at least one curve"):
        curve_figure({}, path, xlabel="x", ylabel="y")
    with pytest.raises(AmbientMRIError, match="columns of 'a' differ in length"):
        curve_figure({"a": ([1, 2], [1])}, path, xlabel="x", ylabel="y")
    assert not path.exists()
