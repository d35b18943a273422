"""What sampling costs beside the network: wall time of split_gibbs and dds over bare forwards of the same batch.

    OMP_NUM_THREADS=1 python benchmarks/speed/samplers.py --repeats 5

One slice of 8 coils and 128 x 128 pixels, 8 samples a batch, 50 steps, with the prior that is given: a whole run of the
sampler, the eigendecomposition of the exact data step included, against as many bare forwards of the network on a batch
of the same size. The denoiser's error is one for all pixels (white) or one for each (local, the default). Forwards and
samplers take turns, so that a busy machine slows both. The ratio of processor seconds is there for machines that do
other work too; on a quiet one it is that of wall times. Each kind of mask, and each solver of the data step, is a case
of its own. A case that is already in the result file is not measured again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # records are written as by the benchmarks of quality

from ambient_mri.data.phantom import BrainPhantom  # noqa: E402
from ambient_mri.denoiser import Denoiser  # noqa: E402
from ambient_mri.masks import PoissonDisc, RandomLines  # noqa: E402
from ambient_mri.operators import LinearOperator, sense  # noqa: E402
from ambient_mri.prior import Prior, load_prior  # noqa: E402
from ambient_mri.report.records import Row, append_records, read_records  # noqa: E402
from ambient_mri.report.tables import markdown_table  # noqa: E402
from ambient_mri.sampling import make_sampler  # noqa: E402
from ambient_mri.tensors import complex_randn, keyed_generator  # noqa: E402
from benchmarks.quality.ledger import recorded_command  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
ACCELERATION, NOISE_STD = 4, 0.01
# Mask, axes that the operator transforms (one where the readout is cancelled, as reconstruct() does), data step, error.
Case: TypeAlias = tuple[str, tuple[int, ...], str, str]
CASES: tuple[Case, ...] = (
    ("lines", (-1,), "exact", "white"),
    ("lines", (-1,), "exact", "local"),
    ("lines", (-1,), "conjugate_gradient", "local"),
    ("poisson", (-2, -1), "conjugate_gradient", "local"),
)
SAMPLERS = ("split_gibbs", "dds")
DEFINITIONS = {
    "ratio": "Time of a whole run of the sampler over that of as many bare network forwards of the same batch, taken "
    "in turns; clock says which time. Median over the turns.",
}


def scene(mask: str, axes: tuple[int, ...], coils: int, size: int) -> tuple[LinearOperator, Tensor]:
    """A and y of a phantom with smooth random coil maps."""
    image = torch.as_tensor(BrainPhantom(size, seed=3).volume(0, 3)[1]).reshape(1, 1, size, size).to(torch.complex64)
    law = (RandomLines if mask == "lines" else PoissonDisc)(ACCELERATION, size // 16)
    sampled = law.draw((size, size), keyed_generator("mask"))
    low = torch.zeros(1, coils, size, size, dtype=torch.complex64)
    centre = slice(size // 2 - 1, size // 2 + 2)
    low[..., centre, centre] = complex_randn((1, coils, 3, 3), generator=keyed_generator("maps"))
    maps = torch.fft.fft2(torch.fft.ifftshift(low, dim=(-2, -1)))
    operator = sense(maps / maps.norm(dim=1, keepdim=True), sampled, axes=axes)
    noise = complex_randn((1, coils, size, size), generator=keyed_generator("noise")) * sampled
    return operator, operator.forward(image) + NOISE_STD * noise


def name_of(case: Case) -> str:
    """In the records."""
    return f"{case[0]}, {case[2]}, {case[3]} error"


def timed(run: Callable[[], object]) -> dict[str, float]:
    """Wall and processor seconds of ``run``."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - cpu}


def measure(prior: Prior, case: Case, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of one case: the samplers and the forwards in turns."""
    mask, axes, data_step, error = case
    model = prior.model
    if not isinstance(model, Denoiser):
        raise SystemExit(f"{prior.name} is no clean prior")
    operator, y = scene(mask, axes, options.coils, options.size)
    state = complex_randn((options.batch, 1, options.size, options.size), generator=keyed_generator("x_t"))
    sigma = torch.full((options.batch,), 0.3)
    iterations: dict[str, int] = {}

    @torch.no_grad()
    def forwards() -> None:
        for _ in range(options.steps):
            model(state, sigma)

    def sampler(name: str) -> None:
        method = make_sampler(name, options.steps, data_step=data_step, error=error)
        generators = [keyed_generator("speed", i) for i in range(options.batch)]
        result = method.sample(model, operator, y, NOISE_STD, generators=generators)
        iterations[name] = result.status["data_step_iterations"]

    with torch.no_grad():
        model(state, sigma)  # warm-up
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in ("network", *SAMPLERS)}
    for _ in range(options.repeats):
        turns["network"].append(timed(forwards))
        for name in SAMPLERS:
            turns[name].append(timed(lambda name=name: sampler(name)))
    shared: Row = {"case": name_of(case), "mask": mask, "data_step": data_step, "error": error, "batch": options.batch}
    for name in SAMPLERS:
        solver = {"iterations_per_step": round(iterations[name] / options.steps, 1)}
        for clock in ("wall", "processor"):
            ratios = [a[clock] / b[clock] for a, b in zip(turns[name], turns["network"], strict=True)]
            yield {**shared, **solver, "method": name, "clock": clock, "metric": "ratio", **_summary(ratios)}
    for name, found in turns.items():
        steps = [turn["processor"] / options.steps for turn in found]
        yield {**shared, "method": name, "clock": "processor, a step", "metric": "seconds", **_summary(steps)}


def _summary(values: list[float]) -> dict[str, Any]:
    return {"value": statistics.median(values), "n": len(values), "ci95": None}


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing in the result file, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="brain128", help="name or folder of a clean prior")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="samples at a time")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    prior, path = load_prior(options.prior), options.out / "speed_samplers.json"
    command = recorded_command("benchmarks/speed/samplers.py", sys.argv[1:] if arguments is None else arguments)
    names = ("size", "coils", "batch", "steps")
    settings = {name: getattr(options, name) for name in names} | {
        "prior": prior.name,
        "acceleration": ACCELERATION,
        "noise_std": NOISE_STD,
        "threads": torch.get_num_threads(),
    }
    present = read_records(path) if path.is_file() else None
    for case in CASES:
        if present is None or not present.has(case=name_of(case)):
            rows = list(measure(prior, case, options))
            append_records(path, "speed_samplers", command, settings, definitions=DEFINITIONS, rows=rows)
    result = read_records(path)
    table = markdown_table(
        [row for row in result.rows if row["metric"] == "ratio"],
        index=("case", "clock"),
        metric="ratio",
        average_over=("iterations_per_step",),
        definitions=result.definitions,
    )
    path.with_suffix(".md").write_text(table)
    sys.stdout.write(table)


if __name__ == "__main__":
    main()
