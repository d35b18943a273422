"""The published samplers of ambient networks, on white images, where all of it is known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError
from ambient_mri.corruption import PixelMasking
from ambient_mri.denoiser import ConditionalDenoiser
from ambient_mri.measurement import Measurement
from ambient_mri.operators import LinearOperator
from ambient_mri.sampling.ambient_generation import AmbientGeneration
from ambient_mri.tensors import keyed_generator, randn_like_rows

SD, ROWS, SHAPE = 0.5, 40, (1, 6, 8)


class WhiteNetwork(ConditionalDenoiser):
    """E[x0 | z] for independent pixels of standard deviation SD: zero where nothing was kept."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), sd=SD, sigma_min=1e-4, sigma_max=100.0, precision="fp32")

    def forward(self, z: Tensor, sigma: Tensor, operator: LinearOperator, kept: Tensor) -> Tensor:
        return operator.adjoint(z) * (SD**2 / (SD**2 + sigma.square()))[:, None, None, None]


def items(corruption: PixelMasking) -> Measurement:
    blank = torch.zeros(1, *SHAPE)
    return Measurement.collate(
        [corruption.measure(blank, noise_std=0.0, key=str(i), generator=keyed_generator(i)) for i in range(ROWS)]
    )


def streams() -> list[torch.Generator]:
    return [keyed_generator("sample", i) for i in range(ROWS)]


def test_what_the_mask_keeps_is_sampled_and_what_it_hides_is_the_mean() -> None:
    corruption = PixelMasking(0.7, keep=(0.6, 0.8))
    m = items(corruption)
    kept = corruption.further(m, streams()).kept.expand(ROWS, *SHAPE)
    images = AmbientGeneration(200).generate(WhiteNetwork(), corruption, m, streams())
    assert images.shape == (ROWS, *SHAPE)
    assert float(images[kept].std()) == pytest.approx(SD, rel=0.06)
    assert float(images[~kept].abs().max()) == 0


@pytest.mark.parametrize("guides", [1, 3])
def test_a_guided_step_is_the_formula(guides: int) -> None:
    corruption = PixelMasking(1.0, keep=(0.5, 0.5))
    m = items(corruption)
    weight = 0.3
    images = AmbientGeneration(1, guides=guides, guidance=weight, sigma_max=2.0).generate(
        WhiteNetwork(), corruption, m, streams()
    )
    again = streams()
    fixed = corruption.further(m, again).kept
    x = 2.0 * randn_like_rows(torch.zeros(ROWS, *SHAPE), again)
    randn_like_rows(x, again)  # the noise that completes the state, which pixels have no need of
    gain = SD**2 / (SD**2 + 4)
    gap = torch.zeros_like(x)
    for _ in range(guides):
        gap += (fixed.float() - corruption.further(m, again).kept.float()).square() / guides
        randn_like_rows(x, again)
    expected = gain * fixed * x - weight * 2 * gain**2 * gap * x
    assert torch.allclose(images, expected, atol=1e-5)


def test_guidance_brings_the_masks_closer_to_agreement() -> None:
    corruption = PixelMasking(1.0, keep=(0.5, 0.5))
    m, network = items(corruption), WhiteNetwork()
    gaps = []
    for guides in (0, 3):
        x = AmbientGeneration(20, guides=guides, guidance=0.2).generate(network, corruption, m, streams())
        sigma = torch.full((ROWS,), 0.1)
        views = []
        for k in range(8):
            view = corruption.further(m, [keyed_generator("view", k, i) for i in range(ROWS)])
            views.append(network(view.operator(x), sigma, view.operator, view.kept))
        gaps.append(float(torch.stack(views).var(dim=0).mean()))
    assert gaps[1] < 0.9 * gaps[0]


def test_results_are_reproducible_and_rows_independent() -> None:
    corruption = PixelMasking(0.7)
    m = items(corruption)
    sampler = AmbientGeneration(5, guides=2)
    whole = sampler.generate(WhiteNetwork(), corruption, m, streams())
    assert torch.equal(whole, sampler.generate(WhiteNetwork(), corruption, m, streams()))
    assert torch.allclose(whole[3:5], sampler.generate(WhiteNetwork(), corruption, m[3:5], streams()[3:5]), atol=1e-6)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(AmbientMRIError, match="at least one step"):
        AmbientGeneration(0)
    with pytest.raises(AmbientMRIError, match="guides must not be negative"):
        AmbientGeneration(guides=-1)
    corruption = PixelMasking(0.7)
    with pytest.raises(AmbientMRIError, match="one generator a row is needed: 40 rows, 2 generators"):
        AmbientGeneration(2).generate(WhiteNetwork(), corruption, items(corruption), streams()[:2])
    with pytest.raises(AmbientMRIError, match="guidance must be zero or a positive"):
        AmbientGeneration(guidance=-1.0)
