"""Result records: the one format in which every benchmark writes what it measured.

A file holds {"benchmark", "command", "created", "git", "versions", "machine", "settings", "definitions", "rows"}. Rows
are tidy data, one measurement a row: {"case", "method", "metric", "value", "n", "ci95"} and the factors that vary
("acceleration", "mask", "noise_std", "seed", "nfe", "device", ...). Tables, figures and checks are made from these
files alone.

A row is identified by everything in it that was not measured (:func:`row_key`); appending a row with the key of an old
one replaces it, so that an interrupted benchmark continues where it stopped.

References: Wickham 2014, Tidy data, J. Stat. Softw. 59(10).
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ambient_mri._checks import DataError, check_option, require
from ambient_mri._files import write_atomically
from ambient_mri.metrics import DEFINITIONS as METRIC_DEFINITIONS

__all__ = [
    "BASELINES",
    "DEFINITIONS",
    "MEASURED",
    "METRICS",
    "ResultFile",
    "Row",
    "append_records",
    "ci95_of_mean",
    "check_row",
    "machine",
    "read_records",
    "row_key",
    "versions",
    "write_records",
]

Row = dict[str, Any]

DEFINITIONS: dict[str, str] = {
    **METRIC_DEFINITIONS,
    "seconds": "Wall-clock seconds for one slice unless the row says otherwise, after warm-up.",
    "peak_memory_mb": "Peak memory in MiB.",
    "training_images": "Images that the optimiser saw over the whole chain of trainings, repetitions counted.",
    "objective": "The training objective on held-out data, averaged weights; lower is better, within one objective.",
    "denoising_error": "Rms of D(x0 + sigma n) - x0 per real part, over sd.",
    "nstd": "Standard deviation: rms of the samples' std over that of the reference, same pixels; beside NRMSE.",
    "ratio": "Ratio of two timings of one run, as the benchmark's settings name them.",
    "noise_level": "Noise left in an image: median |finest diagonal wavelet coefficient| / 0.6745, mean over images.",
    "agreement": "1: the same. Coil maps: mean |<m, m'>| over the object; masks: share of equal ones.",
    "difference": "Largest relative difference of two implementations.",
    "kept": "|S^H x| / ||x|| of fully sampled data that 99 % of the object's pixels reach; noise counts as lost.",
    "quieter": "Share of images whose noise level is below that of every noisy training image.",
}
METRICS: tuple[str, ...] = tuple(DEFINITIONS)
# Their rows may name any implementation.
IMPLEMENTATION_METRICS = (
    *("seconds", "peak_memory_mb", "ratio", "training_images", "objective"),
    *("agreement", "difference", "kept"),
)

BASELINES: tuple[str, ...] = (
    "zero_filled",
    "cg_sense",
    "l1_wavelet",
    "total_variation",
    "bart_l2",
    "bart_l1_wavelet",
    "bart_total_variation",
    "ssdu",
    "ssdu_weighted",
    "adps",
    "one_step",
    "gaussian_interpolation",
    "biharmonic",
    "nonlocal_means",
    "wavelet_threshold",
)
# <objective>/<sampler>/<estimate>: em/split_gibbs/mean8, ambient/dds/sample. Cost rows may name any implementation.
_PRIOR_METHOD = re.compile(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*/(sample|point|mean[1-9][0-9]*)")
_IMPLEMENTATION = re.compile(r"[a-z][a-z0-9_.\-]*(/[a-z0-9_.\-]+)*")

_REQUIRED = ("case", "method", "metric", "value", "n", "ci95")
MEASURED = frozenset({"value", "values", "n", "ci95", "seconds", "peak_memory_mb"})
_FIELDS = ("benchmark", "command", "created", "git", "versions", "machine", "settings", "definitions", "rows")
_PACKAGES = ("torch", "numpy", "scipy", "sigpy", "scikit-image", "h5py", "pytorch-lightning", "matplotlib")


@dataclass(frozen=True)
class ResultFile:
    """The content of one result file.

    Attributes:
        benchmark: Name of the benchmark.
        command: The command line that makes the file again.
        settings: Everything that was held fixed: prior, slices, seeds, sampler arguments.
        definitions: Metric name to its definition, printed under every table.
        rows: Tidy measurements, see the module's text.
        created: UTC time, ISO 8601.
        git: Revision of the checkout ("-dirty" appended where files differ), None outside one.
        versions: Package name to version.
        machine: Processor, cores, accelerator.
    """

    benchmark: str
    command: str
    settings: dict[str, Any]
    definitions: dict[str, str]
    rows: list[Row]
    created: str
    git: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def select(self, **factors: Any) -> list[Row]:
        """Rows whose named entries equal the given values, such as ``select(case="brain", metric="psnr")``."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in factors.items())]

    def has(self, **factors: Any) -> bool:
        """Whether any row matches: a resumed benchmark skips what it already holds."""
        return bool(self.select(**factors))

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the file atomically, one row a line so that differences between versions can be read.

        Raises:
            AmbientMRIError: If a row is malformed or two rows have one key.
        """
        _check_rows(self.rows)
        content = asdict(self)
        head = {name: content[name] for name in _FIELDS[:-1]}
        rows = ",\n".join("    " + _dump(row) for row in self.rows)
        body = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
        text = body[:-2] + ',\n  "rows": [\n' + rows + ("\n" if rows else "") + "  ]\n}\n"
        return write_atomically(path, text.encode())


def write_records(
    path: str | os.PathLike[str],
    benchmark: str,
    command: str,
    settings: Mapping[str, Any],
    *,
    definitions: Mapping[str, str] | None = None,
    rows: Iterable[Mapping[str, Any]],
) -> ResultFile:
    """Write a new result file, replacing what is there; time, git revision, versions and machine are added.

    Args:
        path: Destination, by habit ``benchmarks/results/<benchmark>.json``.
        benchmark: Name of the benchmark.
        command: The command line that makes the file again.
        settings: Everything that was held fixed; must be representable in JSON.
        definitions: Overrides the standard definitions of metrics; those of all metrics that occur are always written.
        rows: Measurements.

    Returns:
        What was written.

    Raises:
        AmbientMRIError: If a row is malformed or two rows have one key.
    """
    plain = [_plain_row(row) for row in rows]
    result = ResultFile(
        benchmark=benchmark,
        command=command,
        settings=json.loads(_dump(dict(settings))),
        definitions=_definitions(plain, definitions),
        rows=plain,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        git=_git_revision(),
        versions=versions(),
        machine=machine(),
    )
    result.write(path)
    return result


def ci95_of_mean(values: Sequence[float]) -> float | None:
    """Half width of the 95 % confidence interval of the mean of ``values``, by Student's t; None of fewer than two."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def append_records(
    path: str | os.PathLike[str],
    benchmark: str,
    command: str,
    settings: Mapping[str, Any],
    *,
    definitions: Mapping[str, str] | None = None,
    rows: Iterable[Mapping[str, Any]],
) -> ResultFile:
    """Add rows to a result file, or start it: a row with the key of an old one replaces it.

    Arguments and errors as :func:`write_records`.

    Raises:
        AmbientMRIError: Also if the file belongs to another benchmark or was made with other settings: rows made in
            different ways must not share a file.
    """
    new = [_plain_row(row) for row in rows]
    if not Path(path).exists():
        return write_records(path, benchmark, command, settings, definitions=definitions, rows=new)
    old = read_records(path)
    require(old.benchmark == benchmark, f"{path} holds the benchmark {old.benchmark!r}, not {benchmark!r}.")
    wanted = json.loads(_dump(dict(settings)))
    differ = sorted(k for k in {*old.settings, *wanted} if old.settings.get(k) != wanted.get(k))
    require(
        not differ,
        f"{path} was made with other settings ({', '.join(differ)} differ): rows made in different ways must not share "
        "a file. Write to another file, or delete this one.",
    )
    _check_rows(new)
    merged = {row_key(row): row for row in old.rows} | {row_key(row): row for row in new}
    all_rows = list(merged.values())
    result = replace(
        old,
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        git=_git_revision(),
        versions=versions(),
        machine=machine(),
        definitions=_definitions(all_rows, {**old.definitions, **(definitions or {})}),
        rows=all_rows,
    )
    result.write(path)
    return result


def read_records(path: str | os.PathLike[str]) -> ResultFile:
    """Read and check a result file.

    Raises:
        DataError: If it is missing, not JSON, or lacks a field.
        AmbientMRIError: If a row is malformed.
    """
    require(Path(path).is_file(), f"{path}: no such result file.", DataError)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a result file: {error}.") from error
    missing = [name for name in _FIELDS if not isinstance(content, dict) or name not in content]
    require(not missing, f"{path} is not a result file: it lacks {', '.join(missing)}.", DataError)
    _check_rows(content["rows"])
    return ResultFile(**{name: content[name] for name in _FIELDS})


def row_key(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What identifies a row: all of it but the measured entries (value, values, n, ci95, seconds, peak_memory_mb)."""
    return tuple(sorted((name, _dump(value)) for name, value in row.items() if name not in MEASURED))


def check_row(row: Mapping[str, Any]) -> None:
    """Raise unless ``row`` is a well-formed measurement.

    ``value`` is a finite number, or None where the metric is undefined; ``n`` counts what was averaged; ``ci95`` is the
    half width of the 95 % confidence interval of ``value``, or None; ``values``, where it is there, are the n numbers
    that were averaged, so that two rows can be compared case by case; every factor is a string, number, bool or None.

    Raises:
        AmbientMRIError: Naming the entry, what was expected and what came.
    """
    missing = [name for name in _REQUIRED if name not in row]
    require(not missing, f"a result row lacks {', '.join(missing)}: {dict(row)!r}.")
    for name in ("case", "method"):
        require(isinstance(row[name], str) and row[name] != "", f"{name} must be a name; got {row[name]!r}.")
    check_option("metric", row["metric"], METRICS)
    _check_method(row["method"], free=row["metric"] in IMPLEMENTATION_METRICS)
    for name in ("value", "ci95"):
        number = row[name]
        require(
            number is None or (_is_number(number) and math.isfinite(number)),
            f"{name} of {row['method']} / {row['metric']} must be a finite number, or None where it is undefined; "
            f"got {number!r}.",
        )
    require(
        row["ci95"] is None or row["ci95"] >= 0, f"ci95 is a half width and cannot be negative; got {row['ci95']!r}."
    )
    n = row["n"]
    require(isinstance(n, int) and not isinstance(n, bool) and n >= 1, f"n must count what was averaged; got {n!r}.")
    values = row.get("values", [0.0] * n)
    numbers = isinstance(values, list) and all(_is_number(v) and math.isfinite(v) for v in values)
    require(numbers and len(values) == n, f"values must be the {n} finite numbers that were averaged; got {values!r}.")
    for name in row.keys() - {*_REQUIRED, "values"}:
        plain = row[name] is None or isinstance(row[name], str | bool) or _is_number(row[name])
        require(plain, f"the factor {name!r} must be a string, number, bool or None; got {row[name]!r}.")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in ("ambient-mri", *_PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, threads and accelerator; no host name and no path."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    seen: set[tuple[tuple[str, str], ...]] = set()
    for row in rows:
        check_row(row)
        key = row_key(row)
        require(key not in seen, f"two rows have one key: {dict(key)}. Add the factor in which they differ.")
        seen.add(key)


def _check_method(method: str, *, free: bool) -> None:
    known = method in BASELINES or _PRIOR_METHOD.fullmatch(method) or (free and _IMPLEMENTATION.fullmatch(method))
    require(
        bool(known),
        f"method must be one of {', '.join(BASELINES)} or <objective>/<sampler>/<estimate> such as "
        f"em/split_gibbs/mean8; got {method!r}.",
    )


def _definitions(rows: Sequence[Mapping[str, Any]], overrides: Mapping[str, str] | None) -> dict[str, str]:
    used = [metric for metric in METRICS if any(row.get("metric") == metric for row in rows)]
    return {**{metric: DEFINITIONS[metric] for metric in used}, **(overrides or {})}


def _plain_row(row: Mapping[str, Any]) -> Row:
    """numpy scalars become Python numbers, so that what is checked is what is written."""
    return {name: _plain(value) if hasattr(value, "item") else value for name, value in row.items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"result files hold numbers, strings, lists and dicts; got {type(value).__name__}: {value!r}")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _git_revision() -> str | None:
    """Revision of the checkout that this file is tracked in, None for an installed package."""
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
