"""Small prepared scans with known images, on disk, and a run on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ambient_mri.data.datasets import write_images
from ambient_mri.data.schema import PreparedScan, write_prepared
from ambient_mri.masks import RandomLines, SamplingLaw
from ambient_mri.operators.fourier import fft
from ambient_mri.tensors import complex_randn, keyed_generator

LAW = RandomLines(acceleration=2.0, acs_lines=4)


def smooth_images(count: int, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """(count, 1, H, W) complex, low-pass noise of unit rms or so."""
    white = complex_randn((count, 1, *size), generator=generator)
    rows, columns = (torch.arange(n) - n // 2 for n in size)
    window = torch.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / 18.0)
    image = torch.fft.ifft2(torch.fft.fft2(white) * torch.fft.ifftshift(window))
    return image / image.abs().square().mean().sqrt()


def make_scan(
    name: str,
    *,
    slices: int = 4,
    coils: int = 3,
    size: tuple[int, int] = (32, 24),
    noise_std: float = 0.01,
    law: SamplingLaw = LAW,
) -> tuple[PreparedScan, np.ndarray]:
    """A scan of random smooth images, and these images (raw units)."""
    generator = keyed_generator("test", name)
    images = smooth_images(slices, size, generator)
    maps = smooth_images(coils, size, generator).reshape(1, coils, *size)
    maps = maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()
    mask = law.draw(size, generator)
    noise = noise_std * complex_randn((slices, coils, *size), generator=generator)
    kspace = (fft(maps * images) + noise) * mask
    scan = PreparedScan(
        kspace=kspace.numpy(),
        mask=mask.numpy(),
        coil_maps=maps.numpy(),
        noise_std=np.full(slices, noise_std, dtype=np.float32),
        scale=2.0,
        source=name,
        sampling_law=law.describe(),
    )
    return scan, images.numpy()


@pytest.fixture(scope="session")
def scan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six prepared volumes: train/ has five, val/ one; references/ has their images."""
    root = tmp_path_factory.mktemp("scans")
    for part in ("train", "val", "references"):
        (root / part).mkdir()
    for i in range(6):
        part = "val" if i == 5 else "train"
        scan, images = make_scan(f"v{i}")
        write_prepared(root / part / f"v{i}.h5", scan)
        keys = [f"v{i}/{k}" for k in range(len(scan))]
        write_images(root / "references" / f"v{i}.h5", images, keys, scale=scan.scale)
    return root


@pytest.fixture(scope="session")
def ambient_run(scan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small ambient network on these scans."""
    from ambient_mri.train import compose
    from ambient_mri.training.run import train
    from tests.training.test_run import arguments

    run_dir = tmp_path_factory.mktemp("ambient")
    train(compose(arguments(scan_folder, run_dir, "trainer.val_check_interval=4")))
    return run_dir
