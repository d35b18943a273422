"""The complex U-Net: convolutions against torch's complex ones, phase-equivariance, and the cost of its real twin."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ambient_mri.masks import RandomLines
from ambient_mri.networks import ComplexUNet
from ambient_mri.networks.complex_layers import ComplexConv2d, NormModReLU, cat_complex
from ambient_mri.operators import sense
from ambient_mri.prior import build_model
from ambient_mri.tensors import complex_randn, keyed_generator, to_channels
from ambient_mri.train import compose


def filled(module: nn.Module, std: float = 0.2) -> nn.Module:
    """The same module in double precision with no parameter at zero."""
    for p in module.double().parameters():
        nn.init.normal_(p, std=std, generator=keyed_generator("weights", p.numel()))
    return module


def network(**settings: object) -> ComplexUNet:
    arguments: dict[str, Any] = {"channels": 4, "multipliers": (1, 2), "condition_dim": 6, **settings}
    return filled(ComplexUNet(4, 2, **arguments))


def maps(channels: int, *shape: int) -> Tensor:
    return complex_randn((2, channels, *shape), generator=keyed_generator("maps"), dtype=torch.complex128)


def rotated(x: Tensor, angle: float, blocks: int = 1) -> Tensor:
    """Channels in the order of the network's input, every block multiplied by exp(i angle)."""
    turn = complex(math.cos(angle), math.sin(angle))
    return torch.cat([to_channels(turn * _complex(part)) for part in x.chunk(blocks, dim=1)], dim=1)


def _complex(x: Tensor) -> Tensor:
    return torch.complex(*x.chunk(2, dim=1))


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_the_convolution_is_torchs_complex_convolution(kernel: int, stride: int) -> None:
    layer, x = filled(ComplexConv2d(3, 5, kernel, stride)), maps(3, 9, 8)
    expected = nn.functional.conv2d(x, torch.complex(*layer.weight), stride=stride, padding=kernel // 2)
    assert torch.allclose(_complex(layer(to_channels(x))), expected, atol=1e-12)


def test_normalisation_and_activation_are_mod_relu_of_the_normalised_map() -> None:
    layer, x = filled(NormModReLU(8), std=0.5), maps(8, 5, 6)
    log_scale, shift = torch.randn(2, 2, 8, generator=keyed_generator("modulation")).double().unbind(0)
    rms = x.reshape(2, layer.groups, -1).abs().square().mean(-1).sqrt().repeat_interleave(8 // layer.groups, 1)
    z = x / rms[:, :, None, None] * log_scale.exp()[:, :, None, None]
    bias = (layer.bias + shift)[:, :, None, None]
    expected = torch.relu(z.abs() + bias) * z / z.abs()
    assert layer.groups == 2
    assert torch.allclose(_complex(layer(to_channels(x), log_scale, shift)), expected, atol=1e-5)


def test_side_by_side_keeps_real_and_imaginary_parts_together() -> None:
    a, b = maps(2, 3, 3), 2 * maps(3, 3, 3)
    assert torch.equal(_complex(cat_complex(to_channels(a), to_channels(b))), torch.cat([a, b], 1))


@pytest.mark.parametrize("angle", [0.3, 2.0, -1.2])
@pytest.mark.parametrize("fold", [1, 2])
def test_a_phase_passes_through(angle: float, fold: int) -> None:
    net = network(fold=fold, blocks=2)
    x = to_channels(maps(2, 16, 12))
    noise, condition = torch.rand(2).double(), torch.rand(2, 6).double()
    out = net(x, noise, condition)
    turned = net(rotated(x, angle, blocks=2), noise, condition)
    assert float(out.detach().abs().max()) > 1e-3
    assert torch.allclose(turned, rotated(out, angle), atol=1e-6 * float(out.detach().abs().max()))


def test_a_denoiser_and_an_ambient_network_of_it_are_phase_equivariant() -> None:
    settings = {"name": "ComplexUNet", "channels": 4, "multipliers": [1, 2]}
    turn = complex(math.cos(1.0), math.sin(1.0))
    x = complex_randn((1, 1, 16, 16), generator=keyed_generator("x"))
    sigma, ones = torch.tensor([0.2]), torch.ones(1, 1, 16, 16, dtype=torch.complex64)
    law = RandomLines(2, 4)
    mask = law.draw((16, 16), keyed_generator("P"))
    for kind in ("clean", "ambient"):
        model = build_model({"kind": kind, "network": settings, "sd": 0.5, "precision": "fp32"})
        for p in model.parameters():
            nn.init.normal_(p, std=0.1, generator=keyed_generator("weights", p.numel()))
        operator = sense(ones, mask)
        run = lambda v: model(v, sigma) if kind == "clean" else model(v * mask, sigma, operator, mask)  # noqa: B023, E731
        assert torch.allclose(run(turn * x), turn * run(x), atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (17, 13), (5, 3)])
def test_any_size_in_same_size_out(shape: tuple[int, int]) -> None:
    net = network().float()
    assert net(torch.randn(2, 4, *shape), torch.rand(2), torch.rand(2, 6)).shape == (2, 2, *shape)


def test_an_untrained_network_gives_zero_and_a_filled_one_uses_everything() -> None:
    x, noise, condition = torch.randn(2, 4, 16, 16), torch.rand(2), torch.rand(2, 6)
    assert float(ComplexUNet(4, 2, channels=4)(x, noise).detach().abs().max()) == 0
    net = network(blocks=2).float()
    out = net(x, noise, condition)
    out.square().sum().backward()
    out = out.detach()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())
    assert not torch.allclose(out, net(x, noise + 0.3, condition), rtol=1e-3)
    assert not torch.allclose(out, net(x, noise, condition + 0.3), rtol=1e-3)
    assert torch.allclose(net(x[:1], noise[:1], condition[:1]), out[:1], atol=1e-3 * float(out.detach().abs().max()))


def test_channels_last_and_bf16_are_the_same_network() -> None:
    net = network().float()
    for p in net.parameters():
        p.data *= 0.5
    x, noise, condition = torch.randn(2, 4, 16, 16), torch.rand(2), torch.rand(2, 6)
    expected = net(x, noise, condition).detach()
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(net(last, noise, condition), expected, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = net(last, noise, condition).float().detach()
    assert float((coarse - expected).norm() / expected.norm()) < 0.05


def test_its_cost_is_that_of_the_real_network() -> None:
    found = {}
    for name in ("unet_light", "unet_complex"):
        model = build_model({"kind": "clean", "network": dict(compose([f"network={name}"]).network), "sd": 0.3})
        channels, noise = torch.zeros(1, 4, 64, 64), torch.zeros(1)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.network(channels, noise, torch.zeros(1, model.profile.dim))  # type: ignore[union-attr,operator]
        found[name] = (counter.get_total_flops(), sum(p.numel() for p in model.parameters()))
    assert found["unet_complex"][0] == pytest.approx(found["unet_light"][0], rel=0.05)
    assert found["unet_complex"][1] < 0.6 * found["unet_light"][1]


def test_what_is_no_pair_of_parts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"5 input and 2 output channels\. For real images"):
        ComplexUNet(5, 2)
    with pytest.raises(ValueError, match="condition vector of length 6"):
        network()(torch.randn(1, 4, 8, 8).double(), torch.rand(1).double())
