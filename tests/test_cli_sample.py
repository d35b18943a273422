"""``ambient-mri sample``: a sheet from a prior alone, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.image
import pytest
import torch

from ambient_mri import cli
from ambient_mri.cli import commands
from ambient_mri.prior import Prior, build_model
from ambient_mri.sampling import SAMPLERS


def architecture(kind: str = "clean", **more: object) -> dict[str, object]:
    network = {"name": "UNet", "channels": 8, "multipliers": [1]}
    base = {"kind": kind, "network": network, "sd": 0.3, "profile_bins": 4, "precision": "fp32"}
    return {**base, **more}


def saved(folder: Path, kind: str = "clean", **more: object) -> Path:
    torch.manual_seed(0)
    settings = architecture(kind, **more)
    metadata = {"image_shape": [16, 24]} if kind == "clean" else {}
    return Prior(build_model(settings), kind, settings, metadata, name="tiny").save(folder)


def run(*arguments: object) -> int:
    return cli.main([str(a) for a in arguments])


def test_a_sheet_is_drawn_and_the_same_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prior, sheets = saved(tmp_path / "prior"), [tmp_path / "a.png", tmp_path / "b.png"]
    for sheet in sheets:
        assert run("sample", "--prior", prior, "--count", 3, "--steps", 4, "--out", sheet) == 0
    text = capsys.readouterr().out
    assert re.search(r"images +3 of 16 x 24", text) and re.search(r"heun, 4 noise levels, 7 evaluations", text)
    first, second = (matplotlib.image.imread(sheet) for sheet in sheets)
    assert (first == second).all() and first.std() > 0
    assert run("sample", "--prior", prior, "--count", 1, "--steps", 2, "--shape", 8, 8, "--out", sheets[0]) == 0
    assert "1 of 8 x 8" in capsys.readouterr().out


def test_a_prior_of_real_images(tmp_path: Path) -> None:
    for channels in (1, 3):
        prior = saved(tmp_path / f"prior{channels}", image_channels=channels)
        sheet = tmp_path / f"{channels}.png"
        assert run("sample", "--prior", prior, "--count", 9, "--steps", 2, "--out", sheet) == 0
        picture = matplotlib.image.imread(sheet)[..., :3]
        coloured = (picture.max(axis=2) - picture.min(axis=2) > 0.1).mean() > 0.02
        assert coloured == (channels == 3)  # all channels are shown


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("ambient", ["--shape", 16, 16], "unconditional samples need a clean prior"),
        ("ambient", ["--shape", 16, 16], "objective=em init=RUN, or give its run folder and --sampler fixed_mask"),
        ("ambient", [], "does not say what size its images have. Give --shape"),
        ("clean", ["--count", 0], "--count must be at least 1; got 0"),
        ("clean", ["--steps", 0], "heun needs at least one step; got 0"),
        ("clean", ["--out", "sheet.jpg"], "the ending must be one of .png"),
        ("clean", ["--sampler", "fixed_mask"], "fixed_mask is for ambient networks; tiny is a clean prior. Leave out"),
        ("ambient", ["--sampler", "fixed_mask"], "is no run folder (there is no config.yaml): the masks of an ambient"),
        ("ambient", ["--sampler", "guidance", "--guides", 0], "--guides must be at least 1; got 0"),
    ],
)
def test_mistakes_are_one_line(
    kind: str, arguments: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prior = saved(tmp_path / "prior", kind)
    assert run("sample", "--prior", prior, "--out", tmp_path / "a.png", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_samplers_of_the_command_line_are_those_of_the_library() -> None:
    assert [*commands.SAMPLERS, "heun"] == list(SAMPLERS)
