"""Quality of the trained priors: held-out simulated subjects, the real heads, and a sheet to look at.

Simulated: PSNR and SSIM of the magnitude in scaled units, each subject's slices a volume; the true coil maps, as in
training. Real: ``benchmarks/quality/reconstruct.py`` as it is, maps from the ACS of each mask.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from resident import ResidentImages, ResidentScans, load_images, load_scans
from torch import Tensor

from ambient_mri import metrics
from ambient_mri.baselines import default_lambda
from ambient_mri.measurement import Measurement
from ambient_mri.operators import LinearOperator, sense, solve_regularized
from ambient_mri.prior import Prior, load_prior
from ambient_mri.report.plots import sample_sheet
from ambient_mri.report.records import append_records, ci95_of_mean, read_records
from ambient_mri.report.tables import markdown_table
from ambient_mri.sampling import make_sampler
from ambient_mri.tensors import keyed_generator
from ambient_mri.training.em import reconstruct_rows

__all__ = ["evaluate", "find_priors", "real_heads", "sheet"]

log = logging.getLogger(__name__)

BENCHMARK = "gpu_quality"
DEFINITIONS = {"seconds": "Wall-clock seconds of one slice, all together; the first call of a network is counted."}
# Rows, (slice, sample) pairs, that a sampler works on at a time.
ROWS = {"cpu": 32, "cuda": 512}

Method = Callable[[Measurement], Tensor]


def find_priors(state: Path, device: torch.device) -> dict[str, Prior]:
    """The priors of finished stages: "ambient", the newest "em", "supervised"; of an unfinished stage what there is."""
    folders = {p.parent.parent.name: p.parent for p in (state / "stages").glob("*/prior/prior.json")}
    rounds = sorted(
        (n for n in folders if n.startswith("em") and (folders[n].parent / "done.json").is_file()), key=_number
    )
    rounds = rounds or sorted((n for n in folders if n.startswith("em")), key=_number)
    wanted = {"ambient": "ambient", "em": rounds[-1] if rounds else "", "supervised": "supervised"}
    return {k: load_prior(folders[n], device=device) for k, n in wanted.items() if n in folders}


def _number(name: str) -> int:
    return int(name.removeprefix("em") or 0)


def methods(priors: dict[str, Prior], *, samples: int, steps: int, seed: int = 0) -> dict[str, Method]:
    """Every reconstruction method by its record name; each gives (slices, estimates, H, W) complex."""
    found: dict[str, Method] = {"zero_filled": _zero_filled, "cg_sense": _cg_sense}
    if "ambient" in priors:
        sampler = make_sampler("one_step")
        found["ambient/one_step/point"] = lambda m: reconstruct_rows(priors["ambient"], m, sampler, seed)
    for name in ("em", "supervised"):
        if name in priors:
            found[f"{name}/dds/point"] = _posterior(priors[name], "dds", 1, steps, seed)
            found[f"{name}/split_gibbs/mean{samples}"] = _posterior(priors[name], "split_gibbs", samples, steps, seed)
    return found


def evaluate(
    state: Path,
    accelerations: Sequence[int],
    device: torch.device,
    *,
    samples: int = 8,
    steps: int = 50,
    settings: dict[str, Any] | None = None,
    deadline: float = math.inf,
) -> bool:
    """Reconstruct the held-out subjects and append result records; what the file holds already is not computed again.

    Returns:
        Whether everything was done in time.
    """
    path = state / "records" / f"{BENCHMARK}.json"
    priors = find_priors(state, device)
    present = read_records(path).rows if path.is_file() else []
    for acceleration in accelerations:
        folder = state / "data" / f"val_R{acceleration}"
        scans = load_scans(folder, device)
        references = load_images(folder, device)
        for name, method in methods(priors, samples=samples, steps=steps).items():
            made_by = _trained(priors, name)
            factors = {"case": "held_out_simulated", "acceleration": acceleration, "device": device.type, **made_by}
            if any(
                r["method"].split("/mean")[0] == name.split("/mean")[0] and factors.items() <= r.items()
                for r in present
            ):
                continue
            if time.monotonic() > deadline:
                return False
            rows = _rows(name, method, scans, references, factors)
            path.parent.mkdir(parents=True, exist_ok=True)
            command = "python benchmarks/gpu/run.py evaluate"
            append_records(path, BENCHMARK, command, settings or {}, definitions=DEFINITIONS, rows=rows)
    return True


def table(state: Path) -> str:
    """The records as a Markdown table."""
    path = state / "records" / f"{BENCHMARK}.json"
    if not path.is_file():
        return ""
    result = read_records(path)
    rows = _newest([r for r in result.rows if r["metric"] in ("psnr", "ssim")])
    text = markdown_table(rows, index=("acceleration",), metric=("psnr", "ssim"), definitions=result.definitions)
    path.with_suffix(".md").write_text(text + "\n")
    return text


def _newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of every method under the prior that stood behind its name last, without that prior."""
    stands = {(r["method"], r["acceleration"]): (r.get("stage"), r.get("train_steps")) for r in rows}
    kept = [r for r in rows if stands[r["method"], r["acceleration"]] == (r.get("stage"), r.get("train_steps"))]
    return [{k: v for k, v in r.items() if k not in ("stage", "train_steps")} for r in kept]


def _trained(priors: dict[str, Prior], method: str) -> dict[str, Any]:
    """How far the prior behind a method was trained; empty for baselines."""
    prior = priors.get(method.split("/")[0])
    return {} if prior is None else {"stage": prior.name, "train_steps": int(prior.metadata.get("steps", 0))}


def _rows(
    name: str, method: Method, scans: ResidentScans, references: ResidentImages, factors: dict[str, Any]
) -> list[dict[str, Any]]:
    """Mean over subjects of PSNR and SSIM; of a sampler also of its first sample."""
    start = time.perf_counter()
    images = method(scans.batch(range(len(scans)))).cpu()
    seconds = (time.perf_counter() - start) / len(scans)
    estimates = {name: images.mean(dim=1).abs()}
    if images.shape[1] > 1:
        estimates[f"{name.rsplit('/', 1)[0]}/sample"] = images[:, 0].abs()
    truth = references.images[:, 0].abs().cpu()
    subjects: dict[str, list[int]] = {}
    for i, key in enumerate(scans.key):
        subjects.setdefault(key.rsplit("/", 1)[0], []).append(i)
    found = []
    for label, estimate in estimates.items():
        for metric in ("psnr", "ssim"):
            function = getattr(metrics, metric)
            values = [function(truth[i].numpy(), estimate[i].numpy()) for i in subjects.values()]
            found.append(
                {
                    **factors,
                    "method": label,
                    "metric": metric,
                    "value": statistics.fmean(values),
                    "n": len(values),
                    "ci95": ci95_of_mean(values),
                    "seconds": seconds / (images.shape[1] if label != name else 1),
                }
            )
    return found


def _operator(m: Measurement) -> LinearOperator:
    return sense(m.coil_maps, m.mask, axes=m.axes)  # type: ignore[arg-type]


def _zero_filled(m: Measurement) -> Tensor:
    return _operator(m).adjoint(m.y)


def _cg_sense(m: Measurement) -> Tensor:
    """Pruessmann's SENSE with the weight of :func:`default_lambda`, by the package's own conjugate gradients."""
    operator = _operator(m)
    data = operator.adjoint(m.y)
    peaks = data.abs().amax(dim=(1, 2, 3)).tolist()
    levels = m.noise_std.tolist()
    weights = [default_lambda("cg_sense", level, peak) for level, peak in zip(levels, peaks, strict=True)]
    return solve_regularized(operator, data, torch.tensor(weights, device=data.device), max_iterations=100).x


def _posterior(prior: Prior, sampler: str, samples: int, steps: int, seed: int) -> Method:
    """(slices, samples, H, W) posterior samples, a limited number of rows at a time."""

    def reconstruct(m: Measurement) -> Tensor:
        chosen, device = make_sampler(sampler, steps=steps), m.y.device
        slices = max(1, ROWS[device.type] // samples)
        parts = []
        for start in range(0, len(m), slices):
            part = m[start : start + slices]
            operator = _operator(part)
            streams = [
                keyed_generator(seed, "evaluate", key, k, device=device) for key in part.key for k in range(samples)
            ]
            model: Any = prior.model
            drawn = chosen.sample(model, operator, part.y, part.noise_std, generators=streams).x
            parts.append(drawn.reshape(len(part), samples, *drawn.shape[-2:]).cpu())
        return torch.cat(parts)

    return reconstruct


def sheet(state: Path, accelerations: Sequence[int], device: torch.device, *, steps: int = 50, count: int = 3) -> Path:
    """``sheet.png``: held-out slices, reference and every method side by side."""
    priors = find_priors(state, device)
    pictures: list[Tensor] = []
    names: list[str] = []
    columns = 1
    for acceleration in accelerations:
        folder = state / "data" / f"val_R{acceleration}"
        scans = load_scans(folder, device)
        references = load_images(folder, device)
        items = [int((i + 0.5) * len(scans) / count) for i in range(min(count, len(scans)))]
        m = scans.batch(items)
        found = {"reference": references.batch(items).images}
        found |= {k: f(m) for k, f in methods(priors, samples=4, steps=steps).items() if "/dds/" not in k}
        columns = len(found)
        for row in range(len(items)):
            pictures += [images[row].mean(dim=0).abs().cpu() for images in found.values()]
            names += [f"R={acceleration} {name}" for name in found]
    return sample_sheet(
        pictures, state / "sheet.png", names=names, num_columns=columns, title="Held-out subjects, simulated k-space"
    )


def real_heads(state: Path, data: Path, *, samples: int = 8, seconds: float = 120.0) -> bool:
    """``benchmarks/quality/reconstruct.py`` on the real scans in ``data``, in a process of its own.

    Returns:
        Whether it came to its end; records of finished cases are kept either way.

    Raises:
        RuntimeError: With what it said, if it fails.
    """
    script = Path(__file__).resolve().parents[1] / "quality" / "reconstruct.py"
    if not (data / "multicoil_val_128").is_dir() or not script.is_file():
        log.info("no real scans in %s: left out", data)
        return True
    folders = _finished(state)
    command = [sys.executable, str(script), "--name", "gpu_heads", "--out", str(state / "records")]
    baselines = ["cg_sense"] if find_spec("sigpy") and find_spec("pywt") else []
    command += ["--samples", str(samples), "--baselines", *baselines, "--figures", str(state / "figures")]
    command += ["--ambient", str(folders["ambient"])] if "ambient" in folders else []
    command += [a for n, folder in folders.items() if n != "ambient" for a in ("--clean", f"{n}={folder}")]
    (state / "records").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "AMBIENT_MRI_DATA": str(data), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        log.warning("real heads: out of time after %.0f s", seconds)
        return False
    if done.returncode != 0:
        raise RuntimeError(f"{script.name} failed: {done.stderr[-3000:]}")
    log.info("%s", done.stdout[-3000:])
    return True


def _finished(state: Path) -> dict[str, Path]:
    """The prior folders of finished stages by stage, of EM the newest: weights that do not change any more."""
    done = {p.parent.name: p.parent / "prior" for p in sorted((state / "stages").glob("*/done.json"))}
    rounds = sorted((n for n in done if n.startswith("em")), key=_number)
    return {n: done[n] for n in ("ambient", *rounds[-1:], "supervised") if n in done}
