"""The E-step of expectation-maximisation: every training scan reconstructed under the present prior, one file a volume.

    python -m ambient_mri.training.em --prior RUN/prior --scans PREPARED/train --out RUN/reconstructions

The first E-step takes the one-step reconstructions of an ambient network; later ones take posterior *samples* of a
clean prior (never its means: the variance would collapse), or in a last round the mean of a few of them, ``--average
3`` (:mod:`ambient_mri.training.rounds` says why). The M-step is ordinary training on the images written here:

    python -m ambient_mri.train objective=supervised data.references=RUN/reconstructions init=RUN/prior

A volume that is already there is kept, and of a volume in the making its finished slices: an interrupted E-step goes on
where it was. ``objective=em`` runs both steps, round after round (:mod:`ambient_mri.training.rounds`).

``--method l1_wavelet`` reconstructs by compressed sensing in place of a prior: the data of a comparator, an EDM prior
trained on baseline reconstructions. Its weight follows the scan's own noise level (0.3 noise_std, see
:func:`~ambient_mri.baselines.default_lambda`); no reference image has a say in it.

Reference: Rozet et al. 2024, arXiv:2405.13712, algorithm 1.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, DataError, check_option, require
from ambient_mri._files import write_atomically
from ambient_mri.baselines import l1_wavelet
from ambient_mri.corruption import Undersampling
from ambient_mri.data.datasets import write_images
from ambient_mri.data.schema import read_prepared
from ambient_mri.denoiser import ConditionalDenoiser
from ambient_mri.masks import ObservedMasks
from ambient_mri.measurement import Measurement
from ambient_mri.operators import solve_regularized
from ambient_mri.prior import Prior, load_prior
from ambient_mri.sampling import SplitGibbs, make_sampler
from ambient_mri.sampling.ambient import ambient_denoiser
from ambient_mri.sampling.base import Sampler
from ambient_mri.sampling.local_error import WithLocalError
from ambient_mri.tensors import keyed_generator
from ambient_mri.training.draws import Draw, draw_of, draws_of_card, mask_digest, record_draws
from ambient_mri.training.sources import progress

__all__ = [
    "FRESH_NOISE",
    "METHODS",
    "Reconstruct",
    "StepSettings",
    "claim",
    "expectation",
    "maker",
    "mean_of",
    "reconstruct_rows",
    "reconstruct_volume",
    "settings_of",
]

log = logging.getLogger(__name__)

# What the images of a folder are made with, as it is recorded there.
StepSettings: TypeAlias = dict[str, str | int | float | None]

# One image a row of a measurement, (b, 1, H, W), in scaled units.
Reconstruct: TypeAlias = Callable[[Measurement], Tensor]

# eta of split Gibbs in E-steps: every prior and benchmark of EM here was made with it, with another one none.
FRESH_NOISE = 1.0
# E-steps that need no prior, by name.
METHODS: dict[str, Reconstruct] = {"l1_wavelet": l1_wavelet}

# Regularisation of the SENSE image that a short ladder starts from, at the norm of A, which is one.
_START_LAM = 1e-2


def expectation(
    prior: Prior,
    scans: Sequence[Path],
    folder: Path,
    *,
    sampler: Sampler,
    batch_size: int = 8,
    seed: int = 0,
    average: int = 1,
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
        average: Reconstructions of a slice whose mean is written.
        progress: Wraps the list of files, for a progress bar.

    Returns:
        The image files, in the order of ``scans``.

    Raises:
        DataError: If there is no scan, or the folder holds images that were made otherwise.
    """
    require(len(scans) > 0, "the E-step got no prepared scan.", DataError)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, settings_of(prior, sampler, seed, average))
    device = next(prior.model.parameters()).device
    made_by = maker(prior, sampler, average)
    _record_draws(prior, scans, folder)
    for path in progress(scans):
        reconstruct_volume(
            lambda m: reconstruct_rows(prior, m.to(device), sampler, seed, average),
            path,
            folder / path.name,
            made_by=made_by,
            batch_size=batch_size,
        )
    return [folder / path.name for path in scans]


def reconstruct_volume(
    reconstruct: Reconstruct, path: Path, target: Path, *, made_by: str, batch_size: int = 8
) -> None:
    """Reconstruct one prepared scan; finished slices are kept beside ``target`` until the volume is whole.

    Args:
        reconstruct: (b rows of a scan) -> images (b, 1, H, W) in scaled units, a function of each row alone.
        path: Prepared file.
        target: Image file, in raw units; one that is there already is kept.
        made_by: Recorded in the file.
        batch_size: Slices at a time.
    """
    if target.is_file():
        return
    scan = read_prepared(path)
    parts = [target.parent / "parts" / target.stem / f"{i:04d}.npy" for i in range(len(scan))]
    for start in range(0, len(scan), batch_size):
        rows = range(start, min(start + batch_size, len(scan)))
        if all(parts[i].is_file() for i in rows):
            continue
        images = reconstruct(scan.measurement(slice(rows.start, rows.stop))).cpu().numpy()
        for i, image in zip(rows, images, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, image.astype(np.complex64))
            write_atomically(parts[i], buffer.getvalue())
    raw = np.stack([np.load(part) for part in parts]) * np.float32(scan.scale)
    keys = [f"{scan.source}/{i}" for i in range(len(scan))]
    write_images(target, raw, keys, scale=scan.scale, attrs={"made_by": made_by, "mask": mask_digest(scan)})
    shutil.rmtree(parts[0].parent, ignore_errors=True)


def _record_draws(prior: Prior, scans: Sequence[Path], folder: Path) -> None:
    """Leave what the prior has learned from, and the draw of the scans where their set says it, beside the images."""
    before, own = draws_of_card(prior.metadata), _draw_of_scans(scans[0])
    if own is not None and any(own.contradicts(d) for d in before):
        what = "learned from another draw of the subjects of these scans: no M-step will start on the images"
        log.warning("%s %s.", prior.name, what)
    record_draws(folder, before if own is None else [*before, own])


def _draw_of_scans(scan: Path) -> Draw | None:
    """By the manifest of the simulated set that a prepared scan lies in, if it lies in one."""
    stored = scan.resolve().parent.parent / "manifest.json"
    return draw_of(json.loads(stored.read_text())) if stored.is_file() else None


def settings_of(prior: Prior, sampler: Sampler, seed: int, average: int = 1) -> StepSettings:
    """What :func:`claim` records of an E-step under a prior: all that its images depend on besides the scans."""
    found: StepSettings = {"method": sampler.name, "steps": sampler.steps, "sigma_max": sampler.sigma_max, "seed": seed}
    found["weights"] = prior.weights_hash()
    if isinstance(sampler, WithLocalError):
        found["error"] = sampler.error
    if isinstance(sampler, SplitGibbs):
        found |= {"final": sampler.final} if sampler.final != "sample" else {}
        found |= {"eta": sampler.eta} if sampler.eta != 1 else {}
    if average > 1:
        found["average"] = average
    return found


def claim(folder: Path, settings: StepSettings) -> None:
    """Record what the images in ``folder`` are made with, so that one folder never holds two kinds.

    Raises:
        DataError: If it holds images made otherwise.
    """
    stored = folder / "made_by.json"
    if stored.is_file():
        before = json.loads(stored.read_text())
        differ = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
        require(
            not differ,
            f"{folder} holds images of another E-step: it differs in {', '.join(differ)}. Choose another folder.",
            DataError,
        )
        return
    write_atomically(stored, (json.dumps(settings, indent=2) + "\n").encode())


def reconstruct_rows(prior: Prior, m: Measurement, sampler: Sampler, seed: int, average: int = 1) -> Tensor:
    """One reconstruction a row of ``m``, (b, 1, H, W), in scaled units, or the mean of ``average`` of them.

    A ladder that begins at or below 2 sd starts from the SENSE image of the scan, any other from noise.
    """
    m = m.cancel_readout()
    generators = [keyed_generator(seed, "e-step", key, device=m.y.device) for key in m.key]
    model = prior.model
    denoiser = ambient_denoiser(model, m, generators) if isinstance(model, ConditionalDenoiser) else model
    operator = Undersampling(ObservedMasks([m.mask[:1]])).forward_operator(m)
    start = None
    if sampler.sigma_max is not None and sampler.sigma_max <= 2 * model.sd:
        start = solve_regularized(operator, operator.adjoint(m.y), _START_LAM, max_iterations=30, rtol=1e-3).x
    data_step = None
    if average > 1:
        ambient = isinstance(model, ConditionalDenoiser)
        data_step = sampler.make_data_step(
            operator, slices=len(m.y), samples=average, device=m.y.device, ambient=ambient
        )

    def draw() -> Tensor:
        found = sampler.sample(
            denoiser, operator, m.y, m.noise_std, generators=generators, x_init=start, data_step=data_step
        )
        return found.x

    return mean_of(draw, average)


def maker(prior: Prior, sampler: Sampler, average: int) -> str:
    """What image files say they are made by."""
    return f"E-step, {sampler.name}, prior {prior.name}" + (f", mean of {average}" if average > 1 else "")


def mean_of(draw: Callable[[], Tensor], count: int) -> Tensor:
    """The mean of ``count`` draws, one after the other.

    Raises:
        AmbientMRIError: If there is none.
    """
    require(count >= 1, f"the mean of {count} posterior samples: average at least one.")
    total = draw()
    for _ in range(count - 1):
        total = total + draw()
    return total / count if count > 1 else total


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m ambient_mri.training.em``."""
    parser = argparse.ArgumentParser(description="E-step: reconstruct every training scan under a prior.")
    parser.add_argument("--prior", help="prior folder")
    parser.add_argument("--method", default="prior", help="prior (default), or l1_wavelet, which needs none")
    parser.add_argument("--scans", required=True, type=Path, help="folder of prepared scans")
    parser.add_argument("--out", required=True, type=Path, help="folder for the image files")
    parser.add_argument("--sampler", default=None, help="one_step for an ambient prior (default), else split_gibbs")
    parser.add_argument("--steps", type=int, default=25, help="noise levels of split_gibbs")
    parser.add_argument(
        "--start-sd",
        type=float,
        default=None,
        help="first noise level in units of the prior's sd (10 by default); at most 2: start from the SENSE image",
    )
    parser.add_argument(
        "--final", default="sample", help="last step of split_gibbs: sample, or mean, without its noise"
    )
    parser.add_argument("--average", type=int, default=1, help="posterior samples whose mean is written (default: 1)")
    parser.add_argument(
        "--part", default="0/1", help="i/n, i from 0 to n - 1: every n-th volume from the i-th on, to share the work"
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the network: minutes once on a machine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_option("--method", options.method, ("prior", *METHODS))
    first, every = _part(options.part)
    files = sorted(options.scans.glob("*.h5"))[first::every]
    require(len(files) > 0, f"no .h5 file in {options.scans}.", DataError)
    if options.method == "prior":
        done = _by_prior(options, files)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        claim(options.out, {"method": options.method})
        done = [options.out / path.name for path in files]
        for path, target in zip(progress(files, "E-step"), done, strict=True):
            reconstruct_volume(METHODS[options.method], path, target, made_by=f"E-step, {options.method}")
    digest = hashlib.sha256("".join(p.name for p in done).encode()).hexdigest()[:8]
    log.info("%d volumes in %s (%s)", len(done), options.out, digest)


def _part(text: str) -> tuple[int, int]:
    numbers = text.split("/")
    good = len(numbers) == 2 and all(n.isdigit() for n in numbers) and int(numbers[0]) < int(numbers[1])
    require(good, f"--part must be i/n with i from 0 to n - 1, such as 0/2 and 1/2; got {text!r}.")
    return int(numbers[0]), int(numbers[1])


def _by_prior(options: argparse.Namespace, files: Sequence[Path]) -> list[Path]:
    require(options.prior is not None, "--prior is missing: the folder of the prior to reconstruct under.", DataError)
    prior = load_prior(options.prior, device=options.device, compile=options.compile)
    name = options.sampler or ("split_gibbs" if prior.kind == "clean" else "one_step")
    start = None if options.start_sd is None else options.start_sd * prior.model.sd
    chosen = {"final": options.final, "eta": FRESH_NOISE} if name == "split_gibbs" else {}
    ladder = {} if name == "one_step" else {"steps": options.steps, "sigma_max": start, **chosen}
    sampler = make_sampler(name, **ladder)
    return expectation(
        prior,
        files,
        options.out,
        sampler=sampler,
        batch_size=options.batch_size,
        seed=options.seed,
        average=options.average,
        progress=lambda paths: progress(paths, "E-step"),
    )


if __name__ == "__main__":
    try:
        main()
    except AmbientMRIError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
