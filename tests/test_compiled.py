"""Compiled networks: the same function and names, and an error that says what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._functorch import config as functorch_config

from ambient_mri import load_prior
from ambient_mri._checks import AmbientMRIError
from ambient_mri.networks import ComplexMagnitudePreservingUNet, MagnitudePreservingUNet
from ambient_mri.networks.compiled import cpp_compiler
from ambient_mri.prior import Prior, build_model
from ambient_mri.sampling.guidance import value_and_vjp

NETWORK = {"name": "ComplexMagnitudePreservingUNet", "channels": 4, "multipliers": [1], "fold": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    architecture = {"kind": "clean", "network": NETWORK, "sd": 0.3, "precision": "fp32"}
    model = build_model(architecture)
    with torch.no_grad():  # the last layer starts at zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Prior(model, "clean", architecture).save(tmp_path / "prior")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself
@pytest.mark.skipif(cpp_compiler() is None, reason="needs a C++ compiler")
def test_a_compiled_prior_is_the_same_denoiser_with_the_same_weights(folder: Path) -> None:
    plain, compiled = load_prior(folder), load_prior(folder, compile=True)
    x, sigma = torch.randn(2, 1, 16, 16, dtype=torch.complex64), torch.tensor([0.1, 1.0])
    with torch.no_grad():
        expected, found = plain.model(x, sigma), compiled.model(x, sigma)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected - x).abs().max() > 1e-2
    assert compiled.model.network._compiled_call_impl is not None
    assert compiled.weights_hash() == plain.weights_hash()
    assert load_prior(compiled.save(folder.parent / "again")).weights_hash() == plain.weights_hash()


def test_graphs_that_are_differentiated_more_than_once_keep_their_buffers() -> None:
    # Torch decides what a compiled backward pass may overwrite while it makes the graph, and looks again while it goes
    # back; compiling one here would take minutes.
    seen: list[tuple[str, bool]] = []

    def square(x: torch.Tensor) -> torch.Tensor:
        seen.append(("forward", functorch_config.donated_buffer))
        value = x * x
        value.register_hook(lambda _: seen.append(("backward", functorch_config.donated_buffer)))
        return value

    with functorch_config.patch(donated_buffer=True), torch.no_grad():
        value, vjp = value_and_vjp(SimpleNamespace(gradients=0), square, torch.tensor([3.0]))  # type: ignore[arg-type]
        assert functorch_config.donated_buffer
        assert [vjp(torch.tensor([v])).item() for v in (1.0, 2.0)] == [6.0, 12.0]
        assert functorch_config.donated_buffer
    assert value.item() == 9.0 and seen == [("forward", False), ("backward", False), ("backward", False)]


def test_compiling_without_a_compiler_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(AmbientMRIError, match=r"install one \(apt-get install g\+\+\)"):
        load_prior(folder, compile=True)


def test_the_compiler_named_in_cxx_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/found/{name}")
    monkeypatch.setenv("CXX", "my-compiler")
    assert cpp_compiler() == "/found/my-compiler"
    monkeypatch.delenv("CXX")
    assert cpp_compiler() == "/found/g++"


@pytest.mark.parametrize("network", [MagnitudePreservingUNet, ComplexMagnitudePreservingUNet])
def test_a_network_is_one_graph(network: type[torch.nn.Module]) -> None:
    # Where Python has to look at a tensor, a graph ends: dozens of small ones save nothing, and are made for all sizes.
    net = network(4, 2, condition_dim=8, channels=8, multipliers=[1, 2], fold=2).eval()
    whole = torch.compile(net, backend="eager", fullgraph=True)
    x, sigma, condition = torch.randn(2, 4, 16, 16), torch.zeros(2), torch.zeros(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(whole(x, sigma, condition), net(x, sigma, condition))
    whole(x.requires_grad_(), sigma, condition)


def test_networks_made_in_inference_mode_compute_in_it() -> None:
    with torch.inference_mode():
        net = MagnitudePreservingUNet(4, 2, condition_dim=8, channels=8, multipliers=[1], fold=2).eval()
        assert next(net.parameters()).is_inference()
        x, sigma, condition = torch.randn(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, 8)
        first = net(x, sigma, condition)
        for parameter in net.parameters():  # nothing of before is kept
            parameter.copy_(torch.randn_like(parameter))
        assert not torch.equal(net(x, sigma, condition), first)
