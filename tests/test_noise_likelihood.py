"""The noise level from what the coils agree on: right where no noise floor is in sight, an upper bound elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ambient_mri import reconstruct
from ambient_mri.coil_maps.noise_likelihood import likely_noise_std
from ambient_mri.data.normalize import PERIPHERY, estimate_noise_std
from ambient_mri.data.phantom import BrainPhantom
from ambient_mri.data.readers import from_arrays
from ambient_mri.data.simulate import simulate_coil_maps
from ambient_mri.masks import PoissonDisc, RandomLines, SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.operators import sense
from ambient_mri.operators.fourier import fft, ifft
from ambient_mri.prepare import Preparation, prepare_scan
from ambient_mri.tensors import complex_randn, keyed_generator
from tests.oracles import WhiteDenoiser

SIZE = 96


def scan(law: SamplingLaw, coils: int, noise_std: float, rows: int = 1) -> Measurement:
    """Phantoms of 192 pixels whose k-space is cropped to 96, so that there is signal up to its edge; right maps."""
    phantom = BrainPhantom(2 * SIZE, seed=4)
    images = torch.stack([torch.from_numpy(phantom[i]) for i in range(rows)])[:, None].to(torch.complex64)
    low = slice(SIZE // 2, SIZE // 2 + SIZE)
    images = ifft(fft(images)[..., low, low]) / 2
    maps = simulate_coil_maps((SIZE, SIZE), coils, keyed_generator("coils", coils))[None]
    mask = law.draw((SIZE, SIZE), keyed_generator("mask"))
    noise = noise_std * complex_randn((rows, coils, SIZE, SIZE), generator=keyed_generator("noise", coils))
    y = (sense(maps, mask).forward(images) + noise) * mask
    return Measurement(
        y, mask, maps.expand(rows, -1, -1, -1), torch.zeros(rows), torch.ones(rows), tuple(map(str, range(rows)))
    )


LAWS = [PoissonDisc(4, 8), PoissonDisc(8, 8), RandomLines(4, 8), RandomLines(8, 8)]


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize(("coils", "noise_std"), [(4, 0.03), (8, 0.003), (8, 0.02), (16, 0.01)])
def test_the_level_is_found_from_far_above(law: SamplingLaw, coils: int, noise_std: float) -> None:
    m = scan(law, coils, noise_std)
    found = float(likely_noise_std(m, torch.tensor([max(0.1, 4 * noise_std)])))
    # Of eight coils at R = 8 there are no more samples than pixels: weak noise reads too high.
    hard = law.acceleration >= coils and noise_std < 0.01 and isinstance(law, PoissonDisc)
    assert 0.9 * noise_std < found < (1.7 if hard else 1.2) * noise_std


def test_no_more_than_the_bound_and_the_bound_where_nothing_is_known() -> None:
    m, bound = scan(PoissonDisc(4, 8), 8, 0.02), torch.tensor([0.015])
    assert torch.equal(likely_noise_std(m, bound), bound)
    high = torch.tensor([0.1])
    few = replace(m, y=m.y[:, :3], coil_maps=m.coil_maps[:, :3])  # type: ignore[index]
    silent = replace(m, y=torch.cat([m.y[:, :3], 0 * m.y[:, 3:]], dim=1))
    centre = replace(m, mask=torch.zeros_like(m.mask))
    centre.mask[..., 44:52, 44:52] = True
    for nothing in (few, silent, replace(centre, y=m.y * centre.mask), replace(m, y=0 * m.y)):
        assert torch.equal(likely_noise_std(nothing, high), high)


def test_rows_do_not_depend_on_one_another_nor_the_level_on_zero_padding() -> None:
    m, bound = scan(PoissonDisc(4, 8), 8, 0.01, rows=3), torch.full((3,), 0.1)
    together = likely_noise_std(m, bound)
    alone = torch.cat([likely_noise_std(m[i], bound[:1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    grid = slice(8, 8 + SIZE)
    y, mask = torch.zeros(1, 8, SIZE + 16, SIZE + 16, dtype=m.y.dtype), torch.ones(1, 1, SIZE + 16, SIZE + 16).bool()
    y[..., grid, grid] = m.y[:1]
    mask[..., grid, grid] = m.mask
    maps = simulate_coil_maps((SIZE + 16, SIZE + 16), 8, keyed_generator("coils", 8))[None]
    padded = replace(m[0], y=y, mask=mask, coil_maps=maps)
    assert float(likely_noise_std(padded, bound[:1])) == pytest.approx(float(together[0]), rel=0.1)


def test_reconstruct_lowers_what_the_periphery_of_k_space_says() -> None:
    """On a Poisson disc with signal up to the edge the estimate is twice the noise and more; the coils know better."""
    m = scan(PoissonDisc(4, 8), 8, 0.003)
    kspace, mask = m.y[0].numpy(), m.mask[0, 0].numpy()
    bound, source = estimate_noise_std(m.y, m.mask)
    assert source.startswith(PERIPHERY) and bound > 0.006
    rec = reconstruct(kspace, mask=mask, prior=WhiteDenoiser(0.3), samples=1, steps=2, coil_maps=m.coil_maps[0].numpy())  # type: ignore[index]
    assert rec.noise_std[0] == pytest.approx(0.003, rel=0.2)
    assert np.array_equal(rec.settings["effective_noise_std_scaled"], rec.noise_std / np.float32(rec.scale))


def test_preparation_lowers_it_too() -> None:
    m = scan(PoissonDisc(4, 8), 8, 0.003)
    raw = from_arrays(m.y.numpy(), m.mask.numpy())
    prepared = prepare_scan(raw, None, Preparation())
    assert prepared.noise_std[0] == pytest.approx(0.003, rel=0.5) and prepared.noise_std[0] < 0.005
    assert prepared.preparation["noise_source"].endswith("as the coils agree")


def test_silent_coils_change_nothing() -> None:
    m = scan(PoissonDisc(4, 8), 6, 0.01)
    silent = torch.zeros(1, 6, SIZE, SIZE, dtype=m.y.dtype)
    more = replace(m, y=torch.cat([m.y, silent], dim=1), coil_maps=torch.cat([m.coil_maps, silent], dim=1))  # type: ignore[list-item]
    start = torch.tensor([0.1])
    expected, found = float(likely_noise_std(m, start)), float(likely_noise_std(more, start))
    assert expected == pytest.approx(0.01, rel=0.1) and found == pytest.approx(expected, rel=0.03)
