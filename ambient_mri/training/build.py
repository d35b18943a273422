"""Objects that a configuration names."""

from __future__ import annotations

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from ambient_mri._checks import AmbientMRIError, reason_of

__all__ = ["build"]


def build(node: Any, **arguments: Any) -> Any:
    """The object that a configuration node names.

    Raises:
        AmbientMRIError: What its class says about its arguments, in one line.
    """
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, AmbientMRIError):
            raise error.__cause__ from None
        reason = reason_of(error.__cause__ or error)
        raise AmbientMRIError(f"{node.get('_target_', 'the configuration')} cannot be made: {reason}.") from error
