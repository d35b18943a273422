"""What a run was trained on, read again, and the published samplers that need it, from the command line."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest
import torch

from ambient_mri import cli
from ambient_mri._checks import AmbientMRIError
from ambient_mri.corruption import PixelMasking, Undersampling
from ambient_mri.train import compose
from ambient_mri.training.measured import measurements_of_run
from ambient_mri.training.setup import image_split
from tests.training.test_natural import folder, run  # noqa: F401


@pytest.fixture(scope="module")
def pictures(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    run_dir = tmp_path_factory.mktemp("pictures")
    run(folder, run_dir, "experiment=cifar10_inpainting")
    return run_dir


def test_measurements_are_those_that_were_trained_on(pictures: Path, folder: Path) -> None:  # noqa: F811
    corruption, m = measurements_of_run(pictures, 5)
    data = image_split(compose(["experiment=cifar10_inpainting", f"data.root={folder}"])).corrupted("train")
    assert isinstance(corruption, PixelMasking) and data is not None and len(m) == 5
    known = {data[i].key[0]: data[i] for i in range(len(data))}
    assert all(torch.equal(m[i].y, known[m.key[i]].y) for i in range(5)) and len({*m.key}) == 5
    assert len(measurements_of_run(pictures, 30)[1]) == 30, "twelve images, some of them again"


def test_measurements_of_scans(ambient_run: Path) -> None:
    corruption, m = measurements_of_run(ambient_run, 3)
    assert isinstance(corruption, Undersampling) and m.coil_maps is not None and m.y.is_complex() and len(m) == 3


@pytest.mark.parametrize("arguments", [["fixed_mask"], ["guidance", "--guides", "2", "--guidance", "0.01"]])
@pytest.mark.parametrize("kind", ["pictures", "scans"])
def test_the_published_samplers_draw_from_a_trained_network(
    arguments: list[str],
    kind: str,
    pictures: Path,
    ambient_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prior = pictures if kind == "pictures" else ambient_run / "prior"
    sheets = [tmp_path / "a.png", tmp_path / "b.png"]
    for sheet in sheets:
        base = ["sample", "--prior", str(prior), "--count", "3", "--steps", "3", "--out", str(sheet)]
        assert cli.main([*base, "--sampler", *arguments]) == 0
    text = capsys.readouterr().out
    assert f"{arguments[0]}, 3 noise levels" in text and ("2 guides" in text) == (arguments[0] == "guidance")
    first, second = (matplotlib.image.imread(sheet) for sheet in sheets)
    assert (first == second).all() and first.std() > 0


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(AmbientMRIError, match="is no run folder"):
        measurements_of_run(tmp_path, 2)
