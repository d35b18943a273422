"""Prior folders: round trip, and every way in which one can be broken."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from ambient_mri._checks import PriorError
from ambient_mri.data.phantom import BrainPhantom
from ambient_mri.denoiser import CleanDenoiser, ConditionalDenoiser
from ambient_mri.prior import Prior, build_model, load_prior, shipped_priors
from ambient_mri.tensors import complex_randn, keyed_generator

ARCHITECTURE = {
    "network": {"name": "UNet", "channels": 8, "multipliers": [1, 2]},
    "sd": 0.2,
    "sigma_min": 0.002,
    "sigma_max": 5.0,
    "profile_bins": 4,
    "precision": "fp32",
}


def prior(kind: str = "clean") -> Prior:
    torch.manual_seed(0)
    architecture = {"kind": kind, **ARCHITECTURE}
    model = build_model(architecture)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    if kind == "clean":
        model.set_error_curve(torch.tensor([0.01, 0.1, 1.0]), torch.tensor([0.009, 0.05, 0.15]))
    return Prior(model, kind, architecture, {"licence": "none", "training": {"images": 12}}, name="toy")


def test_round_trip_keeps_the_function_the_curve_and_the_card(tmp_path: Path) -> None:
    first = prior()
    again = load_prior(first.save(tmp_path / "p"))
    x, sigma = torch.randn(2, 1, 8, 8, dtype=torch.complex64), torch.tensor([0.1, 0.5])
    assert isinstance(again.model, CleanDenoiser)
    assert torch.equal(again.model(x, sigma), first.model(x, sigma))
    assert torch.allclose(again.model.posterior_std(torch.tensor([0.1])), torch.tensor([0.05]))
    assert again.metadata["training"] == {"images": 12} and again.name == "toy"
    assert not any(p.requires_grad for p in again.model.parameters())
    assert load_prior(again) is again


def test_an_ambient_prior_says_so(tmp_path: Path) -> None:
    folder = prior("ambient").save(tmp_path / "p", dtype=torch.bfloat16)
    card = json.loads((folder / "prior.json").read_text())
    assert card["kind"] == "ambient" and card["noise_domain"] == "kspace"
    assert isinstance(load_prior(folder).model, ConditionalDenoiser)


def test_the_weights_of_an_ambient_network_fit_a_clean_one() -> None:
    ambient, clean = prior("ambient"), build_model({"kind": "clean", **ARCHITECTURE})
    missing, unexpected = clean.load_state_dict(ambient.model.state_dict(), strict=False)
    assert not missing and not unexpected


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder nor a shipped name"):
        load_prior("no_such_prior")
    with pytest.raises(ValueError, match=r"no prior\.json"):
        load_prior(tmp_path)
    folder = prior().save(tmp_path / "p")
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="damaged or truncated"):
        load_prior(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="incomplete"):
        load_prior(folder)
    card = json.loads((folder / "prior.json").read_text())
    (folder / "prior.json").write_text(json.dumps({**card, "format_version": 99}))
    with pytest.raises(ValueError, match="newer than this version"):
        load_prior(folder)
    (folder / "prior.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_prior(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": {**ARCHITECTURE, "kind": "clean", "later": 1}}, "later"),
        ({"architecture": {**ARCHITECTURE, "kind": "clean", "network": {"name": "UNet", "later": 1}}}, "later"),
        ({"architecture": {"kind": "clean", "sd": 0.3}}, "it lacks 'network'"),
        ({"error_curve": {"sigma": [0.1, 1.0]}}, "it lacks 'error'"),
        ({"error_curve": {"sigma": [1.0, 0.1], "error": [0.1, 0.2]}}, "sigmas ascending"),
        ({"format_version": "1"}, "format_version must be a number"),
    ],
)
def test_a_card_that_this_version_does_not_understand_is_named(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = prior().save(tmp_path / "p")
    card = json.loads((folder / "prior.json").read_text())
    (folder / "prior.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(PriorError, match=words):
        load_prior(folder)


def test_the_callers_mode_and_default_type_leave_a_prior_as_it_is(tmp_path: Path) -> None:
    folder = prior().save(tmp_path / "p")
    x, sigma = torch.randn(1, 1, 16, 16, dtype=torch.complex64), torch.tensor([0.3])
    with torch.no_grad():
        expected = load_prior(folder).model(x, sigma)
    with torch.inference_mode():
        found = load_prior(folder)
        torch.testing.assert_close(found.model(x, sigma).clone(), expected, rtol=0, atol=0)
    assert not any(p.is_inference() for p in found.model.parameters())
    # Outside that mode it may be differentiated through.
    value = found.model(x.requires_grad_(), sigma)
    assert torch.autograd.grad(value.abs().sum(), x)[0].abs().max() > 0
    torch.set_default_dtype(torch.float64)
    try:
        found = load_prior(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in found.model.state_dict().values() if t.is_floating_point()} == {torch.float32}


def test_unknown_architectures_are_named() -> None:
    with pytest.raises(ValueError, match="unknown network 'Transformer'"):
        build_model({"kind": "clean", **ARCHITECTURE, "network": {"name": "Transformer"}})
    with pytest.raises(ValueError, match="kind must be one of clean, ambient, feedforward"):
        build_model({**ARCHITECTURE, "kind": "other"})


def test_the_shipped_prior_is_small_documented_and_denoises() -> None:
    found = load_prior("brain128")
    assert found.kind == "clean" and shipped_priors() == ("brain128",)
    assert sum(p.numel() for p in found.model.parameters()) <= 4_000_000
    folder = resources.files("ambient_mri").joinpath("priors", "brain128")
    assert sum(len(path.read_bytes()) for path in folder.iterdir()) <= 8_000_000
    assert "NonCommercial-ShareAlike" in folder.joinpath("LICENSE").read_text()
    needed = {"sampling_law", "data", "licence", "scale_rule", "intended_use", "chain"}
    needed |= {"metrics", "nearest_training_image"}
    assert needed <= found.metadata.keys() and found.metadata["sampling_law"]["acceleration"] == 4
    assert found.model.error_sigmas.numel() > 0
    head = torch.as_tensor(BrainPhantom(64, seed=1).volume(0, 1)[0])[None, None].to(torch.complex64)
    sigma = torch.tensor([0.2])
    noisy = head + 0.2 * complex_randn(head.shape, generator=keyed_generator("shipped"))
    left = (found.model(noisy, sigma) - head).abs().square().mean()
    assert left < 0.25 * (noisy - head).abs().square().mean()


def test_a_prior_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    saved = prior().save(tmp_path / "hub")
    asked: list[tuple[str, str, str | None]] = []

    def fetch(repo_id: str, name: str, *, revision: str | None, subfolder: str | None) -> str:
        asked.append((repo_id, name, revision))
        return str(saved / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    found = Prior.from_pretrained("owner/name", revision="abc")
    assert found.kind == prior().kind
    assert asked == [("owner/name", "prior.json", "abc"), ("owner/name", "weights.safetensors", "abc")]


@pytest.mark.parametrize("repo_id", ["not a repository", "a/b/c"])
def test_a_hub_name_that_cannot_be_is_one_clear_line(repo_id: str) -> None:
    with pytest.raises(PriorError, match="no prior could be fetched from"):
        Prior.from_pretrained(repo_id)
