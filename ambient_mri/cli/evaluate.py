"""``ambient-mri evaluate`` and ``ambient-mri calibrate``: what reconstructions are worth where the truth is known."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.cli import commands
from ambient_mri.cli.files import load_array
from ambient_mri.cli.terminal import show, show_facts

__all__ = ["add_calibrate_arguments", "add_evaluate_arguments", "calibrate", "evaluate", "step_number"]


def step_number(text: str) -> int | str:
    """A number of noise levels, or ``auto``."""
    return text if text == "auto" else int(text)


def add_evaluate_arguments(command: argparse.ArgumentParser, slices: Callable[[str], slice]) -> None:
    """The arguments of ``evaluate``."""
    add = command.add_argument
    add("reconstruction", metavar="RECON", help="HDF5 file that `reconstruct` wrote; or a scan, or a folder of them")
    add("reference", metavar="REFERENCE", help="fully sampled file in fastMRI's layout; or a folder of them, by name")
    add("--prior", action="append", metavar="PRIOR", help="reconstruct the scans with it; may be given more than once")
    text = "may be given more than once (split_gibbs)"
    add("--sampler", action="append", choices=commands.SAMPLERS, metavar="NAME", help=text)
    _sampling_arguments(command, slices)
    add("--processes", type=int, default=1, metavar="N", help="that share the slices, one a GPU (default: %(default)s)")
    text = "of evaluation.json and evaluation.md; of scans evaluation, of a reconstruction none by default"
    add("--out", type=Path, metavar="FOLDER", help=text)


def add_calibrate_arguments(command: argparse.ArgumentParser, slices: Callable[[str], slice]) -> None:
    """The arguments of ``calibrate``."""
    add = command.add_argument
    add("scans", type=Path, metavar="SCANS", help="validation scans: a folder, or one file")
    add("references", type=Path, metavar="REFERENCES", help="fully sampled files of the same names, or one file")
    add("--prior", type=Path, required=True, metavar="FOLDER", help="prior folder; its prior.json is written")
    add("--sampler", default="split_gibbs", choices=commands.SAMPLERS, help="default: %(default)s")
    add("--level", type=float, default=0.9, help="share of the pixels that the interval is to cover (%(default)s)")
    _sampling_arguments(command, slices)


def _sampling_arguments(command: argparse.ArgumentParser, slices: Callable[[str], slice]) -> None:
    add = command.add_argument
    add("--samples", type=int, default=8, metavar="K", help="samples a slice (default: %(default)s)")
    add("--steps", type=step_number, metavar="N", help="noise levels, or auto; the sampler's own by default")
    add("--mask", metavar="FILE[:NAME[:INDEX]]", help="undersample fully sampled scans with it")
    add("--slices", type=slices, metavar="A:B", help="slices A to B - 1 of every scan (all by default)")
    add("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)")
    add("--compile", action="store_true", help="compile the networks: takes minutes first, less for every slice")


# What only scans that are to be reconstructed need, and its defaults.
_OF_SCANS: dict[str, Any] = {
    **{"sampler": None, "samples": 8, "steps": None, "mask": None, "slices": None},
    **{"seed": 0, "processes": 1, "compile": False},
}


def evaluate(options: argparse.Namespace) -> int:
    """``ambient-mri evaluate``: one reconstruction that is there, or scans that are to be reconstructed."""
    if not options.prior:
        if Path(options.reconstruction).is_dir():
            raise AmbientMRIError("a folder of scans is reconstructed first: name the prior with --prior.")
        given = [f"--{name}" for name, default in _OF_SCANS.items() if getattr(options, name) != default]
        require(
            not given,
            f"{', '.join(given)}: options of scans that are reconstructed first, with --prior. A reconstruction "
            "that is there is scored as it is; reconstruct other slices, or otherwise, by `ambient-mri reconstruct`.",
        )
        return commands.evaluate(options)
    import torch

    from ambient_mri.evaluation import Evaluation, pair_files
    from ambient_mri.prior import load_prior
    from ambient_mri.report.tables import rich_table
    from ambient_mri.tensors import choose_device

    device = choose_device(options.device)
    out = options.out or Path("evaluation")
    plan = Evaluation(
        out,
        samples=options.samples,
        steps=options.steps,
        seed=options.seed,
        device=device,
        mask=load_array(options.mask, "mask") if options.mask else None,
        slices=options.slices,
        processes=options.processes,
    )
    pairs = pair_files(Path(options.reconstruction), Path(options.reference))
    # Each of several processes takes the networks to its own GPU.
    where = torch.device("cpu") if options.processes > 1 else device
    priors = [load_prior(name, device=where, compile=options.compile) for name in options.prior]
    command = f"ambient-mri {' '.join(sys.argv[1:])}"
    result = plan.run(pairs, priors, options.sampler or ["split_gibbs"], command)
    if result is None:
        return 0
    rows = [{k: v for k, v in row.items() if k != "nfe"} for row in result.rows]
    show(rich_table(rows, index=("case", "acceleration", "method"), definitions=result.definitions))
    show_facts("Written", {"records": out / "evaluation.json", "table": out / "evaluation.md"})
    return 0


def calibrate(options: argparse.Namespace) -> int:
    """``ambient-mri calibrate``."""
    from ambient_mri.evaluation import pair_files, reconstructed
    from ambient_mri.prior import load_prior
    from ambient_mri.reconstruct import measure_recalibration, prior_folder, store_recalibration
    from ambient_mri.tensors import choose_device

    device = choose_device(options.device)
    require(options.samples >= 3, f"calibrate needs --samples 3 at least; got {options.samples}.")
    require(0 < options.level < 1, f"--level must lie between 0 and 1, such as 0.9; got {options.level:g}.")
    folder = prior_folder(options.prior)
    pairs = pair_files(options.scans, options.references)
    results = reconstructed(
        pairs,
        mask=load_array(options.mask, "mask") if options.mask else None,
        slices=options.slices,
        prior=load_prior(folder, device=device, compile=options.compile),
        sampler=options.sampler,
        samples=options.samples,
        steps=options.steps,
        seed=options.seed,
        device=device,
    )
    found = measure_recalibration(results, level=options.level)
    written = store_recalibration(folder, options.sampler, found, steps=options.steps, seed=options.seed)
    facts = {
        "scans": f"{len(pairs)}, {found.cases} slices, {found.pixels} pixels inside the object",
        "coverage so far": f"{100 * found.coverage:.1f} % of the pixels in the {100 * found.level:g} % interval",
        "factor": f"{found.factor:.3f}, by which reconstruct() multiplies the standard deviation from now on",
        "written": written,
    }
    show_facts(f"Recalibration of {options.sampler}", facts)
    return 0
