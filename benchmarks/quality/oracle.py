"""Every sampler against an exact posterior: a Gaussian world, where best denoiser and answer have a closed form.

    python benchmarks/quality/oracle.py --size 24 --samples 16

Complex Gaussian images, 4 coils, 1-D masks of R = 4 and 8 with two central lines, noise_std 0.01 and 0.05; and an
object in an empty field, R = 4. For each sampler, at its own default settings: NRMSE of the mean, free of the error
that a finite number of samples adds; the variance of the samples over the exact one, of the image, of A x and along the
exact posterior's principal axes; and the coverage of the samples' 90 % interval. No setting differs between cases.
Samplers for ambient networks are not in the table: their network has no closed form that is as cheap.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the test-bed is that of the tests

from ambient_mri.report.records import ResultFile, append_records, read_records  # noqa: E402
from ambient_mri.report.tables import markdown_table  # noqa: E402
from ambient_mri.sampling import SAMPLERS, make_sampler  # noqa: E402
from benchmarks.quality.ledger import recorded_command  # noqa: E402
from tests.oracles import GaussianWorld, PosteriorScene  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
# Whether the field is empty around an object, R, noise_std.
CASES = (
    (False, 4, 0.01),
    (False, 8, 0.01),
    (False, 4, 0.05),
    (False, 8, 0.05),
    (True, 4, 0.01),
    (True, 4, 0.05),
)
# Settings beside the defaults: the cost of a number of levels, the limit of many, one error for all pixels.
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("split_gibbs", {"steps": 50}),
    ("split_gibbs", {"steps": 50, "error": "white"}),
    ("split_gibbs", {"steps": 200}),
    ("split_gibbs", {"steps": 200, "error": "white"}),
    ("dds", {"steps": 50}),
    ("dds", {"steps": 50, "error": "white"}),
    ("mmps", {"steps": 50}),
    ("mmps", {"steps": 100}),
    ("pigdm", {"steps": 100}),
    ("dps", {"steps": 500}),
    ("diffpir", {"steps": 100}),
    ("daps", {"steps": 50}),
    ("pula", {"steps": 100}),
    ("langevin", {"steps": 300}),
)
DEFINITIONS = {
    "nrmse": "Expected ||mean - x0|| / ||x0|| of the mean of infinitely many samples: the exact posterior's, times the "
    "square root of one plus the squared distance of the two means over the exact variance.",
    "variance_ratio": "Summed pixel variance of the samples over that of the exact posterior; by quarters of the exact "
    "posterior's principal axes, the widest first, in the second table.",
    "coverage90": "Expected share of true values, real and imaginary, in the central 90 % interval of the samples, "
    "over truths that the data leave possible.",
}


def lines(size: int, acceleration: int) -> tuple[int, ...]:
    """size / R lines: two central ones, the others spread over both sides, none twice."""
    count = size // acceleration - 2
    outer = [round((i + 0.5) * (size - 2) / count) for i in range(count)] if count > 0 else []
    centre = (size // 2 - 1, size // 2)
    return tuple(sorted({*centre, *(i if i < centre[0] else i + 2 for i in outer)}))


def rows_of(
    scene: PosteriorScene, factors: dict[str, object], name: str, settings: dict[str, Any], samples: int
) -> list[dict[str, object]]:
    """Result rows of one sampler on one case."""
    start, sampler = time.perf_counter(), make_sampler(name, **settings)
    drawn, result = scene.run(sampler, samples)
    seconds = time.perf_counter() - start
    scores = scene.scores(drawn)
    shared = {
        **factors,
        "method": f"gaussian/{name}/mean{samples}",
        "steps": settings["steps"],
        "error": getattr(sampler, "error", None),
        "nfe": result.status["evaluations"],
        "gradients": result.status["gradients"],
        "n": len(scene.truth),
        "ci95": None,
        "seconds": seconds,
    }
    rows: list[dict[str, object]] = [
        {**shared, "metric": "nrmse", "value": scores["nrmse"] * scores["nrmse_exact"], "domain": "image"},
        {**shared, "metric": "variance_ratio", "value": scores["variance"], "domain": "image"},
        {**shared, "metric": "variance_ratio", "value": scores["data_variance"], "domain": "data"},
        *(
            {**shared, "metric": "variance_ratio", "value": scores[f"spectrum_{i}"], "domain": f"quarter {i}"}
            for i in range(1, 5)
        ),
    ]
    if "coverage90" in scores:  # of many samples alone
        rows.append({**shared, "metric": "coverage90", "value": scores["coverage90"], "domain": "image"})
    return rows


def exact_rows(scene: PosteriorScene, factors: dict[str, object]) -> list[dict[str, object]]:
    """The exact posterior's own error; its variance ratio is one."""
    shared = {
        "method": "gaussian/exact/point",
        "steps": 0,
        "error": None,
        "nfe": 0,
        "gradients": 0,
        "seconds": 0.0,
        "ci95": None,
    }
    nothing = torch.zeros_like(scene.truth)[:, None].expand(-1, 2, -1, -1, -1)
    value = scene.scores(nothing)["nrmse_exact"]
    base = {**factors, **shared, "domain": "image", "n": len(scene.truth)}
    return [{**base, "metric": "nrmse", "value": value}, {**base, "metric": "variance_ratio", "value": 1.0}]


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the result file, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=24, help="of the images")
    parser.add_argument("--truths", type=int, default=2)
    parser.add_argument("--samples", type=int, default=16, help="for each truth")
    parser.add_argument("--samplers", nargs="*", choices=sorted(SAMPLERS), help="default: all of the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    command = recorded_command("benchmarks/quality/oracle.py", sys.argv[1:] if arguments is None else arguments)
    settings = {"size": options.size, "truths": options.truths, "samples": options.samples, "coils": 4, "seed": 0}
    path = options.out / "oracle.json"
    present = list(read_records(path).rows) if path.is_file() else []
    chosen = [pair for pair in SETTINGS if options.samplers is None or pair[0] in options.samplers]
    for empty, acceleration, noise_std in CASES:
        name = f"{'object, ' if empty else ''}R = {acceleration}, noise_std {noise_std}"
        factors: dict[str, object] = {"case": name, "acceleration": acceleration, "noise_std": noise_std}
        mask = lines(options.size, acceleration)
        world = GaussianWorld.object_in_an_empty_field(options.size) if empty else None
        scene = PosteriorScene.make(options.size, noise_std, lines=mask, truths=options.truths, world=world)
        new = exact_rows(scene, factors)
        for name, more in chosen:
            error = getattr(make_sampler(name, **more), "error", None)
            wanted = {**factors, **more, "error": error, "method": f"gaussian/{name}/mean{options.samples}"}
            if any(all(row.get(k) == v for k, v in wanted.items()) for row in present):
                continue
            new += rows_of(scene, factors, name, more, options.samples)
            sys.stderr.write(f"{factors['case']} {name} {more}: {new[-1]['seconds']:.1f} s\n")
        append_records(path, "oracle", command, settings, definitions=DEFINITIONS, rows=new)
    result = read_records(path)
    text = tables(result)
    path.with_suffix(".md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


def tables(result: ResultFile) -> str:
    """Mean, spread and coverage of every sampler; the spread along the posterior's axes."""
    left_out = ("gradients", "acceleration", "noise_std")
    rows = [{k: v for k, v in row.items() if k not in left_out} for row in result.rows]
    options: dict[str, Any] = {"columns": "case", "definitions": result.definitions}
    whole = [{k: v for k, v in row.items() if k != "domain"} for row in rows if row["domain"] == "image"]
    text = markdown_table(
        whole, index=("method", "steps", "error", "nfe"), metric=("nrmse", "variance_ratio", "coverage90"), **options
    )
    along = [row for row in rows if row["domain"].startswith("quarter")]
    if along:
        text += "\n" + markdown_table(
            along, index=("method", "steps", "error", "domain"), metric="variance_ratio", **options
        )
    return text


if __name__ == "__main__":
    main()
