"""Prepare fastMRI: retrospective undersampling, coil maps, noise level and scale, one file a volume.

    python data_prep/fastmri.py /data/knee /data/knee_R4 --acceleration 4 --workers 8
    python data_prep/fastmri.py /data/brain /data/brain_T2 --acquisitions AXT2 --acceleration 4 --device cuda

The root holds ``multicoil_train``, ``multicoil_val``, ``multicoil_test`` (or ``singlecoil_...``, with ``--kind
singlecoil``) as the archives unpack; one of these folders alone will do. Fully sampled volumes get one mask each; test
files keep theirs. What is finished is kept, so an interrupted or killed run goes on; a file that cannot be used is
named, skipped, and makes the exit status 1. ``manifest.json`` and ``split.json`` in the output name every volume.

This is ``ambient-mri prepare`` with fastMRI's masks as its default; every option of that command works here.

The data: register at https://fastmri.med.nyu.edu. Reference: Zbontar et al. 2018, arXiv:1811.08839.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ambient_mri.cli import main as ambient_mri

#: The masks of fastMRI's brain challenge.
DEFAULTS = ("--law", "fastmri_equispaced_fraction")


def main(argv: Sequence[str] | None = None) -> int:
    """``ROOT OUT [options]`` as a call of ``ambient-mri prepare``; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) < 2 or any(a.startswith("-") for a in arguments[:2]):
        sys.stderr.write(f"{__doc__}\nusage: python data_prep/fastmri.py ROOT OUT [options]\n")
        return ambient_mri(["prepare", "--help"]) if {"-h", "--help"} & set(arguments) else 2
    root, out, *options = arguments
    undersamples = any(option.split("=")[0] == "--acceleration" for option in options)
    return ambient_mri(["prepare", root, "--out", out, *(DEFAULTS if undersamples else ()), *options])


if __name__ == "__main__":
    raise SystemExit(main())
