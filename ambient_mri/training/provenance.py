"""Where a run comes from: code, versions, machine, seeds, data. Plain data, for the run folder and the prior."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ambient_mri._files import write_atomically
from ambient_mri.report.records import machine, versions

__all__ = ["git_revision", "provenance", "short_hash", "write_json"]


def git_revision(folder: Path | None = None) -> str:
    """Commit of the checkout that holds the package, ``-dirty`` where files differ; ``"unknown"`` outside one."""
    where = Path(__file__).resolve().parents[2] if folder is None else folder
    command = ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def provenance(seed: int, data: Mapping[str, Any]) -> dict[str, Any]:
    """What is needed to do the run again."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv[1:]),
        "git": git_revision(),
        "versions": versions(),
        "machine": machine(),
        "seed": seed,
        "data": dict(data),
    }


def short_hash(settings: Any) -> str:
    """Ten hexadecimal digits that name plain-data settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def write_json(path: Path, value: Any) -> None:
    """Write plain data, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
