"""Linear operators in torch: batched, complex, differentiable; see :mod:`ambient_mri.operators.base` for the
algebra.
"""

from __future__ import annotations

from typing import Any

from ambient_mri.operators.base import Composition, Identity, LinearOperator
from ambient_mri.operators.coils import CoilSensitivities
from ambient_mri.operators.fourier import Fourier2d, fft, ifft
from ambient_mri.operators.linear_solvers import CGResult, conjugate_gradient, solve_regularized
from ambient_mri.operators.masking import Mask
from ambient_mri.operators.sense import sense

__all__ = [
    "CGResult",
    "CoilSensitivities",
    "Composition",
    "Fourier2d",
    "Identity",
    "LinearOperator",
    "Mask",
    "conjugate_gradient",
    "fft",
    "from_sigpy",
    "ifft",
    "sense",
    "solve_regularized",
]


def __getattr__(name: str) -> Any:
    """``from_sigpy`` is loaded on first use: sigpy (and numba with it) takes seconds to import."""
    if name == "from_sigpy":
        from ambient_mri.operators.sigpy_adapter import from_sigpy

        return from_sigpy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
