"""What A-DPS costs and gives, beside this project's samplers: processor seconds and PSNR on the same slices.

    AMBIENT_MRI_DATA=/path/to/data OMP_NUM_THREADS=1 python benchmarks/speed/adps.py

A-DPS as published (500 steps, a gradient through the network at each) with an ambient network of this project, which
was trained on R = 4 scans, not with the published weights; against one_step and split_gibbs on that very network, and
split_gibbs and dds with a clean prior of the same size that came from it. One real head of 128 x 128, R = 4 and 8;
without the data folder a simulated phantom, and the table says so. Every method gets the same coil maps, scale and
noise level, estimated from the undersampled scan; seconds are those of the sampler alone, its preparations included.

A-DPS's step l is chosen by PSNR on a simulated scan of another subject at R = 4 and kept in the record. With fewer
--tuning-steps, it is chosen on runs of the same total length, with steps as much longer. A method that the result file
holds for a case is not run again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # cases and scores are those of the benchmark of reconstructions

from ambient_mri.denoiser import ConditionalDenoiser, Denoiser  # noqa: E402
from ambient_mri.measurement import Measurement  # noqa: E402
from ambient_mri.operators import sense  # noqa: E402
from ambient_mri.prior import Prior, load_prior  # noqa: E402
from ambient_mri.reconstruct import ReconstructionWarning  # noqa: E402
from ambient_mri.report.records import Row, append_records, read_records  # noqa: E402
from ambient_mri.report.tables import markdown_table  # noqa: E402
from ambient_mri.sampling import Sampler, ambient_denoiser, make_sampler  # noqa: E402
from ambient_mri.tensors import keyed_generator  # noqa: E402
from benchmarks.quality.cases import FITTED, Case, measure, real_cases, score, simulated_cases, tuning_cases  # noqa: E402
from benchmarks.quality.ledger import recorded_command  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
AMBIENT, CLEAN = ROOT / "benchmarks" / "priors" / "brain_R4_ambient", ROOT / "ambient_mri" / "priors" / "brain128"
WEIGHTS = (0.3, 1.0, 3.0, 10.0)
DEFINITIONS = {
    "seconds": "Processor seconds of one estimate of one slice, coil maps and scale not counted.",
    "ratio": "Processor seconds of A-DPS on the same slice over those of the method.",
}


def processor_seconds(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What ``run`` returns, and its processor seconds."""
    start = time.process_time()
    found = run()
    return found, time.process_time() - start


def estimate(m: Measurement, prior: Prior, sampler: Sampler) -> Tensor:
    """Magnitude (H, W) of one estimate."""
    generators = [keyed_generator("adps", "sample")]
    model = prior.model
    if isinstance(model, ConditionalDenoiser):
        denoiser: Denoiser = ambient_denoiser(model, m, [keyed_generator("adps", "masks")])
    elif isinstance(model, Denoiser):
        denoiser = model
    else:
        raise SystemExit(f"{prior.name} is neither an ambient network nor a clean prior")
    operator = sense(m.coil_maps, m.mask, axes=m.axes)  # type: ignore[arg-type]
    return sampler.sample(denoiser, operator, m.y, m.noise_std, generators=generators).x[0, 0].abs()


def quietly(case: Case) -> Measurement:
    """The measurement of a case; few ACS lines are part of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReconstructionWarning)
        return measure(case).cancel_readout()


def psnr(case: Case, image: Tensor) -> float:
    """PSNR after one least-squares factor, dB."""
    return float(score(case, image.numpy())["psnr"])


def tuned_weight(prior: Prior, case: Case, options: argparse.Namespace) -> dict[str, float]:
    """PSNR (dB) of every step length l."""
    m = quietly(case)
    found = {}
    for weight in options.weights:
        longer = weight * options.steps / options.tuning_steps
        sampler = make_sampler("adps", options.tuning_steps, likelihood_weight=longer)
        found[f"{weight:g}"] = psnr(case, estimate(m, prior, sampler))
        sys.stderr.write(f"l = {weight:g}: {found[f'{weight:g}']:.2f} dB\n")
    return found


def methods(weight: float, options: argparse.Namespace) -> dict[str, tuple[str, Sampler]]:
    """Name of the prior and the sampler of every method."""
    return {
        "ambient/adps/sample": ("ambient", make_sampler("adps", options.steps, likelihood_weight=weight)),
        "ambient/one_step/point": ("ambient", make_sampler("one_step")),
        "ambient/split_gibbs/point": ("ambient", make_sampler("split_gibbs", final="mean")),
        f"{options.label}/split_gibbs/point": ("clean", make_sampler("split_gibbs", final="mean")),
        f"{options.label}/dds/point": ("clean", make_sampler("dds")),
    }


def rows_of(case: Case, weight: float, priors: dict[str, Prior], held: list[Row], options: Any) -> Iterator[list[Row]]:
    """The rows of every method that is missing, a method at a time; A-DPS comes first."""
    m = quietly(case)
    published = {row["metric"]: row["value"] for row in held if row["method"] == "ambient/adps/sample"}
    present = {row["method"] for row in held}
    for name, (prior, sampler) in methods(weight, options).items():
        if name in present:
            continue
        image, seconds = processor_seconds(lambda p=prior, s=sampler: estimate(m, priors[p], s))  # type: ignore[misc]
        values = {"psnr": psnr(case, image), "seconds": seconds}
        if name == "ambient/adps/sample":
            published = values
        else:
            values["ratio"] = published["seconds"] / seconds
        shared: Row = {**case.factors, "method": name, "steps": sampler.steps, "n": 1, "ci95": None}
        sys.stderr.write(f"{case.name} R={case.acceleration} {name}: {values['psnr']:.2f} dB, {seconds:.1f} s\n")
        yield [{**shared, "metric": metric, "value": value} for metric, value in values.items()]


def chosen_cases(root: Path | None, options: argparse.Namespace) -> list[Case]:
    """One scan, one mask for each R."""
    cases = list(real_cases(root, options.accelerations) if root else simulated_cases(options.accelerations))
    name = options.scan if root else cases[0].name
    found = [case for case in cases if case.name == name and case.mask_index == 0]
    if not found:
        raise SystemExit(f"no scan {name!r}; there are {', '.join(sorted({case.name for case in cases}))}")
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ambient", type=Path, default=AMBIENT, help="folder of an ambient prior")
    parser.add_argument("--clean", type=Path, default=CLEAN, help="folder of a clean prior of the same size")
    parser.add_argument("--label", default="em", help="first part of the clean prior's method names")
    parser.add_argument("--scan", default="brain_t1_4ch")
    parser.add_argument("--accelerations", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--steps", type=int, default=500, help="of A-DPS")
    parser.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS), help="step lengths l to choose from")
    parser.add_argument("--tuning-steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing in the result file, then print the table."""
    options = parse(arguments)
    root = Path(os.environ["AMBIENT_MRI_DATA"]) if os.environ.get("AMBIENT_MRI_DATA") else None
    if root is None:
        sys.stderr.write("AMBIENT_MRI_DATA is not set: a simulated phantom instead of a real head.\n")
    priors = {"ambient": load_prior(options.ambient), "clean": load_prior(options.clean)}
    path = options.out / "speed_adps.json"
    old = read_records(path) if path.is_file() else None
    chosen: dict[str, Any]
    if old is None:
        tuning = next(iter(tuning_cases(root, [4], 1)))
        scores = tuned_weight(priors["ambient"], tuning, options)
        chosen = {
            "tuned_on": tuning.name,
            "psnr_by_weight": scores,
            "weight": float(max(scores, key=scores.__getitem__)),
        }
    else:
        chosen = old.settings["likelihood_weight"]
    settings = {
        "data": f"Real scan ({options.scan})." if root else "Simulated phantom.",
        "priors": {name: [prior.name, prior.metadata.get("git")] for name, prior in priors.items()},
        "likelihood_weight": chosen,
        "adps_steps": options.steps,
        "threads": torch.get_num_threads(),
    }
    command = recorded_command("benchmarks/speed/adps.py", sys.argv[1:] if arguments is None else arguments)
    for case in chosen_cases(root, options):
        held = [] if old is None else [r for r in old.rows if all(r[k] == v for k, v in case.factors.items())]
        for rows in rows_of(case, chosen["weight"], priors, held, options):
            append_records(path, "speed_adps", command, settings, definitions={**FITTED, **DEFINITIONS}, rows=rows)
    result = read_records(path)
    table = markdown_table(
        [{k: v for k, v in row.items() if k != "mask"} for row in result.rows],
        index=("case", "method", "steps"),
        columns="acceleration",
        metric=("psnr", "seconds", "ratio"),
        definitions=result.definitions,
    )
    text = f"{settings['data']} A-DPS with l = {chosen['weight']:g}, chosen on {chosen['tuned_on']}.\n\n{table}"
    path.with_suffix(".md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
