"""What a k-space file, a reconstruction or a prior folder holds, as names and values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ambient_mri._checks import AmbientMRIError
from ambient_mri.cli.terminal import one_line
from ambient_mri.coil_maps import find_acs
from ambient_mri.prior import Prior, load_prior, shipped_priors

if TYPE_CHECKING:
    from ambient_mri.data.readers import RawScan

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
    from ambient_mri.data.readers import read_scan

    return f"Scan {path}", _scan_facts(read_scan(path, slices))


def _scan_facts(raw: RawScan) -> Facts:
    height, width = raw.shape
    axes = {-1: "columns (the last axis)", -2: "rows", None: "both (2-D mask)"}
    found: Facts = {
        "acquisition": raw.acquisition or "not named",
        "k-space": f"{len(raw)} slices, {raw.num_coils} coils, {height} x {width}",
        "image after the crop": " x ".join(map(str, raw.recon_shape)),
        "phase encoding": axes[raw.phase_encode_axis],
        "acquired extent": "rows {}:{}, columns {}:{}".format(*(i for part in raw.acquired_extent for i in part)),
        "sampling": "full" if raw.fully_sampled else f"R = {raw.acceleration:.2f}, {_mask_words(raw)}",
        "calibration (ACS)": _acs_words(raw),
        "noise": _noise_words(raw),
        "scale": _try(lambda: f"{_scale(raw):.4g} raw units per unit of a prior"),
        "coil maps": "in the file" if raw.coil_maps is not None else "to be estimated",
    }
    if raw.affine is not None:
        size = np.linalg.norm(np.asarray(raw.affine)[:3, :3], axis=0)
        found["voxel"] = " x ".join(f"{length:.3g}" for length in size) + " mm"
    return found | ({"notes": "\n".join(raw.notes)} if raw.notes else {})


def _mask_words(raw: RawScan) -> str:
    """Such as "80 of 320 lines, one mask for all slices"."""
    mask = raw.mask[0, 0]
    unit = "lines" if 1 in mask.shape else "locations"
    shared = "one mask for all slices" if len(raw.mask) == 1 else "a mask for every slice"
    return f"{int(mask.sum())} of {mask.size} {unit}, {shared}"


def _acs_words(raw: RawScan) -> str:
    acs = find_acs(torch.from_numpy(np.ascontiguousarray(raw.mask)), raw.shape)
    if acs is None:
        return "none: the zero frequency is not sampled"
    if raw.phase_encode_axis is None:
        return "{} x {} samples".format(*acs.shape)
    return f"{acs.shape[raw.phase_encode_axis]} lines"


def _noise_words(raw: RawScan) -> str:
    if raw.noise_std is not None:
        return f"{float(np.mean(raw.noise_std)):.4g} per real part, raw units (from the file)"
    from ambient_mri.data.normalize import estimate_noise_std

    def estimate() -> str:
        value, source = estimate_noise_std(raw.kspace, raw.mask, raw.acquired_extent)
        return f"{value:.4g} per real part, raw units ({source})"

    return _try(estimate)


def _scale(raw: RawScan) -> float:
    from ambient_mri.data.normalize import measured_scale

    return measured_scale(raw.kspace, raw.mask)


def _try(words: Any) -> str:
    """``words()``, or why there are none."""
    try:
        return str(words())
    except AmbientMRIError as error:
        return f"unknown: {one_line(error)}"


def _prior_facts(prior: Prior) -> Facts:
    model, card = prior.model, prior.metadata
    uses = {"clean": "any operator, any sampler", "ambient": "undersampled MRI; one_step, dds, split_gibbs"}
    law = card.get("sampling_law") or {}
    found: Facts = {
        "kind": f"{prior.kind}: {uses[prior.kind]}",
        "network": _pairs(prior.architecture.get("network", {})),
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million",
        "noise levels": f"sigma {model.sigma_min:.3g} to {model.sigma_max:.3g}; images have sd {model.sd:.3g}",
        "error curve": "yes" if getattr(model, "error_sigmas", torch.empty(0)).numel() else "no",
        "sampling law": _pairs(law) if law else "not recorded",
        "trained on": _pairs({k: v for k, v in card.get("data", {}).items() if isinstance(v, str | int | float)}),
        "simulated": {True: "yes", False: "no", None: "not recorded"}[card.get("simulated")],
    }
    for name in ("steps", "images_seen", "licence", "created", "git"):
        if card.get(name) not in (None, ""):
            found[name.replace("_", " ")] = card[name]
    return found


def _is_reconstruction(path: Path) -> bool:
    if path.suffix.lower() not in (".h5", ".hdf5") or not path.is_file():
        return False
    from ambient_mri.data.files import open_hdf5

    with open_hdf5(path) as handle:
        return "reconstruction" in handle and "kspace" not in handle


def _reconstruction_facts(path: Path) -> Facts:
    from ambient_mri.data.writers import read_reconstruction

    content = read_reconstruction(path)
    settings = content["settings"]
    found: Facts = {
        "images": " x ".join(map(str, content["reconstruction"].shape)),
        "holds": ", ".join(name for name in content if name != "settings"),
    }
    if "residual" in content:
        found["chi² of the residual"] = f"{float(np.mean(content['residual'])):.2f}"
    wanted = ("source", "prior", "prior_kind", "samples", "seed", "acceleration", "coil_maps", "seconds")
    return found | {name.replace("_", " "): settings[name] for name in wanted if name in settings}


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
