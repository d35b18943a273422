"""What comes back from a machine that may vanish: a few small files, written whole, newest work first.

At most 8 files of 16 MiB come back from a command. A prior travels as ``<stage>.tar``, or in parts ``<stage>.tar.00``,
``.01``, ... where it is larger than a part may be; everything small travels in ``report.tar.gz``.
"""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ambient_mri._files import write_atomically
from ambient_mri.prior import load_prior
from ambient_mri.training.export import newest_checkpoint

__all__ = ["PART_BYTES", "deliver", "restore"]

log = logging.getLogger(__name__)

PART_BYTES = 14 * 2**20
MAX_FILES = 8
# Of a stage: small text files that travel with its prior.
_SMALL = ("plan.json", "done.json", "architecture.json", "metrics.csv", "settings.json", "probe.json", "data.json")
_REPORT = (
    "*.json",
    "*.log",
    "stages/*/*.json",
    "stages/*/metrics.csv",
    "records/*.json",
    "records/*.md",
    "figures/*.png",
)

# Python 3.11 has filters from 3.11.4 on; the archives are our own, with or without.
_FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def deliver(state: Path, out: Path) -> list[str]:
    """Write what is worth having into ``out``: the report, the sheet, and the priors as far as they fit, newest first.

    Returns:
        Names of stages that did not fit.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = {"report.tar.gz": _tar(_paths(state, _REPORT), state, "w:gz")}
    if (state / "sheet.png").is_file():
        files["sheet.png"] = (state / "sheet.png").read_bytes()
    left_out = []
    for stage in _stages(state):
        parts = _split(stage.name, _stage_tar(stage))
        if len(files) + len(parts) > MAX_FILES:
            left_out.append(stage.name)
            continue
        files |= parts
    for name, content in files.items():
        write_atomically(out / name, content)
    for stale in set(out.glob("*.tar*")) - {out / name for name in files}:
        stale.unlink()
    return left_out


def restore(folder: Path, state: Path) -> list[str]:
    """Unpack the stages that :func:`deliver` wrote, unless ``state`` has them already.

    Returns:
        Names of the stages that were unpacked.
    """
    names = sorted({p.name.split(".tar")[0] for p in folder.glob("*.tar*")} - {"report"})
    taken = []
    for name in names:
        target = state / "stages" / name
        if (target / "prior" / "prior.json").is_file():
            continue
        content = b"".join(p.read_bytes() for p in sorted(folder.glob(f"{name}.tar*")))
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(target, **_FILTER)
        # A plan without its checkpoint cannot be gone on with: the optimiser restarts from these weights.
        if not (target / "done.json").is_file():
            (target / "plan.json").unlink(missing_ok=True)
        taken.append(name)
    return taken


def _stages(state: Path) -> list[Path]:
    """Stages with a prior: unfinished ones first, then the newest."""
    found = [p for p in (state / "stages").glob("*") if (p / "prior" / "prior.json").is_file()]
    return sorted(found, key=lambda p: ((p / "done.json").is_file(), -(p / "prior" / "prior.json").stat().st_mtime))


def _stage_tar(stage: Path) -> bytes:
    """The averaged weights in bf16; of an unfinished stage the raw weights, too, to go on from."""
    compact = stage / "compact"
    newest = (stage / "prior" / "weights.safetensors").stat().st_mtime
    if not (compact / "prior.json").is_file() or (compact / "prior.json").stat().st_mtime < newest:
        load_prior(stage / "prior").save(compact, dtype=torch.bfloat16)
    entries = {f"prior/{p.name}": p.read_bytes() for p in sorted(compact.iterdir())}
    entries |= {name: (stage / name).read_bytes() for name in _SMALL if (stage / name).is_file()}
    if not (stage / "done.json").is_file():
        entries |= _raw_weights(stage)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in entries.items():
            _add(archive, name, content)
    return buffer.getvalue()


def _raw_weights(stage: Path) -> dict[str, bytes]:
    from safetensors.torch import save

    checkpoint = newest_checkpoint(stage / "checkpoints")
    if checkpoint is None:
        return {}
    state = torch.load(checkpoint, map_location="cpu", weights_only=True).get("current_model_state", {})
    raw = {k.removeprefix("model."): v.to(torch.bfloat16) for k, v in state.items() if k.startswith("model.")}
    return {"raw.safetensors": save(raw)} if raw else {}


def _paths(state: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({p for pattern in patterns for p in state.glob(pattern) if p.is_file()})


def _tar(paths: Iterable[Path], root: Path, mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for path in paths:
            _add(archive, str(path.relative_to(root)), path.read_bytes())
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _split(name: str, content: bytes) -> dict[str, bytes]:
    if len(content) <= PART_BYTES:
        return {f"{name}.tar": content}
    starts = range(0, len(content), PART_BYTES)
    return {f"{name}.tar.{i:02d}": content[s : s + PART_BYTES] for i, s in enumerate(starts)}
