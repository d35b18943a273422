"""Joint estimation of coil maps and image: the smooth basis, the fit of the maps, the whole block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, PriorError
from ambient_mri.data.phantom import BrainPhantom
from ambient_mri.data.simulate import CoilArray, smooth_phase
from ambient_mri.denoiser import GaussianDenoiser
from ambient_mri.masks import RandomLines
from ambient_mri.measurement import Measurement
from ambient_mri.operators.fourier import fft
from ambient_mri.sampling import joint_maps
from ambient_mri.sampling.joint_maps import JointSettings, SmoothMaps, calibrationless_coil_maps, joint_coil_maps
from ambient_mri.tensors import complex_randn, keyed_generator

SIZE, COILS, NOISE = 32, 6, 0.005


def true_maps(shape: tuple[int, int], coils: int, key: int = 0) -> Tensor:
    generator = keyed_generator("maps", key)
    phase = smooth_phase(shape, generator, 0.5)
    return CoilArray.draw(coils, generator).maps(shape)[None] * torch.polar(torch.ones(shape), phase)


def agreement(maps: Tensor, truth: Tensor, image: Tensor) -> float:
    """Mean |<S, S_true>| over the object, weighted by its energy."""
    weight = image.abs().square()
    return float(((maps.conj() * truth).sum(1, keepdim=True).abs() * weight).sum() / weight.sum())


@pytest.fixture(scope="module")
def world() -> tuple[Measurement, Tensor, Tensor]:
    """A phantom, R = 4 with 4 ACS lines, its image and its true maps."""
    image = torch.as_tensor(BrainPhantom(SIZE, seed=3).volume(0, 1)[0])[None, None].to(torch.complex64)
    image = 2 * image / image.abs().max()
    maps = true_maps((SIZE, SIZE), COILS)
    mask = RandomLines(4, 4).draw((SIZE, SIZE), keyed_generator("mask"))
    noise = NOISE * complex_randn(maps.shape, generator=keyed_generator("noise"))
    y = torch.where(mask, fft(maps * image) + noise, 0)
    m = Measurement(y, mask, maps, torch.tensor([NOISE]), torch.ones(1), ("0",))
    return m, image, maps


def denoiser(image: Tensor) -> GaussianDenoiser:
    """A prior that knows where the object is, and roughly how bright: independent pixels."""
    std = 0.4 * image.abs().flatten().clamp_min(0.05)
    return GaussianDenoiser(torch.diag(std.square().to(torch.complex64)), 0.8 * image[0, 0])


def test_the_spectrum_is_that_of_simulated_coil_arrays() -> None:
    size, power = 64, torch.zeros(17, 17)
    basis = SmoothMaps.of((size, size), 1, torch.device("cpu"))
    for key in range(30):
        coils = (4, 8, 16)[key % 3]
        generator = keyed_generator("spectrum", key)
        maps = CoilArray.draw(coils, generator).maps((size, size))
        maps = maps * torch.polar(torch.ones(size, size), smooth_phase((size, size), generator, 1.0))
        power += basis.coefficients(maps).abs().square().sum(0) / 30
    expected = 2 * basis.std.square()
    assert expected.sum() == pytest.approx(size**2, rel=0.1)
    radius = torch.linalg.vector_norm(torch.stack(torch.meshgrid(*[torch.arange(17.0)] * 2, indexing="ij")), dim=0)
    for low, high in ((0, 1.5), (1.5, 3.5), (3.5, 6.5), (6.5, 10.5)):
        ring = (radius >= low) & (radius < high)
        assert 0.5 < float(power[ring].sum() / expected[ring].sum()) < 2


@pytest.mark.parametrize("shape", [(48, 48), (45, 32), (33, 64)])
def test_the_basis_is_orthonormal_and_holds_smooth_maps(shape: tuple[int, int]) -> None:
    basis = SmoothMaps.of(shape, COILS, torch.device("cpu"))
    for table in (basis.rows, basis.columns):
        torch.testing.assert_close(table.T @ table, torch.eye(table.shape[1]), atol=1e-5, rtol=0)
    maps = true_maps(shape, COILS)
    again = basis.maps(basis.coefficients(maps))
    assert float((again - maps).abs().square().sum() / maps.abs().square().sum()) < 3e-3


def test_given_the_image_the_maps_are_recovered(world: tuple[Measurement, Tensor, Tensor]) -> None:
    m, image, maps = world
    basis = SmoothMaps.of((SIZE, SIZE), COILS, torch.device("cpu"))
    flat = torch.full_like(maps, COILS**-0.5)
    fitted = joint_maps._fit_maps(m, image, flat, torch.tensor([NOISE]), basis)
    assert agreement(flat, maps, image) < 0.9
    assert agreement(fitted / fitted.norm(dim=1, keepdim=True), maps, image) > 0.998


def test_poor_maps_become_better_and_the_noise_level_follows(world: tuple[Measurement, Tensor, Tensor]) -> None:
    m, image, maps = world
    poor = maps + 0.6 * true_maps((SIZE, SIZE), COILS, key=1)
    poor = poor / poor.norm(dim=1, keepdim=True)
    start = replace(m, coil_maps=poor, noise_std=torch.tensor([0.1]))
    found = joint_coil_maps(denoiser(image), start, torch.tensor([NOISE]), JointSettings(steps=12))
    assert found.coil_maps is not None
    before, after = agreement(poor, maps, image), agreement(found.coil_maps, maps, image)
    assert 1 - after < 0.35 * (1 - before)
    assert NOISE <= float(found.noise_std) < 0.05
    torch.testing.assert_close(found.coil_maps.norm(dim=1), torch.ones(1, SIZE, SIZE))


def test_exact_maps_stay_good(world: tuple[Measurement, Tensor, Tensor]) -> None:
    m, image, maps = world
    found = joint_coil_maps(denoiser(image), m, torch.tensor([NOISE]), JointSettings(steps=12))
    assert found.coil_maps is not None
    assert agreement(found.coil_maps, maps, image) > 0.995


@pytest.mark.parametrize("acceleration", [1, 4])
def test_started_from_the_truth_the_maps_stay_as_far_as_noise_lets_them(
    world: tuple[Measurement, Tensor, Tensor], acceleration: int
) -> None:
    """Least squares of p complex coefficients take up 2 p noise_std^2 of the noise's energy, here p = coils x basis.

    Of that energy, times R where a share 1/R of k-space is seen, 1 - |<S, S_true>| is half, over the image's energy.
    The noise is four times that of the tests around: below it, the fit is content with its start.
    """
    m, image, maps = world
    noise_std = 4 * NOISE
    mask = m.mask if acceleration == 4 else torch.ones(1, 1, 1, SIZE, dtype=torch.bool)
    noise = noise_std * complex_randn(maps.shape, generator=keyed_generator("more noise"))
    y, level = torch.where(mask, fft(maps * image) + noise, 0), torch.tensor([noise_std])
    start = replace(m, y=y, mask=mask, noise_std=level)
    found = joint_coil_maps(denoiser(image), start, level, JointSettings(steps=8))
    assert found.coil_maps is not None
    coefficients = COILS * SmoothMaps.of((SIZE, SIZE), COILS, torch.device("cpu")).std.numel()
    bound = acceleration * noise_std**2 * coefficients / float(image.abs().square().sum())
    lost = 1 - agreement(found.coil_maps, maps, image)
    assert 1e-5 < lost < bound < 4e-3
    assert float(found.noise_std) < 1.05 * noise_std


def without_calibration(m: Measurement, image: Tensor, maps: Tensor, step: int) -> Measurement:
    """Every ``step``-th line, the zero frequency left out; maps that say nothing."""
    mask = torch.zeros(1, 1, 1, SIZE, dtype=torch.bool)
    mask[..., 1 - SIZE // 2 % 2 :: step] = True
    noise = NOISE * complex_randn(maps.shape, generator=keyed_generator("no lines"))
    y = torch.where(mask, fft(maps * image) + noise, 0)
    return replace(m, y=y, mask=mask, coil_maps=torch.full_like(maps, COILS**-0.5))


def test_without_calibration_lines_the_prior_finds_the_maps(world: tuple[Measurement, Tensor, Tensor]) -> None:
    """What no one else can: the zero frequency itself was not measured, and no map is known."""
    m, image, maps = world
    blind = without_calibration(m, image, maps, step=2)
    assert not bool(blind.mask[..., SIZE // 2])
    found = calibrationless_coil_maps(denoiser(image), blind, torch.tensor([NOISE]), JointSettings(steps=12))
    assert found.coil_maps is not None and blind.coil_maps is not None
    before, after = agreement(blind.coil_maps, maps, image), agreement(found.coil_maps, maps, image)
    assert before < 0.75
    assert 1 - after < 0.2 * (1 - before)
    torch.testing.assert_close(found.coil_maps.norm(dim=1), torch.ones(1, SIZE, SIZE))
    assert NOISE <= float(found.noise_std) < 10 * NOISE


def test_without_calibration_lines_given_maps_are_not_read(world: tuple[Measurement, Tensor, Tensor]) -> None:
    m, image, maps = world
    blind = without_calibration(m, image, maps, step=2)
    floor, short = torch.tensor([NOISE]), JointSettings(steps=2, chains=2)
    found = [
        calibrationless_coil_maps(denoiser(image), replace(blind, coil_maps=start), floor, short).coil_maps
        for start in (maps, blind.coil_maps)
    ]
    torch.testing.assert_close(found[0], found[1])


class CountingDenoiser(GaussianDenoiser):
    """Remembers how many rows it was asked for at a time."""

    asked: list[int]

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        self.asked = [*getattr(self, "asked", []), len(x_t)]
        return super().forward(x_t, sigma)


def in_double(m: Measurement) -> Measurement:
    """Rounding errors, which a fit of maps lets grow, out of the way."""
    maps = None if m.coil_maps is None else m.coil_maps.to(torch.complex128)
    return replace(m, y=m.y.to(torch.complex128), coil_maps=maps, noise_std=m.noise_std.double())


@pytest.mark.parametrize("estimate", [joint_coil_maps, calibrationless_coil_maps])
def test_slices_share_a_batch_and_do_not_depend_on_it(
    estimate: Callable[..., Measurement], world: tuple[Measurement, Tensor, Tensor]
) -> None:
    """Noise levels that differ: ladders and the levels at which maps begin to move do, too."""
    m, image, _ = world
    loud = replace(m, y=0.9 * m.y, noise_std=torch.tensor([0.2]), key=("1",))
    three = in_double(Measurement.collate([m, loud, replace(m, key=("2",))])).cancel_readout()
    floor, settings = torch.tensor([NOISE, 0.15, NOISE], dtype=torch.float64), JointSettings(steps=6, chains=2)
    oracle = denoiser(image)
    counting = CountingDenoiser(
        torch.diag(oracle.variances.to(torch.complex128)), 0.8 * image[0, 0].to(torch.complex128)
    )
    counting.basis, counting.variances = oracle.basis.to(torch.complex128), oracle.variances.double()
    done: list[int] = []
    together = estimate(counting, three, floor, settings, batch_size=6, progress=done.append)
    assert counting.asked == done == [6] * settings.steps
    in_turns = estimate(counting, three, floor, settings, batch_size=4)
    assert counting.asked[settings.steps :] == [4] * settings.steps + [2] * settings.steps
    alone = estimate(counting, three[1], floor[1:2], settings)
    assert together.coil_maps is not None and alone.coil_maps is not None
    assert not torch.equal(together.coil_maps[0], together.coil_maps[2])
    for found in (together, in_turns):
        torch.testing.assert_close(found.coil_maps[1:2], alone.coil_maps, atol=1e-8, rtol=0)
        torch.testing.assert_close(found.noise_std[1:2], alone.noise_std, atol=1e-8, rtol=0)
    assert len(in_turns.mask) == len(three.mask)


@pytest.mark.parametrize("estimate", [joint_coil_maps, calibrationless_coil_maps])
def test_both_data_steps_give_the_same_maps(
    estimate: Callable[..., Measurement], world: tuple[Measurement, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They draw from the same streams, and differ by where conjugate gradients stop.

    The fit of the maps is solved to the end here: its residual oscillates, and where it stops early a difference of
    1e-8 in the image is two iterations more or less, 3 % of the fit (nearly all where the image is dark).
    """
    m, image, _ = world
    monkeypatch.setattr(joint_maps, "_MAP_ITERATIONS", 300)
    monkeypatch.setattr(joint_maps, "_MAP_RTOL", 1e-9)
    floor, made = torch.tensor([NOISE], dtype=torch.float64), []
    original = joint_maps.make_data_step
    monkeypatch.setattr(joint_maps, "make_data_step", lambda *a, **k: made.append(original(*a, **k)) or made[-1])
    maps = []
    for method in ("exact", "conjugate_gradient"):
        settings = JointSettings(steps=6, chains=2, data_step=method)
        maps.append(estimate(denoiser(image), in_double(m), floor, settings).coil_maps)
        assert {step.name for step in made} == {method}
        made.clear()
    assert agreement(maps[0], maps[1], image) > 0.99999
    assert not torch.equal(maps[0], maps[1])


def test_a_batch_that_memory_does_not_hold_is_halved(
    world: tuple[Measurement, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    m, image, _ = world
    four = Measurement.collate([replace(m, key=(str(i),)) for i in range(4)])
    floor, settings, tried = torch.full((4,), NOISE), JointSettings(steps=2, chains=1), []
    run = joint_maps._run

    def limited(sampler: Any, *others: Any) -> Any:
        tried.append(len(sampler.measurement))
        if tried[-1] > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return run(sampler, *others)

    whole = joint_coil_maps(denoiser(image), four, floor, settings)
    monkeypatch.setattr(joint_maps, "_run", limited)
    torch.testing.assert_close(
        joint_coil_maps(denoiser(image), four, floor, settings).coil_maps, whole.coil_maps, atol=1e-4, rtol=0
    )
    assert tried == [4, 2, 1, 1, 1, 1]


def test_it_refuses_what_it_cannot_do(world: tuple[Measurement, Tensor, Tensor]) -> None:
    m, image, _ = world
    with pytest.raises(PriorError, match="needs a clean prior"):
        joint_coil_maps(torch.nn.Identity(), m, torch.tensor([NOISE]))
    with pytest.raises(PriorError, match="needs a clean prior"):
        calibrationless_coil_maps(torch.nn.Identity(), m, torch.tensor([NOISE]))
    with pytest.raises(AmbientMRIError, match="starts from coil maps"):
        joint_coil_maps(denoiser(image), replace(m, coil_maps=None), torch.tensor([NOISE]))
    square = replace(m, mask=torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool))
    with pytest.raises(AmbientMRIError, match="exact data step needs SENSE with a mask that is constant"):
        joint_coil_maps(denoiser(image), square, torch.tensor([NOISE]), JointSettings(data_step="exact"))
