"""Which data step is the faster one for an operator and a run; both give equal results."""

from __future__ import annotations

import torch

from ambient_mri._checks import check_option
from ambient_mri.operators.base import LinearOperator
from ambient_mri.sampling.conjugate_gradient_step import ConjugateGradientStep
from ambient_mri.sampling.data_step import DataStep
from ambient_mri.sampling.exact_step import ExactStep, exact_bytes, line_sense

__all__ = ["EXACT_MEMORY", "make_data_step"]

# Largest table of eigenvectors that "auto" makes.
EXACT_MEMORY = 2**30
# Seconds on one CPU core, measured at 128 to 256 pixels and 4 to 16 coils; only their ratios decide. That of conjugate
# gradients is a middle: 1e-7 where noise_std is 0.05, up to 7e-7 where it is 0.005.
_EIGH, _APPLY, _APPLY_ROW, _CG_PIXEL = 0.8e-9, 4e-9, 0.1e-9, 3e-7
# With a lam for each pixel: products of the exact step over those of a white one, and conjugate gradients without it.
_LOCAL_PRODUCTS, _CG_LOCAL_PIXEL = 5.0, 1.2e-7


def make_data_step(
    operator: LinearOperator,
    *,
    slices: int,
    samples: int,
    steps: int,
    method: str = "auto",
    max_iterations: int = 100,
    device: torch.device | str = "cpu",
    local: bool = False,
) -> DataStep:
    """The data step for one operator.

    "auto" takes the exact one on a CPU where the operator allows it, its table stays below 1 GiB and, by a cost model
    fitted to measured times, it is the faster one for this many steps and samples. On a GPU it takes conjugate
    gradients: transforms are cheap there, and many small eigendecompositions are not.

    Args:
        operator: A, for ``slices`` rows.
        slices: Rows of the operator.
        samples: Samples a slice in the whole run, not in one batch: the choice must not depend on the batch size.
        steps: Data steps of a run.
        method: ``"auto"``, ``"exact"`` or ``"conjugate_gradient"``.
        max_iterations: For conjugate gradients.
        device: Where the data are.
        local: Whether lam is one for each pixel.

    Raises:
        AmbientMRIError: If the method is unknown, or exact and the operator does not allow it.
    """
    check_option("data_step", method, ("auto", "exact", "conjugate_gradient"))
    on_cpu = torch.device(device).type == "cpu"
    if method == "exact" or (method == "auto" and on_cpu and _exact_pays(operator, slices, samples, steps, local)):
        return ExactStep(operator, max_iterations=max_iterations)
    return ConjugateGradientStep(operator, slices=slices, max_iterations=max_iterations)


def _exact_pays(operator: LinearOperator, slices: int, samples: int, steps: int, local: bool) -> bool:
    parts, size = line_sense(operator), exact_bytes(operator, slices)
    if parts is None or size is None or size > EXACT_MEMORY:
        return False
    coils, height, width = parts[0].shape[1:]
    products, pixel = (_LOCAL_PRODUCTS, _CG_LOCAL_PIXEL) if local else (1.0, _CG_PIXEL)
    step = products * height * width**2 * (_APPLY + samples * _APPLY_ROW)
    return height * width**3 * _EIGH + steps * step < steps * samples * coils * height * width * pixel
