"""The magnitude-preserving U-Net: unit variance everywhere, weights whose length does not matter, one normal form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ambient_mri.denoiser import CleanDenoiser
from ambient_mri.networks import MagnitudePreservingUNet
from ambient_mri.networks.magnitude_layers import (
    MagnitudeConv2d,
    MagnitudeEmbedding,
    MagnitudeLinear,
    MagnitudeResidualBlock,
    cat_magnitude,
    silu_magnitude,
    sum_magnitude,
)
from ambient_mri.objectives import SupervisedObjective
from ambient_mri.prior import build_model
from ambient_mri.tensors import keyed_generator
from ambient_mri.train import compose
from ambient_mri.training.module import TrainingModule


def noise(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(shape, generator=keyed_generator(key, *shape))


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def network(**settings: object) -> MagnitudePreservingUNet:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"channels": 32, "multipliers": (1, 2), "condition_dim": 6, **settings}
    net = MagnitudePreservingUNet(4, 2, **arguments)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, MagnitudeConv2d | MagnitudeLinear) and module.gain is not None:
                module.gain.fill_(1.0)
    return net


def test_every_layer_keeps_the_magnitude_of_noise() -> None:
    torch.manual_seed(0)
    x, other = noise(4, 64, 16, 16), noise(4, 32, 16, 16, key="other")
    assert rms(silu_magnitude(x)) == pytest.approx(1, abs=0.01)
    assert rms(sum_magnitude(x[:, :32], other, 0.3)) == pytest.approx(1, abs=0.01)
    joined = cat_magnitude(x, 1.0 * other)
    assert rms(joined) == pytest.approx(1, abs=0.01)
    # Either part counts the same in what follows, whatever its number of channels.
    assert float(joined[:, :64].square().sum() / joined[:, 64:].square().sum()) == pytest.approx(1, abs=0.02)
    interior = MagnitudeConv2d(64, 48, 3)(x)[..., 1:-1, 1:-1]
    assert rms(interior) == pytest.approx(1, abs=0.03)
    assert rms(MagnitudeLinear(64, 512)(noise(64, 64))) == pytest.approx(1, abs=0.03)
    assert rms(MagnitudeEmbedding(4096)(torch.linspace(-1, 1, 9))) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("width", [32, 48])
def test_constants_in_the_weights_of_a_block_change_nothing(width: int) -> None:
    torch.manual_seed(0)
    block = MagnitudeResidualBlock(32, width, 8).double()
    with torch.no_grad():
        block.modulation.gain.fill_(0.7)  # type: ignore[union-attr]
    x, embedding = 9 * noise(2, 32, 12, 12).double(), noise(2, 8).double()
    main = x if block.skip is not None else x / (x.norm(dim=1, keepdim=True) / math.sqrt(32) + 1e-4)
    h = block.conv1(silu_magnitude(main)) * (1 + block.modulation(embedding)[:, :, None, None])
    expected = sum_magnitude(main if block.skip is None else block.skip(main), block.conv2(silu_magnitude(h)), 0.3)
    assert torch.allclose(block(x, embedding), expected, atol=1e-12)
    large = block(1e4 * x, embedding).detach()
    assert (float(large.abs().max()) == 256) == (block.skip is not None)


def test_magnitudes_do_not_grow_with_depth() -> None:
    torch.manual_seed(0)
    x, embedding = noise(2, 32, 16, 16), noise(2, 8)
    for _ in range(20):
        x = MagnitudeResidualBlock(32, 32, 8)(x, embedding)
    assert 0.8 < rms(x) < 1.2


def test_an_untrained_network_gives_zero_and_a_started_one_unit_magnitude() -> None:
    x, level, condition = noise(2, 4, 32, 32), torch.rand(2), torch.rand(2, 6)
    untrained = MagnitudePreservingUNet(4, 2, channels=8, multipliers=(1, 2), condition_dim=6)
    assert float(untrained(x, level, condition).detach().abs().max()) == 0
    assert 0.5 < rms(network()(x, level, condition)) < 1.5


def test_the_length_of_a_weight_changes_nothing_and_the_normal_form_restores_it() -> None:
    net = network().double()
    x, level, condition = noise(2, 4, 16, 16).double(), torch.rand(2).double(), torch.rand(2, 6).double()
    expected = net(x, level, condition).detach()
    weights = [p for name, p in net.named_parameters() if name.endswith("weight")]
    with torch.no_grad():
        for i, weight in enumerate(weights):
            weight.mul_(0.3 + i % 7)
    assert torch.allclose(net(x, level, condition), expected, atol=1e-12)
    net.normalize_()
    assert torch.allclose(net(x, level, condition), expected, atol=1e-12)
    for weight in weights:
        norms = weight.detach().flatten(1).norm(dim=1)
        assert torch.allclose(norms, torch.full_like(norms, math.sqrt(weight[0].numel())))


def test_weights_made_once_follow_every_change_of_the_stored_ones() -> None:
    net = network().double()
    x, level, condition = noise(2, 4, 16, 16).double(), torch.rand(2).double(), torch.rand(2, 6).double()
    for change in (lambda p: p, lambda p: p + 0.1 * torch.randn_like(p), lambda p: p.abs()):
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(change(p))
            kept = [net(x, level, condition) for _ in range(2)]
        expected = net(x, level, condition)
        assert torch.allclose(kept[0], expected, atol=1e-12)
        assert torch.equal(kept[0], kept[1])
    other = network().double()
    other.load_state_dict({k: v + 0.1 for k, v in net.state_dict().items()})
    with torch.no_grad():
        net(x, level, condition)
        net.load_state_dict(other.state_dict())
        assert torch.equal(net(x, level, condition), other(x, level, condition))
        assert net.float()(x.float(), level.float(), condition.float()).dtype == torch.float32


def test_weights_made_once_follow_changes_that_leave_no_trace() -> None:
    """A fused optimiser and weight averaging write to ``.data``: the version of a tensor does not count them."""
    net = network().double()
    x, level, condition = noise(2, 4, 16, 16).double(), torch.rand(2).double(), torch.rand(2, 6).double()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)

    def without_gradients() -> Tensor:
        with torch.no_grad():
            return net(x, level, condition)

    def is_up_to_date() -> bool:
        return torch.allclose(without_gradients(), net(x, level, condition), atol=1e-12)

    net.train()
    before = without_gradients()
    net(x, level, condition).square().mean().backward()
    optimizer.step()
    assert is_up_to_date() and not torch.allclose(without_gradients(), before, atol=1e-3)
    net.eval()
    before = without_gradients()
    for p in net.parameters():
        p.data.copy_(p + 0.1 * torch.randn_like(p))
    net.eval()
    assert is_up_to_date() and not torch.allclose(without_gradients(), before, atol=1e-3)


def test_a_training_step_starts_from_the_normal_form() -> None:
    settings = dict(compose(["network=unet_mp", "network.channels=8", "network.multipliers=[1,2]"]).network)
    model = build_model({"kind": "clean", "network": settings, "sd": 0.5})
    assert isinstance(model, CleanDenoiser)
    stem = model.network.stem
    assert isinstance(stem, MagnitudeConv2d)
    with torch.no_grad():
        stem.weight.mul_(3)
    objective: Any = SupervisedObjective()
    TrainingModule(model, objective, max_steps=10).on_train_batch_start(None, 0)
    norms = stem.weight.detach().flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.full_like(norms, math.sqrt(stem.weight[0].numel())))


def test_gradients_are_orthogonal_to_the_weights_and_reach_all_of_them() -> None:
    net = network(blocks=2).double()
    x, level, condition = noise(2, 4, 16, 16).double(), torch.rand(2).double(), torch.rand(2, 6).double()
    out = net(x, level, condition)
    out.square().sum().backward()
    assert not torch.allclose(out, net(x, level + 0.3, condition))
    assert not torch.allclose(out, net(x, level, condition + 0.3 * torch.eye(6)[:2]))
    for name, p in net.named_parameters():
        assert p.grad is not None and float(p.grad.abs().max()) > 0, name
        if name.endswith("weight"):
            along = (p.grad * p.detach()).flatten(1).sum(1) / p.detach().flatten(1).norm(dim=1)
            assert float(along.abs().max()) < 1e-8 * max(1.0, float(p.grad.abs().max()))


@pytest.mark.parametrize("shape", [(16, 16), (17, 13), (5, 3)])
@pytest.mark.parametrize("fold", [1, 2, 4])
def test_any_size_in_same_size_out(shape: tuple[int, int], fold: int) -> None:
    out = network(fold=fold, channels=8)(noise(2, 4, *shape), torch.rand(2), torch.rand(2, 6))
    assert out.shape == (2, 2, *shape)


def test_its_configuration_builds_a_prior_of_the_default_networks_size() -> None:
    def parameters(name: str) -> int:
        settings = dict(compose([f"network={name}"]).network)
        model = build_model({"kind": "clean", "network": settings, "sd": 0.5})
        assert isinstance(model, nn.Module)
        return sum(p.numel() for p in model.parameters())

    assert 0.8 < parameters("unet_mp") / parameters("unet_light") < 1.1


@pytest.mark.parametrize(("name", "last"), [("unet_mp", True), ("unet_complex_mp", True), ("unet_light", False)])
def test_the_layout_that_a_network_is_run_in_is_its_faster_one(name: str, last: bool) -> None:
    settings = dict(compose([f"network={name}", "network.channels=8", "network.multipliers=[1,2]"]).network)
    model = build_model({"kind": "clean", "network": settings, "sd": 0.5, "precision": "fp32"})
    assert isinstance(model, CleanDenoiser)
    seen: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.zeros(2, 1, 16, 16, dtype=torch.complex64), torch.tensor([0.2, 0.3]))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) is last
