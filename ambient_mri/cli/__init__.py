"""``ambient-mri``: the command line.

    ambient-mri demo
    ambient-mri info scan.h5
    ambient-mri prepare raw/ --out prepared/ --acceleration 4 --acs-lines 12
    ambient-mri prepare /data/knee --out prepared/ --acquisitions PD --workers 8
    ambient-mri doctor
    ambient-mri train data=prepared data.root=prepared/ objective=ambient
    ambient-mri reconstruct scan.h5 --prior runs/prepared_ambient/prior --out recon.h5 --report report.html
    ambient-mri evaluate recon.h5 scan.h5
    ambient-mri evaluate scans/ references/ --prior runs/prepared_em/prior --sampler split_gibbs --sampler dds
    ambient-mri calibrate scans/ references/ --prior runs/prepared_em/prior
    ambient-mri sample --prior runs/prepared_em/prior --count 16 --shape 128 128 --out sheet.png

A mistake in what was given ends with one line on stderr and status 2; a bug, with one line and status 1. ``--debug``
shows the traceback of either. Whatever is heavy is imported by the command that needs it.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ambient_mri._checks import AmbientMRIError
from ambient_mri.cli.parser import make_parser
from ambient_mri.cli.terminal import log_to_stderr, one_line, say

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``ambient-mri``.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit status: 0, 1 for a bug or a partial failure, 2 for a mistake in the input, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    with warnings.catch_warnings():
        _show_warnings_as_lines()
        try:
            if arguments[:1] == ["train"]:  # its log is Hydra's
                return _train([a for a in arguments[1:] if a != "--debug"])
            log_to_stderr(logging.DEBUG if debug else logging.WARNING)
            options = make_parser().parse_args(arguments)
            return options.run(options)
        except KeyboardInterrupt:
            return say("interrupted", 130)
        except Exception as error:
            if debug:
                raise
            return _explain(error)


def _explain(error: Exception) -> int:
    """One line, and the status that goes with it."""
    if isinstance(error, AmbientMRIError | OSError):
        return say(f"error: {one_line(error)}", 2)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return say(f"error: out of memory ({one_line(error)}). Take fewer slices or samples at a time.", 2)
    return say(f"internal error: {type(error).__name__}: {one_line(error)} (--debug shows where it happened)", 1)


def _train(overrides: Sequence[str]) -> int:
    """Hydra reads the process's arguments, so they are lent to it."""
    from ambient_mri import train

    lent, sys.argv = sys.argv, ["ambient-mri train", *overrides]
    try:
        train.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = lent
    return 0


def _show_warnings_as_lines() -> None:
    """The package's own warnings as one line each; those of others as Python shows them."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
        if category.__module__.startswith("ambient_mri"):
            say(f"warning: {one_line(message)}")
        else:
            usual(message, category, *where, **options)

    warnings.showwarning = show
    warnings.filterwarnings("always", module=r"ambient_mri\b")
