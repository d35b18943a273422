"""Augmentations commute with the physics, exactly, on odd and even sizes, in k-space and in hybrid space."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.augment import Augmentation, Transform, apply_to_images, apply_to_measurement
from ambient_mri.measurement import Measurement
from ambient_mri.operators.sense import sense
from ambient_mri.tensors import complex_randn, keyed_generator

SIZES = [(12, 16), (13, 15), (12, 15), (13, 16)]
STEEP = Augmentation(shift=0.3, intensity=(0.5, 2.0))


def scan(size: tuple[int, int], mask_shape: tuple[int, int], generator: torch.Generator) -> tuple[Measurement, Tensor]:
    """Noise-free measurements of random images in double precision, and the images."""
    images = complex_randn((5, 1, *size), generator=generator, dtype=torch.complex128)
    maps = complex_randn((5, 3, *size), generator=generator, dtype=torch.complex128)
    mask = torch.rand((5, 1, *mask_shape), generator=generator) < 0.5
    y = sense(maps, mask)(images)
    ones = torch.ones(5, dtype=torch.float64)
    return Measurement(y, mask, maps, 0.1 * ones, 2.0 * ones, tuple("abcde")), images


def measured(m: Measurement, images: Tensor) -> Tensor:
    """A x for the maps, mask and axes of ``m``."""
    return sense(m.coil_maps, m.mask, axes=m.axes)(images)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("along", ["columns", "rows", "both"])
@pytest.mark.parametrize("hybrid", [False, True])
def test_augmented_measurement_is_measurement_of_augmented_image(
    size: tuple[int, int], along: str, hybrid: bool, generator: torch.Generator
) -> None:
    shape = {"columns": (1, size[1]), "rows": (size[0], 1), "both": size}[along]
    m, images = scan(size, shape, generator)
    m = m.cancel_readout() if hybrid else m
    readout = [axis for axis in (-2, -1) if m.mask.shape[axis] == 1]
    transform = STEEP.draw(size, readout, [keyed_generator("augment", i) for i in range(5)])
    assert bool(transform.shift.any()) and bool(transform.flip.any()) == (along != "both")
    moved = apply_to_measurement(m, transform)
    # The physics of the moved scan, applied to the moved image: maps are not multiplied by the factor.
    expected = measured(moved, apply_to_images(images, transform))
    torch.testing.assert_close(moved.y, expected, rtol=0, atol=1e-6)
    assert moved.mask is m.mask and moved.axes == m.axes and moved.key == m.key


def test_intensity_scales_the_noise_and_keeps_raw_units(generator: torch.Generator) -> None:
    m, _ = scan((12, 16), (1, 16), generator)
    rows = torch.zeros(5, 2)
    factor = torch.polar(torch.linspace(0.5, 2, 5), torch.linspace(0, 3, 5))
    moved = apply_to_measurement(m, Transform(rows.bool(), rows.long(), factor))
    torch.testing.assert_close(moved.noise_std, m.noise_std * factor.abs())
    torch.testing.assert_close(
        moved.y.abs() * moved.scale[:, None, None, None], m.y.abs() * m.scale[:, None, None, None]
    )
    assert moved.coil_maps is m.coil_maps


@pytest.mark.parametrize("size", [7, 8])
def test_reflection_keeps_the_centre_and_is_its_own_inverse(size: int) -> None:
    image = torch.zeros(1, 1, size, size, dtype=torch.complex128)
    image[..., size // 2, size // 2 + 1] = 1
    both = torch.ones(1, 2, dtype=torch.bool)
    transform = Transform(both, torch.zeros(1, 2, dtype=torch.long), torch.ones(1, dtype=torch.complex64))
    once = apply_to_images(image, transform)
    assert once[0, 0, size // 2, size // 2 - 1] == 1
    torch.testing.assert_close(apply_to_images(once, transform), image)


def test_the_law() -> None:
    law = Augmentation(shift=0.25, intensity=(0.7, 1.4))
    transform = law.draw((16, 12), (-2,), [keyed_generator("law", i) for i in range(2000)])
    assert set(transform.shift[:, 0].tolist()) == set(range(-4, 5))
    assert set(transform.shift[:, 1].tolist()) == set(range(-3, 4))
    assert not transform.flip[:, 1].any() and abs(transform.flip[:, 0].float().mean() - 0.5) < 0.05
    modulus = transform.factor.abs()
    assert modulus.min() > 0.699 and modulus.max() < 1.401
    assert abs(modulus.log().mean() - 0.5 * (torch.tensor(0.7).log() + torch.tensor(1.4).log())) < 0.02
    assert transform.factor.mean().abs() < 0.05


def test_rows_depend_on_their_own_generator_alone(generator: torch.Generator) -> None:
    m, _ = scan((12, 16), (1, 16), generator)
    together = STEEP.measurements(m, [keyed_generator("row", i) for i in range(5)])
    alone = STEEP.measurements(m[3], [keyed_generator("row", 3)])
    torch.testing.assert_close(together[3].y, alone.y, rtol=0, atol=0)


def test_reflection_across_the_phase_encode_axis_is_refused(generator: torch.Generator) -> None:
    m, _ = scan((12, 16), (1, 16), generator)
    across = torch.tensor([[False, True]] * 5)
    transform = Transform(across, torch.zeros(5, 2, dtype=torch.long), torch.ones(5, dtype=torch.complex64))
    with pytest.raises(AmbientMRIError, match="varies along axis -1"):
        apply_to_measurement(m, transform)


def test_without_coils(generator: torch.Generator) -> None:
    m, _ = scan((12, 16), (1, 16), generator)
    moved = STEEP.measurements(replace(m, coil_maps=None), [keyed_generator("row", i) for i in range(5)])
    assert moved.coil_maps is None


@pytest.mark.parametrize(
    ("settings", "words"), [({"shift": 0.6}, "shift must be"), ({"intensity": (2, 1)}, "intensity must")]
)
def test_bad_settings(settings: dict, words: str) -> None:
    with pytest.raises(AmbientMRIError, match=words):
        Augmentation(**settings)
