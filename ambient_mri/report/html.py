"""A reconstruction's report as one HTML file: no server, no script, nothing loaded from elsewhere.

Pictures are embedded as base64 PNG. All text is escaped. The page prints well and follows the reader's light or dark
setting.
"""

from __future__ import annotations

import base64
import html
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ambient_mri._checks import DataError, require
from ambient_mri._files import write_atomically
from ambient_mri.report.records import DEFINITIONS
from ambient_mri.report.tables import format_value

__all__ = ["Section", "reconstruction_sections", "write_html"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --faint: #666; --line: #ddd; --paper: #fff;
  --warn: #b45309; --warn-bg: #fef3c7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --faint: #a0a0a0; --line: #3a3a3a; --paper: #161616; --warn: #fbbf24; --warn-bg: #3a2a08; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; background: #fff; }
figcaption, .note { color: var(--faint); font-size: .85rem; }
.warning { border-left: 4px solid var(--warn); background: var(--warn-bg); padding: .5rem .8rem; margin: .5rem 0; }
@media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """One section of a page; whatever is empty is left out.

    Attributes:
        title: Heading.
        text: Paragraphs, separated by an empty line.
        table: Name to value; numbers are printed with four significant digits.
        images: (PNG file or its bytes, caption) pairs.
        warnings: Lines that the reader must not miss.
        notes: Small print under the section, such as definitions.
    """

    title: str
    text: str = ""
    table: Mapping[str, Any] | None = None
    images: Sequence[tuple[str | os.PathLike[str] | bytes, str]] = ()
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()


def write_html(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> Path:
    """Write a self-contained page, atomically.

    Args:
        path: Destination.
        title: Title and first heading.
        sections: Contents in order.

    Returns:
        ``path``.

    Raises:
        DataError: If a picture is missing or is not a PNG.
    """
    body = "\n".join(_section(section) for section in sections)
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
    return write_atomically(path, page.encode())


def reconstruction_sections(
    figure: str | os.PathLike[str] | bytes,
    settings: Mapping[str, Any],
    *,
    metrics: Mapping[str, float | None] | None = None,
    residual: float | None = None,
    warnings: Sequence[str] = (),
) -> list[Section]:
    """The sections of the report of one reconstruction.

    Args:
        figure: PNG of :func:`ambient_mri.report.plots.reconstruction_figure`.
        settings: Everything that made the reconstruction: prior, sampler, samples, noise, scale, seeds.
        metrics: Metric name to value, where a reference exists; printed with their definitions.
        residual: chi^2 per measured number, ||y - A x||^2 / (m noise_std^2).
        warnings: What the reader must know before looking: estimated noise, few ACS lines, simulated data.

    Returns:
        Sections for :func:`write_html`.
    """
    sections = [Section("Images", images=[(figure, "")], warnings=warnings)]
    if residual is not None:
        verdict = _verdict(residual)
        table = {"chi² of the residual": f"{format_value('chi2_residual', residual)} ({verdict})"}
        sections.append(Section("Consistency with the data", table=table, notes=[DEFINITIONS["chi2_residual"]]))
    if metrics:
        named = {name: format_value(name, value) for name, value in metrics.items()}
        notes = [DEFINITIONS[name] for name in metrics if name in DEFINITIONS]
        sections.append(Section("Against the reference", table=named, notes=notes))
    sections.append(Section("Settings", table=settings))
    return sections


def _verdict(residual: float) -> str:
    if not math.isfinite(residual):
        return "not finite"
    if residual < 0.5:
        return "below 0.5: noise is being fitted, or noise_std is too high"
    if residual > 2:
        return "above 2: the image does not explain the data, or noise_std is too low"
    return "near 1, as for an honest sample"


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{html.escape(section.title)}</h2>"]
    parts += [f'<p class="warning">{html.escape(line)}</p>' for line in section.warnings]
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph.strip()]
    parts += [_image(source, caption) for source, caption in section.images]
    if section.table:
        rows = (
            f"<tr><th>{html.escape(str(name))}</th><td>{_value(value)}</td></tr>"
            for name, value in section.table.items()
        )
        parts.append("<table>\n" + "\n".join(rows) + "\n</table>")
    parts += [f'<p class="note">{html.escape(line)}</p>' for line in section.notes]
    return "\n".join([*parts, "</section>"])


def _image(source: str | os.PathLike[str] | bytes, caption: str) -> str:
    if isinstance(source, bytes):
        content, name = source, "the picture"
    else:
        name = str(source)
        require(Path(source).is_file(), f"{name}: no such picture.", DataError)
        content = Path(source).read_bytes()
    require(content.startswith(b"\x89PNG\r\n\x1a\n"), f"{name} is not a PNG file.", DataError)
    text = html.escape(caption)
    below = f"<figcaption>{text}</figcaption>" if caption else ""
    encoded = base64.b64encode(content).decode("ascii")
    return f'<figure><img alt="{text or "reconstruction"}" src="data:image/png;base64,{encoded}">{below}</figure>'


def _value(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}"
    elif isinstance(value, Mapping):
        value = ", ".join(f"{html.escape(str(name))} = {_value(entry)}" for name, entry in value.items())
        return value
    elif isinstance(value, list | tuple):
        return ", ".join(_value(entry) for entry in value)
    return html.escape(str(value))
