"""Trainings of a benchmark, each ``python -m ambient_mri.train`` in a process of its own, and the records of them."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from ledger import alone, joined

from ambient_mri.report.records import append_records, read_records

__all__ = ["TrainedEvaluation", "arguments_of", "finished", "parser_of", "say", "train_once"]

Budget = TypeVar("Budget")


class TrainedEvaluation(ABC, Generic[Budget]):
    """Scores what was trained, and keeps the records; what they hold is not measured again.

    Args:
        name: Of the budget.
        budget: The sizes, a dataclass.
        out: Where everything goes.
        command: For the records.
    """

    benchmark: str
    definitions: Mapping[str, str] | None = None

    def __init__(self, name: str, budget: Budget, out: Path, command: str) -> None:
        self.name, self.budget, self.out, self.command = name, budget, out, command
        self.path = out / f"{self.benchmark}.json"
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What was held fixed, apart from the budget."""

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add rows to the records; several runs may, at the same time."""
        settings = {"budget": {"name": self.name, **asdict(self.budget)}, **self.settings()}  # type: ignore[call-overload]
        self.out.mkdir(parents=True, exist_ok=True)
        with alone(self.out):
            command = joined(read_records(self.path).command, self.command) if self.path.is_file() else self.command
            append_records(self.path, self.benchmark, command, settings, definitions=self.definitions, rows=rows)

    def done(self, **factors: Any) -> bool:
        """Whether the records hold a row with these factors."""
        return self.path.is_file() and read_records(self.path).has(**factors)


def finished(folder: Path) -> bool:
    """Whether the training in ``folder`` has come to its end."""
    return (folder / "done.txt").is_file()


def train_once(folder: Path, overrides: Sequence[str]) -> bool:
    """Train into ``folder``, or go on where it stopped; False if the training failed, which its ``log.txt`` explains.

    Args:
        folder: The run folder.
        overrides: Of the configuration; ``run_dir`` apart.
    """
    if finished(folder):
        return True
    command = [sys.executable, "-m", "ambient_mri.train", *overrides, f"run_dir={folder}"]
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with (folder / "log.txt").open("a") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    say(f"{folder.name}: {'trained' if status == 0 else 'FAILED, see ' + str(folder / 'log.txt')}", began)
    if status == 0:
        (folder / "done.txt").write_text(" ".join(command[1:]) + "\n")
    return status == 0


def arguments_of(*, batch_size: int, trainer: str, steps: int) -> list[str]:
    """The overrides of a run's length; it is judged and saved four times, and saved every 250 steps at least."""
    every = max(1, steps // 4)
    return [
        *(f"trainer={trainer}", f"trainer.max_steps={steps}", f"trainer.val_check_interval={every}"),
        *(f"loader.batch_size={batch_size}", f"checkpoint_every={min(250, every)}"),
    ]


def parser_of(doc: str | None, budgets: Iterable[str], benchmark: str, only: str) -> argparse.ArgumentParser:
    """The options that such benchmarks share.

    Args:
        doc: The script's docstring.
        budgets: Names of the budgets; "cpu" is one of them.
        benchmark: Its name, that of the default folder.
        only: What ``--only`` takes.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=sorted(budgets), default="cpu")
    parser.add_argument("--out", type=Path, default=None, help=f"default: runs/{benchmark}_<budget>")
    parser.add_argument("--only", nargs="+", default=None, help=only)
    parser.add_argument("--steps", type=int, default=None, help="training steps in place of the budget's")
    return parser


def say(text: str, began: float) -> None:
    """A line of progress."""
    sys.stderr.write(f"{text} ({time.perf_counter() - began:.0f} s)\n")
