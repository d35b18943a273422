"""Prepare a folder of fastMRI volumes: retrospective undersampling, coil maps, noise level and scale, one file a
volume.

    python data_prep/fastmri.py /data/knee/multicoil_train /data/knee_R4 --acceleration 4 --acs-lines 26

Files that are fully sampled get one mask each, keyed by (seed, volume); files with a mask of their own keep it. What is
finished is kept, so an interrupted run goes on; a file that cannot be used is named, skipped, and makes the exit
status 1.

The data: register at https://fastmri.med.nyu.edu. Reference: Zbontar et al. 2018, arXiv:1811.08839.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from ambient_mri.masks import EquispacedLines, IndependentLines, RandomLines
from ambient_mri.prepare import Preparation, prepare_files

LAWS = {"random": RandomLines, "independent": IndependentLines, "equispaced": EquispacedLines}


def main() -> int:
    """Prepare every ``.h5`` file of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with the volumes (multicoil_train, singlecoil_val, ...)")
    parser.add_argument("out", type=Path, help="folder for the prepared files")
    parser.add_argument("--law", choices=LAWS, default="random")
    parser.add_argument("--acceleration", type=float, default=4.0)
    parser.add_argument("--acs-lines", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="data seed: with a volume's name it decides its mask")
    parser.add_argument("--limit", type=int, default=None, help="at most this many volumes")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    files = sorted(options.root.glob("*.h5"))[: options.limit]
    if not files:
        sys.stderr.write(f"no .h5 file in {options.root}: is it the folder that holds the volumes?\n")
        return 1
    law = LAWS[options.law](options.acceleration, options.acs_lines)
    settings = Preparation(seed=options.seed)
    summary = prepare_files(
        files, options.out, law=law, settings=settings, progress=lambda paths: iter(tqdm(paths, unit="volume"))
    )
    return 1 if summary.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
