"""What several commands ask of their options."""

from __future__ import annotations

import argparse

from ambient_mri._checks import require

__all__ = ["refuse"]


def refuse(options: argparse.Namespace, *names: str, because: str) -> None:
    """End the command where options were given (not None, not False) that would do nothing.

    Raises:
        AmbientMRIError: It names them, and why.
    """
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) not in (None, False)]
    require(not given, f"{', '.join(given)}: {because}")
