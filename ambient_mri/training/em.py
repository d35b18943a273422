"""The E-step of expectation-maximisation: every training scan reconstructed under the present prior, one file a volume.

    python -m ambient_mri.training.em --prior RUN/prior --scans PREPARED/train --out RUN/reconstructions

The first E-step takes the one-step reconstructions of an ambient network; later ones take posterior *samples* of a
clean prior (never its means: the variance would collapse). The M-step is ordinary training on the images written
here:

    python -m ambient_mri.train objective=supervised data.references=RUN/reconstructions init=RUN/prior

A volume that is already there is kept, so an interrupted E-step goes on where it was.

Reference: Rozet et al. 2024, arXiv:2405.13712, algorithm 1.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import DataError, require
from ambient_mri.corruption import Undersampling
from ambient_mri.data.datasets import write_images
from ambient_mri.data.schema import read_prepared
from ambient_mri.denoiser import ConditionalDenoiser
from ambient_mri.masks import ObservedMasks
from ambient_mri.measurement import Measurement
from ambient_mri.prior import Prior, load_prior
from ambient_mri.sampling import make_sampler
from ambient_mri.sampling.ambient import ambient_denoiser
from ambient_mri.sampling.base import Sampler
from ambient_mri.tensors import keyed_generator
from ambient_mri.training.sources import progress

__all__ = ["expectation", "reconstruct_rows"]

log = logging.getLogger(__name__)


def expectation(
    prior: Prior,
    scans: Sequence[Path],
    folder: Path,
    *,
    sampler: Sampler,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[Iterable[Path]], Iterator[Path]] = iter,
) -> list[Path]:
    """Reconstruct prepared scans and write each volume as an image file under the scan's own name.

    Args:
        prior: An ambient prior (first round) or a clean one.
        scans: Prepared files.
        folder: Where the images go; made if missing. Files that are there already are kept.
        sampler: How a slice is reconstructed.
        batch_size: Slices at a time.
        seed: Random streams are keyed by (seed, slice): the result does not depend on batches or on order.
        progress: Wraps the list of files, for a progress bar.

    Returns:
        The image files, in the order of ``scans``.

    Raises:
        DataError: If there is no scan.
    """
    require(len(scans) > 0, "the E-step got no prepared scan.", DataError)
    folder.mkdir(parents=True, exist_ok=True)
    device = next(prior.model.parameters()).device
    written = []
    for path in progress(scans):
        target = folder / path.name
        written.append(target)
        if target.is_file():
            continue
        scan = read_prepared(path)
        images = []
        for start in range(0, len(scan), batch_size):
            m = scan.measurement(slice(start, min(start + batch_size, len(scan)))).to(device)
            images.append(reconstruct_rows(prior, m, sampler, seed).cpu())
        keys = [f"{scan.source}/{i}" for i in range(len(scan))]
        raw = torch.cat(images).numpy() * np.float32(scan.scale)
        write_images(
            target, raw, keys, scale=scan.scale, attrs={"made_by": f"E-step, {sampler.name}, prior {prior.name}"}
        )
    return written


def reconstruct_rows(prior: Prior, m: Measurement, sampler: Sampler, seed: int) -> Tensor:
    """One reconstruction a row of ``m``, (b, 1, H, W), in scaled units."""
    m = m.cancel_readout()
    generators = [keyed_generator(seed, "e-step", key, device=m.y.device) for key in m.key]
    model = prior.model
    denoiser = ambient_denoiser(model, m, generators) if isinstance(model, ConditionalDenoiser) else model
    corruption = Undersampling(ObservedMasks([m.mask[:1]]))
    return sampler.sample(denoiser, corruption.forward_operator(m), m.y, m.noise_std, generators=generators).x


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m ambient_mri.training.em``."""
    parser = argparse.ArgumentParser(description="E-step: reconstruct every training scan under a prior.")
    parser.add_argument("--prior", required=True, help="prior folder")
    parser.add_argument("--scans", required=True, type=Path, help="folder of prepared scans")
    parser.add_argument("--out", required=True, type=Path, help="folder for the image files")
    parser.add_argument("--sampler", default=None, help="one_step for an ambient prior (default), else split_gibbs")
    parser.add_argument("--steps", type=int, default=25, help="noise levels of split_gibbs")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prior = load_prior(options.prior, device=options.device)
    name = options.sampler or ("one_step" if prior.kind == "ambient" else "split_gibbs")
    sampler = make_sampler(name) if name == "one_step" else make_sampler(name, steps=options.steps)
    files = sorted(options.scans.glob("*.h5"))
    require(len(files) > 0, f"no .h5 file in {options.scans}.", DataError)
    done = expectation(
        prior,
        files,
        options.out,
        sampler=sampler,
        batch_size=options.batch_size,
        seed=options.seed,
        progress=lambda paths: progress(paths, "E-step"),
    )
    digest = hashlib.sha256("".join(p.name for p in done).encode()).hexdigest()[:8]
    log.info("%d volumes in %s (%s)", len(done), options.out, digest)


if __name__ == "__main__":
    main()
