"""What every test shares: thread limits, no network, a seeded generator, the optional data folder, GPU gating."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

# Before the libraries that read them are imported.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch

# Small tensors gain nothing from more threads, and two test runs may share a machine.
torch.set_num_threads(min(2, torch.get_num_threads()))

# The same examples in every run: a failure in continuous integration is a failure at the desk.
hypothesis.settings.register_profile("reproducible", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.load_profile("reproducible")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def gpu_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A function that imports a file of benchmarks/gpu."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"))
    return importlib.import_module


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed, new for every test."""
    return torch.Generator().manual_seed(20240229)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real scans, from ``AMBIENT_MRI_DATA``; the test is skipped where there is none."""
    value = os.environ.get("AMBIENT_MRI_DATA")
    if not value:
        pytest.skip("needs real scans: set AMBIENT_MRI_DATA to the folder that holds multicoil_val/ and images/")
    root = Path(value).expanduser().resolve()
    if not root.is_dir():
        pytest.fail(f"AMBIENT_MRI_DATA names {root}, which is not a folder; correct it, or unset it to skip this test")
    return root
