"""What a better image costs: seconds and peak memory against PSNR on one head, and how both grow.

    AMBIENT_MRI_DATA=/path/to/data OMP_NUM_THREADS=1 python benchmarks/quality/cost.py --prior brain128
    --ambient benchmarks/priors/brain_R4_ambient      and, where there are such priors,
    ... --adps ambient_published=RUNS/ambient_published/prior --ssdu ssdu_weighted=RUNS/ssdu_weighted/prior

Quality: the head of 8 coils at R = 4 with the first mask of ``masks_128.npz`` (a simulated phantom without the data
folder). Growth: simulated phantoms, R = 4, around one slice of 8 coils and 128 x 128 pixels, 4 samples of 10 levels;
coils, matrix size, samples and slices change one at a time.

Seconds are those from undersampled k-space to image, coil maps and noise level included, after a warm-up; processor
seconds count all threads, and BART's program. A baseline runs at the weight that is best for the head, found before the
clock starts (its default weight where growth is measured). A-DPS takes 500 steps, as published, and the step length l
that ``benchmarks/speed/adps.py`` chose on a simulated scan and keeps in its record; feed-forward networks take one
step. Every measurement has a process of its own, whose largest resident set is the peak memory, Python and its
libraries included: that of zero-filled is nearly all of them. On a GPU the peak is what PyTorch allocated there. A
measurement that the result file holds is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # cases, methods and records are shared by the benchmarks

from ambient_mri import baselines  # noqa: E402
from ambient_mri.data.phantom import BrainPhantom  # noqa: E402
from ambient_mri.data.simulate import Simulation, simulate_scan  # noqa: E402
from ambient_mri.masks import RandomLines  # noqa: E402
from ambient_mri.measurement import Measurement  # noqa: E402
from ambient_mri.prior import load_prior  # noqa: E402
from ambient_mri.reconstruct.read import read_raw  # noqa: E402
from ambient_mri.reconstruct.volume import Volume  # noqa: E402
from ambient_mri.report.cost import cost_curves  # noqa: E402
from ambient_mri.report.plots import curve_figure  # noqa: E402
from ambient_mri.report.records import BASELINES, ResultFile, Row, read_records  # noqa: E402
from ambient_mri.report.tables import format_value  # noqa: E402
from ambient_mri.sampling import make_sampler  # noqa: E402
from benchmarks.quality import methods  # noqa: E402
from benchmarks.quality.cases import FITTED, Case, drawn_masks, measure, phantom_scans, real_cases, score  # noqa: E402
from benchmarks.quality.ledger import Ledger, provenance, recorded_command  # noqa: E402
from benchmarks.quality.tables import markdown_lines  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
STEPS = (5, 10, 25, 50, 100)
SAMPLES = 8
ADPS_STEPS = 500
ADPS_RECORD = RESULTS / "speed_adps.json"
DEFINITIONS = {"seconds": "Seconds from undersampled k-space to images, all slices together, by the clock of the row."}
GROWTH = {"coils": (4, 8, 16, 32), "size": (128, 192, 256), "samples": (1, 4, 16), "slices": (1, 4)}


@dataclass(frozen=True)
class Spec:
    """One measurement.

    Attributes:
        part: ``"quality"`` or ``"growth"``.
        method: Its name in the record.
        steps: Noise levels; 0 where there are none.
        samples: A slice; 0 where there are none.
        coils: Of a simulated scan.
        size: Rows and columns of a simulated scan.
        slices: Of a simulated scan.
        device: ``"cpu"`` or ``"cuda"``.
    """

    part: str
    method: str
    steps: int = 0
    samples: int = 0
    coils: int = 8
    size: int = 128
    slices: int = 1
    device: str = "cpu"

    @property
    def sampler(self) -> str | None:
        """Of a method with a prior; a feed-forward network that has a name of its own takes one step."""
        if self.method.startswith("ssdu"):
            return "one_step"
        return self.method.split("/")[1] if "/" in self.method else None

    @property
    def family(self) -> str:
        """The method without its estimate."""
        return self.method.rsplit("/", 1)[0]


def plan(options: argparse.Namespace) -> list[Spec]:
    """Every measurement."""
    label, devices = options.label, ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    specs = [Spec("quality", name) for name in ("zero_filled", *options.baselines)]
    for device in devices:
        if options.ambient:
            specs.append(Spec("quality", "ambient/one_step/point", 1, 1, device=device))
        for name in options.ssdu:
            method = name if name in BASELINES else f"{name}/one_step/point"
            specs.append(Spec("quality", method, 1, 1, device=device))
        for name in options.adps:
            specs.append(Spec("quality", f"{name}/adps/sample", options.adps_steps, 1, device=device))
        for steps in options.steps:
            specs.append(Spec("quality", f"{label}/dds/point", steps, 1, device=device))
            samples = options.samples
            specs.append(Spec("quality", f"{label}/split_gibbs/mean{samples}", steps, samples, device=device))
    for device in devices if options.growth else []:
        base = Spec("growth", f"{label}/split_gibbs/mean4", 10, 4, device=device)
        for factor, values in GROWTH.items():
            for value in values:
                spec = replace(base, **{factor: value})  # type: ignore[arg-type]
                estimate = f"mean{spec.samples}" if spec.samples > 1 else "sample"
                specs.append(replace(spec, method=f"{label}/split_gibbs/{estimate}"))
                if factor != "samples" and device == "cpu" and "l1_wavelet" in options.baselines:
                    specs.append(replace(spec, method="l1_wavelet", steps=0, samples=0))
    return list(dict.fromkeys(specs))


def head() -> Case:
    """The scan that quality is measured on."""
    root = os.environ.get("AMBIENT_MRI_DATA")
    if root:
        return next(c for c in real_cases(Path(root), [4]) if c.name == "brain_t1_8ch")
    name, kspace, reference = next(iter(phantom_scans()))
    return Case(name, 4, 0, kspace, drawn_masks("random", 4, 1, (128, 128))[0], reference, masks="drawn")


def grown(spec: Spec) -> Case:
    """A simulated scan of the size that was asked for; nothing refers to its reference."""
    volume = BrainPhantom(spec.size, seed=5).volume(0, spec.slices + 2)[1:-1]
    law = RandomLines(4, 12 * spec.size // 128)
    settings = Simulation(coils=(spec.coils, spec.coils), noise_std=(0.01, 0.01), turn=False)
    scan = simulate_scan(volume, law=law, seed=5, scan_id="growth", settings=settings).scan
    return Case("simulated_phantom", 4, 0, scan.kspace, scan.mask[0, 0, 0], volume[0], masks="drawn")


def work(spec: Spec, case: Case, prior: str | None) -> tuple[Callable[[int], np.ndarray], dict[str, Any]]:
    """What is timed, a function of the number of steps that gives the (first) magnitude image, and its factors."""
    if spec.sampler is not None:
        if prior is None:
            raise SystemExit(f"{spec.method} needs a prior")
        loaded = load_prior(prior, device=spec.device)
        if spec.sampler == "adps":
            weight = step_length()

            def published(steps: int) -> np.ndarray:
                sampler = make_sampler("adps", steps=steps, likelihood_weight=weight)
                rec, _ = methods.ours(case, loaded, sampler, spec.samples, None, device=spec.device)
                return np.abs(rec.mean[0])

            return published, {"nfe": spec.steps, "gradients": spec.steps, "regularisation": weight}

        def reconstructed(steps: int) -> np.ndarray:
            chosen = None if spec.sampler == "one_step" else steps
            rec, _ = methods.ours(case, loaded, str(spec.sampler), spec.samples, chosen, device=spec.device)
            return np.abs(rec.mean[0])

        return reconstructed, {"nfe": spec.steps, "gradients": 0}
    if spec.method == "zero_filled":
        return lambda _: baselines.zero_filled(measure(case))[0, 0].abs().numpy(), {}
    if spec.part == "growth":
        solver = getattr(baselines, spec.method)
        return lambda _: solver(_volume(case))[0, 0].abs().numpy(), {}
    _, weight, _ = methods.best_of_grid(case, measure(case), spec.method)
    solved = lambda _: methods.solve(measure(case), spec.method, weight)[0, 0].abs().numpy()  # noqa: E731
    return solved, {"regularisation": weight}


def step_length() -> float:
    """l of A-DPS from the record of ``benchmarks/speed/adps.py``.

    Raises:
        SystemExit: If there is no such record.
    """
    if not ADPS_RECORD.is_file():
        raise SystemExit(f"{ADPS_RECORD} is missing: run `python benchmarks/speed/adps.py` first, it chooses l.")
    return float(read_records(ADPS_RECORD).settings["likelihood_weight"]["weight"])


def _volume(case: Case) -> Measurement:
    """The measurement of all slices."""
    volume = Volume.measure(read_raw(case.undersampled, case.mask))
    chunk = volume.chunk(slice(0, len(case.kspace)), torch.device("cpu"))
    return replace(chunk.measurement, noise_std=chunk.noise_std)


def measure_here(spec: Spec, prior: str | None) -> dict[str, Any]:
    """Make one measurement in this process."""
    case = head() if spec.part == "quality" else grown(spec)
    run, factors = work(spec, case, prior)
    run(1)  # warm-up: a few steps at most, the same memory
    if spec.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    wall, processor = time.perf_counter(), _processor_seconds()
    image = run(spec.steps)
    found = {"wall": time.perf_counter() - wall, "processor": _processor_seconds() - processor}
    if spec.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak = max(resource.getrusage(user).ru_maxrss for user in users) / 1024
    quality = score(case, image) if spec.part == "quality" else {}
    return {"case": case.name, "peak_memory_mb": peak, "factors": factors, "quality": quality, **found}


def _processor_seconds() -> float:
    """Of all threads of this process and of the programs that it ran."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def rows_of(spec: Spec, prior: str | None) -> list[Row]:
    """Make one measurement in a process of its own."""
    command = [sys.executable, __file__, "--only", json.dumps(asdict(spec)), *(["--prior", prior] if prior else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{spec.method} failed: {done.stderr.strip()[-800:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    shared: Row = {**asdict(spec), "case": found["case"], "acceleration": 4, "mask": 0, "n": 1, "ci95": None}
    shared |= {**found["factors"], "seconds": found["processor" if spec.device == "cpu" else "wall"]}
    rows = [{**shared, "metric": metric, "value": value} for metric, value in found["quality"].items()]
    rows += [{**shared, "metric": "seconds", "clock": clock, "value": found[clock]} for clock in ("wall", "processor")]
    return [*rows, {**shared, "metric": "peak_memory_mb", "value": found["peak_memory_mb"]}]


def tables(result: ResultFile) -> str:
    """Quality against cost, and the growth of cost."""
    columns = ["wall", "processor", "peak memory"]
    specs = list(dict.fromkeys(_spec(row) for row in result.rows))
    quality = []
    for spec in (s for s in specs if s.part == "quality"):
        scores = [format_value(m, _value(result, spec, m)) for m in ("psnr", "ssim")]
        plain = [spec.method, str(spec.steps or "–"), spec.device]
        quality.append([*plain, *scores, *_costs(result, spec)])
    parts = [markdown_lines(["method", "steps", "device", "PSNR (dB)", "SSIM", *columns], quality, 3)]
    growth = [s for s in specs if s.part == "growth"]
    lines = []
    for factor in GROWTH if growth else ():
        for spec in growth:
            base = {"coils": 8, "size": 128, "slices": 1, "samples": 4 if spec.sampler else 0}
            varied = all(getattr(spec, name) == value for name, value in base.items() if name != factor)
            if varied and (factor != "samples" or spec.sampler):
                plain = [factor, str(getattr(spec, factor)), spec.family, spec.device]
                lines.append([*plain, *_costs(result, spec)])
    lines.sort(key=lambda line: (list(GROWTH).index(line[0]), line[2], line[3], int(line[1])))
    if lines:
        parts.append(markdown_lines(["growing", "to", "method", "device", *columns], lines, 4))
    return "\n".join(parts)


def figure(result: ResultFile, path: Path) -> Path:
    """PSNR on the head over processor seconds, which other work on the machine leaves alone; wall clock on a GPU."""
    scored = [row for row in result.rows if row["part"] == "quality" and row["metric"] == "psnr"]
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for device in dict.fromkeys(row["device"] for row in scored):
        mine = [row for row in scored if row["device"] == device and "/" in row["method"]]
        for family in dict.fromkeys(_spec(row).family for row in mine):
            (curve,) = cost_curves([r for r in mine if _spec(r).family == family], "psnr", "seconds").values()
            curves[family.replace("_", " ") + (" (GPU)" if device == "cuda" else "")] = curve
    for row in (r for r in scored if "/" not in r["method"] and r["method"] != "zero_filled"):
        curves[row["method"].replace("_", " ")] = ([row["seconds"]], [row["value"]])
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"{scored[0]['case']}, R = 4"
    return curve_figure(
        curves, path, xlabel="processor seconds (GPU: wall clock)", ylabel="PSNR (dB)", title=title, xscale="log"
    )


def _spec(row: Row) -> Spec:
    return Spec(**{name: row[name] for name in Spec.__dataclass_fields__})


def _value(result: ResultFile, spec: Spec, metric: str, **factors: str) -> float | None:
    found = result.select(**asdict(spec), metric=metric, **factors)
    return found[0]["value"] if found else None


def _costs(result: ResultFile, spec: Spec) -> list[str]:
    seconds = [format_value("seconds", _value(result, spec, "seconds", clock=c)) for c in ("wall", "processor")]
    return [*seconds, format_value("peak_memory_mb", _value(result, spec, "peak_memory_mb"))]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="brain128", help="name or folder of a clean prior (default: %(default)s)")
    parser.add_argument("--label", help="first part of its method names (default: its name)")
    parser.add_argument("--ambient", help="folder of an ambient prior, for one step")
    named: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME=PRIOR"}
    parser.add_argument("--adps", **named, help="ambient network for A-DPS; may be given again")
    parser.add_argument("--adps-steps", type=int, default=ADPS_STEPS)
    parser.add_argument("--ssdu", **named, help="feed-forward network, such as ssdu_weighted=RUN/prior")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of split Gibbs, on the head")
    parser.add_argument("--baselines", nargs="*", default=None, help="default: all that can run here")
    parser.add_argument("--no-growth", dest="growth", action="store_false", help="the head alone")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--name", default="cost", help="of the result file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.baselines is None:
        options.baselines = methods.available_baselines()
    for kind in ("adps", "ssdu"):
        setattr(options, kind, dict(item.split("=", 1) for item in getattr(options, kind)))
    return options


def priors_of(options: argparse.Namespace) -> dict[str, str]:
    """Prior by the first part of its method names."""
    ambient = {"ambient": options.ambient} if options.ambient else {}
    return {options.label: options.prior, **ambient, **options.adps, **options.ssdu}


def open_ledger(options: argparse.Namespace, arguments: Iterable[str]) -> Ledger:
    """The result file of this run; names the prior where no label did."""
    options.label = options.label or load_prior(options.prior).name.lower()
    priors = {name: provenance(load_prior(folder)) for name, folder in priors_of(options).items()}
    settings = {
        "data": "brain_t1_8ch (real)" if os.environ.get("AMBIENT_MRI_DATA") else "a simulated phantom",
        "growth": "simulated phantoms, R = 4",
        "threads": torch.get_num_threads(),
    }
    command = recorded_command("benchmarks/quality/cost.py", list(arguments))
    return Ledger(
        options.out / f"{options.name}.json", command, settings, {"priors": priors}, {**FITTED, **DEFINITIONS}
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing in the result file, then print the tables."""
    options = parse(None if arguments is None else list(arguments))
    if options.only:
        sys.stdout.write(json.dumps(measure_here(Spec(**json.loads(options.only)), options.prior)) + "\n")
        return
    book = open_ledger(options, sys.argv[1:] if arguments is None else arguments)
    for spec in plan(options):
        if book.has(**asdict(spec)):
            continue
        began = time.perf_counter()
        prior = priors_of(options)[spec.method.split("/")[0]] if spec.sampler else None
        book.add(rows_of(spec, prior))
        sys.stderr.write(f"{spec}: {time.perf_counter() - began:.0f} s\n")
    result = read_records(book.path)
    text = tables(result)
    about = (
        f"Quality: {result.settings['data']}; growth: {result.settings['growth']}; {result.settings['threads']} thread."
    )
    book.path.with_suffix(".md").write_text(f"{about}\n\n{text}")
    figure(result, options.out / "figures" / f"{options.name}.png")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
