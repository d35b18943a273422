"""A result file that several runs add to, one after the other or at the same time.

Each run measures some methods and adds their rows; what the file holds is not measured again. Settings that all rows
share must be equal in all runs. Others belong to a part of the rows: which weights stood behind a prior's name, what a
method was tuned to. These grow, and a name that already stands for something else is an error.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ambient_mri.prior import Prior
from ambient_mri.report.records import ResultFile, Row, append_records, read_records

ROOT = Path(__file__).resolve().parents[2]
# Options that say where results go, which is no part of how they were made.
_PLACES = ("--out", "--figures")


class Ledger:
    """A result file (module docstring).

    Args:
        path: Of the file.
        command: The command line of this run.
        settings: What all rows share; plain data.
        named: Settings of parts of the rows: group to name to plain data, such as ``{"priors": {"em1": {...}}}``.
        definitions: Overrides of the standard definitions of metrics.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        settings: Mapping[str, Any],
        named: Mapping[str, Mapping[str, Any]] | None = None,
        definitions: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.command, self.definitions = path, command, definitions
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self.named: dict[str, dict[str, Any]] = json.loads(json.dumps({k: dict(v) for k, v in (named or {}).items()}))
        self.rows: list[Row] = []
        if path.is_file():
            found = read_records(path)
            self.rows = found.rows
            self._check(found)

    def has(self, method: str, **factors: Any) -> bool:
        """Whether the file holds a row of ``method`` with these factors; a factor that a row lacks is None."""
        wanted = {"method": method, **factors}.items()
        return any(all(row.get(name) == value for name, value in wanted) for row in self.rows)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to the file, with what other runs added since it was read."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with alone(self.path.parent):
            command, settings = self.command, {**self.settings, **self.named}
            if self.path.is_file():
                found = read_records(self.path)
                self._check(found)
                command = joined(found.command, command)
                settings = self._grown(found)
                if settings != found.settings:
                    replace(found, settings=settings).write(self.path)
            written = append_records(
                self.path, self.path.stem, command, settings, definitions=self.definitions, rows=rows
            )
        self.rows = written.rows

    def remember(self, group: str, name: str, value: Any) -> None:
        """Add to the named settings; written with the next rows."""
        self.named.setdefault(group, {})[name] = json.loads(json.dumps(value))

    def recalled(self, group: str, name: str) -> Any:
        """A named setting of this run or of the file, None where there is none."""
        found = read_records(self.path).settings if self.path.is_file() else {}
        return {**found.get(group, {}), **self.named.get(group, {})}.get(name)

    def _check(self, found: ResultFile) -> None:
        """End the run where its settings, or what a name stands for, are not those of the file."""
        differ = sorted(k for k, v in self.settings.items() if found.settings.get(k) != v)
        if differ:
            raise SystemExit(
                f"{self.path} was made with other settings ({', '.join(differ)} differ). Write to another file, or "
                "delete that one."
            )
        for group, names in self.named.items():
            for name, value in names.items():
                old = found.settings.get(group, {}).get(name, value)
                if old != value:
                    differ = sorted(k for k in {*old, *value} if old.get(k) != value.get(k))
                    raise SystemExit(
                        f"{self.path} holds results of another {name!r} ({group}: {', '.join(differ)} differ). Give "
                        "this one another name, write to another file, or delete that one."
                    )

    def _grown(self, found: ResultFile) -> dict[str, Any]:
        """The file's settings with this run's named ones."""
        return {**found.settings, **{k: {**found.settings.get(k, {}), **v} for k, v in self.named.items()}}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other run writes to the folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def provenance(prior: Prior) -> dict[str, Any]:
    """What a record says of a prior: its card's history, and a hash of its weights."""
    card = {key: prior.metadata.get(key) for key in ("steps", "images_seen", "data", "git")}
    return {"name": prior.name, "kind": prior.kind, "weights": prior.weights_hash(), **card}


def recorded_command(script: str, arguments: Sequence[str]) -> str:
    """The command line for the record: without places of results, paths relative to the repository."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip or argument.split("=")[0] in _PLACES:
            skip = not skip and argument in _PLACES
            continue
        kept.append(_relative(argument))
    return " ".join(["python", script, *kept])


def _relative(argument: str) -> str:
    """``name=/path/to/repository/folder`` as ``name=folder``; elsewhere the last two parts of a path."""
    name, equals, path = argument.rpartition("=")
    if not Path(path).is_absolute():
        return argument
    inside = Path(path).resolve()
    short = inside.relative_to(ROOT) if inside.is_relative_to(ROOT) else Path(*inside.parts[-2:])
    return f"{name}{equals}{short}"


def joined(old: str, new: str) -> str:
    """All command lines that made a file, in the order of their first use."""
    parts = old.split(" && ")
    return old if new in parts else " && ".join([*parts, new])
