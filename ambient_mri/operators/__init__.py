"""Linear operators in torch: batched, complex, differentiable; see :mod:`ambient_mri.operators.base` for the
algebra.
"""

from __future__ import annotations

from typing import Any

from ambient_mri.operators.base import Composition, Identity, LinearOperator
from ambient_mri.operators.blur import Convolution, gaussian_blur, motion_blur
from ambient_mri.operators.coils import CoilSensitivities
from ambient_mri.operators.downsample import BicubicDownsampling, BlockAverage
from ambient_mri.operators.external import from_deepinv, from_scipy
from ambient_mri.operators.fourier import Fourier2d, fft, ifft
from ambient_mri.operators.linear_solvers import CGResult, conjugate_gradient, gmres, solve_regularized
from ambient_mri.operators.masking import Mask
from ambient_mri.operators.projection import Projection, random_projection
from ambient_mri.operators.sense import sense
from ambient_mri.operators.transforms import BlockCosine, Diagonal, Hartley

__all__ = [
    "BicubicDownsampling",
    "BlockAverage",
    "BlockCosine",
    "CGResult",
    "CoilSensitivities",
    "Composition",
    "Convolution",
    "Diagonal",
    "Fourier2d",
    "Hartley",
    "Identity",
    "LinearOperator",
    "Mask",
    "Projection",
    "conjugate_gradient",
    "fft",
    "from_deepinv",
    "from_scipy",
    "from_sigpy",
    "gaussian_blur",
    "gmres",
    "ifft",
    "motion_blur",
    "random_projection",
    "sense",
    "solve_regularized",
]


def __getattr__(name: str) -> Any:
    """``from_sigpy`` is loaded on first use: sigpy (and numba with it) takes seconds to import."""
    if name == "from_sigpy":
        from ambient_mri.operators.sigpy_adapter import from_sigpy

        return from_sigpy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
