"""Baselines against dense solves, optimality conditions, and each other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_mri import baselines
from ambient_mri._checks import AmbientMRIError
from ambient_mri.measurement import Measurement
from ambient_mri.metrics import nrmse, psnr
from ambient_mri.operators import sense
from ambient_mri.tensors import complex_randn
from tests.oracles import dense_matrix, smooth_coils

needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="needs the bart program")
ITERATIVE = [baselines.cg_sense, baselines.l1_wavelet, baselines.total_variation]


def ellipses(height: int, width: int) -> Tensor:
    """A piecewise constant head of maximum 1 with a slow phase, (1, 1, H, W) complex128."""
    rows = torch.linspace(-1, 1, height, dtype=torch.float64)[:, None]
    columns = torch.linspace(-1, 1, width, dtype=torch.float64)[None]
    image = torch.zeros(height, width, dtype=torch.float64)
    for value, y, x, a, b in (
        (1.0, 0, 0, 0.9, 0.7),
        (-0.6, 0, 0, 0.8, 0.6),
        (0.3, -0.2, 0.2, 0.2, 0.25),
        (0.4, 0.4, -0.1, 0.1, 0.3),
    ):
        image += value * (((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1)
    return torch.polar(image, 0.8 * rows + 0.5 * columns)[None, None]


def scan(
    height: int, width: int, *, noise_std: float = 0.005, coils: int = 4, rows: int = 1
) -> tuple[Tensor, Measurement]:
    """Every third line and a centre of 8: about R = 2.3; the reference and its measurement in complex64."""
    x0, maps = ellipses(height, width), smooth_coils(coils, height, width)
    mask = torch.zeros(1, 1, 1, width, dtype=torch.bool)
    mask[..., ::3] = True
    mask[..., width // 2 - 4 : width // 2 + 4] = True
    generator = torch.Generator().manual_seed(5)
    noise = noise_std * complex_randn((rows, coils, height, width), generator=generator, dtype=torch.complex128)
    y = (sense(maps, mask).forward(x0) + noise) * mask
    measurement = Measurement(
        y=y.to(torch.complex64),
        mask=mask,
        coil_maps=maps.expand(rows, -1, -1, -1).to(torch.complex64),
        noise_std=torch.full((rows,), noise_std),
        scale=torch.ones(rows),
        key=tuple(f"slice {i}" for i in range(rows)),
    )
    return x0, measurement


@pytest.mark.parametrize("shape", [(12, 16), (11, 15), (12, 15)], ids=str)
@pytest.mark.parametrize("lam", [1e-2, 0.3])
def test_cg_sense_is_the_dense_solution(shape: tuple[int, int], lam: float) -> None:
    """Our own operator as a dense matrix: the centred orthonormal conventions of sigpy are the same, odd sizes too."""
    _, m = scan(*shape)
    assert m.coil_maps is not None
    A = dense_matrix(sense(m.coil_maps.to(torch.complex128), m.mask), (1, *shape))
    gram = A.mH @ A + lam * torch.eye(A.shape[1], dtype=A.dtype)
    exact = torch.linalg.solve(gram, A.mH @ m.y.to(A.dtype).flatten()).reshape(1, 1, *shape)
    assert nrmse(exact, baselines.cg_sense(m, lam)) < 1e-4
    assert nrmse((A.mH @ m.y.to(A.dtype).flatten()).reshape(1, 1, *shape), baselines.zero_filled(m)) < 1e-6


def test_total_variation_meets_its_optimality_condition() -> None:
    """0 in A^H (A x - y) + lam G^H s, |s| <= 1; s is unknown, but <x, A^H (y - A x)> = lam ||G x||_1 at the minimum."""
    _, m = scan(24, 24)
    assert m.coil_maps is not None
    lam = 5e-3
    x = baselines.total_variation(m, lam, iterations=2000)
    A = sense(m.coil_maps, m.mask)
    inner = (x.conj() * A.adjoint(m.y - A.forward(x))).sum().real
    variation = sum((x - x.roll(1, dims=axis)).abs().sum() for axis in (-2, -1))
    assert float(inner) == pytest.approx(lam * float(variation), rel=1e-2)


def test_l1_wavelet_shrinks_what_is_fully_sampled() -> None:
    """A fully sampled single coil is denoised by soft thresholding; a huge weight leaves nothing."""
    x0, m = scan(32, 32, coils=1, noise_std=0.05)
    full = torch.ones_like(m.mask)
    y = sense(torch.ones(1, 1, 32, 32, dtype=torch.complex64), full).forward(x0.to(torch.complex64))
    noisy = y + 0.05 * complex_randn(y.shape, generator=torch.Generator().manual_seed(0))
    m = replace(m, y=noisy, mask=full, coil_maps=None)
    assert nrmse(x0, baselines.l1_wavelet(m, 0.07)) < 0.9 * nrmse(x0, baselines.zero_filled(m))
    assert float(baselines.l1_wavelet(m, 1e3).abs().max()) == 0
    assert nrmse(baselines.zero_filled(m), baselines.l1_wavelet(m, 0.0, iterations=3)) < 1e-5


@pytest.mark.parametrize("shape", [(64, 64), (63, 55)], ids=str)
def test_sparsity_beats_zero_filling_by_default(shape: tuple[int, int]) -> None:
    x0, m = scan(*shape)
    score = {f.__name__: psnr(x0.abs(), f(m).abs()) for f in (baselines.zero_filled, *ITERATIVE)}
    assert score["cg_sense"] > score["zero_filled"] + 2
    assert score["l1_wavelet"] > score["zero_filled"] + 4
    assert score["total_variation"] > score["zero_filled"] + 4


@pytest.mark.parametrize("method", ITERATIVE)
def test_slices_are_separate_scaled_and_deterministic(method: Callable[..., Tensor]) -> None:
    _, m = scan(24, 20, rows=2)
    untouched = m.y.clone()
    np.random.seed(0)  # noqa: NPY002 - the global state is what must not matter
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    both = method(m, iterations=20)
    assert both.shape == (2, 1, 24, 20) and both.dtype == torch.complex64
    assert torch.equal(both[1:], method(m[1], iterations=20))
    assert torch.equal(m.y, untouched) and np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    # The default weight follows the scale of the data: a reconstruction is homogeneous.
    bigger = method(replace(m, y=8 * m.y, noise_std=8 * m.noise_std), iterations=20)
    assert nrmse(8 * both, bigger) < 1e-3


@pytest.mark.parametrize("method", [baselines.zero_filled, *ITERATIVE])
def test_a_cancelled_readout_changes_nothing(method: Callable[..., Tensor]) -> None:
    _, m = scan(24, 20)
    hybrid = m.cancel_readout()
    assert hybrid.axes == (-1,)
    assert nrmse(method(m), method(hybrid)) < 1e-4


def test_lambda_grids_span_the_default_weights() -> None:
    for name in ("cg_sense", "l1_wavelet", "total_variation"):
        grid = baselines.default_lambda_grid(name)
        assert list(grid) == sorted(grid)
        assert grid[0] <= baselines.default_lambda(name, 0.003) <= baselines.default_lambda(name, 0.03) <= grid[-1]
    with pytest.raises(AmbientMRIError, match=r"method must be one of .*; got 'l1_wavelets'.*'l1_wavelet'"):
        baselines.default_lambda_grid("l1_wavelets")
    with pytest.raises(AmbientMRIError, match="method must be one of"):
        baselines.default_lambda("zero_filled", 0.01)


def test_bad_input_is_named() -> None:
    _, m = scan(16, 16)
    with pytest.raises(AmbientMRIError, match="4 coils and no coil_maps"):
        baselines.cg_sense(replace(m, coil_maps=None))
    with pytest.raises(AmbientMRIError, match="coil_maps must have shape"):
        baselines.zero_filled(replace(m, coil_maps=smooth_coils(3, 16, 16)))
    with pytest.raises(AmbientMRIError, match=r"lam must be .*got -1"):
        baselines.l1_wavelet(m, -1)
    with pytest.raises(AmbientMRIError, match="iterations must be at least 1; got 0"):
        baselines.total_variation(m, iterations=0)
    with pytest.raises(AmbientMRIError, match="'slice 0' holds no signal"):
        baselines.total_variation(replace(m, y=0 * m.y))


@needs_bart
@pytest.mark.parametrize("lam", [3e-3, 1e-1])
def test_bart_has_our_fft_and_scale(lam: float) -> None:
    _, m = scan(32, 24)
    assert nrmse(baselines.cg_sense(m, lam), baselines.bart_pics(m, "l2", lam)) < 1e-4
    scaled = replace(m, y=1000 * m.y)
    assert nrmse(1000 * baselines.bart_pics(m), baselines.bart_pics(scaled)) < 1e-3


@needs_bart
@pytest.mark.parametrize("regulariser", ["wavelet", "tv"])
def test_bart_beats_zero_filling(regulariser: str) -> None:
    x0, m = scan(64, 64)
    image = baselines.bart_pics(m, regulariser)
    assert image.shape == x0.shape and image.dtype == torch.complex64
    assert psnr(x0.abs(), image.abs()) > psnr(x0.abs(), baselines.zero_filled(m).abs()) + 4


def fake_bart(folder: str, script: str) -> str:
    from pathlib import Path

    program = Path(folder, "bart")
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    return str(program)


def test_bart_errors(tmp_path_factory: pytest.TempPathFactory) -> None:
    _, m = scan(16, 16)
    folder = str(tmp_path_factory.mktemp("bart"))
    with pytest.raises(AmbientMRIError, match=r"'no-such-bart' was not found .*apt-get install bart"):
        baselines.bart_pics(m, executable="no-such-bart")
    with pytest.raises(AmbientMRIError, match="regulariser must be one of 'wavelet', 'tv', 'l2'; got 'l1'"):
        baselines.bart_pics(m, "l1")
    with pytest.raises(AmbientMRIError, match="exit status 3: out of memory"):
        baselines.bart_pics(m, executable=fake_bart(folder, "echo out of memory >&2; exit 3"))
    _, odd = scan(16, 15)
    with pytest.raises(AmbientMRIError, match=r"this BART \(v0.8.00\) shifts images of odd size .*\(16, 15\)"):
        baselines.bart_pics(odd, executable=fake_bart(folder, "echo v0.8.00"))
