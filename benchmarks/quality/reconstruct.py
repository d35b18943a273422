"""Real multi-coil scans, retrospectively undersampled: every baseline and every prior on the same data.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/reconstruct.py --ambient RUNS/ambient/prior --clean
    em=RUNS/em/prior                      the masks of masks_128.npz: the table of the README
    ... reconstruct.py --full             all masks; baselines and priors in one run, or
    ... reconstruct.py --full --no-baselines --clean em=RUNS/em/prior              prior by prior, in any order
    ... reconstruct.py --native --clean brain128=brain128                          the scans at their own sizes

Each case is a fully sampled scan of 128 x 128, multiplied by a 1-D mask (see ``cases.py``); ``--full`` takes R = 2, 4,
6 and 8, random and equispaced lines, and two further masks for each. ``--native`` takes every fully sampled scan of
``multicoil_val`` as it was measured, R = 4 and 8, a mask of each law, L1-wavelet alone as baseline: priors that learned
from 128 x 128 pixels meet other sizes there. Coil maps, scale and noise level are estimated
from the undersampled scan alone and are the same for every method; the regularisation of each baseline is the best of a
grid, chosen with the reference in hand, a generous opponent; ours has no setting that differs between cases. A-DPS
takes a step that was chosen on simulated scans of other subjects, and runs on some cases only, because it is slow.

Without the data folder the cases are simulated phantoms, and the table says so. A method that the result file holds for
a case is not run again: several runs, at the same time too, fill one file.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # cases, methods and records are shared by the benchmarks

from ambient_mri import metrics  # noqa: E402
from ambient_mri.prior import load_prior  # noqa: E402
from ambient_mri.report.plots import reconstruction_figure  # noqa: E402
from ambient_mri.report.records import ResultFile, read_records  # noqa: E402
from benchmarks.quality import methods  # noqa: E402
from benchmarks.quality.cases import (  # noqa: E402
    FITTED,
    LAWS,
    SCANS,
    SUPPORT,
    Case,
    all_cases,
    coil_combined,
    measure,
    native_cases,
    real_cases,
    regional_scores,
    score,
    simulated_cases,
    tuning_cases,
)
from benchmarks.quality.ledger import Ledger, provenance, recorded_command  # noqa: E402
from benchmarks.quality.methods import Estimate, Unit, best_of_grid, ours  # noqa: E402
from benchmarks.quality.tables import curves_over_acceleration, full_tables, native_table, standard_table  # noqa: E402

__all__ = [
    "RESULTS",
    "SCANS",
    "Case",
    "best_of_grid",
    "coil_combined",
    "main",
    "measure",
    "ours",
    "real_cases",
    "rows_of",
    "run_case",
    "score",
    "simulated_cases",
]

RESULTS = ROOT / "benchmarks" / "results"
# (accelerations, laws, samples, steps) of the tables
STANDARD = ((4, 8), ("random",), 8, 50)
FULL = ((2, 4, 6, 8), ("random", "equispaced"), 32, 25)
NATIVE = ((4, 8), ("random", "equispaced"), 8, 25)
# By the default name of the result file.
TABLES = {"reconstruct": STANDARD, "reconstruct_full": FULL, "reconstruct_native": NATIVE}


def rows_of(case: Case, method: str, image: np.ndarray, seconds: float, **factors: object) -> list[dict[str, object]]:
    """Result rows of one image."""
    base = {**case.factors, "method": method, "n": 1, "ci95": None, **factors}
    return [
        {**base, "metric": metric, "value": value, "seconds": seconds} for metric, value in score(case, image).items()
    ]


def all_rows_of(case: Case, found: Estimate) -> list[dict[str, object]]:
    """Result rows of one estimate: the whole image, inside and outside the support, and what else it brings."""
    factors = {"law": case.law, "masks": case.masks, **found.factors}
    rows = rows_of(case, found.method, found.image, found.seconds, **factors)
    more: dict[tuple[str | None, str], float | None] = {(None, name): value for name, value in found.found.items()}
    more |= {("inside", name): value for name, value in found.inside.items()}
    for key, value in regional_scores(case, found.image).items():
        more[key] = value
    base = {k: v for k, v in rows[0].items() if k not in ("metric", "value")}
    named = [{**base, "metric": name, "value": value, "region": region} for (region, name), value in more.items()]
    return rows + [{k: v for k, v in row.items() if k != "region" or v is not None} for row in named]


def run_case(case: Case, units: Sequence[Unit]) -> tuple[list[dict[str, object]], dict[str, Estimate]]:
    """Every method on one case; estimates for the figure."""
    found = {estimate.method: estimate for unit in units for estimate in unit.run(case)}
    return [row for estimate in found.values() for row in all_rows_of(case, estimate)], found


def figure(case: Case, found: dict[str, Estimate], folder: Path) -> Path:
    """Reference, baselines, ours, errors, standard deviation and mask."""
    names = {
        "zero_filled": "Zero-filled",
        "cg_sense": "SENSE",
        "l1_wavelet": "L1-wavelet",
        "bart_l1_wavelet": "L1-wavelet (BART)",
    }
    ours_name = [k for k in found if "mean" in k][-1:] or [k for k in found if k.startswith("ambient/")]
    wanted: list[str] = [k for k in ("zero_filled", "cg_sense", "bart_l1_wavelet", "l1_wavelet") if k in found]
    wanted = [k for k in wanted if k != "l1_wavelet" or "bart_l1_wavelet" not in found] + ours_name
    factors = {k: metrics.fit_scale(found[k].image, case.reference) for k in wanted}
    std = found[wanted[-1]].std
    folder.mkdir(parents=True, exist_ok=True)
    law = "" if case.law == "random" else f"_{case.law}"
    return reconstruction_figure(
        {names.get(k, f"Ours: {k.split('/')[0]}"): factors[k] * found[k].image for k in wanted},
        folder / f"{case.name}_R{case.acceleration}{law}_mask{case.mask_index}.png",
        reference=case.reference,
        std=None if std is None else factors[wanted[-1]] * std,
        mask=np.broadcast_to(case.mask, case.reference.shape),
        title=f"{case.name}, R = {case.acceleration}, {case.law} mask {case.mask_index}; ours: {wanted[-1]}",
    )


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The cases of the table that was asked for."""
    if options.native:
        found = list(native_cases(options.root, options.accelerations, options.laws))
    elif options.full:
        found = list(all_cases(options.root, options.accelerations, options.laws))
    elif options.root:
        found = list(real_cases(options.root, options.accelerations))
    else:
        found = list(simulated_cases(options.accelerations))
    return [case for case in found if options.scans is None or case.name in options.scans]


def missing_units(case: Case, units: Sequence[Unit], book: Ledger) -> list[Unit]:
    """The methods that the file does not hold for a case; rows of older files are of random masks and do not say so."""
    key = (*case.factors.items(), ("law", case.law))
    held = {r["method"] for r in book.rows if all({"law": "random", **r}.get(name) == value for name, value in key)}
    return [unit for unit in units if unit.valid(case) and not held.issuperset(unit.methods)]


def units_of(options: argparse.Namespace, cases: Sequence[Case], book: Ledger) -> list[Unit]:
    """Every method that was asked for."""
    units = [Unit(("zero_filled",), methods.zero_filled), *map(methods.baseline_unit, options.baselines)]
    if options.ambient:
        units.append(methods.one_step_unit("ambient", options.ambient))
    for name, prior in options.ssdu.items():
        units.append(methods.one_step_unit(name, prior))
    for name, prior in options.clean.items():
        units.append(methods.samples_unit(name, prior, options.samples, options.steps))
        units += [] if options.native else [methods.dds_unit(name, prior, options.steps)]
    for name, prior in options.adps.items():
        heads = [c for c in cases if c.law == "random" and not c.name.startswith("phantom_4ch")]
        chosen = sorted(heads, key=lambda c: (c.masks == "drawn", c.mask_index))[: options.adps_cases]
        rates = sorted({c.acceleration for c in chosen})
        tuning = list(tuning_cases(options.root, rates, options.adps_tuning))
        units.append(methods.adps_unit(name, prior, options.adps_steps, tuning, chosen, book))
    return units


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command-line options, with the priors loaded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME=FOLDER"}
    parser.add_argument("--full", action="store_true", help="R = 2, 4, 6, 8, two laws, more masks, mean of 32")
    parser.add_argument("--native", action="store_true", help="multicoil_val at its own sizes; needs AMBIENT_MRI_DATA")
    parser.add_argument("--ambient", type=Path, help="ambient prior folder, for one-step reconstruction")
    parser.add_argument("--clean", **named, help="clean prior, e.g. em1=RUN/prior; a supervised one too")
    parser.add_argument("--ssdu", **named, help="feed-forward network, e.g. ssdu_weighted=RUN/prior")
    parser.add_argument("--adps", **named, help="ambient prior trained as published, for A-DPS")
    parser.add_argument("--adps-cases", type=int, default=8, help="A-DPS runs on so many cases of heads")
    parser.add_argument("--adps-steps", type=int, default=500)
    parser.add_argument("--adps-tuning", type=int, default=2, help="simulated scans that its step is chosen on")
    parser.add_argument("--accelerations", type=int, nargs="+")
    parser.add_argument("--laws", nargs="+", choices=sorted(LAWS), help="of --full and --native")
    parser.add_argument("--scans", nargs="+", help="only these")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--baselines", nargs="*", default=None, help="default: all that can run here")
    parser.add_argument("--no-baselines", dest="baselines", action="store_const", const=[], help="zero-filled alone")
    parser.add_argument("--compile", action="store_true", help="compile the networks; the times are of them")
    parser.add_argument("--part", default="0/1", help="1/3: the second of three parts of the cases")
    parser.add_argument("--name", help="of the result file (default: reconstruct, reconstruct_full)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--figures", type=Path, default=None, help="folder for figures of every case")
    options = parser.parse_args(arguments)
    options.root = Path(os.environ["AMBIENT_MRI_DATA"]) if os.environ.get("AMBIENT_MRI_DATA") else None
    if options.native and (options.full or options.root is None):
        parser.error("--native is a table of its own, and needs AMBIENT_MRI_DATA: the folder with multicoil_val")
    table = "reconstruct_native" if options.native else "reconstruct_full" if options.full else "reconstruct"
    for name, value in zip(("accelerations", "laws", "samples", "steps"), TABLES[table], strict=True):
        if getattr(options, name) is None:
            setattr(options, name, list(value) if isinstance(value, tuple) else value)
    if options.baselines is None:
        options.baselines = ["l1_wavelet"] if options.native else methods.available_baselines()
    options.name = options.name or table
    options.part = tuple(int(n) for n in options.part.split("/"))
    defaults = {"clean": "em", "ssdu": "ssdu_weighted", "adps": "ambient_published"}
    for kind, default in defaults.items():
        folders = dict(i.split("=", 1) if "=" in i else (default, i) for i in getattr(options, kind))
        setattr(options, kind, {name: load_prior(folder, compile=options.compile) for name, folder in folders.items()})
    options.ambient = load_prior(options.ambient, compile=options.compile) if options.ambient else None
    return options


def open_ledger(options: argparse.Namespace, arguments: Sequence[str]) -> Ledger:
    """The result file of this run."""
    scans = "multicoil_val at native sizes" if options.native else "multicoil_val_128"
    masks = "drawn masks" if options.native else "masks_128 and drawn masks" if options.full else "masks_128"
    settings = {
        "data": f"{scans}, {masks} (real scans)" if options.root else "simulated phantoms",
        "samples": options.samples,
        "steps": options.steps,
        "regularisation": "best of a grid, chosen with the reference in hand",
        "coil_maps": "torch ESPIRiT from the ACS of each mask, the same for every method",
        "support": SUPPORT,
        **({"networks": "compiled"} if options.compile else {}),
    }
    priors = {**options.clean, **options.ssdu, **options.adps}
    priors |= {"ambient": options.ambient} if options.ambient else {}
    named = {"priors": {name: provenance(prior) for name, prior in priors.items()}}
    command = recorded_command("benchmarks/quality/reconstruct.py", arguments)
    return Ledger(options.out / f"{options.name}.json", command, settings, named, FITTED)


def write_tables(path: Path, figures: Path, table: Callable[[ResultFile], str]) -> str:
    """The Markdown beside the result file, and the curves over R of the full table."""
    result = read_records(path)
    text = table(result)
    path.with_suffix(".md").write_text(text + "\n")
    if table is full_tables:
        curves_over_acceleration(result, figures / f"{path.stem}_acceleration.png")
    return text


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the result file, then print the table."""
    options = parse(arguments)
    book = open_ledger(options, sys.argv[1:] if arguments is None else arguments)
    cases = cases_of(options)
    units = units_of(options, cases, book)
    index, count = options.part
    for case in cases[index::count]:
        missing = missing_units(case, units, book)
        if not missing:
            continue
        began = time.perf_counter()
        rows, found = run_case(case, missing)
        book.add(rows)
        if options.figures and len(found) > 1:
            figure(case, found, options.figures)
        seconds = time.perf_counter() - began
        sys.stderr.write(f"{case.name} R={case.acceleration} {case.law} mask {case.mask_index}: {seconds:.0f} s\n")
    table = native_table if options.native else full_tables if options.full else standard_table
    sys.stdout.write(write_tables(book.path, options.out / "figures", table) + "\n")


if __name__ == "__main__":
    main()
