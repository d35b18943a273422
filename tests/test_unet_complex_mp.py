"""The complex, magnitude-preserving U-Net: a phase passes through, magnitudes stay, directions alone are learned."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ambient_mri.networks import ComplexMagnitudePreservingUNet
from ambient_mri.networks.complex_magnitude_layers import (
    ComplexMagnitudeConv2d,
    ComplexMagnitudeResidualBlock,
    ModReLU,
    cat_complex_magnitude,
)
from ambient_mri.prior import build_model
from ambient_mri.tensors import complex_randn, keyed_generator, to_channels
from ambient_mri.train import compose
from tests.test_unet_complex import _complex, maps, rotated


def network(**settings: object) -> ComplexMagnitudePreservingUNet:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"channels": 16, "multipliers": (1, 2), "condition_dim": 6, **settings}
    net = ComplexMagnitudePreservingUNet(4, 2, **arguments).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("gain"):
                p.fill_(0.7)
    return net


def inputs(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    return to_channels(maps(2, *shape)), torch.rand(2).double(), torch.rand(2, 6).double()


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_the_convolution_is_torchs_complex_one_with_unit_weights(kernel: int, stride: int) -> None:
    layer, x = ComplexMagnitudeConv2d(3, 5, kernel, stride=stride).double(), maps(3, 9, 8)
    weight = torch.complex(layer.weight[:, 0], layer.weight[:, 1])
    weight = weight / weight.abs().square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    expected = nn.functional.conv2d(x, weight, stride=stride, padding=kernel // 2)
    assert torch.allclose(_complex(layer(to_channels(x))), expected, atol=1e-12)
    assert torch.allclose(_complex(layer(to_channels(x), 3.0)), 3 * expected, atol=1e-12)


def test_the_activation_is_mod_relu() -> None:
    layer, x = ModReLU(4).double(), maps(4, 5, 6)
    scale, shift = torch.randn(2, 2, 4, generator=keyed_generator("modulation")).double().unbind(0)
    bias = math.sqrt(2) * (layer.threshold + shift)[:, :, None, None]
    expected = torch.relu(scale[:, :, None, None] * x.abs() + bias) * x / x.abs()
    assert torch.allclose(_complex(layer(to_channels(x), scale, shift)), expected, atol=1e-6)


def test_every_layer_keeps_the_magnitude_of_noise() -> None:
    torch.manual_seed(0)
    x = to_channels(complex_randn((2, 64, 16, 16), generator=keyed_generator("x")))
    other = to_channels(complex_randn((2, 32, 16, 16), generator=keyed_generator("other")))
    assert rms(x) == pytest.approx(1, abs=0.01)
    assert rms(ComplexMagnitudeConv2d(64, 48, 3)(x)[..., 1:-1, 1:-1]) == pytest.approx(1, abs=0.03)
    assert rms(ModReLU(64)(x)) == pytest.approx(0.5946, abs=0.01)
    assert rms(cat_complex_magnitude(x, other)) == pytest.approx(1, abs=0.01)
    embedding = torch.randn(2, 8)
    for _ in range(20):
        x = ComplexMagnitudeResidualBlock(64, 64, 8)(x, embedding)
    assert 0.8 < rms(x) < 1.2


@pytest.mark.parametrize("fold", [1, 2])
def test_a_phase_passes_through(fold: int) -> None:
    net, (x, level, condition) = network(fold=fold, blocks=2), inputs(16, 12)
    out, turned = net(x, level, condition), net(rotated(x, 2.0, blocks=2), level, condition)
    assert 0.1 < rms(out) < 1
    assert torch.allclose(turned, rotated(out, 2.0), atol=1e-6)


def test_a_dark_pixel_is_told_from_a_bright_one() -> None:
    """Without a bias a network that brings every pixel to unit magnitude could not."""
    net, (x, level, condition) = network(), inputs(16, 16)
    dark = x.clone()
    dark[..., 8:] *= 0.1
    left, whole = net(dark, level, condition)[..., 12:], net(x, level, condition)[..., 12:]
    assert rms(left) < 0.5 * rms(whole)


def test_an_untrained_network_gives_zero_and_any_size_keeps_its_size() -> None:
    for shape in ((16, 16), (17, 13), (5, 3)):
        x, level, condition = inputs(*shape)
        assert network()(x, level, condition).shape == (2, 2, *shape)
    untrained = ComplexMagnitudePreservingUNet(4, 2, channels=4, multipliers=(1, 2), condition_dim=6).double()
    assert rms(untrained(x, level, condition)) == 0


def test_the_length_of_a_weight_changes_nothing_and_gradients_reach_all_of_them() -> None:
    net, (x, level, condition) = network(blocks=2), inputs(16, 16)
    out = net(x, level, condition)
    out.square().sum().backward()
    weights = {name: p for name, p in net.named_parameters() if name.endswith("weight")}
    for name, p in net.named_parameters():
        assert p.grad is not None and float(p.grad.abs().max()) > 0, name
    for p in weights.values():
        along = (p.grad * p.detach()).flatten(1).sum(1) / p.detach().flatten(1).norm(dim=1)  # type: ignore[operator]
        assert float(along.abs().max()) < 1e-8 * max(1.0, float(p.grad.abs().max()))  # type: ignore[union-attr]
    with torch.no_grad():
        for i, p in enumerate(weights.values()):
            p.mul_(0.3 + i % 7)
        expected = out.detach()
        assert torch.allclose(net(x, level, condition), expected, atol=1e-12)
        net.normalize_()
        assert torch.allclose(net(x, level, condition), expected, atol=1e-12)
    for p in weights.values():
        norms = p.detach().flatten(1).norm(dim=1)
        assert torch.allclose(norms, torch.full_like(norms, math.sqrt(p[0].numel())))


def test_its_configuration_has_the_arithmetic_of_the_default_network_and_half_of_its_parameters() -> None:
    found = {}
    for name in ("unet_mp", "unet_complex_mp"):
        settings = dict(compose([f"network={name}"]).network)
        model: Any = build_model({"kind": "clean", "network": settings, "sd": 0.5, "precision": "fp32"})
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 1, 64, 64, dtype=torch.complex64), torch.tensor([0.2]))
        found[name] = (counter.get_total_flops(), sum(p.numel() for p in model.parameters()))
    (flops, parameters), (flops_complex, parameters_complex) = found.values()
    assert 0.9 < flops_complex / flops < 1.1 and 0.45 < parameters_complex / parameters < 0.6


@pytest.mark.parametrize("channels", [4, 40])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modrelu_is_the_same_function_without_gradients(
    channels: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    layer = ModReLU(channels)
    with torch.no_grad():
        layer.threshold.add_(0.5 * torch.randn(channels, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(2, 2 * channels, 6, 5, generator=torch.Generator().manual_seed(1))
    x[0, :, 0, 0] = 0  # a pixel without a phase
    x = x.to(dtype).contiguous(memory_format=layout)
    scale, shift = 1 + 0.1 * torch.randn(2, channels), 0.1 * torch.randn(2, channels)
    for arguments in ((), (scale, shift)):
        expected = layer(x, *arguments)
        with torch.no_grad():
            found = layer(x, *arguments)
        assert found.isfinite().all() and (found[0, :, 0, 0] == 0).all()
        assert found.dtype == x.dtype and found.stride() == x.stride()
        close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(found, expected.detach(), **close)
