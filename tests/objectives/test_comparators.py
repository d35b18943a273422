"""Published methods: what they do, in a Gaussian world where theory says what must go wrong, and who may use them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ambient_mri._checks import PriorError
from ambient_mri.comparators import FeedForward, ProjectedNoiseDenoiser
from ambient_mri.corruption import Undersampling
from ambient_mri.denoiser import CleanDenoiser
from ambient_mri.masks import IndependentLines, RandomLines, effective_acceleration
from ambient_mri.measurement import Measurement
from ambient_mri.noise import TrainingNoise
from ambient_mri.objectives import (
    AmbientObjective,
    PublishedAmbientObjective,
    SSDUObjective,
    SupervisedObjective,
    WeightedSSDUObjective,
)
from ambient_mri.objectives.published import frozen_further_mask
from ambient_mri.operators import sense
from ambient_mri.prior import Prior, build_model, load_prior
from ambient_mri.sampling import SAMPLERS, ambient_denoiser, make_sampler
from ambient_mri.tensors import complex_randn, keyed_generator, per_row, randn_like_rows

LAW = RandomLines(4, 4)
NETWORK = {"name": "UNet", "channels": 8, "multipliers": [1, 2]}


def model_of(kind: str, **settings: object) -> torch.nn.Module:
    """A model whose network is not zero."""
    model = build_model({"kind": kind, "network": NETWORK, "sd": 0.3, "precision": "fp32", **settings})
    generator = keyed_generator("weights")
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05, generator=generator)
    return model.eval()


def scans(count: int = 3, size: int = 32, noise_std: float = 0.02) -> Measurement:
    generator = keyed_generator("scans")
    maps = complex_randn((count, 3, size, size), generator=generator)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    mask = torch.cat([LAW.draw((size, size), keyed_generator("P", i)) for i in range(count)])
    image = 0.3 * complex_randn((count, 1, size, size), generator=generator)
    y = sense(maps, mask).forward(image)
    y = y + noise_std * complex_randn(y.shape, generator=generator) * mask
    names = tuple(f"volume/{i}" for i in range(count))
    return Measurement(y, mask, maps, torch.full((count,), noise_std), torch.ones(count), names)


def streams(count: int, *keys: int | str) -> list[torch.Generator]:
    return [keyed_generator(*keys, i) for i in range(count)]


# --- ambient training as published -----------------------------------------------------------------------------------


def test_the_further_mask_belongs_to_the_scan() -> None:
    m = scans(6, 64)
    kept = frozen_further_mask(m, LAW, 1.0, seed=0)
    assert torch.equal(frozen_further_mask(m[2:4], LAW, 1.0, seed=0), kept[2:4]), "whatever the batch is"
    assert not torch.equal(frozen_further_mask(m, LAW, 1.0, seed=1), kept)
    assert len({tuple(row.flatten().tolist()) for row in kept}) == 6
    assert bool((kept <= m.mask).all()) and bool((LAW.always((64, 64)) <= kept).all())
    for row, own in zip(kept, m.mask, strict=True):
        assert effective_acceleration(row) == pytest.approx(effective_acceleration(own) + 1, rel=0.05)


def test_the_published_input_is_the_projected_noisy_image() -> None:
    """z = A_tilde (x0 + sigma n) for noise-free data, and the wrapper hands a sampler's state over in the same form."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(ProjectedNoiseDenoiser):
        def forward(self, z: Tensor, sigma: Tensor, operator: object, kept: Tensor) -> Tensor:
            seen.append((z, kept))
            return super().forward(z, sigma, operator, kept)  # type: ignore[arg-type]

    m = scans(2, noise_std=0.0)
    inner = model_of("ambient", preconditioning="edm")
    model = Watched(inner.network, sd=0.3, profile=inner.profile, precision="fp32")
    objective = PublishedAmbientObjective(Undersampling(LAW))
    loss = objective(model, m, streams(2, "draw"))
    loss.value.backward()
    z, kept = seen[0]
    assert bool((z * ~kept == 0).all())
    # The same draws by hand, in hybrid space as the objective works there.
    hybrid = m.cancel_readout()
    generators = streams(2, "draw")
    sigma = objective.noise.draw(0.3, generators)
    image = sense(hybrid.coil_maps, hybrid.mask, axes=hybrid.axes).adjoint(hybrid.y)
    noise = per_row(sigma, image) * randn_like_rows(image, generators)
    noisy = sense(hybrid.coil_maps, kept, axes=hybrid.axes)
    assert torch.allclose(z, hybrid.y * kept + noisy.forward(noise), atol=1e-5)
    state = complex_randn((2, 1, 32, 32), generator=keyed_generator("state"))
    further = sense(m.coil_maps, kept)
    denoiser = ambient_denoiser(model, m, streams(2, "wrapper"))
    denoiser.denoise_partial(state, torch.full((2,), 0.5), further, kept)
    assert torch.allclose(seen[-1][0], further.forward(state), atol=1e-5), "no noise is added outside the range"


def test_edm_preconditioning_cannot_fill_in_at_low_noise() -> None:
    """At sigma -> 0 the published model is the zero-filled image whatever its network says; ours is not."""
    m = scans(1)
    operator, sigma = sense(m.coil_maps, m.mask), torch.tensor([1e-4])
    zero_filled = operator.adjoint(m.y)
    published = model_of("ambient", preconditioning="edm")(m.y, sigma, operator, m.mask).detach()
    ours = model_of("ambient")(m.y, sigma, operator, m.mask).detach()
    lost = float((operator.H(operator(ours - zero_filled)) - (ours - zero_filled)).norm() / zero_filled.norm())
    assert float((published - zero_filled).norm() / zero_filled.norm()) < 1e-2
    assert lost > 0.05


def test_a_network_is_used_in_the_noise_domain_that_it_was_trained_in(tmp_path: Path) -> None:
    architecture = {"kind": "ambient", "network": NETWORK, "sd": 0.3, "preconditioning": "edm", "precision": "fp32"}
    folder = Prior(model_of("ambient", preconditioning="edm"), "ambient", architecture).save(tmp_path / "p")
    prior = load_prior(folder)
    assert isinstance(prior.model, ProjectedNoiseDenoiser)
    assert '"noise_domain": "image"' in (folder / "prior.json").read_text()
    m = scans(1)
    denoiser = ambient_denoiser(prior.model, m, streams(1, "s"))
    operator = sense(m.coil_maps, m.mask)
    with pytest.raises(PriorError, match=r"one_step hands over measured k-space.* Use adps"):
        make_sampler("one_step").sample(denoiser, operator, m.y, m.noise_std, generators=streams(1, "s"))
    adps = make_sampler("adps", steps=3)
    assert adps.sample(denoiser, operator, m.y, m.noise_std, generators=streams(1, "s")).x.shape == (1, 1, 32, 32)
    card = (folder / "prior.json").read_text().replace('"noise_domain": "image"', '"noise_domain": "kspace"')
    (folder / "prior.json").write_text(card)
    with pytest.raises(PriorError, match="trained with noise in the kspace domain; its architecture takes image"):
        load_prior(folder)


# --- SSDU ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [SSDUObjective, WeightedSSDUObjective])
def test_ssdu_scores_only_what_the_network_did_not_see(objective: type[SSDUObjective]) -> None:
    """Changing y where it is input changes the loss through the network alone; with the network's answer fixed, not."""
    corruption = Undersampling(LAW, core=2, keep=(0.6, 0.6), acs_removal=1.0)
    m = scans(2)
    kept = corruption.further(m.cancel_readout(), streams(2, "split")).kept

    class Fixed(FeedForward):
        def forward(self, z: Tensor, sigma: Tensor, operator: object, kept: Tensor) -> Tensor:
            assert torch.equal(sigma, m.noise_std) and bool((z * ~kept == 0).all())
            return torch.ones(len(z), 1, *z.shape[-2:], dtype=z.dtype)

    model = Fixed(torch.nn.Identity(), sd=0.3, sigma_min=1e-3)
    loss = lambda y: float(objective(corruption)(model, replace(m, y=y), streams(2, "split")).value)  # noqa: E731
    before = loss(m.y)
    assert loss(m.y + 1.0 * kept) == pytest.approx(before, rel=1e-5)
    assert loss(m.y + 1.0 * (m.mask & ~kept)) > 1.1 * before


def test_weighted_ssdu_estimates_the_supervised_loss_and_plain_ssdu_does_not() -> None:
    """For a fixed answer x_hat: E over masks of the weighted loss = ||A_full x_hat - y_full||^2 outside the input."""
    law, width = IndependentLines(3, 4), 24
    corruption = Undersampling(law, core=0, keep=(0.6, 0.6), acs_removal=1.0)
    rows = 4000
    y = complex_randn((1, 1, 1, width), generator=keyed_generator("y")).expand(rows, -1, -1, -1)
    y = y * torch.linspace(3, 1, width)  # lines differ, so that a wrong weighting shows
    mask = torch.cat([law.draw((1, width), keyed_generator("P", i)) for i in range(rows)])
    ones = torch.ones(rows, 1, 1, width, dtype=torch.complex64)
    names = tuple(map(str, range(rows)))
    m = Measurement(y * mask, mask, ones, torch.full((rows,), 1e-3), torch.ones(rows), names, axes=(-1,))
    model = FeedForward(torch.nn.Identity(), sd=1.0, sigma_min=1e-3)
    model.forward = lambda z, *_: torch.zeros(len(z), 1, 1, width, dtype=z.dtype)  # type: ignore[method-assign]
    found, kept = {}, corruption.further(m, streams(rows, "B")).kept
    for name, objective in (("plain", SSDUObjective), ("weighted", WeightedSSDUObjective)):
        found[name] = float(objective(corruption)(model, m, streams(rows, "B")).value)
    full = float(((y.abs().square() * ~kept).sum(dim=(1, 2, 3)) / (2 * width)).mean())
    assert found["weighted"] == pytest.approx(full, rel=0.03)
    assert found["plain"] < 0.7 * full


def test_only_one_step_takes_a_feedforward_network(tmp_path: Path) -> None:
    architecture = {"kind": "feedforward", "network": NETWORK, "sd": 0.3, "precision": "fp32"}
    folder = Prior(model_of("feedforward"), "feedforward", architecture).save(tmp_path / "p")
    prior = load_prior(folder)
    assert prior.kind == "feedforward" and isinstance(prior.model, FeedForward)
    m = scans(2)
    denoiser = ambient_denoiser(prior.model, m, streams(2, "s"))
    operator = sense(m.coil_maps, m.mask)
    found = make_sampler("one_step").sample(denoiser, operator, m.y, m.noise_std, generators=streams(2, "s")).x
    assert found.shape == (2, 1, 32, 32)
    for name in sorted(SAMPLERS.keys() - {"one_step"}):
        with pytest.raises(PriorError, match=f"{name} is not valid for a prior of kind 'feedforward': it rec"):
            make_sampler(name).sample(denoiser, operator, m.y, m.noise_std, generators=streams(2, "s"))
        with pytest.raises(PriorError, match="Use one_step"):
            make_sampler(name).check_kind("feedforward")


def test_every_objective_trains_the_same_network() -> None:
    """Parameter names and shapes agree: weights can be taken over, and budgets compare."""
    corruption = Undersampling(LAW)
    objectives = (
        AmbientObjective(corruption),
        PublishedAmbientObjective(corruption),
        SSDUObjective(corruption),
        WeightedSSDUObjective(corruption),
        SupervisedObjective(TrainingNoise()),
    )
    shapes = []
    for objective in objectives:
        extra = getattr(objective, "architecture", {})
        model = build_model({"kind": objective.kind, "network": NETWORK, "sd": 0.3, **extra})
        shapes.append({k: tuple(v.shape) for k, v in model.state_dict().items()})
        assert isinstance(model, CleanDenoiser) is (objective.kind == "clean")
    assert all(s == shapes[0] for s in shapes)


def test_frozen_further_masks_leave_measured_lines_without_supervision() -> None:
    """With a fresh B every line outside the core is a target some time; with a frozen one, the kept lines never are."""
    m = scans(1, 64)
    corruption = Undersampling(LAW, core=2, keep=(0.5, 0.9), acs_removal=0.5)
    fresh, frozen = torch.zeros_like(m.mask), torch.zeros_like(m.mask)
    for step in range(200):
        fresh |= m.mask & ~corruption.further(m, streams(1, "fresh", step)).kept
        frozen |= m.mask & ~frozen_further_mask(m, LAW, 1.0, seed=0)
    assert int((m.mask & ~fresh).sum()) == 2, "the core alone is never removed"
    assert int(frozen.sum()) < 0.3 * int(m.mask.sum())
