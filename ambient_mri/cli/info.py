"""What a k-space file, a reconstruction or a prior folder holds, as names and values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ambient_mri.prior import Prior, load_prior, shipped_priors

if TYPE_CHECKING:
    from ambient_mri.data.check import KspaceCheck

__all__ = ["describe"]

Facts = dict[str, Any]


def describe(source: str, slices: slice | None = None) -> tuple[str, Facts]:
    """A title, and what there is to say.

    Args:
        source: K-space file, reconstruction, prior folder or run folder, or the name of a shipped prior.
        slices: Of a k-space file; all when None.

    Raises:
        AmbientMRIError: If it is none of these, or damaged.
    """
    path = Path(source)
    if (path / "prior" / "prior.json").is_file():
        path = path / "prior"
    if path.is_dir() or (not path.exists() and source in shipped_priors()):
        return f"Prior {path}", _prior_facts(load_prior(path if path.is_dir() else source))
    if _is_reconstruction(path):
        return f"Reconstruction {path}", _reconstruction_facts(path)
    from ambient_mri.data.check import check_kspace

    return f"Scan {path}", _scan_facts(check_kspace(path, slices=slices))


def _scan_facts(check: KspaceCheck) -> Facts:
    slices, coils, height, width = check.shape
    axes = {-1: "columns (the last axis)", -2: "rows", None: "both (2-D mask)"}
    unit = "locations" if check.phase_encode_axis is None else "lines"
    shared = "a mask for every slice" if check.mask_per_slice else "one mask for all slices"
    lines = f"{check.sampled[0]} of {check.sampled[1]} {unit}, {shared}"
    noise = "" if check.noise_std is None else f"{check.noise_std:.4g} per real part, raw units "
    found: Facts = {
        "acquisition": check.acquisition or "not named",
        "k-space": f"{slices} slice{'s' * (slices != 1)}, {coils} coils, {height} x {width}",
        "image after the crop": " x ".join(map(str, check.recon_shape)),
        "phase encoding": axes[check.phase_encode_axis],
        "readout oversampling": f"{check.readout_oversampling:.3g}",
        "acquired extent": "rows {}:{}, columns {}:{}".format(*(i for part in check.acquired_extent for i in part)),
        "sampling": f"full, {lines}" if check.fully_sampled else f"R = {check.acceleration:.2f}, {lines}",
        "calibration (ACS)": _acs_words(check),
        "strongest location": "row {}, column {}".format(*check.peak) + f" (centre {height // 2}, {width // 2})",
        "coil energy": " ".join(f"{100 * share:.3g}" for share in check.coil_energy) + " %",
        "noise": f"{noise}({check.noise_source})",
        "scale": "unknown" if check.scale is None else f"{check.scale:.4g} raw units per unit of a prior",
        "signal to noise": "unknown" if check.snr is None else f"{check.snr:.3g} (scale over noise)",
        "coil maps": "in the file" if check.has_coil_maps else "to be estimated",
    }
    if check.voxel_mm is not None:
        found["voxel"] = " x ".join(f"{length:.3g}" for length in check.voxel_mm) + " mm"
    found |= {"notes": "\n".join(check.notes)} if check.notes else {}
    return found | {"problems": "\n".join(check.problems) or "none found"}


def _acs_words(check: KspaceCheck) -> str:
    if check.acs is None:
        return "none: the zero frequency is not sampled"
    if check.phase_encode_axis is None:
        return "{} x {} samples".format(*check.acs)
    return f"{check.acs[check.phase_encode_axis]} lines"


def _draw_words(prior: Prior) -> str:
    from ambient_mri.training.draws import draws_of_card, second_draws

    draws = draws_of_card(prior.metadata)
    second = second_draws(draws)
    return "\n".join(second) if second else "one of each subject" if draws else "not recorded"


def _prior_facts(prior: Prior) -> Facts:
    model, card = prior.model, prior.metadata
    uses = {"clean": "any operator, any sampler", "ambient": "data like its training's; one_step, dds, split_gibbs"}
    uses["feedforward"] = "data like its training's; one_step"
    law = card.get("sampling_law") or {}
    found: Facts = {
        "kind": f"{prior.kind}: {uses[prior.kind]}",
        "network": _pairs(prior.architecture.get("network", {})),
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million",
        "noise levels": f"sigma {model.sigma_min:.3g} to {model.sigma_max:.3g}; images have sd {model.sd:.3g}",
        "error curve": "yes" if getattr(model, "error_sigmas", torch.empty(0)).numel() else "no",
        "sampling law": _pairs(law) if law else "not recorded",
        "trained on": _pairs({k: v for k, v in card.get("data", {}).items() if isinstance(v, str | int | float)}),
        "draws": _draw_words(prior),
        "simulated": {True: "yes", False: "no", None: "not recorded"}[card.get("simulated")],
    }
    for name in ("steps", "images_seen", "licence", "created", "git"):
        if card.get(name) not in (None, ""):
            found[name.replace("_", " ")] = card[name]
    return found | ({"quality": _quality_words(card["metrics"])} if card.get("metrics") else {})


def _quality_words(quality: dict[str, Any]) -> str:
    """A line for every method: PSNR and SSIM by law and R, and what they were measured on."""
    lines: dict[str, list[str]] = {}
    for v in quality["values"]:
        scores = f"{v['law']} R = {v['acceleration']:g}: {v['psnr']:.2f} dB ({v['ssim']:.3f})"
        lines.setdefault(v["method"], []).append(scores)
    return "\n".join([*(f"{name}, {', '.join(found)}" for name, found in lines.items()), quality["data"]])


def _is_reconstruction(path: Path) -> bool:
    if path.suffix.lower() not in (".h5", ".hdf5") or not path.is_file():
        return False
    from ambient_mri.data.files import open_hdf5

    with open_hdf5(path) as handle:
        return "reconstruction" in handle and "kspace" not in handle


def _reconstruction_facts(path: Path) -> Facts:
    from ambient_mri import metrics
    from ambient_mri.data.writers import read_reconstruction

    content = read_reconstruction(path)
    settings = content["settings"]
    found: Facts = {
        "images": " x ".join(map(str, content["reconstruction"].shape)),
        "holds": ", ".join(name for name in content if name != "settings"),
    }
    if "residual" in content:
        found["chi² of the residual"] = f"{metrics.mean_of_known(content['residual']):.2f}"
    wanted = ("source", "prior", "prior_kind", "samples", "seed", "acceleration", "coil_maps", "seconds")
    return found | {name.replace("_", " "): settings[name] for name in wanted if name in settings}


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
