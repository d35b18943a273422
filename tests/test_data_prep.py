"""The converter of CIFAR-10: from its binary files to what data=cifar10 reads."""

from __future__ import annotations

import importlib.util
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ambient_mri.data.natural_images import load_natural_images

SCRIPT = Path(__file__).resolve().parent.parent / "data_prep" / "cifar10.py"


@pytest.fixture(scope="module")
def cifar10() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cifar10", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_batches(folder: Path, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Six files in the original layout; the images (n, 32, 32, 3) and labels in them."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6 * count, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, 10, 6 * count, dtype=np.uint8)
    for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        rows = slice(i * count, (i + 1) * count)
        planes = images[rows].transpose(0, 3, 1, 2).reshape(count, -1)
        (folder / name).write_bytes(np.concatenate([labels[rows, None], planes], axis=1).tobytes())
    return images, labels


@pytest.mark.parametrize("archived", [True, False])
def test_the_binary_version_becomes_arrays(archived: bool, cifar10: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    images, labels = write_batches(folder)
    source = folder
    if archived:
        source = tmp_path / "cifar-10-binary.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(folder, arcname=folder.name)
    assert cifar10.main([str(source), str(tmp_path / "cifar10.npz")]) == 0
    with np.load(tmp_path / "cifar10.npz") as found:
        assert np.array_equal(found["images"], images) and np.array_equal(found["labels"], labels)
    read = load_natural_images(tmp_path / "cifar10.npz")
    assert read.shape == (3, 32, 32) and len(read.train) == 90 and read.val == tuple(range(90, 100))


def test_what_cannot_be_converted_is_one_line(
    cifar10: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "f", str(tmp_path / "a.npz")
    folder.mkdir()
    write_batches(folder)
    (tmp_path / "broken.tar.gz").write_bytes(b"nothing")
    (folder / "data_batch_3.bin").write_bytes(b"x" * 4000)
    for source, words in (
        (folder, "data_batch_3.bin has 4000 bytes, which are no whole images of 3073"),
        (tmp_path / "broken.tar.gz", "cannot be read as an archive"),
        (tmp_path / "nowhere", "does not exist. Download the binary version"),
    ):
        assert cifar10.main([str(source), out]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    (folder / "test_batch.bin").unlink()
    assert cifar10.main([str(folder), out]) == 2
    assert "lacks test_batch.bin. Take the binary version" in capsys.readouterr().err
    assert not Path(out).exists()
