"""Measurement: shapes, slicing, collation, hybrid space, and errors that name the fix."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from ambient_mri.measurement import Measurement
from ambient_mri.operators import sense
from ambient_mri.tensors import complex_randn, keyed_generator


def measurement(batch: int = 2, coils: int = 3, shape: tuple[int, int] = (9, 8), mask_rows: int = 1) -> Measurement:
    generator = keyed_generator("measurement", batch, coils)
    mask = torch.rand(batch, 1, mask_rows, shape[1], generator=generator) < 0.6
    mask[..., shape[1] // 2] = True
    maps = complex_randn((batch, coils, *shape), generator=generator)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    y = complex_randn((batch, coils, *shape), generator=generator) * mask
    return Measurement(y, mask, maps, torch.full((batch,), 0.01), torch.ones(batch), tuple(map(str, range(batch))))


def test_there_is_no_field_for_a_reference() -> None:
    names = {f.name for f in fields(Measurement)}
    assert names == {"y", "mask", "coil_maps", "noise_std", "scale", "key", "axes", "parameters", "acquired"}


def test_rows_and_collation_are_inverse() -> None:
    m = measurement(3)
    again = Measurement.collate([m[0], m[1:3]])
    assert torch.equal(again.y, m.y) and again.key == m.key and torch.equal(again.mask, m.mask)
    assert len(m[-1]) == 1 and m[-1].key == ("2",)


def test_padded_coils_are_invisible() -> None:
    few, many = measurement(1, 2), measurement(1, 4)
    both = Measurement.collate([few, many])
    x = complex_randn((2, 1, 9, 8), generator=keyed_generator("x"))
    alone = sense(few.coil_maps, few.mask).normal(x[:1])
    assert torch.allclose(sense(both.coil_maps, both.mask).normal(x)[:1], alone, atol=1e-6)
    with pytest.raises(ValueError, match="one matrix size"):
        Measurement.collate([few, measurement(1, 2, (9, 6))])


@pytest.mark.parametrize("shape", [(9, 8), (8, 7)])
def test_cancelling_the_readout_changes_nothing_that_can_be_observed(shape: tuple[int, int]) -> None:
    m = measurement(2, 3, shape)
    h = m.cancel_readout()
    assert h.axes == (-1,) and h.cancel_readout() is h
    x = complex_randn((2, 1, *shape), generator=keyed_generator("x"))
    a, b = sense(m.coil_maps, m.mask), sense(h.coil_maps, h.mask, axes=h.axes)
    assert torch.allclose(a.normal(x), b.normal(x), atol=1e-5)
    assert torch.allclose(a.adjoint(m.y), b.adjoint(h.y), atol=1e-5)
    assert torch.allclose((a(x) - m.y).norm(), (b(x) - h.y).norm(), rtol=1e-5)


def test_phase_encoding_along_the_rows_cancels_the_other_axis() -> None:
    m = measurement(1, 2, (9, 8))
    turned = replace(m, mask=torch.rand(1, 1, 9, 1, generator=keyed_generator(0)) < 0.5)
    assert turned.cancel_readout().axes == (-2,)
    assert measurement(1, 2, (9, 8), mask_rows=9).cancel_readout().axes == (-2, -1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replace(m, mask=torch.zeros_like(m.mask)), "selects no k-space location"),
        (lambda m: replace(m, mask=m.mask.float()), "4-D bool"),
        (lambda m: replace(m, mask=m.mask[..., :5]), "another matrix size"),
        (lambda m: replace(m, coil_maps=m.coil_maps[:, :2]), r"\(2, 3, 9, 8\).*another scan"),
        (lambda m: replace(m, y=m.y.real), "complex"),
        (lambda m: replace(m, y=torch.full_like(m.y, float("nan"))), "432 non-finite"),
        (lambda m: replace(m, key=("one",)), "2 rows, 1 keys"),
    ],
)
def test_bad_input_is_named(change: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change(measurement()).check()  # type: ignore[operator]
    assert measurement().check() is not None
