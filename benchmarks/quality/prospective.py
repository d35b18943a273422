"""Files as they come from a scanner, with no setting by hand: pictures to look at.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/prospective.py --prior brain128

Every file of ``multicoil_test`` as it is, and one single-channel knee of ``singlecoil_val`` after a mask of random
lines at R = 4. There is no reference for the first; that of the knee is the noisy, fully sampled scan itself. Figures
go to benchmarks/results/figures; what the package found in each scan is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # cases and methods are shared by the benchmarks

from ambient_mri import Reconstruction, reconstruct  # noqa: E402
from ambient_mri.data.readers import read_scan  # noqa: E402
from ambient_mri.masks import RandomLines  # noqa: E402
from ambient_mri.operators import ifft  # noqa: E402
from ambient_mri.report.plots import reconstruction_figure  # noqa: E402
from ambient_mri.tensors import keyed_generator  # noqa: E402
from benchmarks.quality.cases import Case, measure  # noqa: E402
from benchmarks.quality.methods import best_of_grid  # noqa: E402

FIGURES = ROOT / "benchmarks" / "results" / "figures"
SAMPLES = 4
WIDTH = 1032
KNEE = "knee_cor_fatsat"
_NAMES = {"brain_t1_8ch_poisson8": "prospective_poisson8", "brain_t2_12ch_r3": "prospective_t2_r3"}


def as_it_is(path: Path, prior: str, folder: Path) -> Reconstruction:
    """Reconstruct a file and draw it: zero-filled, mean, one sample, standard deviation, mask."""
    rec = reconstruct(path, prior=prior, samples=SAMPLES, progress=False)
    acceleration = rec.settings["acceleration"]
    panels = {
        "zero-filled": rec.zero_filled[0],
        f"ours, mean of {SAMPLES}": rec.mean[0],
        "one sample": rec.samples[0, 0],
    }
    reconstruction_figure(
        panels,
        folder / f"{_NAMES.get(path.stem, path.stem)}.png",
        std=rec.magnitude_std[0],
        mask=np.broadcast_to(rec.mask[0, 0], rec.mean.shape[-2:]),
        acceleration=acceleration,
        title=f"{path.stem}: measured so, R = {acceleration:.1f}; prior {Path(prior).name}",
    )
    return rec


def undersampled(path: Path, prior: str, folder: Path) -> Reconstruction:
    """Undersample a single-channel scan at R = 4 and draw what becomes of it, beside the fully sampled one."""
    kspace = read_scan(path).kspace[:1]
    shape = kspace.shape[-2:]
    law = RandomLines(4, max(8, int(0.08 * shape[1])) // 2 * 2)
    mask = law.draw(shape, keyed_generator("knee", 0))[0, 0, 0].numpy()
    rec = reconstruct(kspace * mask, mask=mask, prior=prior, samples=SAMPLES, progress=False)
    reference = ifft(torch.from_numpy(kspace)).abs()[0].norm(dim=0).numpy()
    case = Case(path.stem, 4, 0, kspace, mask, reference, masks="drawn")
    wavelet, _, _ = best_of_grid(case, measure(case), "l1_wavelet")
    figure = reconstruction_figure(
        {"zero-filled": rec.zero_filled[0], "L1-wavelet": wavelet, "ours": rec.mean[0]},
        folder / "knee_R4_brain_prior.png",
        reference=reference,
        std=rec.magnitude_std[0],
        mask=np.broadcast_to(mask, shape),
        acceleration=rec.settings["acceleration"],
        title=f"{path.stem}, one channel, R = {rec.settings['acceleration']:.1f}; prior {Path(prior).name}",
    )
    with Image.open(figure) as large:  # a pixel of 640 x 320 for every pixel makes a file of several megabytes
        size = (WIDTH, WIDTH * large.height // large.width)
        large.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(256).save(figure)
    return rec


def main(arguments: list[str] | None = None) -> None:
    """Draw every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="brain128")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    options = parser.parse_args(arguments)
    root = os.environ.get("AMBIENT_MRI_DATA")
    if not root:
        raise SystemExit("AMBIENT_MRI_DATA names no folder: these are scans, and none is simulated here.")
    options.figures.mkdir(parents=True, exist_ok=True)
    found = {
        p.stem: as_it_is(p, options.prior, options.figures) for p in sorted(Path(root, "multicoil_test").glob("*.h5"))
    }
    found[KNEE] = undersampled(Path(root, "singlecoil_val", f"{KNEE}.h5"), options.prior, options.figures)
    for name, rec in found.items():
        kept = ("acceleration", "coil_maps", "noise_std_scaled", "effective_noise_std_scaled", "seconds")
        said = ", ".join(f"{key} {rec.settings[key]}" for key in kept)
        sys.stdout.write(f"{name}: {rec.mean.shape}, chi^2 {rec.residual[0]:.2f}, {said}\n")


if __name__ == "__main__":
    main()
