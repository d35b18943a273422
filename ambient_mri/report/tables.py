"""Tables of result records, in Markdown for files and with rich for the terminal.

A table is a pivot: ``index`` factors name the rows, the values of one factor (``columns``) the columns, and a cell
holds one or several metrics of one measurement. Two measurements in one cell are an error unless the factor in which
they differ is named in ``average_over``: a table never averages what it was not told to. Every table prints the
definitions of its metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ambient_mri._checks import require
from ambient_mri.report.records import DEFINITIONS, MEASURED

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["format_value", "markdown_table", "rich_table"]

DASH = "–"
_DIGITS = {"psnr": 2, "ssim": 3, "nmse": 4, "nrmse": 3, "coverage90": 3, "variance_ratio": 2, "chi2_residual": 2}
_HIGHER_IS_BETTER = {"psnr", "ssim", "std_error_correlation"}
_LOWER_IS_BETTER = {"nmse", "nrmse", "seconds", "peak_memory_mb", "objective"}
_CALIBRATED = {"coverage90": 0.9, "variance_ratio": 1.0, "chi2_residual": 1.0}
_HEADINGS = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "nmse": "NMSE",
    "nrmse": "NRMSE",
    "coverage90": "coverage 90 %",
    "seconds": "time",
    "peak_memory_mb": "peak memory",
    "acceleration": "R",
    "train_acceleration": "training R",
    "zero_filled": "zero-filled",
    "cg_sense": "CG-SENSE",
    "l1_wavelet": "L1-wavelet",
    "total_variation": "TV",
    "bart_l2": "BART SENSE",
    "bart_l1_wavelet": "BART L1-wavelet",
    "bart_total_variation": "BART TV",
    "ssdu": "SSDU",
    "ssdu_weighted": "weighted SSDU",
    "adps": "A-DPS (published)",
    "one_step": "one step",
}


@dataclass(frozen=True)
class _Pivot:
    """A table before it is drawn: text cells and the (line, column) positions to emphasise."""

    header: list[str]
    num_index: int
    body: list[list[str]]
    best: set[tuple[int, int]]
    metrics: tuple[str, ...]


def format_value(metric: str, value: float | None) -> str:
    """A number with the digits that its metric deserves; a dash where it is undefined.

    PSNR .01 dB, SSIM and NRMSE .001, times in ms, s or min with three significant digits, memory in MiB or GiB.
    """
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if metric == "seconds":
        return _format_seconds(value)
    if metric == "peak_memory_mb":
        return f"{value:.0f} MiB" if value < 1024 else f"{value / 1024:.2f} GiB"
    if metric in _DIGITS:
        return f"{value:.{_DIGITS[metric]}f}"
    return f"{value:.3g}"


def markdown_table(
    rows: Iterable[Mapping[str, Any]],
    *,
    index: Sequence[str] = ("case", "acceleration"),
    columns: str = "method",
    metric: str | Sequence[str] = "psnr",
    average_over: Sequence[str] = (),
    definitions: Mapping[str, str] | None = None,
) -> str:
    """A GitHub-flavoured Markdown table; the best of the methods that a cell competes with is bold, the definitions
    stand below.

    Args:
        rows: Result rows (see :mod:`ambient_mri.report.records`); order decides the order of rows and columns.
        index: Factors that name the rows.
        columns: The factor whose values are the columns; ``"metric"`` gives each of the metrics a column of its own.
        metric: One metric, or several: "33.26 (0.911)" in each cell.
        average_over: Factors that may vary inside a cell ("mask", "seed"); the cell is then the mean, and the notes say
            so.
        definitions: Overrides the standard definitions, normally the result file's.

    Raises:
        AmbientMRIError: If no row matches, a factor is missing, or measurements share a cell unannounced.
    """
    pivot = _pivot(rows, index, columns, metric, average_over)
    cells = [
        [f"**{cell}**" if (i, j) in pivot.best else cell for j, cell in enumerate(line)]
        for i, line in enumerate(pivot.body)
    ]
    notes = _notes(pivot.metrics, columns, average_over, definitions)
    rule = ["---"] * pivot.num_index + ["---:"] * (len(pivot.header) - pivot.num_index)
    lines = ["| " + " | ".join(_escape(cell) for cell in line) + " |" for line in (pivot.header, rule, *cells)]
    return "\n".join([*lines, "", *(f"- {_escape(note)}" for note in notes)]) + "\n"


def rich_table(
    rows: Iterable[Mapping[str, Any]],
    *,
    index: Sequence[str] = ("method",),
    columns: str = "metric",
    metric: str | Sequence[str] = ("psnr", "ssim", "nrmse", "seconds"),
    average_over: Sequence[str] = (),
    definitions: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Table:
    """The same table for the terminal, definitions as its caption; arguments and errors as :func:`markdown_table`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    pivot = _pivot(rows, index, columns, metric, average_over)
    notes = _notes(pivot.metrics, columns, average_over, definitions)
    table = Table(title=title, caption=Text("\n".join(notes), style="dim"), caption_justify="left", box=SIMPLE_HEAD)
    for i, heading in enumerate(pivot.header):
        table.add_column(Text(heading), justify="left" if i < pivot.num_index else "right")
    for i, line in enumerate(pivot.body):
        table.add_row(*(Text(cell, style="bold" if (i, j) in pivot.best else "") for j, cell in enumerate(line)))
    return table


def _pivot(
    rows: Iterable[Mapping[str, Any]],
    index: Sequence[str],
    columns: str,
    metric: str | Sequence[str],
    average_over: Sequence[str],
) -> _Pivot:
    wanted = (metric,) if isinstance(metric, str) else tuple(metric)
    chosen = [row for row in rows if row.get("metric") in wanted]
    require(bool(chosen), f"no result row holds the metric {' or '.join(wanted)}.")
    metrics = tuple(m for m in wanted if any(row["metric"] == m for row in chosen))
    factors = [name for name in (*index, columns) if all(name not in row for row in chosen)]
    require(not factors, f"the result rows have no factor {', '.join(factors)}: {dict(chosen[0])!r} is one of them.")
    lines = _unique(tuple(row.get(name) for name in index) for row in chosen)
    by_metric = columns == "metric"
    heads = list(metrics) if by_metric else _unique(row.get(columns) for row in chosen)
    grid: list[list[dict[str, float | None]]] = []
    for line in lines:
        mine = [row for row in chosen if tuple(row.get(name) for name in index) == line]
        slots = [[row for row in mine if row.get(columns) == head] for head in heads]
        known = {*index, columns, *average_over}
        grid.append([{m: _mean([r for r in slot if r["metric"] == m], known) for m in metrics} for slot in slots])
    shown = [(head,) if by_metric else metrics for head in heads]
    body = [
        [_label(part) for part in line] + [_cell(cell, names) for cell, names in zip(cells, shown, strict=True)]
        for line, cells in zip(lines, grid, strict=True)
    ]
    leaders = [[cell[names[0]] for cell, names in zip(cells, shown, strict=True)] for cells in grid]
    best = _best_cells(leaders, [names[0] for names in shown], _rivals(lines, index, columns, len(heads)))
    bare = columns in ("method", "metric")
    header = [_label(name) for name in index] + [
        _label(h) if bare else f"{_label(columns)} = {_label(h)}" for h in heads
    ]
    return _Pivot(header, len(index), body, {(i, len(index) + j) for i, j in best}, metrics)


def _mean(cell: Sequence[Mapping[str, Any]], known: set[str]) -> float | None:
    """The one value of a cell, or the mean where only ``known`` factors vary; None where any of them is undefined."""
    names = {name for row in cell for name in row} - MEASURED - known - {"metric"}
    varying = sorted(name for name in names if len({repr(row.get(name)) for row in cell}) > 1)
    require(
        not varying,
        f"{len(cell)} rows share one cell of the table and differ in {', '.join(varying)}: select one of them, "
        "make it a row or a column, or name it in average_over.",
    )
    values = [row["value"] for row in cell]
    return sum(values) / len(values) if values and None not in values else None


def _rivals(
    lines: Sequence[tuple[Any, ...]], index: Sequence[str], columns: str, width: int
) -> list[list[tuple[int, int]]]:
    """Groups of cells that differ in the method and in nothing else: they compete for the emphasis."""
    if columns == "method":
        return [[(i, j) for j in range(width)] for i in range(len(lines))]
    if "method" not in index:
        return []
    where = list(index).index("method")
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, line in enumerate(lines):
        groups.setdefault(line[:where] + line[where + 1 :], []).append(i)
    return [[(i, j) for i in members] for members in groups.values() for j in range(width)]


def _best_cells(
    values: Sequence[Sequence[float | None]], metrics: Sequence[str], rivals: Sequence[Sequence[tuple[int, int]]]
) -> set[tuple[int, int]]:
    """The best of every group, ties as printed included; none where a metric has no direction or a value no rival."""
    best: set[tuple[int, int]] = set()
    for group in rivals:
        scores = {(i, j): _badness(metrics[j], values[i][j]) for i, j in group}
        valid = {cell: score for cell, score in scores.items() if score is not None}
        if len(valid) > 1:
            winner = min(valid, key=valid.__getitem__)
            printed = format_value(metrics[winner[1]], values[winner[0]][winner[1]])
            best |= {(i, j) for i, j in valid if format_value(metrics[j], values[i][j]) == printed}
    return best


def _badness(metric: str, value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    if metric in _HIGHER_IS_BETTER:
        return -value
    if metric in _CALIBRATED:
        return abs(value - _CALIBRATED[metric])
    return value if metric in _LOWER_IS_BETTER else None


def _cell(values: Mapping[str, float | None], metrics: Sequence[str]) -> str:
    """ "33.26 (0.911, 0.12)": the first metric, the others in brackets."""
    first, *others = (format_value(metric, values[metric]) for metric in metrics)
    if not others or all(text == DASH for text in (first, *others)):
        return first
    return f"{first} ({', '.join(others)})"


def _notes(
    metrics: Sequence[str], columns: str, average_over: Sequence[str], definitions: Mapping[str, str] | None
) -> list[str]:
    known = {**DEFINITIONS, **(definitions or {})}
    first, *others = (_label(name) for name in metrics)
    notes = [f"Cells: {first} ({', '.join(others)})."] if others and columns != "metric" else []
    notes += [known[name] for name in metrics]
    return [*notes, f"Mean over {' and '.join(average_over)}."] if average_over else notes


def _format_seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    if value < 100:
        return f"{value:.3g} s"
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.1f} min"


def _label(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else _HEADINGS.get(value, str(value))


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
