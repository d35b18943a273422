"""The effective noise level: the errors of coil maps, laid on all samples by what signal they hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ambient_mri.data.phantom import BrainPhantom
from ambient_mri.data.simulate import simulate_coil_maps
from ambient_mri.masks import PoissonDisc, RandomLines, SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.operators import sense, solve_regularized
from ambient_mri.sampling.calibration import effective_noise_std
from ambient_mri.tensors import complex_randn, keyed_generator


@pytest.mark.parametrize("law", [PoissonDisc(4, 8), RandomLines(4, 12)])
def test_what_the_calibration_lines_leave_is_laid_on_all_samples_by_their_signal(law: SamplingLaw) -> None:
    """Maps with known errors, no noise: the least misfit that any image leaves over all samples is within a factor of
    two of the level, though the calibration region alone has several times as much.
    """
    image = torch.from_numpy(BrainPhantom(96, seed=3)[0])[None, None].to(torch.complex64)
    maps = simulate_coil_maps((96, 96), 8, keyed_generator("right"))[None]
    wrong = maps + 0.1 * simulate_coil_maps((96, 96), 8, keyed_generator("wrong"))[None]
    wrong = wrong / wrong.norm(dim=1, keepdim=True)
    mask, one = law.draw((96, 96), keyed_generator("mask")), torch.ones(1)
    y = sense(maps, mask).forward(image)
    level = float(effective_noise_std(Measurement(y, mask, wrong, 0 * one, one, ("0",))).of_calibration)
    best = solve_regularized(sense(wrong, mask), sense(wrong, mask).adjoint(y), 1e-4, max_iterations=200).x
    misfit = (y - sense(wrong, mask).forward(best)).abs().square()
    sampled = 2 * 8 * int(mask.expand(1, 1, 96, 96).sum())
    over_all = float((misfit.sum() / sampled).sqrt())
    centre = float((misfit[..., 44:52, 44:52].sum() / (2 * 8 * 64)).sqrt())
    assert over_all / 2 < level < 2 * over_all
    if isinstance(law, PoissonDisc):  # of lines the calibration region is a third of all samples
        assert centre > 3 * level


@pytest.mark.parametrize(
    ("law", "far"), [(PoissonDisc(4, 8), True), (RandomLines(4, 12), True), (RandomLines(4, 4), False)]
)
def test_the_level_is_that_of_most_samples_where_there_are_calibration_lines(law: SamplingLaw, far: bool) -> None:
    """Maps that are wrong by a tenth, noise of 0.01: far from the zero frequency hardly anything is wrong."""
    image = torch.from_numpy(BrainPhantom(96, seed=3)[0])[None, None].to(torch.complex64)
    maps = simulate_coil_maps((96, 96), 8, keyed_generator("right"))[None]
    wrong = maps + 0.1 * simulate_coil_maps((96, 96), 8, keyed_generator("wrong"))[None]
    wrong = wrong / wrong.norm(dim=1, keepdim=True)
    mask, one = law.draw((96, 96), keyed_generator("mask")), torch.ones(1)
    noise = 0.01 * complex_randn((1, 8, 96, 96), generator=keyed_generator("noise"))
    m = Measurement((sense(maps, mask).forward(image) + noise) * mask, mask, wrong, 0.01 * one, one, ("0",))
    found = effective_noise_std(m)
    assert float(found.of_calibration) > 0.02
    if far:
        assert float(found.level) == pytest.approx(0.01, rel=0.3) and found.level >= m.noise_std
    else:  # maps from so few lines would be wrong throughout
        assert torch.equal(found.level, found.of_calibration)


def scan(coils: int, lines: int, rows: int = 1, noise_std: float = 0.01) -> Measurement:
    """Slices of phantoms with right maps, R = 4, their measured noise twice as high from slice to slice."""
    phantoms, maps = (
        BrainPhantom(64, seed=5),
        simulate_coil_maps((64, 64), coils, keyed_generator("coils", coils))[None],
    )
    images = torch.stack([torch.from_numpy(phantoms[i]) for i in range(rows)])[:, None].to(torch.complex64)
    mask = RandomLines(4, lines).draw((64, 64), keyed_generator("mask", lines))
    levels = noise_std * 2.0 ** torch.arange(rows)
    noise = levels[:, None, None, None] * complex_randn((rows, coils, 64, 64), generator=keyed_generator("noise"))
    y = sense(maps, mask).forward(images) + noise * mask
    return Measurement(y, mask, maps.expand(rows, -1, -1, -1), levels, torch.ones(rows), tuple(map(str, range(rows))))


@pytest.mark.parametrize(("coils", "lines"), [(2, 8), (4, 2), (4, 8), (8, 4), (12, 12)])
def test_right_maps_leave_the_noise_as_it_is(coils: int, lines: int) -> None:
    """However few the lines and coils: the fit takes its share of the noise, and that share is known."""
    m = scan(coils, lines, rows=3)
    level, _, agreement = effective_noise_std(m)
    assert level.shape == agreement.shape == (3,)
    assert bool((level >= m.noise_std).all()) and bool((level < 1.15 * m.noise_std).all())
    assert bool(((agreement > 0.7) & (agreement < 1.6)).all())
    told_twice = replace(m, noise_std=2 * m.noise_std)
    assert bool((effective_noise_std(told_twice).agreement < 0.4).all())


def test_where_nothing_contradicts_the_maps_the_noise_is_the_scans() -> None:
    single, air = scan(1, 8), scan(4, 8)
    silent = replace(air, y=torch.zeros_like(air.y))
    for m in (single, silent):
        level, _, agreement = effective_noise_std(m)
        assert torch.equal(level, m.noise_std) and bool(agreement.isnan().all())
    empty = replace(air, y=0.02 * complex_randn(air.y.shape, generator=keyed_generator("air")) * air.mask)
    level, _, agreement = effective_noise_std(empty)  # twice the noise that is told, and no signal
    assert bool((level < 0.03).all()) and bool((agreement > 2).all())
