"""Every operator of ambient_mri.operators, and compositions of them, under the operator contract."""

from __future__ import annotations

import pytest
import sigpy
import torch
from torch import Tensor

from ambient_mri.operators import CoilSensitivities, Fourier2d, Identity, LinearOperator, Mask, from_sigpy, sense
from tests.contracts.operator import SIZES, LinearOperatorContract, random_tensor

COILS = 3


def random_maps(size: tuple[int, int], batch: int = 2) -> Tensor:
    maps = random_tensor((batch, COILS, *size), "maps")
    return maps / maps.norm(dim=1, keepdim=True)


def random_mask(shape: tuple[int, ...]) -> Tensor:
    mask = random_tensor(shape, "mask", torch.float64) > 0.2
    mask[..., shape[-2] // 2, shape[-1] // 2] = True
    return mask


class TestIdentity(LinearOperatorContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return Identity()


class TestFourier2d(LinearOperatorContract):
    @pytest.fixture(params=[(-2, -1), (-1,), (-2,)])
    def operator(self, request: pytest.FixtureRequest) -> LinearOperator:
        return Fourier2d(request.param)


class TestFourier2dOddOdd(TestFourier2d):
    free = (2, 5, 9)


class TestCoilSensitivities(LinearOperatorContract):
    @pytest.fixture(params=[1, 2])
    def operator(self, request: pytest.FixtureRequest) -> LinearOperator:
        return CoilSensitivities(random_maps((7, 6), batch=request.param))


class TestMask(LinearOperatorContract):
    @pytest.fixture(params=[(1, 1, 1, 6), (2, 1, 1, 6), (1, 1, 7, 1), (1, 1, 7, 6), (2, 1, 7, 6)])
    def operator(self, request: pytest.FixtureRequest) -> LinearOperator:
        return Mask(random_mask(request.param))


class TestMaskedFourier(LinearOperatorContract):
    @pytest.fixture(params=[(1, 1, 1, 6), (1, 1, 7, 1), (2, 1, 7, 6)])
    def operator(self, request: pytest.FixtureRequest) -> LinearOperator:
        return Mask(random_mask(request.param)) @ Fourier2d()


class TestAdjointOperator(LinearOperatorContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return CoilSensitivities(random_maps((7, 6))).H


@pytest.fixture(params=SIZES, ids=str)
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


class TestSenseLines(LinearOperatorContract):
    @pytest.fixture
    def operator(self, size: tuple[int, int]) -> LinearOperator:
        return sense(random_maps(size), random_mask((1, 1, 1, size[1])))


class TestSenseTwoDimensionalMask(LinearOperatorContract):
    @pytest.fixture
    def operator(self, size: tuple[int, int]) -> LinearOperator:
        return sense(random_maps(size), random_mask((2, 1, *size)))


class TestSenseHybridSpace(LinearOperatorContract):
    @pytest.fixture
    def operator(self, size: tuple[int, int]) -> LinearOperator:
        return sense(random_maps(size), random_mask((2, 1, 1, size[1])), axes=(-1,))


class TestSenseFurtherMasked(LinearOperatorContract):
    @pytest.fixture
    def operator(self, size: tuple[int, int]) -> LinearOperator:
        return Mask(random_mask((2, 1, 1, size[1]))) @ sense(random_maps(size), random_mask((1, 1, *size)))


class TestSenseSigpy(LinearOperatorContract):
    @pytest.fixture(params=[1, 2])
    def operator(self, request: pytest.FixtureRequest, size: tuple[int, int]) -> LinearOperator:
        return sense(random_maps(size, request.param), random_mask((1, 1, 1, size[1])), backend="sigpy")


class TestSigpyWithOurs(LinearOperatorContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return CoilSensitivities(random_maps((7, 6))).H @ from_sigpy(sigpy.linop.FFT((COILS, 7, 6), axes=(-2, -1)))


class TestSigpyWavelet(LinearOperatorContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return from_sigpy(sigpy.linop.Wavelet((8, 8), wave_name="db1"))


class TestSigpyFiniteDifference(LinearOperatorContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return from_sigpy(sigpy.linop.FiniteDifference((7, 6)))


class TestSigpyRealNumbers(LinearOperatorContract):
    domain_dtype = range_dtype = torch.float64

    @pytest.fixture
    def operator(self) -> LinearOperator:
        return from_sigpy(sigpy.linop.FiniteDifference((7, 6)))


class TestSigpyIdentityReturnsItsInput(LinearOperatorContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return from_sigpy(sigpy.linop.Identity((7, 6)))


class TestSigpyOneLinopPerRow(LinearOperatorContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        factors = random_tensor((2, 7, 6), "factors").numpy()
        return from_sigpy([sigpy.linop.Multiply((7, 6), factor) for factor in factors])
