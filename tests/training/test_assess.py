"""The reference-free quantities against what they must be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.schema import write_prepared
from ambient_mri.masks import RandomLines
from ambient_mri.measurement import Measurement
from ambient_mri.prior import Prior, build_model
from ambient_mri.sampling import make_sampler
from ambient_mri.tensors import complex_randn, keyed_generator
from ambient_mri.training.assess import Settings, assess, held_out_lines, radial_power, squared_error_of_mean
from tests.training.conftest import make_scan


def scan(lines: torch.Tensor) -> Measurement:
    blank = torch.zeros(1, 2, 8, lines.shape[-1], dtype=torch.complex64)
    return Measurement(blank, lines, blank + 1, torch.zeros(1), torch.ones(1), ("scan",))


def test_held_out_lines_are_measured_outer_lines() -> None:
    law = RandomLines(2, 8)
    mask = law.draw((8, 64), keyed_generator("P"))  # 32 lines, 24 of them outside the calibration lines
    out = held_out_lines(scan(mask), 0.25, seed=0)
    assert int(out.sum()) == 6 and bool((out <= mask).all()) and not bool((out & law.always((8, 64))).any())
    assert torch.equal(out, held_out_lines(scan(mask), 0.25, seed=0))
    assert not torch.equal(out, held_out_lines(scan(mask), 0.25, seed=1))
    assert int(held_out_lines(scan(mask), 1e-6, seed=0).sum()) == 1, "one at least"


def test_a_scan_of_calibration_lines_alone_cannot_be_judged() -> None:
    with pytest.raises(AmbientMRIError, match="no line outside its calibration lines"):
        held_out_lines(scan(RandomLines(2, 8).always((8, 64))), 0.1, seed=0)
    with pytest.raises(AmbientMRIError, match="held_out must be below 1"):
        Settings(held_out=1.0)


def test_a_fully_sampled_scan_among_others_is_left_out(tmp_path: Path) -> None:
    """Nothing of it can be held out; where there are no others, the error says so."""
    files = []
    for name, law in (("a", RandomLines(2, 4)), ("b", RandomLines(1, 0))):
        files.append(tmp_path / f"{name}.h5")
        write_prepared(files[-1], make_scan(name, slices=2, size=(16, 20), law=law)[0])
    model = build_model({"kind": "clean", "network": {"name": "UNet", "channels": 8, "multipliers": [1]}, "sd": 0.3})
    prior, settings = Prior(model, "clean", {}, name="p"), Settings(slices=4, samples=2)
    found = assess(prior, files, sampler=make_sampler("split_gibbs", steps=2), settings=settings)
    assert found.values["slices"] == 2 and found.values["held_out_error"] > 0
    with pytest.raises(AmbientMRIError, match="no line outside its calibration lines"):
        assess(prior, files[1:], sampler=make_sampler("split_gibbs", steps=2), settings=settings)


def test_the_power_of_white_noise_is_flat_and_its_variance() -> None:
    images = 0.3 * complex_randn((40, 1, 32, 48), generator=keyed_generator("white"))
    assert torch.allclose(radial_power(images, 6), torch.full((6,), 0.09), rtol=0.06)
    real = torch.cat([images.real, images.imag], dim=1)
    assert torch.allclose(radial_power(real, 6), torch.full((6,), 0.09), rtol=0.06), "a real channel has half of it"
    constant = torch.ones(1, 1, 32, 48, dtype=torch.complex64)
    power = radial_power(constant, 6)
    assert power[0] > 0 and float(power[1:].max()) < 1e-6 * float(power[0])


def test_the_error_of_the_mean_does_not_depend_on_the_number_of_samples():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4000, dtype=torch.complex128, generator=generator)
    mean = target + 0.5 * torch.randn(4000, dtype=torch.complex128, generator=generator)
    samples = mean + 2.0 * torch.randn(6, 4000, dtype=torch.complex128, generator=generator)
    true = float((mean - target).abs().square().sum())
    for count in (2, 6):
        assert squared_error_of_mean(samples[:count], target) == pytest.approx(true, abs=0.15 * 4.0 * 4000)
        # The error of their mean is far from it: the variance over their number is the larger part.
        assert float((samples[:count].mean(0) - target).abs().square().sum()) > true + 0.5 * 4.0 * 4000 / count
    assert squared_error_of_mean(mean[None], target) == pytest.approx(true)
