"""Lines on stderr and tables on stdout."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["log_to_stderr", "one_line", "say", "show", "show_facts"]


def say(line: str, status: int = 0) -> int:
    """Write a line to stderr; returns ``status``."""
    sys.stderr.write(f"{line}\n")
    return status


def one_line(text: object) -> str:
    """The text without line breaks."""
    return " ".join(str(text).split())


def show(*content: object) -> None:
    """Print with rich: tables, text; plain where stdout is no terminal."""
    from rich.console import Console

    console = Console()
    for item in content:
        console.print(item, highlight=False, markup=False)


def show_facts(title: str, facts: Mapping[str, Any], caption: str | None = None) -> None:
    """A table of names and values."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, show_header=False)
    if caption:
        table.caption, table.caption_justify = Text(caption, style="dim"), "left"
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(str(value)))
    show(table)


def log_to_stderr(level: int) -> None:
    """The package's log as plain lines on stderr, where nobody else has set up logging."""
    logger = logging.getLogger("ambient_mri")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)
