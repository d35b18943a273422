"""Make a trained prior one that ships with the package: bf16 weights, model card, licence.

    python benchmarks/priors/ship.py --prior RUN/prior --name brain128 --chain benchmarks/priors/brain_R4_ambient
    RUN_OF_EM1/prior --nearest nearest.json --metrics NAME=benchmarks/results/selection.json

What the card says beyond the prior's own: the chain of runs that led to it (settings of each), intended use, how near
its samples are to the training images, and PSNR and SSIM by law and R from a record of ``benchmarks/quality``, in which
the prior is called NAME. The record must be of these very weights; it was made before they were rounded to bf16. The
licence of the weights is written beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # provenance and records are shared by the benchmarks

import ambient_mri  # noqa: E402
from ambient_mri._files import write_atomically  # noqa: E402
from ambient_mri.prior import Prior, load_prior  # noqa: E402
from ambient_mri.report.records import ResultFile, read_records  # noqa: E402
from benchmarks.quality.ledger import provenance  # noqa: E402

LIMIT = 8 * 10**6
KEPT = ("name", "kind", "created", "git", "steps", "images_seen", "training", "data", "versions", "machine", "seed")
INTENDED = (
    "Research on reconstruction of accelerated MRI of the head. It knows axial FLAIR and T1-weighted slices of adults "
    "with low-grade glioma at about 1 to 2 mm, and sees other anatomy and contrasts through them: compare with the "
    "standard deviation, the residual and a classical reconstruction. Not for clinical use."
)
# What the slices of a record are, where its settings do not say so.
DATA = {
    "selection": "two slices of every validation subject, k-space simulated (4 to 8 coils); coil maps, scale and noise "
    "level estimated from the undersampled scan; the prior was chosen on them"
}
SCORES = ("psnr", "ssim")
LICENCE = """Licence of the weights in this folder (not of the code)

These weights are for research use. You may use, share and adapt them under the terms of Creative Commons Attribution-
NonCommercial-ShareAlike 4.0 International (CC BY-NC-SA 4.0, https://creativecommons.org/licenses/by-nc-sa/4.0/), the
strictest terms of their sources, with this attribution:

  Trained by ambient_mri from k-space that was simulated from images of the TCGA-LGG collection of The Cancer Imaging
  Archive (TCIA), as prepared by Buda, Saha and Mazurowski, "Association of genomic subtypes of lower-grade gliomas with
  shape features automatically extracted by a deep learning algorithm", Computers in Biology and Medicine 109 (2019).
  TCGA-LGG: Pedano et al. (2016), doi:10.7937/K9/TCIA.2016.L4LTD3TK. TCIA: Clark et al., Journal of Digital Imaging 26
  (2013) 1045-1057.

No training image is contained in this folder. Not for clinical use. Provided as is, without warranty of any kind.
"""


def metrics_of(prior: Prior, name: str, result: ResultFile) -> dict[str, Any]:
    """PSNR and SSIM of a prior for its card, with all that tells what they mean.

    Args:
        prior: The prior, with the weights that the record was made with.
        name: What the record calls it, the first part of its method names.
        result: Record of a benchmark of reconstructions; rows that score a region of the image are left out.

    Returns:
        Plain data; ``values`` holds an entry for every law, R and method: means over ``n`` slices.

    Raises:
        SystemExit: If the record does not know the name, or knows it with other weights.
    """
    known = result.settings.get("priors", {}).get(name)
    if known is None:
        names = ", ".join(result.settings.get("priors", {})) or "none"
        raise SystemExit(f"the record of {result.benchmark} has no prior {name!r}; it has {names}.")
    weights = provenance(prior)["weights"]
    if known["weights"] != weights:
        raise SystemExit(
            f"the record of {result.benchmark} was made with other weights of {name!r} ({known['weights']}) than these "
            f"({weights}). Give --prior as the run wrote it, or run the benchmark again."
        )
    settings = {k: v for k, v in result.settings.items() if k not in ("priors", "data")}
    return {
        "benchmark": result.benchmark,
        "data": result.settings.get("data", DATA.get(result.benchmark, "")),
        "settings": settings,
        "definitions": {k: v for k, v in result.definitions.items() if k in SCORES},
        "created": result.created,
        "git": result.git,
        "weights": weights,
        "values": _means(result, name),
    }


def _means(result: ResultFile, name: str) -> list[dict[str, Any]]:
    """Mean PSNR and SSIM for every law, R and method of ``name``."""
    found: dict[tuple[str, int, str], dict[str, list[float]]] = {}
    for row in result.rows:
        first, _, method = row["method"].partition("/")
        if first == name and row.get("region") is None and row["metric"] in SCORES:
            line = found.setdefault((row.get("law", "random"), row["acceleration"], method), {})
            line.setdefault(row["metric"], []).append(row["value"])
    return [
        {"law": law, "acceleration": rate, "method": method, **{k: fmean(v) for k, v in scores.items()}}
        | {"n": len(scores[SCORES[0]])}
        for (law, rate, method), scores in sorted(found.items(), key=lambda item: (item[0][0] != "random", item[0]))
    ]


def main(arguments: list[str] | None = None) -> None:
    """Write ambient_mri/priors/NAME."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", required=True, type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--chain", nargs="*", type=Path, default=[], help="prior folders of the runs before, in order")
    parser.add_argument("--nearest", type=Path, help="what benchmarks/priors/nearest.py wrote")
    parser.add_argument("--metrics", metavar="NAME=RECORD", help="JSON record that scores the prior, there called NAME")
    parser.add_argument("--description", default="")
    options = parser.parse_args(arguments)
    prior = load_prior(options.prior)
    scored = options.metrics.partition("=") if options.metrics else None
    quality = {"metrics": metrics_of(prior, scored[0], read_records(scored[2]))} if scored else {}
    prior.name = options.name
    cards = [json.loads((folder / "prior.json").read_text()) for folder in options.chain]
    prior.metadata |= {
        "description": options.description,
        "intended_use": INTENDED,
        "licence": "CC BY-NC-SA 4.0, research use with attribution; see LICENSE in this folder. Not for clinical use.",
        "chain": [{key: card[key] for key in KEPT if key in card} for card in cards],
        **quality,
    }
    if options.nearest:
        prior.metadata["nearest_training_image"] = json.loads(options.nearest.read_text())
    folder = Path(ambient_mri.__file__).resolve().parent / "priors" / options.name
    prior.save(folder, dtype=torch.bfloat16)
    write_atomically(folder / "LICENSE", LICENCE.encode())
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > LIMIT:
        raise SystemExit(f"{folder} holds {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}.")
    sys.stdout.write(f"{folder}: {size / 1e6:.2f} MB\n")


if __name__ == "__main__":
    main()
