"""One draw of every subject: what a chain of runs has seen, and the check that it never sees more.

What belongs to a scan (mask, noise, coil maps, phase) is drawn once and for ever. A prior that learned from one draw of
a set and is trained on with another draw of the same subjects has seen more of each of them than was ever measured, and
says nothing on learning from undersampled scans. So every prior's card lists the draws of all runs that led to it
(``draws``), an E-step leaves those of its prior beside its images (``draws.json``), and a run that would add a second
draw does not start.

A draw is the settings that decide it (data seed, sampling law, scanner), never the list of volumes: a set of which some
volumes are left out later is still the same draw. Whose scans they are is known by digests of the images or of the raw
files; cards without them, by the names of the set and of its files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri._files import write_atomically
from ambient_mri.data.schema import PreparedScan, read_attributes
from ambient_mri.data.simulate import Simulation
from ambient_mri.prior import read_card

__all__ = [
    "Draw",
    "check_scan_of_image",
    "digest",
    "draw_of",
    "draw_of_files",
    "draw_of_pictures",
    "draw_of_simulation",
    "draws_of_card",
    "draws_of_prior",
    "draws_of_references",
    "mask_digest",
    "merged",
    "record_draws",
    "require_one_draw",
    "second_draws",
]

_RECORD = "draws.json"
# Settings of a set that decide which scans there are, or how they are processed, but nothing that is drawn for a scan.
_NOT_DRAWN = ("set", "file", "files", "images", "val_share", "restorations", "draw")
# Settings of a corruption that belong to B, which is fresh at every step.
_OF_FURTHER = ("keep", "inner", "core", "always_removal", "weight_cap")
_DEFAULTS: dict[str, Any] = {"mask_per": "volume", "fully_sampled_fraction": 0.0, "reduce": 1}


@dataclass(frozen=True)
class Draw:
    """One draw of the scans of a set.

    Attributes:
        name: Of the set.
        how: The settings that decide the draw, as plain data; empty for scans with masks of their own, which were never
            drawn.
        subjects: Digests of the subjects; empty where they are not recorded.
        files: Names of the set's files, where it has a list of them.
    """

    name: str
    how: Mapping[str, Any]
    subjects: frozenset[str] = field(default=frozenset())
    files: frozenset[str] = field(default=frozenset())

    def shares_subjects(self, other: Draw) -> bool:
        """Whether the two are of the same subjects, or some of the same."""
        if self.subjects and other.subjects:
            return bool(self.subjects & other.subjects)
        return self.name == other.name and (not self.files or not other.files or bool(self.files & other.files))

    def contradicts(self, other: Draw) -> bool:
        """Whether the two are different draws of the same subjects."""
        return self.shares_subjects(other) and _plain(self.how) != _plain(other.how)

    def plain(self) -> dict[str, Any]:
        """As plain data, for a card; :func:`_from_plain` reads it."""
        found: dict[str, Any] = {"set": self.name, "how": _plain(self.how)}
        found |= {"files": sorted(self.files)} if self.files else {}
        return found | ({"subjects": " ".join(sorted(self.subjects))} if self.subjects else {})


def digest(content: bytes | str) -> str:
    """Ten hexadecimal digits that name a subject."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:10]


def draw_of(manifest: Mapping[str, Any], law: Mapping[str, Any] | None = None) -> Draw | None:
    """The draw that a set's manifest describes; None where it says nothing about it.

    Args:
        manifest: Of a :class:`~ambient_mri.training.sources.ScanSet` or an
            :class:`~ambient_mri.training.natural.ImageSplit`, or the ``data`` of a prior's card.
        law: Law of the corruption of natural images, whose manifest does not hold it.
    """
    if "draw" in manifest:
        return _from_plain(manifest["draw"])
    settings: Mapping[str, Any] | None = manifest.get("settings")
    if settings is None:
        return None
    name = str(manifest.get("set", ""))
    if "scanner" in settings:
        return draw_of_simulation(name, settings)
    return draw_of_pictures(name, settings, law or {}) if "images" in settings else None


def draw_of_simulation(name: str, settings: Mapping[str, Any], subjects: Iterable[str] = ()) -> Draw:
    """The draw of a :class:`~ambient_mri.training.simulated.SimulatedSet` of these settings."""
    scanner = {**asdict(Simulation()), **settings["scanner"]}
    how = {**_DEFAULTS, **{k: v for k, v in settings.items() if k not in _NOT_DRAWN}, "scanner": scanner}
    if "files" in settings:
        return Draw(name, how, frozenset(subjects), frozenset(settings["files"]))
    # The seed of procedural heads decides whose they are, too.
    return Draw(name, how, frozenset({digest(f"procedural heads {settings.get('seed')}")}))


def draw_of_pictures(
    name: str, settings: Mapping[str, Any], law: Mapping[str, Any], subjects: Iterable[str] = ()
) -> Draw:
    """The draw of an :class:`~ambient_mri.training.natural.ImageFolder` of these settings.

    Args:
        name: Of the set.
        settings: Of its manifest.
        law: Of the corruption; what belongs to B in it is left out.
        subjects: See :class:`Draw`.
    """
    how = {k: v for k, v in settings.items() if k not in _NOT_DRAWN}
    how["corruption"] = {k: v for k, v in law.items() if k not in _OF_FURTHER}
    return Draw(name, how, frozenset(subjects), frozenset({str(settings.get("file"))}))


def draw_of_files(name: str, files: Sequence[Path]) -> Draw:
    """The draw of prepared scans, as their files say; a subject is known by its raw file's digest, else by name."""
    found = [read_attributes(file) for file in files]
    subjects = frozenset(digest(a["source_sha256"] or f"{name}/{a['source']}") for a in found)
    masked = next((a for a in found if a["sampling_law"]), None)
    if masked is None:
        return Draw(name, {}, subjects)
    settings = masked["preparation"]
    how = {"seed": settings.get("data_seed", settings.get("seed")), "law": masked["sampling_law"]}
    simulated = {k: settings[k] for k in ("scanner", "mask_per") if k in settings}
    return Draw(name, how | simulated, subjects)


def draws_of_card(card: Mapping[str, Any]) -> list[Draw]:
    """Every draw that a prior has learned from, by its card (or the ``provenance.json`` of its run)."""
    if "draws" in card:
        return merged(_from_plain(d) for d in card["draws"])
    runs = [card, *card.get("chain", ())]
    found = [draw_of(run.get("data") or {}, run.get("sampling_law")) for run in runs]
    return merged(d for d in found if d is not None)


def draws_of_prior(source: str | Path) -> list[Draw]:
    """Every draw that the start of a run has learned from.

    Args:
        source: Prior folder, shipped prior, run folder, or a checkpoint inside a run folder.

    Raises:
        PriorError: If there is no such prior.
    """
    path = Path(source).expanduser()
    if path.suffix != ".ckpt":
        return draws_of_card(read_card(source))
    stored = path.parent.parent / "provenance.json"
    return draws_of_card(json.loads(stored.read_text())) if stored.is_file() else []


def record_draws(folder: Path, draws: Iterable[Draw]) -> None:
    """Write what the images of an E-step depend on beside them."""
    text = json.dumps([d.plain() for d in merged(draws)], indent=1)
    write_atomically(folder / _RECORD, text.encode())


def draws_of_references(folder: Path) -> list[Draw]:
    """What :func:`record_draws` wrote; empty where there is no record."""
    stored = folder / _RECORD
    return [_from_plain(d) for d in json.loads(stored.read_text())] if stored.is_file() else []


def merged(draws: Iterable[Draw]) -> list[Draw]:
    """The different draws among ``draws``, with the subjects of all."""
    found: list[Draw] = []
    for draw in draws:
        same = next((d for d in found if d.name == draw.name and _plain(d.how) == _plain(draw.how)), None)
        if same is None or bool(same.subjects) != bool(draw.subjects):
            found.append(draw)
            continue
        whole = Draw(same.name, same.how, same.subjects | draw.subjects, same.files | draw.files)
        found[found.index(same)] = whole
    return found


def require_one_draw(now: Draw | None, before: Sequence[Draw], *, source: str, allowed: bool) -> None:
    """Check that a run adds no second draw of subjects that its start has seen.

    Args:
        now: What the run reads; None where that is not known.
        before: What its start has learned from.
        source: Names the start, for the message.
        allowed: A second draw was asked for by name.

    Raises:
        AmbientMRIError: Naming both draws and the ways out.
    """
    other = next((d for d in before if now is not None and now.contradicts(d)), None)
    if now is None or other is None or allowed:
        return
    raise AmbientMRIError(
        f"{source} learned from another draw of the same subjects of {now.name!r}: {_differences(other, now)}. Two "
        "draws show more of a subject than was measured. Give this run the settings of there, or start from scratch "
        "(init=null, no data.references), or say allow_second_draw=true, which the prior's card will record."
    )


def second_draws(draws: Sequence[Draw]) -> list[str]:
    """In words, each pair of different draws of the same subjects; empty for a chain as it should be."""
    pairs = [(a, b) for i, a in enumerate(draws) for b in draws[i + 1 :] if a.contradicts(b)]
    return [f"{a.name}: {_differences(a, b, 'in one', 'in the other')}" for a, b in pairs]


def mask_digest(scan: PreparedScan) -> str:
    """Names what the first slice of a scan measured: two draws of a scan differ in it."""
    mask = np.broadcast_to(scan.mask[:1], (1, 1, *scan.kspace.shape[-2:]))
    return digest(np.packbits(mask).tobytes())


def check_scan_of_image(scan: PreparedScan, scale: float, attrs: Mapping[str, Any], image: Path) -> None:
    """Check that an image of an E-step came from this very scan: its mask, and its scale, measured from its k-space.

    Args:
        scan: The scan, or its first slice.
        scale: Of the image file.
        attrs: Of the image file; images that no E-step made are not judged.
        image: The image file, for the message.

    Raises:
        AmbientMRIError: If they belong to different draws.
    """
    if not str(attrs.get("made_by", "")).startswith("E-step"):
        return
    same = attrs.get("mask", mask_digest(scan)) == mask_digest(scan) and abs(scale / scan.scale - 1) < 1e-4
    require(
        same,
        f"{image} was reconstructed from another draw of the scan {scan.source}: its mask or its scale differ. Give "
        "the data.seed and the settings of the scans that the E-step read, or run the E-step on these.",
        AmbientMRIError,
    )


def _differences(there: Draw, here: Draw, first: str = "there", second: str = "here") -> str:
    a, b = _flat(_plain(there.how)), _flat(_plain(here.how))
    changed = [k for k in {**a, **b} if a.get(k) != b.get(k)]
    return ", ".join(f"{_option(k)} is {_value(a, k)} {first} and {_value(b, k)} {second}" for k in changed[:4])


def _value(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "not set"


def _option(key: str) -> str:
    """A setting of a draw under the name that a user types."""
    return f"corruption.{key}" if key.startswith("law") else key if key.startswith("corruption") else f"data.{key}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _plain(how: Mapping[str, Any]) -> dict[str, Any]:
    """Through JSON, so that a tuple and the list that a file gives back are the same."""
    return dict(json.loads(json.dumps(dict(how), sort_keys=True)))


def _from_plain(found: Mapping[str, Any]) -> Draw:
    subjects = frozenset(str(found.get("subjects", "")).split())
    return Draw(str(found["set"]), found["how"], subjects, frozenset(found.get("files", ())))
