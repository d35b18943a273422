"""Restoration operators on images, real and complex: the operator contract, and independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg
import torch
from PIL import Image
from torch import Tensor

from ambient_mri._checks import AmbientMRIError
from ambient_mri.operators import (
    BicubicDownsampling,
    BlockAverage,
    BlockCosine,
    Convolution,
    Diagonal,
    Hartley,
    Identity,
    LinearOperator,
    Mask,
    Projection,
    from_deepinv,
    from_scipy,
    gaussian_blur,
    motion_blur,
    random_projection,
)
from ambient_mri.operators.blur import gaussian_kernel, motion_kernel
from ambient_mri.operators.projection import gaussian_rows, orthonormal_rows
from ambient_mri.tensors import keyed_generator
from tests.contracts.operator import LinearOperatorContract, assert_same, random_tensor

SIZE = (12, 8)


class RealContract(LinearOperatorContract):
    """The contract on real images of three channels."""

    domain_dtype = range_dtype = torch.float64
    free = (3, *SIZE)


class ComplexContract(LinearOperatorContract):
    free = (1, *SIZE)


class TestRealIdentity(RealContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return Identity()


class TestInpaintingPerColour(RealContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return Mask(random_tensor((2, 3, *SIZE), "mask", torch.float64) > 0)


class TestDiagonal(ComplexContract):
    @pytest.fixture(params=[(1, 1, *SIZE), (2, 1, *SIZE), (2, 1, 1, 1)])
    def operator(self, request: pytest.FixtureRequest) -> LinearOperator:
        return Diagonal(random_tensor(request.param, "weights"))


class TestRealHartley(RealContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return Hartley()


class TestComplexHartleyOddSizes(LinearOperatorContract):
    free = (2, 7, 5)

    @pytest.fixture
    def operator(self) -> LinearOperator:
        return Hartley()


class TestRealBlockCosine(RealContract):
    @pytest.fixture(params=[1, 2, 4])
    def operator(self, request: pytest.FixtureRequest) -> LinearOperator:
        return BlockCosine(request.param)


class TestComplexBlockCosine(ComplexContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return BlockCosine(2)


class TestMaskedBlockCosine(RealContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return Mask(random_tensor((2, 1, *SIZE), "mask", torch.float64) > 0) @ BlockCosine(4)


class TestProjection(RealContract):
    @pytest.fixture(params=[1, 2])
    def operator(self, request: pytest.FixtureRequest) -> LinearOperator:
        return Projection(random_tensor((request.param, 9, SIZE[0] * SIZE[1]), "rows", torch.float64), SIZE)


class TestComplexProjection(ComplexContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return Projection(random_tensor((2, 9, SIZE[0] * SIZE[1]), "rows"), SIZE)


class _Convolutions:
    @pytest.fixture(params=["circular", "zero"])
    def boundary(self, request: pytest.FixtureRequest) -> str:
        return request.param

    @pytest.fixture(params=[(1, 1, 3, 5), (2, 1, 4, 3), (1, 1, 8, 8)], ids=str)
    def operator(self, request: pytest.FixtureRequest, boundary: str) -> LinearOperator:
        return Convolution(random_tensor(request.param, "kernel", torch.float64), boundary=boundary)


class TestRealConvolution(_Convolutions, RealContract):
    pass


class TestRealConvolutionOddSizes(_Convolutions, RealContract):
    free = (1, 11, 9)


class TestComplexConvolution(_Convolutions, ComplexContract):
    pass


class TestGaussianBlur(RealContract):
    @pytest.fixture(params=["circular", "zero"])
    def operator(self, request: pytest.FixtureRequest) -> LinearOperator:
        return gaussian_blur(0.7, boundary=request.param)


class TestMotionBlur(RealContract):
    @pytest.fixture(params=["circular", "zero"])
    def operator(self, request: pytest.FixtureRequest) -> LinearOperator:
        return motion_blur(3.0, 30.0, boundary=request.param)


class TestRealBlockAverage(RealContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return BlockAverage(4, SIZE)


class TestComplexBlockAverage(ComplexContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return BlockAverage(2, SIZE)


class TestRealBicubic(RealContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return BicubicDownsampling(2, SIZE)


class TestComplexBicubic(ComplexContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return BicubicDownsampling(4, SIZE)


class TestScipyDense(LinearOperatorContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return from_scipy(random_tensor((10, 48), "dense").numpy(), domain_shape=(1, 8, 6), range_shape=(1, 5, 2))


class TestScipySparseReal(LinearOperatorContract):
    domain_dtype = range_dtype = torch.float64

    @pytest.fixture
    def operator(self) -> LinearOperator:
        matrix = scipy.sparse.random(20, 48, density=0.2, random_state=0, format="csr")
        return from_scipy(matrix, domain_shape=(1, 8, 6))


class TestScipyRealOperatorOnComplexImages(LinearOperatorContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        matrix = random_tensor((10, 48), "real", torch.float64).numpy()
        linear = scipy.sparse.linalg.LinearOperator(
            (10, 48),
            matvec=lambda v: matrix @ np.asarray(v, dtype=np.float64),
            rmatvec=lambda v: matrix.T @ np.asarray(v, dtype=np.float64),
            dtype=np.float64,
        )
        return from_scipy(linear, domain_shape=(1, 8, 6))


class Decolour:
    """What a linear physics of deepinv looks like: A and A_adjoint in torch. This one averages the colours."""

    def A(self, x: Tensor, **parameters: object) -> Tensor:
        return x.mean(dim=1, keepdim=True)

    def A_adjoint(self, y: Tensor, **parameters: object) -> Tensor:
        return y.expand(-1, 3, -1, -1) / 3


class TestDeepinv(RealContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        return from_deepinv(Decolour(), domain_shape=(3, None, None), range_shape=(1, None, None))


class TestDeepinvIdentityReturnsItsInput(RealContract):
    @pytest.fixture
    def operator(self) -> LinearOperator:
        class Nothing:
            def A(self, x: Tensor) -> Tensor:
                return x

            A_adjoint = A

        return from_deepinv(Nothing())


def image(*shape: int) -> Tensor:
    return random_tensor(shape, "image", torch.float64)


@pytest.mark.parametrize("shape", [(3, 5), (4, 3)])
@pytest.mark.parametrize(("boundary", "mode"), [("circular", "wrap"), ("zero", "constant")])
def test_convolution_is_that_of_scipy(shape: tuple[int, int], boundary: str, mode: str) -> None:
    kernel, x = image(1, 1, *shape), image(1, 1, 11, 8)
    # scipy's kernel of even length is centred one pixel before ours; an odd one, made by a zero in front, is not.
    odd = np.pad(kernel[0, 0].numpy(), [(0, 1 - n % 2) for n in shape])
    found = Convolution(kernel, boundary=boundary)(x)[0, 0]
    assert_same(found, torch.from_numpy(scipy.ndimage.convolve(x[0, 0].numpy(), odd, mode=mode)))


def test_gaussian_blur_is_that_of_scipy() -> None:
    x = image(1, 3, 20, 24)
    expected = scipy.ndimage.gaussian_filter(x.numpy(), (0, 0, 1.3, 1.3), mode="wrap", truncate=4.61)
    assert_same(gaussian_blur(1.3)(x), torch.from_numpy(expected), 1e-10)


@pytest.mark.parametrize(("angle", "spread"), [(0.0, (0.0, 1.0)), (90.0, (1.0, 0.0)), (45.0, (0.5, 0.5))])
def test_motion_has_its_length_and_its_direction(angle: float, spread: tuple[float, float]) -> None:
    length = 9.0
    kernel = motion_kernel(length, angle)[0, 0]
    position = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    variances = [float((kernel.sum(dim=1 - axis) * position**2).sum()) for axis in (0, 1)]
    assert float(kernel.sum()) == pytest.approx(1)
    assert sum(variances) == pytest.approx(length**2 / 12, rel=0.1)
    assert variances == pytest.approx([s * sum(variances) for s in spread], abs=0.02 * sum(variances))
    assert float(kernel[0, 0]) == 0


def test_motion_at_45_degrees_goes_up_to_the_right() -> None:
    kernel = motion_kernel(6.0, 45.0)[0, 0]
    centre = len(kernel) // 2
    assert float(kernel[centre - 2, centre + 2]) > 0 and float(kernel[centre + 2, centre + 2]) == 0


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_is_that_of_pillow(factor: int) -> None:
    x = image(1, 1, 24, 36).float()
    expected = np.asarray(
        Image.fromarray(x[0, 0].numpy()).resize((36 // factor, 24 // factor), Image.Resampling.BICUBIC)
    )
    assert_same(BicubicDownsampling(factor, (24, 36))(x)[0, 0], torch.from_numpy(expected.copy()), 1e-6)


def test_hartley_is_its_own_inverse_and_diagonalises_an_even_blur() -> None:
    x, transform = image(2, 3, 10, 7), Hartley()
    assert_same(transform(transform(x)), x)
    fourier = torch.fft.fft(image(1, 1, 1, 7), norm="ortho")  # cos + sin is the real part minus the imaginary one
    assert_same(transform(image(1, 1, 1, 7)), fourier.real - fourier.imag)
    blurred = transform(gaussian_blur(0.7)(x)) / transform(x)
    assert_same(blurred, blurred[:1, :1].expand_as(blurred), 1e-8)


def test_block_cosine_is_that_of_scipy() -> None:
    x = image(2, 1, 8, 4)
    found = BlockCosine(4)(x)
    for top in (0, 4):
        expected = scipy.fft.dctn(x[:, :, top : top + 4].numpy(), axes=(-2, -1), norm="ortho")
        assert_same(found[:, :, top : top + 4], torch.from_numpy(expected))


def test_gaussian_rows_are_white_and_orthonormal_rows_are_a_uniform_frame() -> None:
    rows = gaussian_rows(4000, 8, keyed_generator(0), dtype=torch.float64)
    assert float((rows.mT @ rows / 4000 - torch.eye(8) / 8).abs().max()) < 0.01
    frames = [orthonormal_rows(3, 8, keyed_generator(i), dtype=torch.float64) for i in range(2000)]
    assert_same(frames[0] @ frames[0].mT, torch.eye(3, dtype=torch.float64))
    mean = torch.stack([f.mT @ f for f in frames]).mean(0)
    assert float((mean - 3 / 8 * torch.eye(8)).abs().max()) < 0.03
    assert random_projection(5, (4, 6), keyed_generator(0))(torch.ones(2, 3, 4, 6)).shape == (2, 3, 5, 1)


def test_mistakes_are_named() -> None:
    with pytest.raises(AmbientMRIError, match=r"boundary must be one of 'circular', 'zero'; got 'zeros'\. Did you"):
        gaussian_blur(1.0, boundary="zeros")
    with pytest.raises(AmbientMRIError, match="a kernel of 9 x 9 is larger than the image, 6 x 6"):
        gaussian_blur(1.0)(torch.ones(1, 1, 6, 6))
    with pytest.raises(AmbientMRIError, match=r"kernel must be \(batch or 1, 1, h, w\); got \(3, 3\)"):
        Convolution(torch.ones(3, 3))
    with pytest.raises(AmbientMRIError, match="std must be a positive finite number"):
        gaussian_kernel(0.0)
    with pytest.raises(AmbientMRIError, match="a factor of 3 does not divide an image of 12 x 8"):
        BlockAverage(3, SIZE)
    with pytest.raises(AmbientMRIError, match="blocks of 3 x 3 do not tile an image of 12 x 8"):
        BlockCosine(3)(torch.ones(1, 1, *SIZE))
    with pytest.raises(AmbientMRIError, match="between 1 and 4 orthonormal rows fit 4 pixels; got 5"):
        orthonormal_rows(5, 4, keyed_generator(0))
    with pytest.raises(AmbientMRIError, match=r"rows must be \(batch or 1, m, 96\)"):
        Projection(torch.ones(1, 3, 95), SIZE)
    with pytest.raises(AmbientMRIError, match=r"domain_shape \(1, 3, 3\) does not hold as many values .* has 8"):
        from_scipy(np.ones((4, 8)), domain_shape=(1, 3, 3))
    with pytest.raises(AmbientMRIError, match="expects a scipy LinearOperator or a matrix; got str"):
        from_scipy("A", domain_shape=(1, 3, 3))
    with pytest.raises(AmbientMRIError, match="with A and A_adjoint; object lacks A and A_adjoint"):
        from_deepinv(object())
