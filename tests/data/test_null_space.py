"""Noise from the null space of the calibration lines: known levels, both axes, silent coils, and where it declines."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_mri.data.normalize import estimate_noise_std
from ambient_mri.data.null_space import null_space_variance
from ambient_mri.data.readers import read_scan
from ambient_mri.data.simulate import simulate_coil_maps
from ambient_mri.operators.fourier import fft, ifft
from ambient_mri.tensors import complex_randn, keyed_generator

SIZE = 96


def scan(coils: int, noise_std: float) -> Tensor:
    """An object as large as the field of view, with edges: signal at every corner of k-space, no empty margin."""
    row, column = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    image = 1 + (torch.sin(7 * row + 5 * column) > 0.3) + 2 * ((row - 0.2).square() + column.square() < 0.3)
    maps = simulate_coil_maps((SIZE, SIZE), coils, keyed_generator("null space", coils))
    noise = complex_randn((1, coils, SIZE, SIZE), generator=keyed_generator("null space noise"))
    return fft(maps[None] * image) + noise_std * noise


def central(lines: int) -> Tensor:
    """(1, 1, 1, W) mask: ``lines`` central lines and every eighth."""
    mask = torch.zeros(1, 1, 1, SIZE, dtype=torch.bool)
    mask[..., SIZE // 2 - lines // 2 : SIZE // 2 + lines // 2] = True
    mask[..., ::8] = True
    return mask


def everywhere(mask: Tensor) -> Tensor:
    return mask.expand(1, 1, SIZE, SIZE)[:, 0]


@pytest.mark.parametrize("noise_std", [0.01, 0.1])
@pytest.mark.parametrize("lines", [8, 12])
def test_the_level_is_found_along_either_axis(noise_std: float, lines: int) -> None:
    data, mask = scan(8, noise_std), central(lines)
    for kspace, sampled in ((data * mask, mask), ((data * mask).mT, mask.mT)):
        assert null_space_variance(kspace, everywhere(sampled)) == pytest.approx(noise_std**2, rel=0.1)


def test_a_silent_coil_is_no_relation() -> None:
    data, mask = scan(8, 0.05), central(12)
    silent = torch.cat([data, torch.zeros_like(data[:, :1])], dim=1)
    assert null_space_variance(silent, everywhere(mask)) == null_space_variance(data, everywhere(mask))


def test_it_declines_where_there_is_too_little() -> None:
    mask = central(12)
    assert null_space_variance(scan(2, 0.05), everywhere(mask)) == math.inf
    assert null_space_variance(scan(8, 0.05), everywhere(central(2))) == math.inf
    none = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    none[..., ::3] = True
    none[..., SIZE // 2] = False
    assert null_space_variance(scan(8, 0.05), none) == math.inf


def test_signal_at_the_edge_of_kspace_is_no_longer_taken_for_noise() -> None:
    data, mask = scan(8, 0.003), central(12)
    value, provenance = estimate_noise_std((data * mask).numpy(), mask.numpy())
    assert provenance == "null space of the calibration lines"
    assert value == pytest.approx(0.003, rel=0.1)


@pytest.mark.parametrize("noise_std", [0.0003, 0.001])
def test_noise_far_below_the_signal_at_the_edge_of_kspace_is_found(noise_std: float) -> None:
    # The edge of k-space holds 0.03: the noise is a hundredth of it, a ten-thousandth in variance. It errs upwards.
    data, mask = scan(8, noise_std), central(12)
    for sampled in (mask, torch.ones_like(mask)):
        value, provenance = estimate_noise_std((data * sampled).numpy(), sampled.numpy())
        assert provenance == "null space of the calibration lines"
        assert noise_std < value < 1.5 * noise_std


@pytest.mark.parametrize("half", [False, True])
def test_coils_that_are_mixtures_of_each_other_have_relations_without_noise(half: bool) -> None:
    # Six channels of four coils: what no image can be is what the mixing left out, and holds rounding errors alone.
    generator, mask = keyed_generator("mixtures"), central(12)
    mixing, _ = torch.linalg.qr(complex_randn((6, 4), generator=generator))
    mixed = torch.einsum("ec,bchw->behw", mixing, scan(4, 0.003) * mask)
    if half:
        mixed = torch.complex(mixed.real.half().float(), mixed.imag.half().float())
    value, provenance = estimate_noise_std(mixed.numpy(), mask.numpy())
    assert provenance != "null space of the calibration lines" and value > 0.002


def test_the_phantom_has_one_noise_level_at_every_mask(data_root: Path) -> None:
    """Air in the corners of the scan at twice the matrix size, which holds no signal, bounds the noise from above.

    A crop of k-space halves its unit. The periphery of the undersampled scan shows a hundred times as much: signal.
    """
    native = read_scan(data_root / "multicoil_val" / "phantom_4ch.h5").kspace / 2
    corner = ifft(torch.from_numpy(native))[..., :25, :25].abs().square().flatten(2)
    air = math.sqrt(float(corner.median(dim=-1).values.mean()) / (2 * math.log(2)))
    scan = read_scan(data_root / "multicoil_val_128" / "phantom_4ch.h5").kspace
    masks = np.load(data_root / "masks_128.npz")
    sampled = [np.ones(128, bool), *masks["R4"], *masks["R8"]]
    found = [estimate_noise_std(scan * lines, lines[None, None, None]) for lines in sampled]
    assert {provenance for _, provenance in found} == {"null space of the calibration lines"}
    assert all(value == pytest.approx(air, rel=0.5) for value, _ in found)
