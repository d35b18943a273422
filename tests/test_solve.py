"""solve(): any operator, every clean sampler, moments without the samples, and what is refused."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import ambient_mri
from ambient_mri import solve
from ambient_mri._checks import AmbientMRIError, PriorError
from ambient_mri.masks import centre_mask
from ambient_mri.operators import BicubicDownsampling, Fourier2d, Identity, LinearOperator, Mask
from ambient_mri.operators.fourier import fft, ifft
from ambient_mri.prior import Prior, build_model, load_prior
from ambient_mri.reconstruct import ReconstructionWarning
from ambient_mri.sampling import SAMPLERS, SplitGibbs
from ambient_mri.sampling.draw import RunningMoments, chi2
from ambient_mri.solve import Solution
from ambient_mri.tensors import complex_randn, keyed_generator
from tests.oracles import StationaryDenoiser, WhiteDenoiser

PRIOR = StationaryDenoiser(sd=0.3, cutoff=0.12)


def pixels() -> Mask:
    return Mask(torch.rand(1, 1, 12, 12, generator=keyed_generator("pixels")) < 0.6)


def data() -> Tensor:
    return pixels().forward(PRIOR.draw(2, (12, 12), keyed_generator("truth")))


def run(**options: Any) -> Solution:
    return solve(data(), pixels(), PRIOR, **{"noise_std": 0.02, "samples": 6, "steps": 8, **options})


def test_moments_are_those_of_the_samples_in_any_batch() -> None:
    kept, streamed = run(), run(keep_samples=False, batch_size=4)
    assert kept.samples is not None and kept.samples.shape == (2, 6, 1, 12, 12) and kept.std is not None
    assert streamed.samples is None and streamed.std is not None
    assert torch.allclose(kept.mean, kept.samples.mean(dim=1), atol=1e-6)
    deviation = (kept.samples - kept.mean[:, None]).abs().square().sum(dim=1) / 5
    assert torch.allclose(kept.std, deviation.sqrt(), atol=1e-6)
    # Conjugate gradients stop at a tolerance, and batches of another shape round differently.
    assert torch.allclose(streamed.mean, kept.mean, atol=1e-3) and torch.allclose(streamed.std, kept.std, atol=1e-3)
    assert torch.allclose(streamed.residual, kept.residual, rtol=1e-2)


def test_many_samples_are_not_kept_unless_asked_for() -> None:
    assert run(samples=9, steps=2).samples is None
    many = run(samples=9, steps=2, keep_samples=True).samples
    assert many is not None and many.shape[1] == 9
    assert run(samples=1, steps=2).std is None


def test_running_moments_are_exact_however_the_samples_come() -> None:
    x = complex_randn((2, 1000, 3), generator=keyed_generator("moments")) + 100
    for sizes in ([1000], [1] * 1000, [1, 7, 992]):
        moments = RunningMoments()
        for part in x.split(sizes, dim=1):
            moments.add(part)
        std = moments.std()
        assert std is not None and torch.allclose(moments.mean, x.to(torch.complex128).mean(1), rtol=1e-12)
        exact = (x - x.mean(1, keepdim=True)).to(torch.complex128).abs().square().sum(1) / 999
        assert torch.allclose(std, exact.sqrt(), rtol=1e-5)


def test_streaming_holds_one_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added at once is a batch of 5, and nothing else grows with the number of samples."""
    sizes: list[int] = []
    add = RunningMoments.add

    def counted(self: RunningMoments, x: Tensor) -> None:
        if x.is_complex():  # the samples, and not their magnitudes
            sizes.append(x.shape[1])
        add(self, x)

    monkeypatch.setattr(RunningMoments, "add", counted)
    found = run(samples=40, batch_size=10, steps=2)
    assert sizes == [5] * 8 and found.samples is None and found.mean.shape == (2, 1, 12, 12)


def test_quantiles_of_kept_samples() -> None:
    found = solve(torch.ones(1, 1, 8, 8), Identity(), WhiteDenoiser(1.0), noise_std=1.0, samples=300, keep_samples=True)
    width = found.quantile(0.95) - found.quantile(0.05)
    # N(0.5, 0.5): 2 * 1.645 standard deviations.
    assert width.mean() == pytest.approx(2 * 1.645 * 0.5**0.5, rel=0.05)
    complex_values = run()
    assert not complex_values.quantile(0.5).is_complex() and complex_values.quantile(0.5).shape == (2, 1, 12, 12)
    with pytest.raises(AmbientMRIError, match="a quantile lies between 0 and 1; got 5"):
        found.quantile(5)
    with pytest.raises(AmbientMRIError, match=r"solve\(\.\.\., keep_samples=True\)"):
        run(keep_samples=False).quantile(0.5)


def test_what_a_solution_says_of_its_spread_is_recalibrated_as_that_of_a_reconstruction() -> None:
    plain = run()
    card = {"recalibration": {"split_gibbs": {"factor": 2.0}}}
    wide = solve(data(), pixels(), Prior(PRIOR, "clean", {}, card), noise_std=0.02, samples=6, steps=8)
    assert plain.recalibration_factor == 1.0 and wide.recalibration_factor == 2.0
    assert plain.std is not None and wide.std is not None and plain.samples is not None and wide.samples is not None
    assert torch.equal(wide.mean, plain.mean) and torch.allclose(wide.std, 2 * plain.std)
    middle = plain.quantile(0.5)
    assert torch.allclose(wide.quantile(0.9) - middle, 2 * (plain.quantile(0.9) - middle), atol=1e-5)
    images, std = wide.principal_components(5)
    assert images.shape == (2, 5, 1, 12, 12) and torch.allclose(std, 2 * plain.principal_components(5)[1])
    # All five of six samples: together they are the whole variance.
    assert torch.allclose(std.square().sum(1), wide.std.square().flatten(1).sum(1), rtol=1e-4)
    with pytest.raises(AmbientMRIError, match=r"not kept: call solve\(\.\.\., keep_samples=True\)"):
        run(keep_samples=False).principal_components()


@pytest.mark.filterwarnings("ignore:the solutions do not fit")
@pytest.mark.parametrize("name", sorted(n for n, c in SAMPLERS.items() if "clean" in c.accepts))
def test_every_clean_sampler_is_selected_by_name(name: str) -> None:
    found = run(sampler=name, steps=12, samples=2)
    assert found.status["sampler"] == name == found.settings["sampler"]["sampler"]
    assert found.settings["operator"].startswith("Mask")
    seen = pixels().mask.expand_as(data())
    assert (found.mean - data())[seen].norm() < 0.6 * data()[seen].norm()
    assert bool(found.residual.isfinite().all())


@pytest.mark.parametrize("name", sorted(n for n, c in SAMPLERS.items() if "clean" not in c.accepts))
def test_samplers_for_other_priors_are_refused(name: str) -> None:
    with pytest.raises(PriorError, match=f"{name} is not valid for a prior of kind 'clean': .*[uU]se "):
        run(sampler=name, steps=None)


def test_the_public_function() -> None:
    assert ambient_mri.solve is solve
    with pytest.raises(AmbientMRIError, match="samples must be at least 1"):
        run(samples=0)


@pytest.mark.filterwarnings("ignore:the solutions do not fit")
@pytest.mark.parametrize("name", ["split_gibbs", "dps"])
def test_what_lies_behind_the_mask_is_not_looked_at(name: str) -> None:
    """The whole picture may be handed over: neither the solutions nor their residual know what it hides."""
    options: dict[str, Any] = {"noise_std": 0.02, "samples": 2, "steps": 4, "sampler": name}
    hidden = data() + 7 * (~pixels().mask)
    found, expected = (solve(y, pixels(), PRIOR, **options) for y in (hidden, data()))
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.residual, expected.residual)


def test_the_residual_counts_what_was_measured_without_a_mask_in_sight() -> None:
    """An operator of another library marks what it leaves out by zeros, as ours does by its mask."""
    pick = pixels()

    class Foreign(LinearOperator):
        domain_shape = range_shape = (None, 12, 12)

        def forward(self, x: Tensor) -> Tensor:
            return pick.forward(x)

        def adjoint(self, y: Tensor) -> Tensor:
            return pick.adjoint(y)

    x = data() + 0.02 * complex_randn((2, 1, 12, 12), generator=keyed_generator("residual"))
    own, foreign = (chi2(a, data(), x, torch.full((2,), 0.02), 1) for a in (pick, Foreign()))
    assert torch.allclose(own, foreign) and bool((own > 0.7).all()) and bool((own < 1.4).all())


def test_batches_go_by_the_size_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few numbers are measured of an image: the network works on all of its pixels."""
    asked: list[tuple[tuple[int, int], int]] = []

    def counted(batch_size: int | str, shape: tuple[int, int], coils: int, device: torch.device) -> int:
        asked.append((shape, coils))
        return 4

    monkeypatch.setattr(sys.modules["ambient_mri.solve"], "rows_per_batch", counted)
    shrink = BicubicDownsampling(4, (48, 48))
    small = shrink.forward(PRIOR.draw(1, (48, 48), keyed_generator("large")))
    solve(small, shrink, PRIOR, noise_std=0.02, samples=1, steps=2)
    run(samples=1, steps=2)
    assert asked == [((48, 48), 1), ((12, 12), 1)]


def test_levels_and_ladders_that_cannot_be() -> None:
    for wrong in (torch.ones(3), torch.ones(2, 1)):
        with pytest.raises(AmbientMRIError, match="noise_std must be one number, or one for each of the 2 rows of y"):
            run(noise_std=wrong)
    with pytest.raises(AmbientMRIError, match="rho must be a positive finite number"):
        SplitGibbs(rho=0.0)


def test_real_images_of_complex_data_in_other_units_are_told() -> None:
    architecture = {"kind": "clean", "network": {"name": "UNet", "channels": 8, "multipliers": [1]}, "sd": 0.4}
    architecture |= {"image_channels": 1, "precision": "fp32"}

    class HalfFourier(LinearOperator):
        """Complex k-space of a real image."""

        domain_shape = range_shape = (None, 16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return fft(x.to(torch.complex64))

        def adjoint(self, y: Tensor) -> Tensor:
            return ifft(y).real

    prior = Prior(build_model(architecture), "clean", architecture, name="grey")
    images = 0.4 * torch.randn(2, 1, 16, 16, generator=keyed_generator("grey"))
    with pytest.warns(ReconstructionWarning, match=r"about (29|30|31) times as strong"):
        solve(30 * HalfFourier().forward(images), HalfFourier(), prior, noise_std=0.1, samples=1, steps=2)


def test_arrays_are_taken_and_other_data_than_the_priors_are_one_clear_line() -> None:
    y = 0.36 * complex_randn((1, 1, 16, 16), generator=keyed_generator("arrays"))
    everywhere = Mask(torch.ones(1, 1, 16, 16, dtype=torch.bool))
    found = solve(y.numpy(), everywhere, "brain128", noise_std=0.1, samples=2, steps=2)
    same = solve(y, everywhere, "brain128", noise_std=0.1, samples=2, steps=2)
    torch.testing.assert_close(found.mean, same.mean)
    with pytest.raises(AmbientMRIError, match=r"models images of 2 real channels .* Pass y.to\(torch.complex64\)"):
        solve(y.real, everywhere, "brain128", noise_std=0.1)
    with pytest.raises(AmbientMRIError, match=r"operator must be a LinearOperator .* got function"):
        solve(y, lambda x: x, "brain128", noise_std=0.1)  # type: ignore[arg-type]


def many_images() -> Tensor:
    """Eight rows: enough of them for a mean energy."""
    return PRIOR.draw(8, (48, 48), keyed_generator("many images"))


def centre() -> LinearOperator:
    """The low frequencies: a sixth of the numbers, most of the energy."""
    return Mask((centre_mask(48, 20)[:, None] & centre_mask(48, 20))[None, None]) @ Fourier2d()


def test_a_given_scale_is_divided_out_and_multiplied_back() -> None:
    known = run()
    scaled = solve(250 * data(), pixels(), PRIOR, noise_std=250 * 0.02, samples=6, steps=8, scale=250.0)
    assert known.settings["scale"] == 1.0 and scaled.settings["scale"] == 250.0
    assert known.samples is not None and scaled.samples is not None and known.std is not None and scaled.std is not None
    assert torch.allclose(scaled.samples / 250, known.samples, atol=1e-4)
    assert torch.allclose(scaled.std / 250, known.std, atol=1e-4)
    assert torch.allclose(scaled.residual, known.residual, rtol=1e-3)
    one = run(scale=1)
    assert torch.equal(one.mean, known.mean)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 400.0])
@pytest.mark.parametrize("noise_std", [0.01, 0.3])
@pytest.mark.parametrize("name", ["identity", "centre", "pixels"])
def test_the_scale_is_found_from_the_data(name: str, noise_std: float, factor: float) -> None:
    """Up to the root of the share of the energy that A sees, whatever the noise, be it as strong as the image."""
    kept = torch.rand(1, 1, 48, 48, generator=keyed_generator("kept")) < 0.6
    a: LinearOperator = {"identity": Identity(), "centre": centre(), "pixels": Mask(kept)}[name]
    power = PRIOR.power((48, 48))
    low = power * (centre_mask(48, 20)[:, None] & centre_mask(48, 20))
    share = {"identity": 1.0, "centre": float(low.sum() / power.sum()), "pixels": float(kept.float().mean())}[name]
    clean = a.forward(many_images())
    noise = noise_std * complex_randn(clean.shape, generator=keyed_generator("noise")) * (clean != 0)
    found = solve(factor * (clean + noise), a, PRIOR, noise_std=factor * noise_std, scale="auto", samples=1, steps=2)
    assert found.settings["scale"] == pytest.approx(factor * share**0.5, rel=0.06)


def test_solutions_follow_the_units_of_the_data() -> None:
    y = many_images()
    options: Any = {"scale": "auto", "samples": 2, "steps": 3}
    one, other = (solve(c * y, Identity(), PRIOR, noise_std=c * 0.02, **options) for c in (1.0, 512.0))
    assert torch.allclose(other.mean, 512 * one.mean, rtol=1e-4, atol=1e-2)


def test_what_a_scale_cannot_be_is_one_clear_line() -> None:
    with pytest.raises(AmbientMRIError, match="scale must be one of 'auto'; got 'max'"):
        run(scale="max")
    with pytest.raises(AmbientMRIError, match=r"scale must be a positive finite number; got 0\.0"):
        run(scale=0)
    with pytest.raises(AmbientMRIError, match="y holds no more energy than its noise_std explains"):
        run(scale="auto", noise_std=5.0)
    with pytest.raises(AmbientMRIError, match=r"scale='auto' is for priors of complex images; .* give the scale"):
        solve(torch.ones(1, 1, 8, 8), Identity(), WhiteDenoiser(1.0), noise_std=1.0, scale="auto")


def pictures_prior() -> Prior:
    """An untrained prior of colour images: what it says does not matter, what it is given does."""
    torch.manual_seed(0)
    settings = {"kind": "clean", "network": {"channels": 8, "multipliers": [1]}, "sd": 0.5, "image_channels": 3}
    settings["precision"] = "fp32"
    return Prior(build_model(settings), "clean", settings, {}, name="pictures")


def test_pictures_in_other_units_or_another_order_are_told() -> None:
    prior = pictures_prior()
    y = 2 * torch.rand(2, 3, 8, 8, generator=keyed_generator("pictures")) - 1
    options: Any = {"noise_std": 0.1, "samples": 1, "steps": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(y, Identity(), prior, **options)
        solve(50 * y + 1, Identity(), prior, **options, scale=50.0)
    with pytest.raises(AmbientMRIError, match=r"Channels come second: y\.permute\(0, 3, 1, 2\)"):
        solve(y.permute(0, 2, 3, 1), Identity(), prior, **options)
    with pytest.warns(ReconstructionWarning, match=r"none of them is negative. If they lie in \[0, 1\], 2 y - 1"):
        solve(y / 2 + 0.5, Identity(), prior, **options)
    noise = torch.randn(y.shape, generator=keyed_generator("noise"))
    little = options | {"noise_std": 0.02}
    for a in (Identity(), Mask(torch.rand(1, 1, 8, 8, generator=keyed_generator("kept")) < 0.5)):
        assert bool((y / 2 + 0.5 + 0.02 * noise < 0).any())
        with pytest.warns(ReconstructionWarning, match="none of them is negative"):
            solve(a(y / 2 + 0.5 + 0.02 * noise), a, prior, **little)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            solve(a(y + 0.02 * noise), a, prior, **little)
    with pytest.raises(AmbientMRIError, match=r"Mask\.H expects input .*6, 6\); got \(2, 3, 8, 8\)"):
        solve(y, Mask(torch.ones(1, 1, 6, 6, dtype=torch.bool)), prior, **options)
    with pytest.warns(ReconstructionWarning, match=r"about 1\d\d times as strong as those. For grey levels, y / 127"):
        solve(127.5 * y, Mask(torch.ones(1, 1, 8, 8, dtype=torch.bool)), prior, **options)


def test_complex_images_in_other_units_and_solutions_that_do_not_fit_are_told() -> None:
    prior = load_prior("brain128")
    mask = Mask(torch.rand(1, 1, 32, 32, generator=keyed_generator("kept")) < 0.5)
    y = mask(prior.model.sd * complex_randn((1, 1, 32, 32), generator=keyed_generator("complex")))
    options: dict[str, Any] = {"samples": 1, "steps": 2, "sampler": "dds"}
    for factor, found in ((30, r"about \d\d[.\d]* times as strong as"), (0.01, r"about \d\d[.\d]* times weaker than")):
        with pytest.warns(ReconstructionWarning, match=f"{found} those of the prior: pass scale='auto'"):
            solve(factor * y, mask, prior, noise_std=0.02 * factor, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            solve(factor * y, mask, prior, noise_std=0.05 * factor, scale="auto", **options)
    with pytest.warns(ReconstructionWarning, match=r"do not fit the data: chi\^2 of the residual is .* more steps"):
        run(sampler="dps", steps=12, samples=2)  # in so few steps it does not get to the data
