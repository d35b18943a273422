"""Quality over cost of samplers, from result records: a curve for every sampler, a point for every number of steps.

The cost is in network evaluations, a vector-Jacobian product through the network counting as two, or in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from ambient_mri._checks import check_option, require
from ambient_mri.report.plots import PathLike, curve_figure

__all__ = ["COSTS", "GRADIENT_COST", "cost_curves", "cost_figure"]

COSTS = {"evaluations": "network evaluations (a gradient counts as two)", "seconds": "seconds a slice"}
# A backward pass through a network takes about two forward passes.
GRADIENT_COST = 2
_QUALITY = {"psnr": "PSNR (dB)", "ssim": "SSIM", "nrmse": "NRMSE"}


def cost_curves(
    rows: Iterable[Mapping[str, Any]], metric: str, cost: str = "evaluations"
) -> dict[str, tuple[list[float], list[float]]]:
    """Sampler to (costs, mean quality over cases), by rising cost.

    A point stands for one number of steps; only cases that every point of every sampler has enter the means, so that no
    curve is better for having run on easier cases.

    Args:
        rows: Result rows with ``method`` (<prior>/<sampler>/<estimate>), ``steps``, ``nfe``, ``gradients``,
            ``seconds``, ``case``, ``acceleration`` and ``mask``.
        metric: ``"psnr"``, ``"ssim"`` or ``"nrmse"``.
        cost: One of :data:`COSTS`.

    Raises:
        AmbientMRIError: If no case is common to all points, or a name is unknown.
    """
    check_option("metric", metric, _QUALITY)
    check_option("cost", cost, COSTS)
    points: dict[tuple[str, int], dict[tuple[Any, ...], Mapping[str, Any]]] = {}
    for row in rows:
        if row["metric"] == metric and row["value"] is not None:
            case = (row["case"], row["acceleration"], row["mask"])
            points.setdefault((row["method"].split("/")[1], row["steps"]), {})[case] = row
    common = set.intersection(*(set(found) for found in points.values())) if points else set()
    require(bool(common), f"no case was run with every sampler and number of steps: no curve of {metric} can be drawn.")
    curves: dict[str, list[tuple[float, float]]] = {}
    for (sampler, _), found in points.items():
        chosen = [found[case] for case in common]
        spent = fmean(_cost(row, cost) for row in chosen)
        curves.setdefault(sampler, []).append((spent, fmean(float(row["value"]) for row in chosen)))
    return {name: tuple(map(list, zip(*sorted(curve), strict=True))) for name, curve in curves.items()}  # type: ignore[misc]


def cost_figure(rows: Iterable[Mapping[str, Any]], path: PathLike, *, metric: str, cost: str, title: str = "") -> Path:
    """Draw :func:`cost_curves` on a logarithmic axis of the cost; arguments and errors as there."""
    curves = cost_curves(rows, metric, cost)
    return curve_figure(curves, path, xlabel=COSTS[cost], ylabel=_QUALITY[metric], title=title or None, xscale="log")


def _cost(row: Mapping[str, Any], cost: str) -> float:
    if cost == "seconds":
        return float(row["seconds"])
    return row["nfe"] + GRADIENT_COST * row["gradients"]
