"""Prior: a trained denoiser with everything that is needed to use it, as a folder of two files.

    weights.safetensors      EMA weights, bf16 or float32
    prior.json               kind, architecture, sigma range, sd, error curve, scale rule, sampling law, data,
    versions, licence

Loading runs no pickled code and needs neither Lightning nor Hydra.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ambient_mri._checks import PriorError, check_option, reason_of, require
from ambient_mri._files import write_atomically
from ambient_mri.comparators import FeedForward, ProjectedNoiseDenoiser
from ambient_mri.denoiser import CleanDenoiser, ConditionalDenoiser, Denoiser, ProfileEncoder
from ambient_mri.networks import ComplexMagnitudePreservingUNet, ComplexUNet, MagnitudePreservingUNet, UNet
from ambient_mri.networks.compiled import compile_network

__all__ = ["FORMAT_VERSION", "Prior", "build_model", "load_prior", "read_card"]

FORMAT_VERSION = 1
KINDS = ("clean", "ambient", "feedforward")
NETWORKS: dict[str, type[nn.Module]] = {
    "UNet": UNet,
    "ComplexMagnitudePreservingUNet": ComplexMagnitudePreservingUNet,
    "ComplexUNet": ComplexUNet,
    "MagnitudePreservingUNet": MagnitudePreservingUNet,
}


@dataclass
class Prior:
    """A trained prior.

    Attributes:
        model: A Denoiser (``kind == "clean"``) or a ConditionalDenoiser (any other kind).
        kind: ``"clean"``, ``"ambient"``, or ``"feedforward"``: a reconstruction network, of use to ``one_step`` alone.
        architecture: Plain data that :func:`build_model` turns into the model again.
        metadata: Provenance: data, sampling law, scale rule, versions, licence, metrics, ...
        name: For messages and files.
    """

    model: Denoiser | ConditionalDenoiser
    kind: str
    architecture: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    name: str = "prior"

    def __post_init__(self) -> None:
        check_option("kind", self.kind, KINDS)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.model.parameters())
        return f"Prior({self.name!r}, kind={self.kind!r}, {count / 1e6:.1f} M parameters, sd={self.model.sd:.3f})"

    def to(self, device: torch.device | str) -> Prior:
        """Move the model, in place; returns itself."""
        self.model.to(device)
        return self

    def compile(self) -> Prior:
        """Compile the network, in place; returns itself.

        On a CPU an evaluation of ``brain128`` then takes five sixths of the time, of a complex network two thirds. The
        first call at a size compiles it, which takes a minute or two, seconds if this machine has done it before: for
        whole volumes, not for one slice.

        Raises:
            AmbientMRIError: Where there is neither a GPU nor a C++ compiler.
        """
        compile_network(self.model.network)  # type: ignore[arg-type]
        return self

    def weights_hash(self) -> str:
        """The first 16 digits of a SHA-256 of the weights' names and values: which they are, whatever their name."""
        digest = sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        device: torch.device | str = "cpu",
    ) -> Prior:
        """Load a prior folder from a repository of the Hugging Face Hub; nothing but two files is fetched.

        Args:
            repo_id: ``"owner/name"``.
            revision: Branch, tag or commit; pin a commit where results must not change.
            subfolder: Folder of the prior inside the repository.
            device: Of the model.

        Raises:
            PriorError: If the repository or a file of the prior is not there, or cannot be reached.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            paths = [
                Path(hf_hub_download(repo_id, name, revision=revision, subfolder=subfolder))
                for name in ("prior.json", "weights.safetensors")
            ]
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = reason_of(error)
            raise PriorError(
                f"no prior could be fetched from {repo_id!r} (revision {revision or 'main'}): {reason} "
                "A prior repository holds prior.json and weights.safetensors."
            ) from error
        return load_prior(paths[0].parent, device=device)

    def save(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
        """Write the prior folder, each file atomically.

        Args:
            folder: Made if missing.
            dtype: Of the stored weights; bfloat16 halves the size and costs nothing that a sampler can see.
        """
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in self.model.state_dict().items()}
        write_atomically(folder / "weights.safetensors", save(tensors))
        card: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "kind": self.kind,
            "noise_domain": getattr(self.model, "noise_domain", "image"),
            "architecture": self.architecture,
            "error_curve": _curve(self.model),
            **self.metadata,
        }
        write_atomically(folder / "prior.json", json.dumps(card, indent=2, sort_keys=False).encode())
        return folder


def build_model(architecture: Mapping[str, Any]) -> Denoiser | ConditionalDenoiser:
    """The untrained model that an ``architecture`` describes.

    Args:
        architecture: ``{"kind": "clean" | "ambient" | "feedforward", "network": {"name": "UNet", ...}, "sd": ...,
            "sigma_min": ..., "sigma_max": ..., "profile_bins": 32, ...}``. Further keys of an ambient model: ``e0``,
            ``cg_iterations``, ``preconditioning`` ("operator", or "edm" as published). Of any model:
            ``image_channels``, real channels of an image (2 for a complex one), and ``mask_channels``.

    Raises:
        PriorError: For an unknown network or kind.
    """
    settings = dict(architecture)
    kind, network = settings.pop("kind"), dict(settings.pop("network"))
    name = network.pop("name", "UNet")
    require(name in NETWORKS, f"unknown network {name!r}; this version knows {', '.join(NETWORKS)}.", PriorError)
    require(kind in KINDS, f"kind must be one of {', '.join(KINDS)}; got {kind!r}.", PriorError)
    edm = settings.pop("preconditioning", "operator") == "edm"
    profile = ProfileEncoder(settings.pop("profile_bins", 32))
    image_channels = settings.pop("image_channels", 2)
    inputs = 2 * image_channels + settings.get("mask_channels", 0)
    net = NETWORKS[name](inputs, image_channels, condition_dim=profile.dim, **network)
    if kind == "clean":
        return CleanDenoiser(net, profile=profile, **settings)
    conditional = FeedForward if kind == "feedforward" else ProjectedNoiseDenoiser if edm else ConditionalDenoiser
    return conditional(net, profile=profile, **settings)


@torch.inference_mode(False)  # weights made in that mode could not be differentiated through
def load_prior(source: str | Path | Prior, *, device: torch.device | str = "cpu", compile: bool = False) -> Prior:
    """Load a prior by name (one that ships with the package), or from its folder or that of the run that made it.

    Args:
        source: Name, folder, or a Prior, which is moved in place.
        device: Of the model.
        compile: Compile the network (:meth:`Prior.compile`).

    Raises:
        PriorError: If nothing of that name exists, a file is missing or damaged, or the format is newer than this
            version.
    """
    if isinstance(source, Prior):
        return source.to(device).compile() if compile else source.to(device)
    folder = _find(source)
    card = _read_card(folder)
    with _of_card(folder), _float32():
        model = build_model(card["architecture"])
    _load_weights(model, folder / "weights.safetensors")
    domain = getattr(model, "noise_domain", "image")
    require(
        card.get("noise_domain", domain) == domain,
        f"{folder} was trained with noise in the {card.get('noise_domain')} domain; its architecture takes {domain}. "
        "Export the prior again.",
        PriorError,
    )
    curve = card.get("error_curve")
    if curve:
        with _of_card(folder):
            values = (torch.tensor(curve[name], dtype=torch.float32) for name in ("sigma", "error"))
            model.set_error_curve(*values)
    reserved = ("format_version", "name", "kind", "architecture", "error_curve", "noise_domain")
    metadata = {k: v for k, v in card.items() if k not in reserved}
    model.eval().requires_grad_(False).to(device)
    prior = Prior(model, card["kind"], card["architecture"], metadata, card.get("name", folder.name))
    return prior.compile() if compile else prior


def read_card(source: str | Path) -> dict[str, Any]:
    """The ``prior.json`` of a prior folder, a shipped prior, or a run folder; no weights are read.

    Raises:
        PriorError: If nothing of that name exists, or the card is damaged.
    """
    return _read_card(_find(source))


def shipped_priors() -> tuple[str, ...]:
    """Names of the priors that ship with the package."""
    root = resources.files("ambient_mri").joinpath("priors")
    return tuple(sorted(p.name for p in root.iterdir() if p.is_dir())) if root.is_dir() else ()


def _find(source: str | Path) -> Path:
    path = Path(source).expanduser()
    inside = next((p for p in (path / "prior", path) if (p / "prior.json").is_file()), None)
    if inside is not None:
        return inside
    shipped = shipped_priors()
    if str(source) in shipped:
        return Path(str(resources.files("ambient_mri").joinpath("priors", str(source))))
    known = f"this version ships {', '.join(shipped)}" if shipped else "this version ships none"
    if path.is_dir():
        raise PriorError(f"{path} is not a prior folder: it has no prior.json. Training writes one at RUN/prior.")
    raise PriorError(f"no prior {str(source)!r}: it is neither a folder nor a shipped name ({known}).")


def _read_card(folder: Path) -> dict[str, Any]:
    try:
        card = json.loads((folder / "prior.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise PriorError(f"{folder / 'prior.json'} cannot be read: {error}. Export the prior again.") from error
    missing = [k for k in ("format_version", "kind", "architecture") if k not in card]
    require(not missing, f"{folder / 'prior.json'} lacks {', '.join(missing)}. Export the prior again.", PriorError)
    require(
        isinstance(card["format_version"], int),
        f"{folder / 'prior.json'}: format_version must be a number; got {card['format_version']!r}. Export the prior "
        "again.",
        PriorError,
    )
    require(
        card["format_version"] <= FORMAT_VERSION,
        f"{folder} has format {card['format_version']}, newer than this version reads ({FORMAT_VERSION}). "
        "Update ambient-mri.",
        PriorError,
    )
    return card


@contextmanager
def _float32() -> Iterator[None]:
    """Models are built in float32, whatever the caller's default type is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _of_card(folder: Path) -> Iterator[None]:
    """What a damaged card, or one with settings of a later version, makes fail is an error of that card."""
    try:
        yield
    except PriorError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise PriorError(
            f"{folder / 'prior.json'} does not describe a prior of this version: {told}. Update ambient-mri, or export "
            "the prior again."
        ) from error


def _load_weights(model: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require(path.is_file(), f"{path} is missing: the prior folder is incomplete.", PriorError)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PriorError(f"{path} is damaged or truncated ({error}). Copy or export the prior again.") from error
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise PriorError(f"{path} does not fit the architecture in prior.json: {error}") from error


def _curve(model: Denoiser | ConditionalDenoiser) -> dict[str, list[float]] | None:
    if model.error_sigmas.numel() == 0:
        return None
    return {"sigma": model.error_sigmas.tolist(), "error": model.error_values.tolist()}
