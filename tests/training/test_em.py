"""The E-step: right, resumable, independent of the batch size; and the error curve against a closed form."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ambient_mri._checks import AmbientMRIError, DataError
from ambient_mri.data.datasets import ImageDataset, read_images, write_images
from ambient_mri.data.schema import write_prepared
from ambient_mri.denoiser import Denoiser
from ambient_mri.prior import Prior, build_model
from ambient_mri.sampling import make_sampler
from ambient_mri.sampling.base import Sampler, SamplerResult
from ambient_mri.tensors import complex_randn, keyed_generator
from ambient_mri.training import em
from ambient_mri.training.em import expectation, reconstruct_rows
from ambient_mri.training.error_curve import error_curve
from tests.training.conftest import make_scan

ARCHITECTURE = {
    "network": {"name": "UNet", "channels": 8, "multipliers": [1, 2]},
    "sd": 0.3,
    "sigma_min": 0.003,
    "sigma_max": 10.0,
    "profile_bins": 4,
    "precision": "fp32",
}


def prior(kind: str) -> Prior:
    """An untrained prior: its network gives zero, so that the model is its linear part."""
    architecture = {"kind": kind, **ARCHITECTURE}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Prior(build_model(architecture).eval(), kind, architecture)


def scans(folder: Path, count: int = 2) -> list[Path]:
    folder.mkdir()
    paths = []
    for i in range(count):
        scan, _ = make_scan(f"volume{i}", slices=3)
        paths.append(folder / f"volume{i}.h5")
        write_prepared(paths[-1], scan)
    return paths


@pytest.mark.parametrize(("kind", "sampler"), [("ambient", "one_step"), ("clean", "split_gibbs")])
def test_the_result_does_not_depend_on_the_batch_size(tmp_path: Path, kind: str, sampler: str) -> None:
    files = scans(tmp_path / "scans", 1)
    method = make_sampler(sampler) if sampler == "one_step" else make_sampler(sampler, steps=4)
    images = [
        read_images(expectation(prior(kind), files, tmp_path / str(size), sampler=method, batch_size=size)[0]).images
        for size in (1, 3)
    ]
    assert np.isfinite(images[0]).all()
    assert np.allclose(images[0], images[1], atol=2e-4 * np.abs(images[0]).max())


@pytest.mark.parametrize("lines", [True, False])
def test_an_average_is_the_mean_of_that_many_draws(lines: bool) -> None:
    scan, _ = make_scan("volume", slices=2)
    m, model, method = scan.measurement(slice(0, 2)), prior("clean"), make_sampler("split_gibbs", steps=4)
    if not lines:
        method = make_sampler("split_gibbs", steps=4, data_step="conjugate_gradient")
    draws: list[torch.Tensor] = []
    own = type(method).sample

    def watched(self: Sampler, *arguments: Any, **options: Any) -> SamplerResult:
        draws.append(own(self, *arguments, **options).x)
        return SamplerResult(draws[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(method), "sample", watched)
        single = reconstruct_rows(model, m, method, 0)
        mean = reconstruct_rows(model, m, method, 0, 3)
    assert len(draws) == 4 and torch.equal(single, draws[0])
    assert torch.allclose(mean, (draws[1] + draws[2] + draws[3]) / 3, atol=1e-6)
    apart = [float((a - b).norm() / a.norm()) for a, b in combinations(draws[1:], 2)]
    assert min(apart) > 0.01, "every draw is another sample"
    with pytest.raises(AmbientMRIError, match="average at least one"):
        reconstruct_rows(model, m, method, 0, 0)


def test_finished_volumes_are_kept(tmp_path: Path) -> None:
    files, method = scans(tmp_path / "scans"), make_sampler("one_step")
    first = expectation(prior("ambient"), files[:1], tmp_path / "out", sampler=method)
    stamp = first[0].stat().st_mtime_ns
    both = expectation(prior("ambient"), files, tmp_path / "out", sampler=method)
    assert both[0].stat().st_mtime_ns == stamp and both[1].is_file()
    assert len(ImageDataset(both)) == 6


def test_a_folder_holds_images_of_one_kind(tmp_path: Path) -> None:
    """An E-step goes on with the settings that it began with, or says which differ."""
    scans(tmp_path / "scans")
    clean = prior("clean").save(tmp_path / "prior")
    out = tmp_path / "out"
    arguments = ["--prior", str(clean), "--scans", str(tmp_path / "scans"), "--out", str(out), "--device=cpu"]
    arguments += ["--steps=2", "--start-sd=1"]
    em.main([*arguments, "--part=0/2"])
    (first,) = out.glob("*.h5")
    stamp = first.stat().st_mtime_ns
    for other, named in (
        (["--average=2"], "average"),
        (["--seed=1"], "seed"),
        (["--steps=3"], "steps"),
        (["--final=mean"], "final"),
        (["--start-sd=2"], "sigma_max"),
        (["--sampler=dds"], "method"),
        (["--method=l1_wavelet"], "method"),
    ):
        with pytest.raises(DataError, match=rf"out holds images of another E-step: it differs in .*\b{named}\b"):
            em.main([*arguments, *other])
    em.main(arguments)
    assert first.stat().st_mtime_ns == stamp and len(list(out.glob("*.h5"))) == 2


def test_what_an_e_step_is_made_with() -> None:
    """One thing changed is one entry changed."""
    model, sampler = prior("clean"), make_sampler("split_gibbs", steps=4)
    own = em.settings_of(model, sampler, 0)
    assert em.settings_of(prior("clean"), make_sampler("split_gibbs", steps=4), 0) == own
    others = {
        "eta": em.settings_of(model, make_sampler("split_gibbs", steps=4, eta=0.8), 0),
        "average": em.settings_of(model, sampler, 0, 2),
        "seed": em.settings_of(model, sampler, 1),
    }
    with torch.no_grad():
        next(iter(model.model.parameters())).add_(1)
    others["weights"] = em.settings_of(model, sampler, 0)
    for name, other in others.items():
        assert [k for k in {*own, *other} if own.get(k) != other.get(k)] == [name]


def test_no_scans_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prepared scan"):
        expectation(prior("ambient"), [], tmp_path, sampler=make_sampler("one_step"))


def test_the_error_curve_of_a_linear_denoiser_on_white_images(tmp_path: Path) -> None:
    """The untrained model is the Wiener filter of white images: its error is sigma sd / sqrt(sigma^2 + sd^2)."""
    model = prior("clean").model
    assert isinstance(model, Denoiser)
    images = 0.3 * complex_randn((6, 1, 32, 32), generator=keyed_generator("images"))
    write_images(tmp_path / "images.h5", images.numpy(), [f"i/{k}" for k in range(6)])
    sigmas, errors = error_curve(model, ImageDataset([tmp_path / "images.h5"]), levels=5, count=6)
    expected = sigmas * 0.3 / (sigmas.square() + 0.09).sqrt()
    assert torch.allclose(errors, expected, rtol=0.05)
    model.set_error_curve(sigmas, errors)
    assert torch.allclose(model.posterior_std(sigmas[1:3]), torch.minimum(errors, expected)[1:3], rtol=1e-4)


def test_parts_count_from_zero(tmp_path: Path) -> None:
    """1/2 and 2/2 would leave the first volume out."""
    scans(tmp_path / "scans")
    arguments = ["--method", "l1_wavelet", "--scans", str(tmp_path / "scans"), "--out", str(tmp_path / "out")]
    for wrong in ("2/2", "1", "a/b", "-1/2"):
        with pytest.raises(AmbientMRIError, match=r"--part must be i/n with i from 0 to n - 1, such as 0/2 .*; got"):
            em.main([*arguments, f"--part={wrong}"])
    for good in ("0/2", "1/2"):
        em.main([*arguments, f"--part={good}"])
    assert [p.name for p in sorted((tmp_path / "out").glob("*.h5"))] == ["volume0.h5", "volume1.h5"]
