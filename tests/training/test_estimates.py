"""sd from undersampled, noisy scans equals the rms of their images, on average over masks and noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.datasets import ImageDataset, ScanDataset
from ambient_mri.data.schema import write_prepared
from ambient_mri.masks import IndependentLines, PoissonDisc, RandomLines, SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.operators.fourier import fft
from ambient_mri.tensors import complex_randn
from ambient_mri.training.estimates import evenly_spaced, image_energy, sd_of_images, sd_of_scans
from tests.training.conftest import LAW, make_scan, smooth_images


@pytest.mark.parametrize(
    "law", [RandomLines(3.0, 4), IndependentLines(3.0, 4), PoissonDisc(3.0, 4, 2.0)], ids=lambda law: type(law).__name__
)
def test_energy_is_unbiased(law: SamplingLaw, generator: torch.Generator) -> None:
    size, noise_std, rows = (16, 24), 0.3, 400
    image = smooth_images(1, size, generator)
    maps = smooth_images(3, size, generator).reshape(1, 3, *size)
    maps = maps / maps.abs().square().sum(dim=1, keepdim=True).sqrt()
    masks = torch.cat([law.draw(size, generator) for _ in range(rows)])
    noise = noise_std * complex_randn((rows, 3, *size), generator=generator)
    y = (fft(maps * image) + noise) * masks
    ones = torch.ones(rows)
    m = Measurement(y, masks, maps.expand(rows, -1, -1, -1), noise_std * ones, ones, ("",) * rows)
    energies = image_energy(m, law.inclusion_probability(size))
    truth = float(image.abs().square().mean()) / 2
    error = float(energies.std()) / rows**0.5
    assert float(energies.mean()) == pytest.approx(truth, abs=4 * error)
    assert error < 0.05 * truth


def test_coils_of_padding_hold_no_noise(generator: torch.Generator) -> None:
    scan, _ = make_scan("padded", coils=2)
    one = scan.measurement(0)
    padded = Measurement.collate([make_scan("more", coils=5)[0].measurement(0), one])[1:]
    inclusion = LAW.inclusion_probability((32, 24))
    torch.testing.assert_close(image_energy(padded, inclusion), image_energy(one, inclusion))


def test_scans_and_images_of_one_set_agree(scan_folder: Path) -> None:
    files = sorted((scan_folder / "train").glob("*.h5"))
    from_scans = sd_of_scans(ScanDataset(files), LAW)
    from_images = sd_of_images(ImageDataset([scan_folder / "references" / f.name for f in files]))
    # The images have rms 1 in raw units, 1/2 when scaled, sqrt(1/8) a channel.
    assert from_images == pytest.approx(8**-0.5, rel=1e-4)
    assert from_scans == pytest.approx(from_images, rel=0.1)


def test_scans_of_noise_are_refused(tmp_path: Path) -> None:
    scan, _ = make_scan("noise")
    write_prepared(tmp_path / "noise.h5", replace(scan, noise_std=scan.noise_std + 100))
    with pytest.raises(AmbientMRIError, match="no more energy than their noise_std explains"):
        sd_of_scans(ScanDataset([tmp_path / "noise.h5"]), LAW)


def test_evenly_spaced() -> None:
    assert evenly_spaced(10, 5) == [0, 2, 4, 6, 8]
    assert evenly_spaced(3, 5) == [0, 1, 2]
