r"""The weighted energy of a residual in the data, and its gradient in closed form.

    E(x) = sum_j W_j | g_j (A x)_j - t_j |^2 ,      dE/dx = 2 A^H ( g W ( g A x - t ) )

One application of A and one of A^H. Left to autograd, every array of the size of the k-space that the residual goes
through is kept for the way back, and costs more than the transforms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ambient_mri.corruption import Corruption
from ambient_mri.measurement import Measurement
from ambient_mri.operators.sense_rows import row_by_row
from ambient_mri.tensors import per_row, real_inner

__all__ = ["data_energy"]

# Numbers in y (8 bytes each) that are worked on at a time on a CPU: what the cache of one core holds.
_BLOCK = 2**17


def data_energy(
    x: Tensor,
    batch: Measurement,
    corruption: Corruption,
    *,
    target: Tensor,
    weights: Tensor,
    gain: Tensor | None = None,
) -> Tensor:
    """E of every row (module docstring), (b,); differentiable once, in ``x`` alone.

    Args:
        x: (b, c, H, W).
        batch: Measurements, whose A is meant; a row each.
        corruption: Gives A.
        target: t, in the shape of y.
        weights: W, real, (b, ...) broadcastable to y.
        gain: g, real, (b, ...) broadcastable to y; one when not given.
    """
    return _DataEnergy.apply(x, batch, corruption, target, weights, gain)


class _DataEnergy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        batch: Measurement,
        corruption: Corruption,
        target: Tensor,
        weights: Tensor,
        gain: Tensor | None,
    ) -> Tensor:
        energies, gradients = [], []
        # All at once on a GPU, where a launch costs more than a way to memory.
        size = max(1, _BLOCK // target[0].numel()) if target.device.type == "cpu" else len(target)
        for first in range(0, len(target), size):
            rows = slice(first, first + size)
            operator = row_by_row(corruption.forward_operator(batch[rows]), target.device)
            error = operator.forward(x[rows])
            error = (error if gain is None else error.mul_(gain[rows])).sub_(target[rows])
            weighted = error * weights[rows]
            energies.append(real_inner(error, weighted))
            if ctx.needs_input_grad[0]:
                gradients.append(operator.adjoint(weighted if gain is None else weighted.mul_(gain[rows])))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(energies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return per_row(2 * grad, gradient) * gradient, None, None, None, None, None
