"""Linear physics of deepinv as operators of this package: the same numbers, and a true adjoint.

    PYTHONPATH=. CROSSCHECK/bin/python benchmarks/quality/adapters.py

CROSSCHECK is the environment of crosscheck_requirements.txt. For every physics: the largest difference between
``from_deepinv(physics)`` and the physics itself, and | <A x, y> - <x, A^H y> | / (||A x|| ||y||) of random x and y.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ambient_mri.operators import from_deepinv  # noqa: E402
from ambient_mri.report.records import Row, write_records  # noqa: E402
from ambient_mri.report.tables import markdown_table  # noqa: E402
from ambient_mri.tensors import keyed_generator  # noqa: E402
from benchmarks.quality.crosscheck_libraries import deepinv  # noqa: E402
from benchmarks.quality.ledger import recorded_command  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
DEFINITIONS = {
    "difference": "quantity = forward, adjoint: largest difference to the physics itself over its largest number; "
    "adjointness: |<A x, y> - <x, A^H y>| / (||A x|| ||y||)."
}


def every_physics() -> Iterator[tuple[str, Any, tuple[int, int, int]]]:
    """Name, physics and the shape of its images."""
    p, size = deepinv.physics, 24
    mask = torch.rand(1, size, size, generator=keyed_generator("mask")) < 0.5
    kernel = deepinv.physics.functional.blur.gaussian_blur(sigma=(1.0, 2.0), angle=30.0)
    yield "Denoising", p.Denoising(), (3, size, size)
    yield "Inpainting", p.Inpainting(img_size=(3, size, size), mask=mask.float().expand(3, -1, -1)), (3, size, size)
    yield "BlurFFT", p.BlurFFT(img_size=(3, size, size), filter=kernel), (3, size, size)
    yield "Blur, circular", p.Blur(filter=kernel, padding="circular"), (3, size, size)
    yield "Blur, valid", p.Blur(filter=kernel, padding="valid"), (3, size, size)
    yield "Downsampling", p.Downsampling(img_size=(3, size, size), filter="bicubic", factor=2), (3, size, size)
    yield "CompressedSensing", p.CompressedSensing(m=100, img_size=(1, 12, 12)), (1, 12, 12)
    yield "Decolorize", p.Decolorize(), (3, size, size)
    lines = (torch.rand(1, 1, 1, size, generator=keyed_generator("lines")) < 0.5).float().expand(1, 1, size, size)
    yield "MRI", p.MRI(mask=lines, img_size=(2, size, size)), (2, size, size)


def measure(name: str, physics: Any, shape: tuple[int, int, int]) -> list[Row]:
    """The three numbers of a physics."""
    x = torch.randn(2, *shape, generator=keyed_generator("x"))
    theirs: Tensor = physics.A(x)
    operator = from_deepinv(physics)
    ours = operator.forward(x)
    y = torch.randn(theirs.shape, generator=keyed_generator("y"))
    back, adjoint = physics.A_adjoint(y), operator.adjoint(y)
    products = [float((a.double() * b.double()).sum()) for a, b in ((ours, y), (x, adjoint))]
    found = {
        "forward": float((ours - theirs).abs().max() / theirs.abs().max()),
        "adjoint": float((adjoint - back).abs().max() / back.abs().max()),
        "adjointness": abs(products[0] - products[1]) / float(ours.double().norm() * y.double().norm()),
    }
    base = {"case": f"deepinv {name}", "method": "from_deepinv", "metric": "difference", "n": 2, "ci95": None}
    return [{**base, "quantity": quantity, "value": value} for quantity, value in found.items()]


def main(arguments: list[str] | None = None) -> None:
    """Measure every physics; write the record and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    command = recorded_command("benchmarks/quality/adapters.py", sys.argv[1:] if arguments is None else arguments)
    rows = [row for case in every_physics() for row in measure(*case)]
    settings = {"libraries": {name: version(name) for name in ("deepinv", "torchvision")}}
    write_records(options.out / "adapters.json", "adapters", command, settings, definitions=DEFINITIONS, rows=rows)
    text = markdown_table(rows, index=("case",), columns="quantity", metric="difference")
    (options.out / "adapters.md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
