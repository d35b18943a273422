"""What the commands do: read the arguments, call the library, show what came of it."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ambient_mri._checks import AmbientMRIError, DataError, require
from ambient_mri.cli.files import check_writable, kspace_files, load_array
from ambient_mri.cli.terminal import log_to_stderr, one_line, show_facts

if TYPE_CHECKING:
    from ambient_mri.masks import SamplingLaw
    from ambient_mri.reconstruct import Reconstruction

__all__ = ["LAWS", "OUTPUTS", "demo", "evaluate", "info", "misplaced_train", "prepare", "reconstruct"]

OUTPUTS = (".h5", ".hdf5", ".npz", ".png", ".nii", ".nii.gz")
LAWS = ("random_lines", "independent_lines", "equispaced", "poisson")


def demo(options: argparse.Namespace) -> int:
    """``ambient-mri demo``."""
    from ambient_mri.demo import run_demo

    log_to_stderr(logging.DEBUG if options.debug else logging.INFO)
    run_demo(options.out, seed=options.seed, minutes=options.minutes, fresh=options.fresh)
    return 0


def reconstruct(options: argparse.Namespace) -> int:
    """``ambient-mri reconstruct``."""
    outputs = [Path(name) for name in options.out or [f"{Path(options.scan).stem}_recon.h5"]]
    for path in outputs:
        check_writable(path, OUTPUTS)
    if options.report:
        check_writable(Path(options.report), (".html", ".htm"))
    _check_device(options.device)
    from ambient_mri.reconstruct import reconstruct as run

    result = run(
        options.scan,
        prior=options.prior,
        mask=load_array(options.mask, "mask") if options.mask else None,
        coil_maps=load_array(options.coil_maps, "coil_maps") if options.coil_maps else None,
        noise_std=options.noise_std,
        samples=options.samples,
        sampler=options.sampler,
        steps=options.steps,
        slices=options.slices,
        seed=options.seed,
        device=options.device,
    )
    written = [file for path in outputs for file in result.save(path, samples=options.save_samples)]
    if options.report:
        written.append(result.report(options.report))
    show_facts(f"Reconstruction of {result.name}", _facts(result, written))
    return 0


def prepare(options: argparse.Namespace) -> int:
    """``ambient-mri prepare``."""
    from tqdm import tqdm

    from ambient_mri.prepare import Preparation, prepare_files

    files = [file for source in options.sources for file in kspace_files(source)]
    chosen: slice | None = options.slices
    whole = chosen is None or (chosen.start is not None and chosen.stop is not None)
    require(whole, "prepare needs both ends of --slices, such as 10:25.")
    settings = Preparation(
        seed=options.seed,
        maps_backend=options.maps,
        noise_std=options.noise_std,
        slices=None if chosen is None else (chosen.start, chosen.stop),
    )
    law = None if options.acceleration is None else _law(options.law, options.acceleration, options.acs_lines)
    options.out.mkdir(parents=True, exist_ok=True)

    def bar(paths: Iterable[Path]) -> Iterable[Path]:
        return tqdm(paths, desc="preparing", unit="file", disable=None)

    summary = prepare_files(files, options.out, law=law, settings=settings, progress=bar)
    facts = {
        "written": f"{len(summary.done) - summary.kept} files in {options.out}",
        "there already": summary.kept,
        "skipped": len(summary.failed),
        "sampling": "the scans' own masks" if law is None else ", ".join(map(str, law.describe().values())),
        "next": f"ambient-mri train data=prepared data.root={options.out}",
    }
    show_facts("Prepared scans", facts)
    return 1 if summary.failed else 0


def info(options: argparse.Namespace) -> int:
    """``ambient-mri info``."""
    from ambient_mri.cli.info import describe

    show_facts(*describe(options.path, options.slices))
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """``ambient-mri evaluate``."""
    from ambient_mri import metrics
    from ambient_mri.data.readers import read_reference
    from ambient_mri.data.writers import read_reconstruction
    from ambient_mri.report.tables import format_value

    found = read_reconstruction(options.reconstruction)
    image, reference = found["reconstruction"], read_reference(options.reference, found["settings"].get("slices"))
    require(
        image.shape == reference.shape,
        f"{options.reconstruction} holds images {image.shape}, {options.reference} references {reference.shape}. "
        "Do they belong to one scan?",
        DataError,
    )
    scores = {name: getattr(metrics, name)(reference, image) for name in ("psnr", "ssim", "nmse", "nrmse")}
    facts = {name.upper(): format_value(name, value) for name, value in scores.items()}
    title = f"{options.reconstruction} against {options.reference}"
    show_facts(title, facts, "\n".join(metrics.DEFINITIONS[name] for name in scores))
    return 0


def misplaced_train(options: argparse.Namespace) -> int:
    """Only reached where ``train`` is not the first word; the parser knows the command for its help alone."""
    raise AmbientMRIError("write `ambient-mri train ...`, with train as the first word.")


def _facts(result: Reconstruction, written: Sequence[Path]) -> dict[str, object]:
    settings, (slices, samples) = result.settings, result.samples.shape[:2]
    height, width = result.recon_shape
    sampler = settings["sampler"]
    return {
        "prior": f"{settings['prior']} ({settings['prior_kind']})",
        "images": f"{slices} of {height} x {width}, R = {settings['acceleration']:.2f}",
        "coil maps": settings["coil_maps"],
        "noise": f"{float(result.noise_std.mean()):.4g} per real part, raw units ({settings['noise_source']})",
        "sampler": f"{sampler['sampler']}, {sampler['steps']} noise levels, {samples} samples a slice",
        "chi² of the residual": f"{float(result.residual.mean()):.2f} (near 1 for honest samples)",
        "time": f"{settings['seconds']:.1f} s on {settings['device']}",
        "written": "\n".join(map(str, written)),
    }


def _law(name: str, acceleration: float, acs_lines: int) -> SamplingLaw:
    from ambient_mri import masks

    classes = (masks.RandomLines, masks.IndependentLines, masks.EquispacedLines, masks.PoissonDisc)
    return dict(zip(LAWS, classes, strict=True))[name](acceleration, acs_lines)


def _check_device(name: str) -> None:
    import torch

    try:
        torch.zeros(1, device="cpu" if name == "auto" else name)
    except (RuntimeError, AssertionError) as error:  # a name that is none; a build without this device
        raise AmbientMRIError(f"--device {name} cannot be used: {one_line(error)}") from error
