"""Make a trained prior one that ships with the package: bf16 weights, model card, licence.

    python benchmarks/priors/ship.py --prior RUN/prior --name brain128 --chain benchmarks/priors/brain_R4_ambient
    benchmarks/priors/brain_R4_em1 --nearest nearest.json

What the card says beyond the prior's own: the chain of runs that led to it (settings of each), intended use, and how
near its samples are to the training images. The licence of the weights is written beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import ambient_mri
from ambient_mri._files import write_atomically
from ambient_mri.prior import load_prior

LIMIT = 8 * 10**6
KEPT = ("name", "kind", "created", "git", "steps", "images_seen", "training", "data", "versions", "machine", "seed")
INTENDED = (
    "Research on reconstruction of accelerated MRI of the head. It knows axial FLAIR and T1-weighted slices of adults "
    "with low-grade glioma at about 1 to 2 mm, and sees other anatomy and contrasts through them: compare with the "
    "standard deviation, the residual and a classical reconstruction. Not for clinical use."
)
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


def main(arguments: list[str] | None = None) -> None:
    """Write ambient_mri/priors/NAME."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", required=True, type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--chain", nargs="*", type=Path, default=[], help="prior folders of the runs before, in order")
    parser.add_argument("--nearest", type=Path, help="what benchmarks/priors/nearest.py wrote")
    parser.add_argument("--description", default="")
    options = parser.parse_args(arguments)
    prior = load_prior(options.prior)
    prior.name = options.name
    cards = [json.loads((folder / "prior.json").read_text()) for folder in options.chain]
    prior.metadata |= {
        "description": options.description,
        "intended_use": INTENDED,
        "licence": "CC BY-NC-SA 4.0, research use with attribution; see LICENSE in this folder. Not for clinical use.",
        "chain": [{key: card[key] for key in KEPT if key in card} for card in cards],
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
