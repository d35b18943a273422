"""What ``priors.py`` makes of its records: tables, differences case by case, and figures."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prior_evaluation import mean_row
from priors_plan import Run

from ambient_mri._files import write_atomically
from ambient_mri.denoiser import Denoiser
from ambient_mri.prior import load_prior
from ambient_mri.report.plots import curve_figure, reconstruction_figure
from ambient_mri.report.records import Row, read_records
from ambient_mri.report.tables import markdown_table

__all__ = ["differences", "figures", "save_pictures", "tables"]

# Objectives of the table of training R x inference R, and what they are sampled with.
MATRIX = {"em": "split_gibbs/mean", "ambient_published": "adps/mean", "supervised": "split_gibbs/mean"}
# What EM is compared with, case by case.
RIVALS = (
    "supervised",
    "em_mean",
    "ambient",
    "ambient_published",
    "ssdu_weighted",
    "ssdu",
    "wavelet_edm",
    "wavelet_em",
    "l1_wavelet",
)


# Where a method stands in the tables, by the first part of its name.
_ORDER = (
    *("zero_filled", "cg_sense", "l1_wavelet", "ambient", "ambient_noise_blind", "em", "em_mean", "supervised"),
    *("ambient_published", "ssdu_weighted", "ssdu", "wavelet_edm", "wavelet_em"),
)


def tables(path: Path) -> str:
    """The records as Markdown: reconstruction by training R, EM beside the others, training R x inference R,
    unconditional samples.
    """
    rows = sorted(read_records(path).rows, key=lambda row: row.get("train_acceleration") or 0)
    seen = [r for r in rows if r["case"] == "training"]
    free = [r for r in rows if r["case"] == "unconditional"]
    rows = sorted(rows, key=lambda row: _ORDER.index(row["method"].split("/")[0]))
    parts = []
    for level in sorted({row["noise_std"] for row in rows}):
        held = [r for r in rows if r["case"] == "held_out" and r["noise_std"] == level]
        for trained in sorted({r["train_acceleration"] for r in held if "train_acceleration" in r}):
            named = [_without(r, "train_acceleration") for r in held if r.get("train_acceleration") in (None, trained)]
            parts.append(f"### Trained at R = {trained}, noise_std {level:g}\n")
            parts.append(markdown_table(named, index=("method",), columns="acceleration", metric=("psnr", "ssim")))
            covered = [r for r in named if r["metric"] == "coverage90"]
            if covered:
                parts.append(markdown_table(covered, index=("method",), columns="acceleration", metric="coverage90"))
            apart = differences(named)
            if apart:
                parts.append("PSNR of EM (mean) less that of the best method of each objective, case by case:\n")
                parts.append(_difference_table(apart))
        matrix = _matrix(held)
        if matrix:
            parts.append(f"### Training R x inference R, noise_std {level:g}\n")
            index = ("method", "train_acceleration")
            parts.append(markdown_table(matrix, index=index, columns="acceleration", metric=("psnr", "ssim")))
    parts.append("### Training images of every chain (columns: R of the training scans)\n")
    index = ("method", "noise_std")
    parts.append(markdown_table(seen, index=index, columns="train_acceleration", metric="training_images"))
    if free:
        parts.append("### Unconditional samples\n")
        parts.append(markdown_table(free, index=index, columns="train_acceleration", metric="frechet"))
    return "\n\n".join(parts) + "\n"


def differences(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """PSNR of EM's mean less that of the best method of each of :data:`RIVALS`, over the same slices.

    Args:
        rows: Held-out rows of one training R and noise level.

    Returns:
        Dictionaries of ``rival`` (the method), ``acceleration``, and the entries of a mean: ``value``, ``ci95``, ``n``.
    """
    psnr = [r for r in rows if r["metric"] == "psnr" and "values" in r and not r["method"].endswith("/sample")]
    found = []
    for acceleration in sorted({r["acceleration"] for r in psnr}):
        here = {r["method"]: r for r in psnr if r["acceleration"] == acceleration}
        ours = next((r for name, r in here.items() if name.startswith("em/split_gibbs/")), None)
        for rival in RIVALS if ours else ():
            best = max((r for name, r in here.items() if name.split("/")[0] == rival), key=_value, default=None)
            if best is not None and ours is not None:
                apart = [a - b for a, b in zip(ours["values"], best["values"], strict=True)]
                found.append({"rival": best["method"], "acceleration": acceleration, **mean_row(apart)})
    return found


def _difference_table(apart: list[dict[str, Any]]) -> str:
    """Rows: rivals; columns: R; cells: mean +- half width of the 95 % interval. The best method may change with R."""
    rates = sorted({d["acceleration"] for d in apart})
    cells: dict[str, dict[int, str]] = {}
    for d in apart:
        spread = "" if d["ci95"] is None else f" ± {d['ci95']:.2f}"
        text = f"{d['value']:+.2f}{spread}"
        cells.setdefault(d["rival"].split("/")[0], {})[d["acceleration"]] = f"{text} ({_sampler(d['rival'])})"
    head = ["EM less", *(f"R = {rate}" for rate in rates)]
    lines = [head, ["---", *("---:" for _ in rates)]]
    lines += [[rival, *(row.get(rate, "–") for rate in rates)] for rival, row in cells.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _matrix(rows: list[Row]) -> list[Row]:
    """Rows of the objectives that were trained at every R; supervised training saw no mask."""
    found = []
    for objective, sampler in MATRIX.items():
        these = [r for r in rows if r["method"].startswith(f"{objective}/{sampler}")]
        if objective == "supervised":
            these = [{**r, "train_acceleration": None} for r in these]
        found += these
    return found if len({r["train_acceleration"] for r in found} - {None}) > 1 else []


def figures(path: Path, runs: list[Run], out: Path) -> None:
    """PSNR over acceleration of every objective's best method there, reconstructions, and the denoising-error curves of
    the clean priors.
    """
    rows = [r for r in read_records(path).rows if r["metric"] == "psnr" and r["noise_std"] == 0.01]
    curves: dict[str, list[tuple[float, float]]] = {}
    for acceleration in sorted({row["acceleration"] for row in rows}):
        for objective, row in _best_methods(rows, acceleration).items():
            curves.setdefault(objective, []).append((acceleration, row["value"]))
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    if curves:
        lines = {name: tuple(zip(*sorted(points), strict=True)) for name, points in curves.items()}
        title = "Held-out simulated scans, trained at R = 4"
        curve_figure(lines, folder / "psnr.png", xlabel="acceleration R", ylabel="PSNR (dB)", title=title)
    for acceleration in sorted({row["acceleration"] for row in rows}):
        _reconstructions(out, acceleration, _best_methods(rows, acceleration))
    errors = {}
    for run in runs:
        model = load_prior(out / "runs" / run.name / "prior").model
        if isinstance(model, Denoiser) and model.error_sigmas.numel():
            errors[run.name] = ((model.error_sigmas / model.sd).tolist(), (model.error_values / model.sd).tolist())
    if errors:
        curve_figure(
            errors,
            folder / "error_curves.png",
            xlabel="sigma / sd",
            ylabel="denoising error / sd",
            xscale="log",
            yscale="log",
        )


def _best_methods(rows: list[Row], acceleration: int) -> dict[str, Row]:
    """The best method of every objective trained at R = 4, and every baseline, by name."""
    best: dict[str, Row] = {}
    for row in rows:
        if row["acceleration"] == acceleration and row.get("train_acceleration", 4) == 4:
            objective = row["method"].split("/")[0]
            if not row["method"].endswith("/sample") and _value(row) >= _value(best.get(objective, row)):
                best[objective] = row
    return best


def _reconstructions(out: Path, acceleration: int, chosen: dict[str, Row]) -> None:
    """A figure of each slice that was kept, all objectives side by side."""
    pictures = {name: _picture(out, row["method"], row) for name, row in chosen.items()}
    truth = _picture(out, "reference", {"acceleration": acceleration, "noise_std": 0.01})
    for number in range(0 if truth is None else len(truth)):
        panels = {name: images[number] for name, images in pictures.items() if images is not None}
        if truth is not None and panels:
            path = out / "figures" / f"reconstructions_R{acceleration}_{number}.png"
            reconstruction_figure(panels, path, reference=truth[number], acceleration=acceleration)


def save_pictures(out: Path, method: str, factors: dict[str, Any], images: torch.Tensor) -> None:
    """Keep magnitudes (n, H, W) of a method for :func:`figures`."""
    content = io.BytesIO()
    np.save(content, images.numpy())
    path = _picture_path(out, method, factors)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def _picture(out: Path, method: str, factors: dict[str, Any]) -> np.ndarray | None:
    path = _picture_path(out, method, factors)
    return np.load(path) if path.is_file() else None


def _picture_path(out: Path, method: str, factors: dict[str, Any]) -> Path:
    trained = factors.get("train_acceleration") or "any"
    place = f"R{factors['acceleration']}_n{factors['noise_std']:g}_trained_{trained}"
    return out / "pictures" / place / f"{method.replace('/', '-')}.npy"


def _sampler(method: str) -> str:
    return " ".join(method.split("/")[1:]) or "its one output"


def _value(row: Row) -> float:
    return float(row["value"])


def _without(row: Row, name: str) -> Row:
    return {k: v for k, v in row.items() if k != name}
