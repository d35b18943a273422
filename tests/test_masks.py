"""Sampling laws: counts, marginals, and the conditional probability against brute-force simulation."""

from __future__ import annotations

import itertools

import pytest
import torch

from ambient_mri.masks import (
    EquispacedLines,
    IndependentLines,
    IndependentPixels,
    ObservedMasks,
    PoissonDisc,
    RandomLines,
    SamplingLaw,
    centre_mask,
    effective_acceleration,
)
from ambient_mri.tensors import keyed_generator

LAWS = [RandomLines(3, 4), IndependentLines(3, 4), EquispacedLines(3, 4)]


def draws(law: SamplingLaw, shape: tuple[int, int], count: int) -> torch.Tensor:
    return torch.cat([law.draw(shape, keyed_generator("draw", i)) for i in range(count)])


@pytest.mark.parametrize("law", [*LAWS, PoissonDisc(4, 8), IndependentPixels(0.3)], ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("shape", [(16, 40), (17, 41)])
def test_a_draw_is_reproducible_holds_the_centre_and_varies(law: SamplingLaw, shape: tuple[int, int]) -> None:
    first, again = law.draw(shape, keyed_generator(1)), law.draw(shape, keyed_generator(1))
    assert torch.equal(first, again)
    assert first.dtype == torch.bool and first.ndim == 4 and first.shape[-1] == shape[1]
    assert bool((first | ~law.always(shape)).all())
    assert not torch.equal(first, law.draw(shape, keyed_generator(2)))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_the_marginal_probability_is_the_frequency(law: SamplingLaw) -> None:
    frequency = draws(law, (1, 40), 4000).double().mean(0)
    assert float((frequency - law.inclusion_probability((1, 40))[0]).abs().max()) < 0.035


def test_random_lines_meets_its_acceleration_exactly() -> None:
    masks = draws(RandomLines(4, 12), (1, 128), 20)
    assert masks.sum(-1).unique().tolist() == [32]
    assert effective_acceleration(masks) == pytest.approx(4)


def test_equispaced_lines_state_their_effective_acceleration() -> None:
    mask = EquispacedLines(4, 12).draw((1, 128), keyed_generator(0))
    assert effective_acceleration(mask) == pytest.approx(128 / (32 + 9), rel=0.01)


def test_zero_padding_is_left_out_of_the_effective_acceleration() -> None:
    mask = torch.zeros(1, 1, 1, 10, dtype=torch.bool)
    mask[..., 2:8:2] = True
    acquired = torch.zeros_like(mask)
    acquired[..., 2:8] = True
    assert effective_acceleration(mask, acquired) == pytest.approx(2)


@pytest.mark.parametrize("law", [type(law)(2, 2) for law in LAWS], ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("q", [0.3, 0.8])
def test_conditional_probability_by_simulation(law: SamplingLaw, q: float) -> None:
    """Among the draws in which B kept the same lines, count how often each other line had been sampled."""
    shape, count = (1, 12), 40_000
    masks = draws(law, shape, count)
    kept = masks & ((torch.rand(masks.shape, generator=keyed_generator("B")) < q) | law.always(shape))
    predicted = law.probability_sampled(masks, kept, torch.full((count,), q))
    patterns: dict[tuple[bool, ...], list[int]] = {}
    for i, row in enumerate(kept[:, 0, 0].tolist()):
        patterns.setdefault(tuple(row), []).append(i)
    frequent = sorted(patterns.values(), key=len, reverse=True)[:8]
    for rows in frequent:
        if len(rows) < 400:
            continue
        frequency = masks[rows].double().mean(0)[0, 0]
        removed = ~kept[rows[0], 0, 0]
        tolerance = 4 * 0.5 / len(rows) ** 0.5
        assert torch.allclose(predicted[rows[0], 0, 0][removed].double(), frequency[removed], atol=tolerance)


def test_poisson_discs_keep_their_distance_and_their_density() -> None:
    law = PoissonDisc(6, 8)
    mask = law.draw((64, 48), keyed_generator(3))
    assert effective_acceleration(mask) == pytest.approx(6, rel=0.05)
    outer = mask[0, 0] & ~law.always((64, 48))[0, 0]
    points = outer.nonzero().double()
    gaps = torch.cdist(points, points) + 1e3 * torch.eye(len(points))
    assert float(gaps.min()) >= 1.4
    rim = ((points - torch.tensor([32.0, 24.0])) / torch.tensor([32.0, 24.0])).norm(dim=1) > 0.8
    assert float(gaps[rim].min(1).values.mean()) > float(gaps[~rim].min(1).values.mean())
    assert not law.exact


def test_observed_masks_learn_always_never_and_sometimes() -> None:
    masks = draws(RandomLines(3, 4), (1, 24), 30)
    masks[..., 0] = False
    law = ObservedMasks([m[None] for m in masks])
    assert torch.equal(law.always((1, 24))[0, 0, 0], masks.all(0)[0, 0])
    assert float(law.inclusion_probability((1, 24))[0, 0, 0, 0]) == 0
    probability = law.probability_sampled(masks, torch.zeros_like(masks), torch.full((30,), 0.5))
    assert float(probability.max()) <= 1 and float(probability.min()) >= 0
    with pytest.raises(ValueError, match="one size"):
        ObservedMasks([masks[:1], masks[:1, ..., :20]])


def test_masks_that_recur_are_told_apart() -> None:
    """Estimated from many masks of a law that has four, the weights are those of the law itself: exact."""
    law, shape = EquispacedLines(4, 2), (1, 24)
    masks = draws(law, shape, 200)
    observed = ObservedMasks([m[None] for m in masks])
    assert observed.exact
    q = torch.full((200,), 0.4)
    kept = masks & (torch.rand(masks.shape, generator=keyed_generator(5)) < 0.4)
    found, expected = (each.probability_sampled(masks, kept, q) for each in (observed, law))
    assert float((found - expected)[~kept & (expected > 0.9)].abs().max()) < 1e-6
    assert float((found - expected).abs().max()) < 0.15, "where nothing is kept, each offset as often as it was seen"
    assert not ObservedMasks([m[None] for m in draws(RandomLines(3, 4), shape, 30)]).exact


@pytest.mark.parametrize(("size", "count"), list(itertools.product([8, 9], [0, 1, 4, 5])))
def test_the_centre_holds_the_zero_frequency(size: int, count: int) -> None:
    mask = centre_mask(size, count)
    assert int(mask.sum()) == count
    assert count == 0 or bool(mask[size // 2]) or size % 2 == 1


def test_impossible_laws_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match="lower acs_lines"):
        RandomLines(8, 32).draw((1, 128), keyed_generator(0))
    with pytest.raises(ValueError, match="at least 1"):
        RandomLines(0.5)
    with pytest.raises(ValueError, match="whole acceleration"):
        EquispacedLines(2.5)
