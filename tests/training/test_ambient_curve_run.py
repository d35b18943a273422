"""The error curve of an ambient prior: measured when a run exports, stored, read again, and there for samplers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ambient_mri.data.datasets import ScanDataset
from ambient_mri.denoiser import AmbientDenoiser, ConditionalDenoiser
from ambient_mri.operators import sense
from ambient_mri.prior import load_prior
from ambient_mri.sampling import Level, ambient_denoiser, make_sampler
from ambient_mri.tensors import keyed_generator


def network(folder: Path) -> ConditionalDenoiser:
    model = load_prior(folder).model
    assert isinstance(model, ConditionalDenoiser)
    return model


@pytest.fixture
def older_prior(ambient_run: Path, tmp_path: Path) -> Path:
    """The same prior as it was written before ambient priors had a curve."""
    folder = Path(shutil.copytree(ambient_run / "prior", tmp_path / "older"))
    card = json.loads((folder / "prior.json").read_text())
    (folder / "prior.json").write_text(json.dumps({**card, "error_curve": None, "error_curve_of": None}))
    return folder


def test_an_ambient_run_exports_its_curve(ambient_run: Path, scan_folder: Path, tmp_path: Path) -> None:
    prior = load_prior(ambient_run)
    model = network(ambient_run)
    assert prior.metadata["error_curve_of"].startswith("held-out corrupted scans")
    noise = float(ScanDataset([scan_folder / "val" / "v5.h5"])[0].noise_std)
    assert float(model.error_sigmas[0]) == pytest.approx(max(1.2 * noise, model.sigma_min), rel=1e-4)
    assert float(model.error_sigmas[-1]) == pytest.approx(model.sigma_max, rel=1e-4)
    # Hardly trained: close to what is missing at low sigma, close to the images themselves at high sigma.
    assert 0.05 * model.sd < float(model.error_values[0]) < float(model.error_values[-1])
    assert float(model.error_values[-1]) == pytest.approx(model.sd, rel=0.4)
    again = load_prior(prior.save(tmp_path / "again")).model
    assert torch.equal(again.error_sigmas, model.error_sigmas) and torch.equal(again.error_values, model.error_values)


def levels(denoiser: AmbientDenoiser, steps: int = 4) -> list[Level]:
    """What a sampler sees of the denoiser, step by step."""
    m, found = denoiser.measurement, list[Level]()
    operator = sense(m.coil_maps, m.mask, axes=m.axes)  # type: ignore[arg-type]
    sampler = make_sampler("dds", steps=steps)
    sampler.sample(
        denoiser, operator, m.y, m.noise_std, generators=denoiser.generators, callback=lambda at, x: found.append(at)
    )
    return found


def bound(folder: Path, scan_folder: Path) -> AmbientDenoiser:
    return ambient_denoiser(
        network(folder), ScanDataset([scan_folder / "val" / "v5.h5"])[0], [keyed_generator("curve")]
    )


def test_a_prior_without_a_curve_keeps_the_formula(older_prior: Path, scan_folder: Path) -> None:
    denoiser = bound(older_prior, scan_folder)
    rate = denoiser.measurement.mask.float().mean().reshape(1)
    assert not denoiser.model.has_error_curve
    for level in levels(denoiser):
        assert torch.allclose(level.r_t, denoiser.model.expected_error(level.sigma, rate))


def test_samplers_use_the_curve_that_the_denoiser_is_given(ambient_run: Path, scan_folder: Path) -> None:
    """And the formula, unasked, although the network carries its curve."""
    denoiser = bound(ambient_run, scan_folder)
    model = denoiser.model
    assert model.has_error_curve and not denoiser.has_error_curve
    formula = torch.cat([level.r_t for level in levels(denoiser)])
    rate = denoiser.measurement.mask.float().mean().reshape(1)
    assert torch.allclose(formula, torch.cat([model.expected_error(at.sigma, rate) for at in levels(denoiser)]))
    denoiser.set_error_curve(model.error_sigmas, model.error_values)
    found = levels(denoiser)
    expected = torch.cat([model.measured_error(at.sigma) for at in found]).clamp_max(model.sd)
    r_t = torch.cat([at.r_t for at in found])
    assert torch.allclose(r_t, expected) and not torch.allclose(r_t, formula, rtol=0.05)
    assert torch.allclose(found[0].lam, (denoiser.measurement.noise_std / r_t[0]).square().clamp_min(1e-4))
