"""Result records, and the tables, figures and pages made from them alone. matplotlib is used here and nowhere else."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_SOURCES = {
    "ResultFile": "records",
    "append_records": "records",
    "read_records": "records",
    "write_records": "records",
    "markdown_table": "tables",
    "rich_table": "tables",
    "curve_figure": "plots",
    "reconstruction_figure": "plots",
    "sample_sheet": "plots",
    "Section": "html",
    "reconstruction_sections": "html",
    "write_html": "html",
}

__all__ = sorted(_SOURCES)


def __getattr__(name: str) -> Any:
    """Public names are loaded on first use: records and tables must not cost an import of matplotlib."""
    if name in _SOURCES:
        return getattr(import_module(f"{__name__}.{_SOURCES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
