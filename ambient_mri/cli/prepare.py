"""``ambient-mri prepare``: raw k-space files, or the folders of a data set, to prepared scans."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ambient_mri._checks import require
from ambient_mri.cli.files import kspace_files
from ambient_mri.cli.options import refuse
from ambient_mri.cli.terminal import show_facts

if TYPE_CHECKING:
    from ambient_mri.masks import SamplingLaw
    from ambient_mri.prepare import Preparation, PreparationSummary

__all__ = ["LAWS", "add_arguments", "make_law", "run"]

#: Name on the command line -> class in :mod:`ambient_mri.masks`.
_CLASSES = {
    "random_lines": "RandomLines",
    "independent_lines": "IndependentLines",
    "equispaced": "EquispacedLines",
    "poisson": "PoissonDisc",
}
# What those laws are told, in the configuration as here.
_LAW = ("acceleration", "acs_lines")
_FASTMRI = ("random", "equispaced", "equispaced_fraction", "magic", "magic_fraction")
_ACS_LINES = 12
LAWS = (*_CLASSES, *(f"fastmri_{kind}" for kind in _FASTMRI))


def add_arguments(command: argparse.ArgumentParser, slice_range: Callable[[str], slice]) -> None:
    """The arguments of the command."""
    add = command.add_argument
    add("sources", nargs="+", type=Path, metavar="SOURCE", help="k-space files, folders of them, or a fastMRI root")
    add("--out", type=Path, required=True, metavar="FOLDER", help="one file a volume; made if missing")
    add("--acceleration", type=float, metavar="R", help="undersample fully sampled volumes; they stay whole without it")
    add("--acs-lines", type=int, metavar="N", help="of the other laws (default: 12)")
    add("--law", choices=LAWS, help="of the undersampling (default: random_lines)")
    add("--center-fraction", type=float, metavar="F", help="of the fastmri_ laws (default: 0.32 / R)")
    add("--by-name", action="store_true", help="fastmri_ laws: seed each mask by its file name, as fastMRI does")
    add("--kind", default="multicoil", choices=("multicoil", "singlecoil"), help="of a fastMRI root")
    add("--parts", nargs="+", default=[], metavar="PART", help="of a fastMRI root: train val test challenge (all)")
    add("--acquisitions", nargs="+", default=[], metavar="NAME", help="such as PD, PDFS, AXT2, AXFLAIR (all)")
    add("--split", type=Path, metavar="FILE.json", help="volumes by part, in place of the folders' own parts")
    add("--limit", type=int, metavar="N", help="at most N volumes a part")
    add("--maps", default="torch", choices=("torch", "sigpy", "bart"), help="ESPIRiT program (default: %(default)s)")
    add("--device", default="auto", help="for coil maps: auto, cpu, cuda (default: %(default)s)")
    add("--noise-std", type=float, metavar="X", help="noise per real part, raw units (estimated by default)")
    add("--whiten", metavar="FILE", help="noise scan (.npy, .npz, .h5), or the word periphery")
    add(
        "--coils", type=float, metavar="N", help="compress to N virtual coils, or, below 1, to that share of the energy"
    )
    add("--compression", choices=("svd", "geometric"), help="of --coils (default: svd)")
    add("--crop-readout", action="store_true", help="remove readout oversampling")
    add("--slices", type=slice_range, metavar="A:B", help="slices A to B - 1 of every volume (all by default)")
    add("--seed", type=int, help="of the masks (default: 0)")
    add("--workers", type=int, default=1, metavar="N", help="processes; 0: one a core (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Prepare, show what came of it; status 1 where files were skipped."""
    from ambient_mri.prepare import prepare_dataset

    law = make_law(options)
    settings = _settings(options)
    sources = _sources(options)
    options.out.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {"law": law, "settings": settings, "workers": options.workers, "device": options.device}
    if set(sources) == {""}:
        from ambient_mri.prepare import prepare_files
        from ambient_mri.prepare.dataset import write_manifest

        bar = lambda paths: _bar(paths, "preparing")  # noqa: E731
        summaries = {"": prepare_files(sources[""], options.out, progress=bar, **given)}
        write_manifest(options.out, {"train": summaries[""]}, law=law, settings=settings)
    else:
        summaries = prepare_dataset(sources, options.out, progress=_bar, **given)
    show_facts("Prepared scans", _facts(summaries, options.out, law))
    return 1 if any(summary.failed for summary in summaries.values()) else 0


def make_law(options: argparse.Namespace) -> SamplingLaw | None:
    """The sampling law that the options name; None without an acceleration."""
    if options.acceleration is None:
        unused = ("law", "acs_lines", "center_fraction", "by_name", "seed")
        refuse(options, *unused, because="nothing is undersampled without --acceleration R.")
        return None
    name = options.law or "random_lines"
    if name in _CLASSES:
        from ambient_mri import masks

        refuse(options, "center_fraction", "by_name", because=f"of the fastmri_ laws, not of --law {name}.")
        lines = _ACS_LINES if options.acs_lines is None else options.acs_lines
        return getattr(masks, _CLASSES[name])(options.acceleration, lines)
    refuse(options, "acs_lines", because=f"--law {name} has --center-fraction F in its place.")
    from ambient_mri.data.fastmri_masks import FastMRIMask

    kind = name.removeprefix("fastmri_")
    return FastMRIMask(kind, options.acceleration, options.center_fraction, options.by_name)


def _settings(options: argparse.Namespace) -> Preparation:
    from ambient_mri.prepare import Preparation

    chosen: slice | None = options.slices
    whole = chosen is None or (chosen.start is not None and chosen.stop is not None)
    require(whole, "prepare needs both ends of --slices, such as 10:25.")
    if options.coils is None:
        refuse(options, "compression", because="coils are compressed with --coils N.")
    return Preparation(
        seed=options.seed or 0,
        maps_backend=options.maps,
        noise_std=options.noise_std,
        slices=None if chosen is None else (chosen.start, chosen.stop),
        whiten=options.whiten,
        crop_readout=options.crop_readout,
        coils=options.coils,
        compression=options.compression or "svd",
    )


def _sources(options: argparse.Namespace) -> dict[str, list[Path]]:
    """Files by part; one part without a name for files and plain folders."""
    from ambient_mri.data.fastmri_layout import find_parts, with_acquisition
    from ambient_mri.prepare import find_sources

    first: Path = options.sources[0]
    layout = len(options.sources) == 1 and first.is_dir() and bool(find_parts(first, options.kind))
    if layout or options.split is not None or options.parts:
        require(len(options.sources) == 1, "--split and --parts take one SOURCE, the root of the data set.")
        return find_sources(
            first,
            kind=options.kind,
            parts=options.parts,
            acquisitions=options.acquisitions,
            split=options.split,
            limit=options.limit,
        )
    files = [file for source in options.sources for file in kspace_files(source)]
    return {"": with_acquisition(files, options.acquisitions)[: options.limit]}


def _bar(paths: Iterable[Path], part: str) -> Iterable[Path]:
    from tqdm import tqdm

    return tqdm(paths, desc=part, unit="volume", disable=None)


def _facts(summaries: Mapping[str, PreparationSummary], folder: Path, law: SamplingLaw | None) -> dict[str, object]:
    found = list(summaries.values())
    kept, failed = sum(s.kept for s in found), [item for s in found for item in s.failed]
    written = {part: len(s.done) for part, s in summaries.items()}
    parts = "" if set(written) == {""} else f" ({', '.join(f'{part} {n}' for part, n in written.items())})"
    facts: dict[str, object] = {
        "written": f"{sum(written.values()) - kept} files in {folder}{parts}",
        "there already": kept,
        "skipped": len(failed),
        "sampling": "the scans' own masks" if law is None else ", ".join(map(str, law.describe().values())),
    }
    if failed:
        facts["could not be used"] = "\n".join(reason for _, reason in failed)
    root = shlex.quote(f"data.root={folder}")
    return {**facts, "next": f"ambient-mri train data=prepared {root} {_corruption_of(law)}"}


def _corruption_of(law: SamplingLaw | None) -> str:
    """The overrides that make training weight the scans by their own law."""
    if law is None:
        return "corruption=observed"
    described = law.describe()
    name = next((name for name, cls in _CLASSES.items() if cls == described["law"]), None)
    if name is not None:
        return f"corruption={name} {' '.join(f'corruption.law.{k}={described[k]:g}' for k in _LAW)}"
    random = described["kind"] == "random"
    told = [f"corruption={'fastmri_random' if random else 'fastmri_equispaced'}"]
    told += [] if random else [f"corruption.law.kind={described['kind']}"]
    told += [f"corruption.law.acceleration={described['acceleration']:g}"]
    if described["center_fraction"] is not None:
        told.append(f"corruption.law.center_fraction={described['center_fraction']:g}")
    return " ".join([*told, *(["corruption.law.by_name=true"] if described["by_name"] else [])])
