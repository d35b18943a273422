"""The only FFT of the package against its definition, sigpy and the DFT matrix."""

from __future__ import annotations

import math

import pytest
import sigpy
import torch
from torch import Tensor

from ambient_mri.operators import Fourier2d, fft, ifft
from tests.contracts.operator import SIZES, assert_same, random_tensor


def dft_matrix(length: int) -> Tensor:
    """F_kr = exp(-2 pi i (k - n//2)(r - n//2) / n) / sqrt(n)."""
    index = torch.arange(length, dtype=torch.float64) - length // 2
    angle = -2 * math.pi / length * torch.outer(index, index)
    return torch.polar(torch.ones_like(angle), angle) / math.sqrt(length)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_the_centred_dft_matrix(size: tuple[int, int]) -> None:
    x = random_tensor((2, 3, *size), "image")
    expected = torch.einsum("kh,bchw,lw->bckl", dft_matrix(size[0]), x, dft_matrix(size[1]))
    assert_same(fft(x), expected)
    assert_same(fft(x, (-1,)), torch.einsum("bchw,lw->bchl", x, dft_matrix(size[1])))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_sigpy(size: tuple[int, int]) -> None:
    x = random_tensor((2, 3, *size), "image")
    assert_same(fft(x), torch.from_numpy(sigpy.fft(x.numpy(), axes=(-2, -1))))
    assert_same(ifft(x), torch.from_numpy(sigpy.ifft(x.numpy(), axes=(-2, -1))))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_unitary(size: tuple[int, int]) -> None:
    operator = Fourier2d()
    x = random_tensor((2, 3, *size), "image")
    assert_same(operator.H(operator(x)), x)
    assert_same(operator(operator.H(x)), x)
    torch.testing.assert_close(operator(x).norm(), x.norm(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_constant_image_and_point_source(size: tuple[int, int]) -> None:
    centre = torch.zeros(1, 1, *size, dtype=torch.complex128)
    centre[..., size[0] // 2, size[1] // 2] = math.sqrt(size[0] * size[1])
    constant = torch.ones(1, 1, *size, dtype=torch.complex128)
    assert_same(fft(constant), centre)
    assert_same(fft(centre), constant)


def test_single_precision_stays_single() -> None:
    assert fft(torch.ones(1, 1, 5, 4, dtype=torch.complex64)).dtype == torch.complex64
