"""metrics.csv: one file for the whole run, however often it is interrupted.

Lightning's own CSV logger deletes the file of the earlier part when a run is resumed.
"""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

__all__ = ["MetricsFile", "read_metrics"]


class MetricsFile(Logger):
    """Writes ``metrics.csv``: one row a logged step, one column a metric, empty where a metric was not logged.

    Rows of an earlier part of the run are kept up to the step at which this part begins to log.

    Args:
        path: The file.
        flush_every: Rows between writes.
    """

    def __init__(self, path: Path, flush_every: int = 20) -> None:
        super().__init__()
        self.path, self.flush_every = path, flush_every
        self._rows: list[dict[str, float]] | None = None
        self._columns: list[str] = ["step"]
        self._written = 0
        self._header: list[str] = []

    @property
    def name(self) -> str:
        """Empty: the run folder names the run."""
        return ""

    @property
    def version(self) -> str:
        """Empty: one file a run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run folder holds the resolved configuration; nothing to do here."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row, or complete the last one if it is of the same step."""
        number = 0 if step is None else int(step)
        if self._rows is None:
            kept = [row for row in read_metrics(self.path) if row["step"] < number]
            self._rows = [{**row, "step": int(row["step"])} for row in kept]
            for row in self._rows:
                self._columns.extend(k for k in row if k not in self._columns)
        values = {k: float(v) for k, v in metrics.items() if k != "epoch"}
        self._columns.extend(k for k in values if k not in self._columns)
        if self._rows and self._rows[-1]["step"] == number:
            self._rows[-1].update(values)
            self._written = min(self._written, len(self._rows) - 1)
        else:
            self._rows.append({"step": number, **values})
        if len(self._rows) - self._written >= self.flush_every:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the file anew, atomically, when a column or an old row changed; else append."""
        if self._rows is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self._columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, self.path)
        self._written = len(self._rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv; empty cells are left out. A missing file has no rows."""
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(stream)]
