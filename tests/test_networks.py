"""The U-Net: any size, starts at zero, sees its conditions, real gradient everywhere."""

from __future__ import annotations

import pytest
import torch

from ambient_mri.networks import UNet
from ambient_mri.networks.layers import NoiseEmbedding


def network(**settings: object) -> UNet:
    torch.manual_seed(0)
    net = UNet(4, 2, channels=8, multipliers=(1, 2), condition_dim=6, **settings)  # type: ignore[arg-type]
    torch.nn.init.normal_(net.head.weight, std=0.1)
    return net


@pytest.mark.parametrize("shape", [(16, 16), (17, 13), (8, 20), (5, 3)])
@pytest.mark.parametrize("fold", [1, 2, 4])
def test_any_size_in_same_size_out(shape: tuple[int, int], fold: int) -> None:
    out = network(fold=fold)(torch.randn(2, 4, *shape), torch.rand(2), torch.rand(2, 6))
    assert out.shape == (2, 2, *shape)


@pytest.mark.parametrize("shape", [(16, 2), (2, 16), (3, 3)])
def test_no_level_is_one_pixel_wide(shape: tuple[int, int]) -> None:
    """Where oneDNN's bfloat16 convolution reads beyond the rows (networks/skeleton.py)."""
    net, seen = network(), list[tuple[int, ...]]()
    net.middle.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    assert net(torch.randn(1, 4, *shape), torch.rand(1), torch.rand(1, 6)).shape[-2:] == shape
    assert min(seen[0]) >= 2


def test_an_untrained_network_gives_zero() -> None:
    net = UNet(4, 2, channels=8, multipliers=(1, 2))
    assert float(net(torch.randn(1, 4, 8, 8), torch.rand(1)).detach().abs().max()) == 0


def test_every_parameter_gets_a_gradient_and_every_condition_matters() -> None:
    net = network(attention=(1,), blocks=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, noise, condition = torch.randn(2, 4, 16, 16), torch.rand(2), torch.rand(2, 6)
    out = net(x, noise, condition)
    out.square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())
    assert not torch.allclose(out, net(x, noise + 0.3, condition))
    assert not torch.allclose(out, net(x, noise, condition + 0.3))


def test_rows_do_not_see_each_other() -> None:
    net = network().eval()
    x, noise, condition = torch.randn(3, 4, 16, 16), torch.rand(3), torch.rand(3, 6)
    assert torch.allclose(net(x, noise, condition)[1:2], net(x[1:2], noise[1:2], condition[1:2]), atol=1e-5)


def test_a_missing_condition_and_a_bad_fold_are_named() -> None:
    with pytest.raises(ValueError, match="condition vector of length 6"):
        network()(torch.randn(1, 4, 8, 8), torch.rand(1))
    with pytest.raises(ValueError, match="fold must be 1, 2 or 4"):
        UNet(4, 2, fold=3)


def test_noise_embedding_tells_levels_apart() -> None:
    features = NoiseEmbedding(16)(torch.tensor([-1.0, -0.99, 1.0])).detach()
    assert float((features[0] - features[1]).norm()) > 1e-4
