"""Where a reconstruction breaks, and whether its standard deviation says so.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/robustness.py --prior brain128

One condition at a time is changed (``shifts.py``): noise, the noise level that the sampler is told, anatomy and
contrast, number of coils, sampling law, calibration lines. For each: zero-filled, L1-wavelet at the weight that is best
for it (chosen with the reference in hand; sigpy's), and the mean of split Gibbs samples with the settings of every day.

Uncertainty is judged inside the object (:func:`benchmarks.quality.cases.support`), on magnitudes, after one
least-squares factor: the standard deviation as ``reconstruct`` returns it beside the error of the mean, and the share
of pixels whose reference lies in the 90 % interval mean +- t sqrt((1 + 1/K) std^2 + n^2), n the part of the reference's
noise that the reconstruction does not share. A prior that breaks and says so has a standard deviation that grows with
its error.

A condition that the result file holds is not measured again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # cases, methods and records are shared by the benchmarks

from ambient_mri import metrics  # noqa: E402
from ambient_mri._checks import AmbientMRIError  # noqa: E402
from ambient_mri.prior import Prior, load_prior  # noqa: E402
from ambient_mri.reconstruct import Reconstruction  # noqa: E402
from ambient_mri.report.plots import curve_figure  # noqa: E402
from ambient_mri.report.records import ResultFile, Row, read_records  # noqa: E402
from ambient_mri.report.tables import format_value  # noqa: E402
from ambient_mri.uncertainty import CALIBRATION_LEVEL, recalibrate  # noqa: E402
from benchmarks.quality.cases import FITTED, SUPPORT, Case, measure, noise_of, score  # noqa: E402
from benchmarks.quality.ledger import Ledger, provenance, recorded_command  # noqa: E402
from benchmarks.quality.methods import best_of_grid, ours, reference_noise, zero_filled  # noqa: E402
from benchmarks.quality.shifts import SHIFTS, Condition, conditions  # noqa: E402
from benchmarks.quality.tables import markdown_lines  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
BASELINE = "l1_wavelet"
DEFINITIONS = {
    "coverage90": "Coverage: share of pixels inside with |mean - reference| <= t sqrt((1 + 1/K) std^2 + n^2), the 90 % "
    "interval of Student's t with K - 1 degrees of freedom, n the unshared noise of the reference.",
    "nrmse": f"{FITTED['nrmse']} Inside the object where std stands beside it.",
}


def rows_of(condition: Condition, prior: Prior, options: argparse.Namespace) -> list[Row]:
    """All rows of one condition."""
    case = condition.case
    method = f"{options.label}/split_gibbs/mean{options.samples}"
    plain = zero_filled(case)[0]
    found: list[tuple[str, np.ndarray, float, dict[str, Any]]] = [("zero_filled", plain.image, plain.seconds, {})]
    if options.baseline:
        image, weight, seconds = best_of_grid(case, measure(case), BASELINE)
        found.append((BASELINE, image, seconds, {"regularisation": weight}))
    told = {} if condition.told is None else {"noise_std": condition.told * noise_of(case.kspace, case.mask)}
    rec, seconds = ours(case, prior, "split_gibbs", options.samples, options.steps, **told)
    found.append((method, np.abs(rec.mean[0]), seconds, {"nfe": options.steps}))
    rows: list[Row] = []
    for name, image, spent, factors in found:
        shared: Row = {**condition.factors, "method": name, "n": 1, "ci95": None, "seconds": spent, **factors}
        rows += [{**shared, "metric": metric, "value": value} for metric, value in score(case, image).items()]
    honest = {"chi2_residual": float(rec.residual[0]), **uncertainty(case, rec)}
    return rows + [{**shared, "metric": k, "value": v, "region": "inside"} for k, v in honest.items()]


def uncertainty(case: Case, rec: Reconstruction) -> dict[str, float | None]:
    """NRMSE of the mean, its standard deviation in the same units, coverage, correlation, inside the support."""
    if rec.magnitude_std is None:
        raise SystemExit("one sample has no standard deviation: --samples 4 or more.")
    image, inside = np.abs(rec.mean[0]), case.support
    factor = metrics.fit_scale(image, case.reference)
    std, error = factor * rec.magnitude_std[0], factor * image - case.reference
    norm = np.linalg.norm(case.reference[inside])
    samples = factor * np.abs(rec.samples[0])
    correlation = metrics.std_error_correlation(samples, case.reference, support=inside)
    count, noise = len(samples), [reference_noise(case)]
    try:
        covered = recalibrate([(error, std, inside)], count, level=CALIBRATION_LEVEL, noise_std=noise).coverage
    except AmbientMRIError:  # the reference's noise explains all of the error: nothing is left to cover
        covered = None
    return {
        "nrmse": float(np.linalg.norm(error[inside]) / norm),
        "nstd": float(np.linalg.norm(std[inside]) / norm),
        "coverage90": covered,
        "std_error_correlation": correlation if np.isfinite(correlation) else None,
    }


def tables(result: ResultFile) -> dict[str, str]:
    """A table for every prior that the record holds, by the name of its method."""
    made = [m for m in dict.fromkeys(r["method"] for r in result.rows) if m not in _TITLES]
    return {method: table(result, method) for method in made}


def table(result: ResultFile, method: str) -> str:
    """One line for each shift, setting and R, the mean over scans: baselines and ``method``, and its uncertainty."""
    quality = [r for r in result.rows if r.get("region") is None and r["method"] in (*_TITLES, method)]
    inside = [r for r in result.rows if r.get("region") == "inside" and r["method"] == method]
    methods = list(dict.fromkeys(r["method"] for r in quality))
    titles = [*(_TITLES.get(m, m) for m in methods), "NRMSE inside", "std inside", "coverage 90 %", "std-error corr."]
    header = ["shift", "setting", "R", "scans", *titles]
    lines = []
    for key in dict.fromkeys(_line(r) for r in inside):
        mine, honest = ([r for r in rows if _line(r) == key] for rows in (quality, inside))
        scans = {r["case"] for r in honest}
        simulated = ", simulated" if all(r["simulated"] for r in mine) else ""
        cells = [_pair([r for r in mine if r["method"] == m], len(scans)) for m in methods]
        cells += [format_value("nrmse", _mean(honest, m, len(scans))) for m in _UNCERTAINTY]
        lines.append([*map(str, key), f"{len(scans)}{simulated}", *cells])
    notes = [f"- {result.definitions[m]}".replace("|", "\\|") for m in ("psnr", "ssim", *_UNCERTAINTY)]
    notes += [f"- Inside: {SUPPORT}. Cells: PSNR (SSIM), mean over scans."]
    notes += ["- std says so where it grows as NRMSE does; coverage below 0.9: it says too little."]
    return markdown_lines(header, lines, 3) + "\n" + "\n".join(notes) + "\n"


_UNCERTAINTY = ("nrmse", "nstd", "coverage90", "std_error_correlation")
_TITLES = {"zero_filled": "zero-filled", BASELINE: "L1-wavelet, best weight"}


def figure(result: ResultFile, method: str, path: Path, acceleration: int) -> Path | None:
    """Error against standard deviation, a curve for each shift and a point for each setting, at one R."""
    rows = result.select(method=method, acceleration=acceleration)
    inside = [r for r in rows if r.get("region") == "inside"]
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for shift in dict.fromkeys(r["shift"] for r in inside):
        mine = [r for r in inside if r["shift"] == shift]
        points = []
        for setting in dict.fromkeys(r["setting"] for r in mine):
            of_setting = [r for r in mine if r["setting"] == setting]
            scans = len({r["case"] for r in of_setting})
            std, error = (_mean(of_setting, name, scans) for name in ("nstd", "nrmse"))
            if std and error:
                points.append((std, error))
        if points:
            xs, ys = zip(*(sorted(points) if shift == "object" else points), strict=True)
            curves[shift] = (list(xs), list(ys))
    if not curves:
        return None
    ends = [0.0, max(v for curve in curves.values() for axis in curve for v in axis)]
    path.parent.mkdir(parents=True, exist_ok=True)
    return curve_figure(
        {**curves, "std = error": (ends, ends)},
        path,
        xlabel="rms std / rms reference, inside",
        ylabel="NRMSE of the mean, inside",
        title=f"R = {acceleration}: does the standard deviation say so?",
    )


def _line(row: Row) -> tuple[str, str, int]:
    return row["shift"], row["setting"], row["acceleration"]


def _mean(rows: Iterable[Row], metric: str, scans: int) -> float | None:
    """The mean of a metric over scans, None where one is undefined or missing."""
    values = [r["value"] for r in rows if r["metric"] == metric]
    return fmean(values) if len(values) == scans and None not in values else None


def _pair(rows: Sequence[Row], scans: int) -> str:
    first, second = (format_value(m, _mean(rows, m, scans)) for m in ("psnr", "ssim"))
    return f"{first} ({second})"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="brain128", help="name or folder of a clean prior (default: %(default)s)")
    parser.add_argument("--label", help="first part of its method names (default: its name)")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--accelerations", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--shifts", nargs="+", choices=sorted(SHIFTS), help="only these")
    parser.add_argument("--no-baseline", dest="baseline", action="store_false", help="leave out L1-wavelet")
    parser.add_argument("--limit", type=int, help="conditions of each shift, for a rehearsal")
    parser.add_argument("--compile", action="store_true", help="compile the networks; the times are of them")
    parser.add_argument("--name", default="robustness", help="of the result file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing in the result file, then print the table."""
    options = parse(arguments)
    root = Path(os.environ["AMBIENT_MRI_DATA"]) if os.environ.get("AMBIENT_MRI_DATA") else None
    prior = load_prior(options.prior, compile=options.compile)
    options.label = options.label or prior.name.lower()
    settings: dict[str, Any] = {
        "data": "real scans unless a row says simulated" if root else "simulated phantoms",
        "samples": options.samples,
        "steps": options.steps,
        "regularisation": "best of a grid, chosen with the reference in hand",
        "coil_maps": "torch ESPIRiT from the ACS of each mask; ours: as reconstruct chooses",
        "support": SUPPORT,
        **({"networks": "compiled"} if options.compile else {}),
    }
    command = recorded_command("benchmarks/quality/robustness.py", sys.argv[1:] if arguments is None else arguments)
    named = {"priors": {options.label: provenance(prior)}}
    book = Ledger(options.out / f"{options.name}.json", command, settings, named, {**FITTED, **DEFINITIONS})
    method = f"{options.label}/split_gibbs/mean{options.samples}"
    for condition in conditions(root, options.accelerations, options.shifts, options.limit):
        if book.has(method, **condition.factors):
            continue
        began = time.perf_counter()
        book.add(rows_of(condition, prior, options))
        told = f"{condition.shift} {condition.setting}, {condition.case.name} R={condition.case.acceleration}"
        sys.stderr.write(f"{told}: {time.perf_counter() - began:.0f} s\n")
    result = read_records(book.path)
    made = tables(result)
    book.path.with_suffix(".md").write_text("\n".join([f"{result.settings['data'].capitalize()}.\n", *made.values()]))
    figure(result, method, options.out / "figures" / f"{options.name}.png", options.accelerations[0])
    sys.stdout.write(made[method])


if __name__ == "__main__":
    main()
