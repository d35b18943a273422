"""Every user-facing error of the package is made here: what was wrong, what was expected, what came, the likely
cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class AmbientMRIError(ValueError):
    """Base class of the errors that a user's input can cause."""


class DataError(AmbientMRIError):
    """A file that cannot be used; the message names the file, the dataset and the fix."""


class PriorError(AmbientMRIError):
    """A prior folder that cannot be used, or one that does not fit the task at hand."""


def require(condition: bool, message: str, error: type[Exception] = AmbientMRIError) -> None:
    """Raise ``error(message)`` unless ``condition`` holds."""
    if not condition:
        raise error(message)


def reason_of(error: BaseException) -> str:
    """What an exception says, its first line; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def check_shape(name: str, tensor: Tensor, expected: Sequence[int | None], hint: str = "") -> None:
    """Raise unless ``tensor`` has the ``expected`` shape; ``None`` matches any length.

    Raises:
        AmbientMRIError: Naming the expected and the found shape, followed by ``hint``.
    """
    found = tuple(tensor.shape)
    matches = len(found) == len(expected) and all(e is None or e == f for e, f in zip(expected, found, strict=True))
    wanted = "(" + ", ".join("any" if e is None else str(e) for e in expected) + ")"
    require(matches, f"{name} must have shape {wanted}; got {found}.{_sentence(hint)}")


def check_finite(name: str, tensor: Tensor, hint: str = "") -> None:
    """Raise if ``tensor`` holds NaN or infinity, saying how many values and where the first one is."""
    import torch  # here alone: the command line makes its errors without waiting for it

    values = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    if tensor.is_complex():
        finite = finite.all(dim=-1)
    bad = (~finite).nonzero()
    first = tuple(int(i) for i in bad[0])
    raise AmbientMRIError(
        f"{name} holds {len(bad)} non-finite values (NaN or infinity), the first at index {first}.{_sentence(hint)}"
    )


def check_option(name: str, value: object, options: Iterable[object]) -> None:
    """Raise unless ``value`` is one of ``options``; the message lists them and suggests the nearest."""
    choices = list(options)
    if value in choices:
        return
    near = get_close_matches(str(value), [str(c) for c in choices], n=1)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    raise AmbientMRIError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.{suggestion}")


def check_positive(name: str, value: float, *, allow_zero: bool = False) -> None:
    """Raise unless ``value`` is a finite number above zero (or zero, when allowed)."""
    good = (
        not isinstance(value, str)
        and value == value
        and abs(value) != float("inf")
        and (value > 0 or (allow_zero and value == 0))
    )
    require(good, f"{name} must be {'zero or ' if allow_zero else ''}a positive finite number; got {value!r}.")


def _sentence(hint: str) -> str:
    return f" {hint}" if hint else ""
