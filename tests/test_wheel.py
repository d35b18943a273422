"""The wheel holds the package, its typing marker and its configs, and finds them outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*arguments: str, cwd: Path, **environment: str) -> str:
    """Output of this interpreter with ``arguments``; the checkout is on its path only where an install put it there."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout that holds the installed wheel, without its dependencies."""
    target = tmp_path_factory.mktemp("installed")
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--no-compile", "--quiet")
    run("-m", "pip", "install", *options, "--target", str(target), str(wheel), cwd=target)
    return target


def test_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"ambient_mri/__init__.py", "ambient_mri/py.typed", "ambient_mri/configs/train.yaml"} <= names
    version = PROJECT["version"]
    assert {name.split("/")[0] for name in names} == {"ambient_mri", f"ambient_mri-{version}.dist-info"}


def test_every_module_and_config_is_carried(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ambient_mri").rglob("*.py")}
    configs = {f"ambient_mri/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    prior = {f"ambient_mri/priors/brain128/{name}" for name in ("weights.safetensors", "prior.json", "LICENSE")}
    assert modules | configs | prior <= names


def test_metadata_asks_for_no_torchvision(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    required = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-D")]
    assert any(line.startswith("torch>=") for line in required)
    assert not [line for line in required if line.startswith(("torchvision", "fastmri"))]  # fastmri brings torchvision


def test_installed_package_finds_its_own_configs(installed: Path, tmp_path: Path) -> None:
    code = "import ambient_mri as a, ambient_mri.train as t; print(a.__file__); print(t.config_dir())"
    package, configs = map(Path, run("-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines())
    assert package == installed / "ambient_mri" / "__init__.py"
    assert configs == installed / "ambient_mri" / "configs"
    assert (configs / "train.yaml").is_file()


def test_checkout_finds_the_configs_at_its_top(tmp_path: Path) -> None:
    code = "from ambient_mri.train import config_dir; print(config_dir())"
    assert Path(run("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).strip()) == ROOT / "configs"
