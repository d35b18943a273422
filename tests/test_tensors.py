"""Channels, noise and keyed streams."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ambient_mri.tensors import (
    RowStreams,
    choose_device,
    complex_randn,
    from_channels,
    full_precision,
    keyed_generator,
    per_row,
    rand_rows,
    randn_like_rows,
    real_inner,
    to_channels,
)


def test_channels_round_trip() -> None:
    x = complex_randn((3, 2, 5, 4), generator=keyed_generator(0))
    assert torch.equal(from_channels(to_channels(x)), x)
    assert torch.equal(to_channels(x)[:, :2], x.real)
    with pytest.raises(ValueError, match="even number of channels"):
        from_channels(torch.zeros(1, 3, 2, 2))


def test_complex_noise_has_unit_variance_per_real_part() -> None:
    n = complex_randn((400, 500), generator=keyed_generator(1))
    assert float(n.real.var()) == pytest.approx(1, abs=0.01)
    assert float(n.imag.var()) == pytest.approx(1, abs=0.01)
    assert abs(float((n.real * n.imag).mean())) < 0.01
    assert complex_randn((2,), dtype=torch.complex128).dtype == torch.complex128


def test_a_device_stays_as_it_was_named() -> None:
    """ "cuda" is a GPU for each process, "cuda:0" is one: chosen twice, one must not become the other."""
    with FakeTensorMode():  # of a GPU that is not here
        assert choose_device("cuda") == torch.device("cuda") and choose_device("cuda").index is None
        assert choose_device(choose_device("cuda")).index is None and choose_device("cuda:0").index == 0
    assert choose_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="device nothing cannot be used"):
        choose_device("nothing")


def test_products_that_need_all_digits_have_them_on_a_gpu() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision(torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
        with full_precision(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "high", "there it says something else"
        with pytest.raises(KeyError), full_precision(torch.device("cuda")):
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_rows_own_their_streams() -> None:
    x = torch.zeros(3, 1, 4, 4, dtype=torch.complex64)
    together = randn_like_rows(x, [keyed_generator("row", i) for i in range(3)])
    alone = randn_like_rows(x[:1], [keyed_generator("row", 2)])
    assert torch.equal(together[2:], alone)
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        randn_like_rows(x, [keyed_generator(0), keyed_generator(1)])


def test_keys_tell_streams_apart_and_are_stable() -> None:
    first = torch.rand(2, generator=keyed_generator(3, "mask"))
    assert torch.equal(first, torch.rand(2, generator=keyed_generator(3, "mask")))
    assert not torch.equal(first, torch.rand(2, generator=keyed_generator("3", "mask")))
    assert not torch.equal(first, torch.rand(2, generator=keyed_generator(3, "noise")))
    # A golden value: streams must not change between versions, or simulated data sets would.
    assert keyed_generator(0, "scan").initial_seed() == keyed_generator(0, "scan").initial_seed() == GOLDEN


GOLDEN = 3986158471012723310


def test_real_inner_is_the_real_part_of_the_inner_product() -> None:
    a, b = (complex_randn((2, 3, 4), generator=keyed_generator(k)) for k in "ab")
    expected = torch.stack([torch.vdot(u.flatten(), v.flatten()).real for u, v in zip(a, b, strict=True)])
    assert torch.allclose(real_inner(a, b), expected, rtol=1e-5)


def test_per_row_broadcasts_numbers_and_vectors() -> None:
    x = torch.zeros(2, 1, 3, 3, dtype=torch.complex64)
    assert per_row(2.0, x).shape == (1, 1, 1, 1)
    assert per_row(torch.tensor([1.0, 2.0]), x).shape == (2, 1, 1, 1)
    assert per_row(1.0, x).dtype == torch.float32


def test_row_streams_are_standard_normal_and_uniform() -> None:
    streams = RowStreams("law", 0, rows=range(16))
    u, z = rand_rows(streams, 20_000), randn_like_rows(torch.empty(16, 1, 100, 100, dtype=torch.complex64), streams)
    assert float(u.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(u.var()) == pytest.approx(1 / 12, abs=0.001)
    for part in (z.real, z.imag, streams.normal((9_999,))):
        assert float(part.var()) == pytest.approx(1, abs=0.015)
        assert float(part.pow(4).mean()) == pytest.approx(3, abs=0.15)
    between = torch.corrcoef(u)[~torch.eye(16, dtype=torch.bool)]
    assert float(between.abs().max()) < 5 / 20_000**0.5
    assert abs(float((z.real * z.imag).mean())) < 0.015
    assert len(torch.unique(u)) > 0.98 * u.numel()


def test_row_streams_depend_on_their_row_and_on_what_they_gave_alone() -> None:
    everyone, some = RowStreams(3, "train", 7, rows=range(6)), RowStreams(3, "train", 7, rows=range(1, 6, 2))
    for count in (3, 130, 1):
        assert torch.equal(everyone.uniform(count)[1::2], some.uniform(count))
    assert torch.equal(everyone.normal((2, 3), torch.complex64)[1::2], some.normal((2, 3), torch.complex64))
    now, later = (RowStreams(3, "train", step, rows=range(2)).uniform(4) for step in (7, 8))
    assert not torch.equal(now, later)


def test_row_streams_are_the_same_for_ever() -> None:
    streams = RowStreams(0, "golden", rows=range(2))
    expected = [[0.5712472, 0.2236753, 0.9829645], [0.3503752, 0.5139936, 0.6554257]]
    torch.testing.assert_close(streams.uniform(3), torch.tensor(expected), rtol=0, atol=1e-7)
