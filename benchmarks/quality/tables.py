"""Tables and curves of the record of ``reconstruct.py``.

A cell is a mean over masks (and scans, where the table says so). A method that lacks a case of a cell is left out of
that cell: no mean is better for having run on easier cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from ambient_mri.report.plots import curve_figure
from ambient_mri.report.records import ResultFile, Row
from ambient_mri.report.tables import markdown_table
from benchmarks.quality.cases import PUBLISHED

__all__ = [
    "complete",
    "curves_over_acceleration",
    "full_tables",
    "heads_table",
    "markdown_lines",
    "native_table",
    "standard_table",
    "summary_table",
]

_NOT_HEADS = "phantom_4ch"
_NOTHING = "No result yet.\n"
_AVERAGED = ("mask", "masks", "regularisation")


def standard_table(result: ResultFile) -> str:
    """PSNR and SSIM of every method on every scan, with the masks of ``masks_128.npz`` alone; phantoms have others."""
    random = [row for row in _whole(result.rows) if row.get("law", "random") == "random"]
    published = [row for row in random if row.get("masks", PUBLISHED) == PUBLISHED]
    kept, lost = complete([r for r in published or random if r["metric"] in ("psnr", "ssim")], ("case", "acceleration"))
    if not kept:
        return _NOTHING
    text = markdown_table(
        kept,
        index=("case", "acceleration"),
        metric=("psnr", "ssim"),
        average_over=("mask", "regularisation"),
        definitions=result.definitions,
    )
    return text + _left_out(lost)


def summary_table(result: ResultFile) -> str:
    """The standard table on the heads alone, without single samples and DDS."""
    left_out = ("/sample", "/dds/point")
    rows = [r for r in result.rows if not r["method"].endswith(left_out) and r["case"] != _NOT_HEADS]
    return standard_table(replace(result, rows=rows))


def heads_table(result: ResultFile) -> str:
    """PSNR and SSIM for every law and R, the mean over heads and masks."""
    heads = [row for row in _whole(result.rows) if row["case"] != _NOT_HEADS]
    options = {"metric": ("psnr", "ssim"), "definitions": result.definitions}
    return _table(heads, ("law", "acceleration"), ("case", *_AVERAGED), **options)


def native_table(result: ResultFile) -> str:
    """PSNR and SSIM for every scan, law and R, of one mask each; single samples left out."""
    rows = [row for row in _whole(result.rows) if not row["method"].endswith("/sample")]
    options = {"metric": ("psnr", "ssim"), "definitions": result.definitions}
    return _table(rows, ("case", "law", "acceleration"), (), **options)


def full_tables(result: ResultFile) -> str:
    """All that the record holds: published masks, both laws, inside and outside the object, uncertainty, seconds."""
    heads = [row for row in result.rows if row["case"] != _NOT_HEADS]
    by_rate = ("law", "acceleration")
    over = ("case", *_AVERAGED)
    quality = {"metric": ("psnr", "ssim"), "definitions": result.definitions}
    parts = {
        "The masks of `masks_128.npz`": standard_table(result),
        "Heads, all masks": heads_table(result),
        "Every scan, all masks": _table(_whole(result.rows), ("case", *by_rate), _AVERAGED, **quality),
    }
    regional = [row for row in heads if row.get("region") in ("inside", "outside")]
    measured = {row["metric"] for row in regional}
    if regional:
        text = _table(regional, ("region", *by_rate), over, metric=("psnr", "nrmse"), definitions=result.definitions)
        parts["Heads, inside and outside the object"] = f"Object: {result.settings.get('support')}.\n\n{text}"
    if "coverage90" in measured:
        honest = [row for row in regional if row["metric"] in ("coverage90", "variance_ratio")]
        options = {"metric": ("coverage90", "variance_ratio"), "definitions": result.definitions}
        parts["Heads, uncertainty inside the object"] = _table(honest, by_rate, over, **options)
    parts["Seconds a slice"] = _seconds(result.rows)
    return "\n".join(f"## {heading}\n\n{text}" for heading, text in {_title(result): _remarks(result), **parts}.items())


def curves_over_acceleration(result: ResultFile, path: Path) -> Path | None:
    """PSNR over R on the heads, random lines, for the methods that ran on all of them; None where R does not vary."""
    rows = [r for r in _whole(result.rows) if r["metric"] == "psnr" and r.get("law", "random") == "random"]
    kept, _ = complete([r for r in rows if r["case"] != _NOT_HEADS], ("acceleration",))
    curves: dict[str, tuple[list[float], list[float]]] = {}
    rates = sorted({row["acceleration"] for row in kept})
    for method in dict.fromkeys(row["method"] for row in kept):
        mine = [row for row in kept if row["method"] == method]
        if _is_drawn(method, kept) and {row["acceleration"] for row in mine} == set(rates):
            values = [fmean(float(row["value"]) for row in mine if row["acceleration"] == rate) for rate in rates]
            curves[method.replace("_", " ")] = ([float(rate) for rate in rates], values)
    if len(rates) < 2 or not curves:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    return curve_figure(curves, path, xlabel="R (random lines)", ylabel="PSNR (dB), mean of all")


def markdown_lines(header: Sequence[str], lines: Iterable[Sequence[str]], num_text: int) -> str:
    """A Markdown table of cells as they are; the first ``num_text`` columns are text, the others numbers."""
    rule = ["---"] * num_text + ["---:"] * (len(header) - num_text)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines)) + "\n"


def complete(rows: Iterable[Row], index: Sequence[str]) -> tuple[list[Row], set[str]]:
    """The rows of methods that ran on every case of their table line, and the methods that lost rows.

    Args:
        rows: Result rows.
        index: Factors that name a line of the table.
    """
    lines: dict[tuple[object, ...], dict[str, dict[tuple[object, ...], list[Row]]]] = {}
    for row in rows:
        line = tuple(row.get(name) for name in index)
        case = (row["case"], row["acceleration"], row.get("law"), row["mask"])
        lines.setdefault(line, {}).setdefault(row["method"], {}).setdefault(case, []).append(row)
    kept: list[Row] = []
    lost: set[str] = set()
    for methods in lines.values():
        everything = {case for found in methods.values() for case in found}
        for method, found in methods.items():
            if set(found) == everything:
                kept += [row for rows_of_case in found.values() for row in rows_of_case]
            else:
                lost.add(method)
    return kept, lost


def _table(rows: Sequence[Row], index: Sequence[str], over: Sequence[str], **options: object) -> str:
    wanted: Sequence[str] = options["metric"]  # type: ignore[assignment]
    kept, lost = complete([row for row in rows if row["metric"] in wanted], index)
    if not kept:
        return _NOTHING
    order = {name: i for i, name in enumerate(dict.fromkeys(row["method"] for row in rows))}
    line = lambda row: tuple(str(row.get(name)).rjust(3) for name in index)  # noqa: E731
    kept = sorted(kept, key=lambda row: (line(row), order[row["method"]]))
    text = markdown_table(kept, index=index, average_over=over, **options)  # type: ignore[arg-type]
    return text + _left_out(lost)


def _left_out(methods: Iterable[str]) -> str:
    names = ", ".join(sorted(methods))
    return f"- Not on all masks, and left out where not: {names}.\n" if names else ""


def _seconds(rows: Iterable[Row]) -> str:
    spent = [{**row, "metric": "seconds", "value": row["seconds"]} for row in _whole(rows) if row["metric"] == "psnr"]
    over = ("case", "acceleration", "law", "nfe", *_AVERAGED)
    return markdown_table(spent, index=("method",), columns="metric", metric=("seconds",), average_over=over)


def _whole(rows: Iterable[Row]) -> list[Row]:
    """The rows that score whole images."""
    return [row for row in rows if row.get("region") is None]


def _is_drawn(method: str, rows: Sequence[Mapping[str, object]]) -> bool:
    """Whether a method gets a curve: one of each kind."""
    present = {str(row["method"]) for row in rows}
    second = {"l1_wavelet": "bart_l1_wavelet", "total_variation": "bart_total_variation"}
    return not (method.endswith("/sample") or "/dds/" in method or second.get(method) in present)


def _title(result: ResultFile) -> str:
    return f"Reconstructions: {result.settings.get('data')}"


def _remarks(result: ResultFile) -> str:
    kept = "; ".join(f"{k}: {v}" for k, v in result.settings.items() if isinstance(v, str | int) and k != "data")
    tuned = result.settings.get("adps", {})
    lines = [
        f"Settings: {kept}.",
        "Equispaced: every R-th line, and the calibration lines on top: sampled more than 1 / R.",
    ]
    lines += [
        f"A-DPS, {name}: l = {t['likelihood_weight']:g}, tuned on {', '.join(t['tuned_on'])} (simulated)."
        for name, t in tuned.items()
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"
