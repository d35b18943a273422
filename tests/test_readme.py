"""What the README says is true: its tables are the records', its links and commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", "data_prep/README.md", "benchmarks/gpu/README.md"]


def test_tables_are_made_from_the_records() -> None:
    done = subprocess.run([sys.executable, ROOT / "benchmarks/readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if not target.startswith(("http", "mailto")):
            assert (path.parent / target).exists(), f"{page} links to {target}"


def test_scripts_and_modules_that_commands_name_exist() -> None:
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    for script in set(re.findall(r"python ((?:benchmarks|data_prep)/[\w/]+\.py)", text)):
        assert (ROOT / script).is_file(), script
    for module in set(re.findall(r"python -m (ambient_mri[\w.]*)", text)):
        base = ROOT / module.replace(".", "/")
        assert base.with_suffix(".py").is_file() or (base / "__main__.py").is_file(), module


def test_config_choices_that_commands_name_exist() -> None:
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    for group in ("data", "objective", "corruption", "network", "trainer", "experiment"):
        for choice in set(re.findall(rf"(?<![\w.]){group}=(\w+)", text)):
            assert (ROOT / "configs" / group / f"{choice}.yaml").is_file(), f"{group}={choice}"


def test_the_python_examples_name_things_that_exist() -> None:
    import ambient_mri

    text = (ROOT / "README.md").read_text()
    for name in set(re.findall(r"ambient_mri\.(\w+)\(", text)):
        assert callable(getattr(ambient_mri, name)), name
    from ambient_mri.reconstruct import Reconstruction

    for name in set(re.findall(r"\brec\.(\w+)", text)):
        assert name in Reconstruction.__dataclass_fields__ or hasattr(Reconstruction, name), name
