"""What the commands do: read the arguments, call the library, show what came of it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ambient_mri._checks import AmbientMRIError, DataError, require
from ambient_mri.cli.files import check_writable, load_array, unused
from ambient_mri.cli.options import refuse
from ambient_mri.cli.terminal import log_to_stderr, show_facts

if TYPE_CHECKING:
    import numpy as np

    from ambient_mri.reconstruct import Reconstruction

__all__ = ["OUTPUTS", "SAMPLERS", "check_device", "demo", "evaluate", "info", "misplaced_train", "reconstruct"]

# Named here, so that --help need not import them.
SAMPLERS = (
    "split_gibbs",
    "dds",
    "one_step",
    "mmps",
    "dps",
    "pigdm",
    "diffpir",
    "daps",
    "pula",
    "langevin",
    "msm",
    "adps",
    "adps_fixed",
)
OUTPUTS = (".h5", ".hdf5", ".npz", ".png", ".nii", ".nii.gz")


def demo(options: argparse.Namespace) -> int:
    """``ambient-mri demo``."""
    from ambient_mri.demo import run_demo

    log_to_stderr(logging.DEBUG if options.debug else logging.INFO)
    if options.train:
        refuse(options, "prior", because="--train trains the prior; leave one of them out.")
    else:
        refuse(options, "minutes", "fresh", because="of training; give --train, too.")
    prior = None if options.train else options.prior or "brain128"
    minutes = 3.0 if options.minutes is None else options.minutes
    run_demo(options.out, prior=prior, seed=options.seed, minutes=minutes, fresh=options.fresh)
    return 0


def reconstruct(options: argparse.Namespace) -> int:
    """``ambient-mri reconstruct``."""
    outputs = [Path(name) for name in options.out or [unused(Path(f"{Path(options.scan).stem}_recon.h5"))]]
    inputs = [str(name) for name in (options.scan, options.mask, options.coil_maps) if name]
    holds = [path for path in outputs if path.name.lower().endswith((".h5", ".hdf5", ".npz"))]
    require(bool(holds) or not options.save_samples, "--save-samples needs an --out that can hold them: .h5 or .npz.")
    for path in outputs:
        check_writable(path, OUTPUTS, inputs)
    if options.report:
        check_writable(Path(options.report), (".html", ".htm"), inputs)
    check_device(options.device)
    from ambient_mri.prior import load_prior
    from ambient_mri.reconstruct import reconstruct as run

    result = run(
        options.scan,
        prior=load_prior(options.prior, compile=True) if options.compile else options.prior,
        mask=load_array(options.mask, "mask") if options.mask else None,
        coil_maps=_coil_maps(options.coil_maps),
        noise_std=options.noise_std,
        samples=options.samples,
        sampler=options.sampler,
        steps=options.steps,
        slices=options.slices,
        seed=options.seed,
        device=options.device,
        keep_samples=options.save_samples,
    )
    written, failed = _written(result, outputs, options)
    show_facts(f"Reconstruction of {result.name}", _facts(result, written))
    require(not failed, f"not all could be written: {'; '.join(failed)}", DataError)
    return 0


def _written(
    result: Reconstruction, outputs: Sequence[Path], options: argparse.Namespace
) -> tuple[list[Path], list[str]]:
    """The files of a result, and why some could not be written: one that fails takes no other with it."""
    written, failed = list[Path](), list[str]()
    writers: list[Callable[[], Sequence[Path]]] = [
        partial(result.save, path, samples=options.save_samples) for path in outputs
    ]
    if options.report:
        writers.append(lambda: [result.report(options.report)])
    for write in writers:
        try:
            written += write()
        except (OSError, AmbientMRIError) as error:
            failed.append(str(error))
    return written, failed


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
    from ambient_mri.evaluation import check_comparable
    from ambient_mri.report.tables import format_value

    found = read_reconstruction(options.reconstruction)
    check_comparable(found["settings"], options.reconstruction)
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
    if options.out is not None:
        show_facts("Written", _scores_written(options, scores, len(image), found["settings"]))
    return 0


def _scores_written(
    options: argparse.Namespace, scores: Mapping[str, float], slices: int, settings: Mapping[str, Any]
) -> dict[str, Path]:
    """The scores of one reconstruction as a result file and a table, in the folder ``--out``."""
    from ambient_mri import metrics
    from ambient_mri._files import write_atomically
    from ambient_mri.evaluation import method_name
    from ambient_mri.report.records import write_records
    from ambient_mri.report.tables import markdown_table

    sampler = settings.get("sampler", {}).get("sampler", "unknown")
    method = method_name(settings.get("prior", "unknown"), sampler, settings.get("samples", 1))
    shared = {"case": Path(options.reconstruction).stem, "method": method, "n": slices, "ci95": None}
    rows = [{**shared, "metric": name, "value": value} for name, value in scores.items()]
    definitions = {name: metrics.DEFINITIONS[name] for name in scores}
    files = {"records": options.out / "evaluation.json", "table": options.out / "evaluation.md"}
    command = f"ambient-mri {' '.join(sys.argv[1:])}"
    write_records(files["records"], "evaluate", command, dict(settings), definitions=definitions, rows=rows)
    table = markdown_table(rows, index=("case", "method"), metric=("psnr", "ssim"), definitions=definitions)
    write_atomically(files["table"], f"{table}\n".encode())
    return files


def misplaced_train(options: argparse.Namespace) -> int:
    """Only reached where ``train`` is not the first word; the parser knows the command for its help alone."""
    raise AmbientMRIError("write `ambient-mri train ...`, with train as the first word.")


def _coil_maps(argument: str | None) -> np.ndarray | str | None:
    """A method by name, or the array that the argument points to."""
    return argument if argument in (None, "espirit", "joint") else load_array(argument, "coil_maps")


def _facts(result: Reconstruction, written: Sequence[Path]) -> dict[str, object]:
    from ambient_mri import metrics

    settings, slices, samples = result.settings, len(result.mean), result.num_samples
    height, width = result.recon_shape
    sampler = settings["sampler"]
    return {
        "prior": f"{settings['prior']} ({settings['prior_kind']})",
        "images": f"{slices} of {height} x {width}, R = {settings['acceleration']:.2f}",
        "coil maps": settings["coil_maps"],
        "noise": f"{float(result.noise_std.mean()):.4g} per real part, raw units ({settings['noise_source']})",
        "sampler": f"{sampler['sampler']}, {sampler['steps']} noise levels, {samples} samples a slice",
        "chi² of the residual": f"{metrics.mean_of_known(result.residual):.2f} (near 1 for honest samples)",
        "time": f"{settings['seconds']:.1f} s on {settings['device']}",
        "written": "\n".join(map(str, written)),
    }


def check_device(name: str) -> None:
    """Raise unless tensors can be put on the device of a name, or it is ``"auto"``: before a scan is read."""
    from ambient_mri.tensors import choose_device

    choose_device(name)
