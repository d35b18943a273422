"""The ambient objective against the optimal linear denoiser of a Gaussian world, for masked pixels and for multi-coil
k-space.

The model is a table: one free linear map for every further mask. The minimiser of the objective is then known in
closed form
for every mask separately, and L-BFGS finds the empirical one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ambient_mri.corruption import Further, Learnability, Undersampling, check_learnable
from ambient_mri.data.fastmri_masks import FastMRIMask
from ambient_mri.masks import (
    EquispacedLines,
    IndependentLines,
    ObservedMasks,
    PoissonDisc,
    RandomLines,
    SamplingLaw,
)
from ambient_mri.measurement import Measurement
from ambient_mri.objectives import AmbientObjective
from ambient_mri.prior import build_model
from ambient_mri.tensors import complex_randn, keyed_generator, per_row
from tests.objectives.gaussian import (
    CASES,
    LinearTable,
    MemoisedDraws,
    excess_error,
    fit,
    objective_of,
    world,
)


@pytest.mark.parametrize("noise_std", [0.0, 0.15])
@pytest.mark.parametrize("case", CASES)
def test_minimiser_is_the_optimal_denoiser(case: str, noise_std: float, draws: MemoisedDraws) -> None:
    corruption, coils = CASES[case]
    m, _ = world(corruption, coils, noise_std)
    model = fit(objective_of(corruption, kept_cap=1e6), m, LinearTable(coils), draws)
    assert excess_error(model, corruption, m) < 0.09


def test_ignoring_the_measurement_noise_learns_to_keep_it(draws: MemoisedDraws) -> None:
    corruption, coils = CASES["one coil"]
    m, _ = world(corruption, coils, 0.6)
    aware = fit(objective_of(corruption, sigma=0.8, kept_cap=1e6), m, LinearTable(coils), draws)

    class NoiseBlind(AmbientObjective):
        def _residual(
            self, z: Tensor, batch: Measurement, further: Further, *args: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            return torch.ones_like(further.weights), batch.y, further.weights

    blind_objective = NoiseBlind(corruption, objective_of(corruption, sigma=0.8).noise, one_step_share=0.0)
    blind = fit(blind_objective, m, LinearTable(coils), draws)
    assert excess_error(aware, corruption, m, sigma=0.8) < 0.13
    assert excess_error(blind, corruption, m, sigma=0.8) > 0.2


def thinned(
    law: SamplingLaw, width: int, rows: int, extent: tuple[int, int], corruption: Undersampling
) -> tuple[Measurement, Further]:
    """Draws of a law, as a scan with zero padding outside ``extent`` has them, and further masks of them."""
    inside = torch.zeros(1, 1, 1, width, dtype=torch.bool)
    inside[..., slice(*extent)] = True
    masks = torch.cat([law.draw((1, width), keyed_generator("P", i)) for i in range(rows)]) & inside
    m = Measurement(
        y=torch.zeros(rows, 1, 1, width, dtype=torch.complex64),
        mask=masks,
        coil_maps=torch.ones(rows, 1, 1, width, dtype=torch.complex64),
        noise_std=torch.zeros(rows),
        scale=torch.ones(rows),
        key=tuple(str(i) for i in range(rows)),
        axes=(-1,),
        acquired=None if bool(inside.all()) else inside,
    )
    return m, corruption.further(m, [keyed_generator("B", i) for i in range(rows)])


@pytest.mark.parametrize("extent", [(0, 24), (3, 20), (8, 24)])
@pytest.mark.parametrize(
    "law",
    [RandomLines(3, 4), IndependentLines(3, 4), RandomLines(2, 0)],
    ids=lambda law: f"{type(law).__name__}{law.acs_lines}",
)
def test_weighted_masks_average_to_the_identity_given_what_was_kept(law: RandomLines, extent: tuple[int, int]) -> None:
    """E[W P | B P] = 1 wherever it can be sampled, by simulation, conditionally: binned by the number of kept lines."""
    width, rows = 24, 20_000
    m, further = thinned(law, width, rows, extent, Undersampling(law, core=2, keep=(0.3, 0.6), acs_removal=0.5))
    outer = ~law.always((1, width))[0, 0, 0]
    outer[: extent[0]], outer[extent[1] :] = False, False
    weights, kept, masks = further.weights[:, 0, 0], further.kept[:, 0, 0], m.mask[:, 0, 0]
    missing, bins = (masks & outer).sum(1) - (kept & outer).sum(1), 0
    for count in kept[:, outer].sum(1).unique():
        # A fixed number of lines gives no weighted term when B kept them all.
        rows_here = (kept[:, outer].sum(1) == count) & ((missing > 0) | isinstance(law, IndependentLines))
        if int(rows_here.sum()) < 300:
            continue
        removed, bins = ~kept[rows_here] & outer, bins + 1
        mean = weights[rows_here][removed].mean()
        standard_error = weights[rows_here][removed].std() / removed.sum() ** 0.5
        assert abs(float(mean) - 1) < 5 * float(standard_error) + 1e-3
    assert bins > 1


@pytest.mark.parametrize("extent", [(0, 24), (3, 20), (8, 24)])
@pytest.mark.parametrize("law", [EquispacedLines(4, 4), FastMRIMask("equispaced", 4, 0.16)], ids=["own", "fastmri"])
def test_combs_average_to_the_identity_where_none_of_their_lines_was_kept(
    law: SamplingLaw, extent: tuple[int, int]
) -> None:
    """Which comb a scan had is then told by how many of its lines B would have had to remove: none in the padding."""
    width, rows = 24, 6_000
    m, further = thinned(law, width, rows, extent, Undersampling(law, core=4, keep=(0.4, 0.4), acs_removal=0.0))
    outer = ~law.always((1, width))[0, 0, 0]
    none = ~(further.kept[:, 0, 0] & outer).any(dim=1)
    assert int(none.sum()) > 300
    found = further.weights[none, 0, 0] * m.mask[none, 0, 0]
    error = found.std(dim=0) / int(none.sum()) ** 0.5
    outer[: extent[0]], outer[extent[1] :] = False, False
    assert bool(((found.mean(dim=0) - 1).abs() < 5 * error + 1e-3)[outer].all())


def test_further_masks_are_fresh_and_reproducible() -> None:
    corruption, coils = CASES["three coils"]
    m, _ = world(corruption, coils, 0.0)
    draw = lambda key: corruption.further(m[:50], [keyed_generator(key, i) for i in range(50)]).kept  # noqa: E731
    assert torch.equal(draw("a"), draw("a"))
    assert not torch.equal(draw("a"), draw("b"))
    assert bool((draw("a") <= m[:50].mask).all())


@pytest.mark.parametrize(
    ("width", "law"), [(128, RandomLines(8, 12)), (128, RandomLines(8, 14)), (64, RandomLines(4, 12))]
)
def test_few_lines_outside_the_calibration_lines_are_learned_from(width: int, law: RandomLines) -> None:
    """A further mask that happens to remove no line which the law draws says nothing of its weights."""
    for i in range(20):
        blank = torch.zeros(1, 1, 4, width, dtype=torch.complex64)
        mask = law.draw((4, width), keyed_generator("few", i))
        m = Measurement(blank, mask, blank + 1, torch.zeros(1), torch.ones(1), ("scan",))
        assert check_learnable(Undersampling(law), m).smallest_eigenvalue > 1e-3


def test_zero_padding_is_a_rim_and_no_hole() -> None:
    law, inside = RandomLines(4, 4), torch.zeros(1, 1, 1, 48, dtype=torch.bool)
    inside[..., 6:40] = True
    blank = torch.zeros(1, 1, 4, 48, dtype=torch.complex64)
    mask = law.draw((4, 48), keyed_generator(0)) & inside
    m = Measurement(blank, mask, blank + 1, torch.zeros(1), torch.ones(1), ("scan",), acquired=inside)
    assert check_learnable(Undersampling(law), m).rim == 14


def test_holes_of_masks_along_both_axes() -> None:
    shape, size = (48, 48), 48
    one, several = (torch.zeros(1, coils, size, size, dtype=torch.complex64) for coils in (1, 4))
    few = [PoissonDisc(8).draw(shape, keyed_generator("few", i)) for i in range(4)]
    many = [PoissonDisc(4).draw(shape, keyed_generator("many", i)) for i in range(60)]
    gap = [mask.clone() for mask in many]
    for mask in gap:
        mask[..., 22:25, 30:33] = False

    def check(masks: list[Tensor], blank: Tensor) -> Learnability:
        m = Measurement(blank, masks[0], blank + 0.5, torch.zeros(1), torch.ones(1), ("scan",))
        return check_learnable(Undersampling(ObservedMasks(masks)), m)

    assert math.isnan(check(many, several).smallest_eigenvalue) and not check(many, several).holes
    with pytest.raises(ValueError, match=r"never samples k-space locations \(row, column\) .*estimated from 4 masks"):
        check(few, one)
    with pytest.raises(ValueError, match=r"\(row, column\) \[\(23, 31\)\], inside the sampled region"):
        check(gap, several)


def test_an_equispaced_law_needs_coils() -> None:
    law = EquispacedLines(4, 4)
    corruption = Undersampling(law, core=4, keep=(0.5, 0.5))
    mask = law.draw((8, 32), keyed_generator(0))
    blank = torch.zeros(1, 1, 8, 32, dtype=torch.complex64)
    m = Measurement(blank, mask, torch.ones_like(blank), torch.zeros(1), torch.ones(1), ("scan",))
    with pytest.raises(ValueError, match="eigenvalue"):
        check_learnable(corruption, m)
    random = RandomLines(2, 4)
    m = replace(m, mask=random.draw((8, 32), keyed_generator(0)))
    assert check_learnable(Undersampling(random, keep=(0.5, 0.5)), m).smallest_eigenvalue > 0.1


def test_a_hole_that_no_scan_samples_is_named() -> None:
    class Holey(RandomLines):
        def inclusion_probability(self, shape: tuple[int, int]) -> Tensor:
            inclusion = super().inclusion_probability(shape).clone()
            inclusion[..., 9] = 0
            return inclusion

    blank = torch.zeros(1, 1, 8, 32, dtype=torch.complex64)
    law = Holey(2, 4)
    m = Measurement(blank, law.draw((8, 32), keyed_generator(0)), blank + 1, torch.zeros(1), torch.ones(1), ("scan",))
    with pytest.raises(ValueError, match=r"lines \[9\]"):
        check_learnable(Undersampling(law), m)


def test_the_residual_is_differentiable_with_respect_to_the_network_only() -> None:
    corruption, coils = CASES["three coils"]
    m, _ = world(corruption, coils, 0.1)
    model = LinearTable(coils)
    loss = objective_of(corruption)(model, m[:64], [keyed_generator(i) for i in range(64)])
    loss.value.backward()
    assert model.theta.grad is not None and float(model.theta.grad.abs().sum()) > 0
    assert not m.y.requires_grad and 0 < float(loss.logs["effective_sample_size"]) <= 1
    assert torch.equal(per_row(2.0, m.y), torch.full((1, 1, 1, 1), 2.0))


def test_both_operator_backends_give_the_same_loss_and_gradient() -> None:
    law = RandomLines(2, 4)
    generator = keyed_generator("backends")
    mask = torch.cat([law.draw((16, 16), keyed_generator(i)) for i in range(2)])
    maps = complex_randn((2, 3, 16, 16), generator=generator)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    y = complex_randn((2, 3, 16, 16), generator=generator) * mask
    m = Measurement(y, mask, maps, torch.full((2,), 0.1), torch.ones(2), ("a", "b"))
    network = {"channels": 8, "multipliers": [1, 2]}
    model = build_model({"kind": "ambient", "network": network, "sd": 0.3, "precision": "fp32"})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05, generator=generator)
    found = []
    for backend in ("torch", "sigpy"):
        # At sigma = noise_std no noise is added, so hybrid space and k-space see the same draws.
        objective = AmbientObjective(Undersampling(law, backend=backend), one_step_share=1 - 1e-9)
        model.zero_grad()
        loss = objective(model, m, [keyed_generator(1), keyed_generator(2)]).value
        loss.backward()
        found.append((float(loss.detach()), model.network.head.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-4 * float(found[0][1].abs().max()))
