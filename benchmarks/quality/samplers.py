"""Every sampler on the same scans with the same prior: quality and calibration against network evaluations and seconds.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/samplers.py --prior brain128 --label brain128 --budget hour

Fully sampled scans, cropped to 128 x 128, under masks of random lines, equispaced lines and Poisson discs at R = 2, 4,
6 and 8; simulated phantoms where there is no data folder, and the table says so. Each sampler at several numbers of
steps, with no other setting that differs between cases. Scores are those of the mean of the samples, after one
least-squares factor, against the fully sampled coil-combined image; coverage (of 32 samples and more) and variance
ratio are those of the samples' magnitude inside the object, the reference's own noise counted. With --noise-factors,
the samplers are told a noise level that is wrong by those factors.

    --budget hour       an hour of one core: the first scan alone, four samples. Every mask and R with one number of
                        steps, dps excepted, which needs hundreds; several numbers, dps among them, under random lines
                        at R = 4, whence the curves; 32 samples and their coverage under random lines at R = 4 and 8, of
                        the samplers that take no gradient or one; a noise level wrong by two at R = 4.
    --budget full       every scan, mask and R with every number of steps, eight samples: a day and a half of one core.

A run that is already in the result file is not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # scans and scores are those of the benchmark of reconstructions

from ambient_mri import metrics  # noqa: E402
from ambient_mri.data.readers import read_scan  # noqa: E402
from ambient_mri.metrics import MINIMUM_COVERAGE_SAMPLES  # noqa: E402
from ambient_mri.prior import Prior, load_prior  # noqa: E402
from ambient_mri.reconstruct import Reconstruction, ReconstructionWarning, reconstruct  # noqa: E402
from ambient_mri.report.cost import COSTS, cost_figure  # noqa: E402
from ambient_mri.report.records import Row, read_records  # noqa: E402
from ambient_mri.report.tables import markdown_table  # noqa: E402
from ambient_mri.sampling import make_sampler  # noqa: E402
from ambient_mri.tensors import keyed_generator  # noqa: E402
from benchmarks.quality.cases import ACS, FITTED, LAWS, OBJECT  # noqa: E402
from benchmarks.quality.ledger import Ledger, recorded_command  # noqa: E402
from benchmarks.quality.methods import reference_noise  # noqa: E402
from benchmarks.quality.reconstruct import SCANS, Case, score, simulated_cases  # noqa: E402
from benchmarks.quality.reconstruct import coil_combined as coil_combined_image  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
# Numbers of steps of every sampler for clean priors: below, at and above what it needs.
STEPS: dict[str, tuple[int, ...]] = {
    "split_gibbs": (10, 20, 50, 100),
    "dds": (10, 20, 50, 100),
    "mmps": (10, 25, 50),
    "pigdm": (20, 50, 100),
    "dps": (100, 300, 1000),
    "diffpir": (20, 50, 100),
    "daps": (10, 25, 50),
    "pula": (10, 20, 50),
    "langevin": (30, 100, 300),
}
# The same for an hour: everywhere, and where curves are drawn.
HOUR = {"split_gibbs": 25, "dds": 25, "mmps": 15, "pigdm": 25, "diffpir": 25, "daps": 10, "pula": 15, "langevin": 30}
HOUR_CURVES: dict[str, tuple[int, ...]] = {
    "split_gibbs": (10, 25, 50, 100),
    "dds": (10, 25, 50, 100),
    "mmps": (8, 15, 30),
    "pigdm": (25, 50, 100),
    "dps": (100, 300),
    "diffpir": (25, 50, 100),
    "daps": (5, 10, 20),
    "pula": (8, 15, 30),
    "langevin": (30, 100),
}
CURVES_AT = ("random", 4)
COVERED, COVERED_AT = ("split_gibbs", "dds", "pigdm", "diffpir", "daps", "pula"), (("random", 4), ("random", 8))
WRONG_NOISE, WRONG_NOISE_OF = (0.5, 2.0), ("split_gibbs", "dds")
BUDGETS = {"hour": 4, "full": 8}  # and samples


@dataclass(frozen=True)
class Planned:
    """One reconstruction of a case."""

    sampler: str
    steps: int
    samples: int
    noise_factor: float = 1.0


@dataclass(frozen=True)
class Scan:
    """A fully sampled scan with its reference."""

    name: str
    kspace: np.ndarray  # (1, coils, H, W)
    reference: np.ndarray  # (H, W)

    def case(self, law: str, acceleration: int) -> Case:
        """The scan under one mask."""
        height, width = self.kspace.shape[-2:]
        acs = max(2, ACS.get(acceleration, 8) * width // 128)
        drawn = LAWS[law](acceleration, acs).draw((height, width), keyed_generator("samplers", law, acceleration))  # type: ignore[call-arg]
        return Case(self.name, acceleration, 0, self.kspace, drawn[0, 0].numpy(), self.reference)


def scans(root: str | None, limit: int | None) -> Iterator[Scan]:
    """The real scans, or phantoms."""
    if root:
        for name in SCANS[:limit]:
            kspace = read_scan(Path(root) / "multicoil_val_128" / f"{name}.h5").kspace
            yield Scan(name, kspace, coil_combined_image(kspace))
        return
    for case in list(simulated_cases([4]))[:limit]:
        yield Scan(case.name, case.kspace, case.reference)


def run(
    case: Case, prior: Prior, sampler: str, steps: int, samples: int, noise_std: float | None
) -> tuple[Reconstruction, float]:
    """The reconstruction as a user makes it, and its seconds."""
    start = time.perf_counter()
    with warnings.catch_warnings():  # few ACS lines are part of what is measured
        warnings.simplefilter("ignore", ReconstructionWarning)
        found = reconstruct(
            case.undersampled,
            mask=case.mask,
            coil_maps="espirit",
            noise_std=noise_std,
            prior=prior,
            sampler=make_sampler(sampler, steps),
            samples=samples,
            progress=False,
        )
    return found, time.perf_counter() - start


def scores(case: Case, found: Reconstruction) -> dict[str, float | None]:
    """Metrics of the mean, and of the samples."""
    image, samples = found.magnitude[0], np.abs(found.crop(found.samples))[0]
    factor = metrics.fit_scale(image, case.reference)
    inside, noise = case.reference > OBJECT * case.reference.max(), reference_noise(case)
    honest: dict[str, float | None] = {"chi2_residual": float(found.residual[0])}
    if len(samples) > 1:
        honest["variance_ratio"] = metrics.variance_ratio(factor * samples, case.reference, noise, support=inside)
    if len(samples) >= MINIMUM_COVERAGE_SAMPLES:
        honest["coverage90"] = metrics.coverage(factor * samples, case.reference, 0.9, noise, support=inside)
    values = {**score(case, image), **honest}
    return {name: value if value is not None and np.isfinite(value) else None for name, value in values.items()}


def plan(options: argparse.Namespace, law: str, acceleration: int) -> list[Planned]:
    """What is run under one mask."""
    cell, samples = (law, acceleration), options.samples
    if options.budget == "full":
        steps = {name: tuple(options.num_steps or STEPS[name]) for name in options.samplers}
        return [Planned(s, n, samples, f) for s in options.samplers for n in steps[s] for f in options.noise_factors]
    numbers = HOUR_CURVES if cell == CURVES_AT else {name: (number,) for name, number in HOUR.items()}
    found = [Planned(s, n, samples) for s in options.samplers for n in numbers.get(s, ())]
    if cell == CURVES_AT:
        wrong = [s for s in WRONG_NOISE_OF if s in options.samplers]
        found += [Planned(s, HOUR[s], samples, factor) for s in wrong for factor in WRONG_NOISE]
    if cell in COVERED_AT:
        found += [Planned(s, HOUR[s], MINIMUM_COVERAGE_SAMPLES) for s in COVERED if s in options.samplers]
    return found


def rows_of(case: Case, law: str, prior: Prior, options: argparse.Namespace, present: list[Row]) -> Iterator[list[Row]]:
    """The rows of every run that is missing, a run at a time."""
    estimated: float | None = None  # by the reconstruction itself: where nothing but signal is in sight, coils lower it
    for planned in plan(options, law, case.acceleration):
        sampler, steps, noise_factor = planned.sampler, planned.steps, planned.noise_factor
        method = f"{options.label}/{sampler}/mean{planned.samples}"
        factors: Row = {"case": case.name, "acceleration": case.acceleration, "mask": law, "method": method}
        factors |= {"steps": steps, "noise_factor": noise_factor}
        if any(all(row.get(name) == value for name, value in factors.items()) for row in present):
            continue
        if noise_factor != 1 and estimated is None:
            estimated = float(run(case, prior, "dds", 1, 1, None)[0].noise_std[0])
        began, told = time.process_time(), None if noise_factor == 1 else noise_factor * cast(float, estimated)
        found, seconds = run(case, prior, sampler, steps, planned.samples, told)
        status = found.settings["run"]
        cost = {"nfe": status["evaluations"], "gradients": status["gradients"], "seconds": seconds}
        cost |= {"processor_seconds": time.process_time() - began}
        shared = {**factors, **cost, "n": 1, "ci95": None}
        named = f"R={case.acceleration} {law} {sampler} {steps} x{noise_factor}, {planned.samples} samples"
        sys.stderr.write(f"{case.name} {named}: {seconds:.1f} s, {cost['processor_seconds']:.1f} s of processors\n")
        yield [{**shared, "metric": m, "value": v} for m, v in scores(case, found).items()]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", type=Path, required=True, help="folder of a clean prior, or its name")
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="full")
    parser.add_argument("--label", default="em", help="first part of the method names (default: %(default)s)")
    parser.add_argument("--samplers", nargs="+", choices=sorted(STEPS), default=list(STEPS))
    parser.add_argument("--num-steps", nargs="+", type=int, help="the same numbers for every sampler (full)")
    parser.add_argument("--samples", type=int, help="8; 4 for an hour")
    parser.add_argument("--masks", nargs="+", choices=sorted(LAWS), default=list(LAWS))
    parser.add_argument("--accelerations", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument(
        "--noise-factors", type=float, nargs="+", default=[1.0], help="wrong noise levels: 0.5 1 2 (full)"
    )
    parser.add_argument("--scans", type=int, help="use the first of them only; 1 for an hour")
    parser.add_argument("--compile", action="store_true", help="compile the networks; the times are of them")
    parser.add_argument("--name", default="samplers", help="of the result file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.samples = options.samples or BUDGETS[options.budget]
    if options.budget == "hour":
        if options.num_steps or options.noise_factors != [1.0]:
            parser.error("--budget hour has its own numbers of steps and noise levels; use --budget full.")
        options.scans = options.scans or 1
    return options


def write_table(path: Path, figures: Path) -> str:
    """The table beside the result file, and the figures of quality over cost where one number of steps is not all."""
    result = read_records(path)
    known = ("psnr", "ssim", "nrmse", "coverage90", "variance_ratio", "chi2_residual")
    present = tuple(m for m in known if any(row["metric"] == m for row in result.rows))
    table = markdown_table(
        [{k: v for k, v in row.items() if k not in ("nfe", "gradients", "processor_seconds")} for row in result.rows],
        index=("case", "mask", "method", "steps", "noise_factor"),
        columns="acceleration",
        metric=present,
        definitions=result.definitions,
    )
    path.with_suffix(".md").write_text(f"{result.settings['data']}\n\n{table}")
    mean = f"/mean{result.settings['samples']}"  # not those with more samples, for coverage
    told_truly = [row for row in result.rows if row["noise_factor"] == 1 and row["method"].endswith(mean)]
    for cost in COSTS if told_truly else ():
        cost_figure(told_truly, figures / f"{path.stem}_{cost}.png", metric="psnr", cost=cost)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the result file, then print the table."""
    options = parse(arguments)
    root, prior = os.environ.get("AMBIENT_MRI_DATA"), load_prior(options.prior, compile=options.compile)
    command = recorded_command("benchmarks/quality/samplers.py", sys.argv[1:] if arguments is None else arguments)
    settings: dict[str, Any] = {
        "data": "Real scans (multicoil_val_128)." if root else "Simulated phantoms.",
        "budget": options.budget,
        "samples": options.samples,
        "prior": {k: prior.metadata.get(k) for k in ("images_seen", "steps", "data", "git")} | {"name": prior.name},
        "coil_maps": "torch ESPIRiT from the ACS of each mask",
        "seed": 0,
        **({"networks": "compiled"} if options.compile else {}),
    }
    path = options.out / f"{options.name}.json"
    book = Ledger(path, command, settings, definitions=FITTED)
    for scan in scans(root, options.scans):
        for law in options.masks:
            for acceleration in options.accelerations:
                for rows in rows_of(scan.case(law, acceleration), law, prior, options, list(book.rows)):
                    book.add(rows)
    figures = options.out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(write_table(path, figures))


if __name__ == "__main__":
    main()
