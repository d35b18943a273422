"""The arguments of every command. Nothing heavy is imported here: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ambient_mri.cli import commands, doctor, evaluate, prepare, sample

__all__ = ["make_parser", "slice_range"]


class _Parser(argparse.ArgumentParser):
    """One line for a wrong argument, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}. See `{self.prog} --help`.\n")


class _Version(argparse.Action):
    """Looks the version up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("ambient-mri")
        except PackageNotFoundError:  # a checkout on the path that nobody installed
            number = "(not installed)"
        sys.stdout.write(f"ambient-mri {number}\n")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """The parser of ``ambient-mri``; every command leaves its function in ``run``."""
    parser = _Parser(
        prog="ambient-mri",
        description="Diffusion priors for MRI, trained on undersampled k-space alone, and reconstruction with them.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="on an error, show the traceback")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        command = subparsers.add_parser(name, help=text, description=description, parents=[common])
        command.set_defaults(run=run)
        return command

    _demo_arguments(add("demo", commands.demo, "the main job on an embedded slice: reconstruct it, compare"))
    _reconstruct_arguments(add("reconstruct", commands.reconstruct, "reconstruct an undersampled scan with a prior"))
    text = "make prepared scans for training of raw k-space files, or of a fastMRI root"
    prepare.add_arguments(add("prepare", prepare.run, text), slice_range)
    _sample_arguments(add("sample", sample.run, "draw images from a prior alone, as a sheet"))
    # `main` hands train on before anything is parsed: its arguments are Hydra's.
    add("train", commands.misplaced_train, "train a prior; takes Hydra overrides: train data=phantom objective=ambient")
    info = add("info", commands.info, "tell what a k-space file, a reconstruction or a prior folder holds")
    info.add_argument("path", metavar="FILE", help="k-space file, reconstruction, prior folder, or name of a prior")
    info.add_argument("--slices", type=slice_range, metavar="A:B", help="look at slices A to B - 1 only")
    add("doctor", doctor.run, "check versions, GPU, BART, extras and data folders; status 1 where something is wrong")
    text = "score reconstructions, or scans and priors, against references"
    evaluate.add_evaluate_arguments(add("evaluate", evaluate.evaluate, text), slice_range)
    text = "measure, on scans with references, the factor that makes a prior's standard deviations honest"
    evaluate.add_calibrate_arguments(add("calibrate", evaluate.calibrate, text), slice_range)
    return parser


def _demo_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--out", type=Path, default=Path("ambient_mri_demo"), metavar="FOLDER", help="default: %(default)s")
    add("--seed", type=int, default=0, help="of everything that is drawn (default: %(default)s)")
    add("--prior", metavar="P", help="shipped name or prior folder (default: brain128)")
    add("--train", action="store_true", help="train a small prior on simulated scans of phantoms first, and use it")
    add("--minutes", type=float, metavar="M", help="of --train, on two quiet cores (default: 3)")
    add("--fresh", action="store_true", help="--train again, even where a trained prior is there")


def _reconstruct_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("scan", metavar="SCAN", help="fastMRI HDF5, prepared scan, .npy or .npz")
    add("--prior", required=True, help="prior folder, or the name of a shipped prior")
    add("--sampler", default="split_gibbs", choices=commands.SAMPLERS, help="default: %(default)s")
    add("--samples", type=int, default=8, metavar="K", help="samples a slice (default: %(default)s)")
    add("--steps", type=evaluate.step_number, metavar="N", help="noise levels, or auto; the sampler's own by default")
    add("--mask", metavar="FILE[:NAME[:INDEX]]", help="sampling mask: .npy, .npz or .h5 (inferred by default)")
    add(
        "--coil-maps",
        metavar="FILE[:NAME[:INDEX]]|espirit|joint",
        help="coil maps, or how to find them (default: the scan's own; else joint below 6 ACS lines, espirit above)",
    )
    add("--noise-std", type=float, metavar="X", help="noise per real part, raw units (estimated by default)")
    add("--slices", type=slice_range, metavar="A:B", help="slices A to B - 1, or one number (all by default)")
    add("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)")
    formats = " ".join(commands.OUTPUTS)
    add("--out", action="append", metavar="FILE", help=f"{formats}; may be given more than once (SCAN_recon.h5)")
    add("--report", metavar="FILE.html", help="write a self-contained page as well")
    add("--compile", action="store_true", help="compile the network: for whole volumes, takes a minute or two first")
    add("--save-samples", action="store_true", help="keep every sample, and store it (.h5 and .npz)")


def _sample_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--prior", required=True, help="clean prior: a folder, or the name of a shipped prior; or an ambient run folder"
    )
    choices = "heun for clean priors; fixed_mask and guidance, as published, for ambient networks"
    add("--sampler", default="heun", choices=sample.METHODS, help=f"{choices} (default: %(default)s)")
    add("--guides", type=int, metavar="N", help="of guidance: masks to agree with (default: 4)")
    add("--guidance", type=float, metavar="X", help="of guidance: its weight (default: 0.0005)")
    add("--count", type=int, default=16, metavar="N", help="images (default: %(default)s)")
    add("--shape", type=int, nargs=2, metavar=("H", "W"), help="of heun: of an image; the prior's own by default")
    add("--steps", type=int, default=40, metavar="N", help="noise levels (default: %(default)s)")
    add("--churn", type=float, metavar="X", help="of heun: fresh noise on the way (default: 0)")
    add("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)")
    add("--out", type=Path, default=Path("samples.png"), metavar="FILE.png", help="default: %(default)s")


def slice_range(text: str) -> slice:
    """``"2:5"``, ``":5"``, ``"2:"`` or ``"3"`` as a slice."""
    first, colon, last = text.partition(":")
    try:
        start, stop = (int(part) if part else None for part in (first, last))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B or a number") from None
    if colon:
        return slice(start, stop)
    if start is None or start < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B or a number from 0")
    return slice(start, start + 1)
