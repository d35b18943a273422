"""Denoisers of real images: channels, unit-variance noise, and masks that lie on pixels as channels of the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ambient_mri.denoiser import CleanDenoiser, ConditionalDenoiser, output_scale
from ambient_mri.operators import Mask, gaussian_blur
from ambient_mri.prior import Prior, build_model, load_prior
from ambient_mri.tensors import keyed_generator, randn_like_rows


class Recorder(nn.Module):
    """Notes what a network is given, and answers with its last channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None) -> Tensor:
        self.seen, self.noise = x, noise
        return torch.ones_like(x[:, : self.channels])


def images(channels: int) -> Tensor:
    return torch.randn(2, channels, 6, 5, generator=keyed_generator("images"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mask_channels", [0, 1, 3])
def test_an_ambient_network_sees_the_image_and_the_mask(channels: int, mask_channels: int) -> None:
    if mask_channels > channels:
        return
    mask = torch.rand(2, mask_channels or 1, 6, 5, generator=keyed_generator("mask")) < 0.5
    network, sigma, sd = Recorder(channels), torch.tensor([0.3, 2.0]), 0.5
    model = ConditionalDenoiser(network, sd=sd, mask_channels=mask_channels, precision="fp32")
    z = images(channels) * mask
    found = model(z, sigma, Mask(mask), mask)
    level = sigma[:, None, None, None]
    x_lin = z / (1 + level**2 / sd**2)  # exactly the solution for a mask
    rate = mask.float().mean(dim=(1, 2, 3))
    assert torch.allclose(found, x_lin + output_scale(sigma, sd, rate, model.e0)[:, None, None, None], atol=1e-5)
    assert found.dtype == torch.float32 and network.seen.shape[1] == 2 * channels + mask_channels
    assert torch.allclose(network.seen[:, :channels], z / (level**2 + sd**2).sqrt(), atol=1e-6)
    if mask_channels:
        assert torch.equal(network.seen[:, -mask_channels:], mask.float())


def test_a_clean_denoiser_sees_a_full_mask_and_is_edm() -> None:
    network, sigma = Recorder(3), torch.tensor([0.3, 2.0])
    model = CleanDenoiser(network, sd=0.5, mask_channels=1, precision="fp32")
    x_t = images(3)
    level = sigma[:, None, None, None]
    edm = x_t * 0.25 / (level**2 + 0.25) + level * 0.5 / (level**2 + 0.25).sqrt()
    assert torch.allclose(model(x_t, sigma), edm, atol=1e-6)
    assert bool((network.seen[:, -1] == 1).all())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_blur_is_an_operator_like_any_other(channels: int) -> None:
    """x_lin solves the regularised normal equations of any operator, on real images."""
    model = ConditionalDenoiser(Recorder(channels), sd=1e3, e0=0.0, cg_iterations=60, precision="fp32")
    operator = gaussian_blur(0.4)
    x = torch.randn(2, channels, 9, 8, generator=keyed_generator("x"))
    kept = torch.ones(2, 1, 9, 8, dtype=torch.bool)
    sigma = torch.full((2,), 1e-3)
    assert torch.allclose(model(operator(x), sigma, operator, kept), x, atol=1e-2)


@pytest.mark.parametrize("kind", ["ambient", "clean"])
def test_a_prior_of_colour_images_is_stored_and_found(kind: str, tmp_path: object) -> None:
    architecture = {"kind": kind, "network": {"channels": 8, "multipliers": [1]}, "sd": 0.5, "precision": "fp32"}
    architecture |= {"image_channels": 3, "mask_channels": 1}
    model = build_model(architecture)
    for p in model.parameters():
        nn.init.normal_(p, std=0.05, generator=keyed_generator("weights"))
    found = load_prior(Prior(model, kind, architecture).save(str(tmp_path)))
    x, sigma, mask = images(3), torch.tensor([0.3, 2.0]), torch.ones(2, 1, 6, 5, dtype=torch.bool)
    arguments = (x, sigma) if kind == "clean" else (x, sigma, Mask(mask), mask)
    with torch.no_grad():
        assert torch.equal(model(*arguments), found.model(*arguments))


def test_noise_of_real_images_has_unit_variance() -> None:
    noise = randn_like_rows(torch.zeros(4, 3, 100, 100), [keyed_generator(i) for i in range(4)])
    assert noise.dtype == torch.float32 and float(noise.std()) == pytest.approx(1, abs=0.01)
