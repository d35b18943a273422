r"""The noise level of a scan from what its coils agree on: the marginal likelihood of the data under a Gaussian image.

    y = A x + n ,    x ~ N(0, F^H diag(p) F) ,    n ~ N(0, v I) ,    v = noise_std^2 per real part

Coils see one image, so y has directions that x can hardly reach: there is noise in them and little else, however far
the signal reaches in k-space. With K = A F^H diag(p) F A^H + v I, the covariance of y,

    R = v K^-1 = I - A ( A^H A + v F^H diag(1/p) F )^-1 A^H ,      E || (R y)_w ||^2 = v tr( R_ww )

for any region w of k-space, so that the level is a fixed point of  v <- || (R y)_w ||^2 / tr( R_ww ), reached in a few
conjugate gradient solves; the trace by a probe of noise in w. p is the local power of the data less the noise of the
coils. w leaves out the middle of k-space, where errors of the maps, which are a share of the signal, outweigh the
noise, and the edges, which scanners filter. What the maps get wrong in w counts as noise: it errs upwards.

It tells noise from signal where no noise floor is in sight: 2-D undersampling hides the margins of the field of view,
and k-space of low resolution holds signal up to its edge.

Reference: Patterson & Thompson 1971, Biometrika 58:545 (REML), the fixed point as in MacKay 1992, Neural Computation
4:415, equation 4.10. Differs: the residual is looked at in w alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ambient_mri.measurement import Measurement
from ambient_mri.operators import conjugate_gradient, sense
from ambient_mri.operators.sense import SenseNormal
from ambient_mri.tensors import complex_randn, keyed_generator

__all__ = ["FEWEST_COILS", "likely_noise_std"]

# With fewer coils there is too little that they agree on.
FEWEST_COILS = 4
# w, in distances from the zero frequency over the measured extent, and the least number of locations in it.
_INNER, _OUTER, _FEWEST = 0.6, 0.9, 64
# Side of the neighbourhood whose mean power is p, and the least share of that power that is signal.
_NEIGHBOURHOOD, _LEAST = 9, 0.02
# Rounds of the fixed point, the relative change of the level at which it has settled, and of the conjugate gradients.
_ROUNDS, _SETTLED, _ITERATIONS, _RTOL = 12, 0.02, 40, 1e-3


@torch.no_grad()
def likely_noise_std(m: Measurement, start: Tensor) -> Tensor:
    """The most likely noise level of every row, at most ``start``.

    Args:
        m: k-space (not hybrid), mask and coil maps; its own ``noise_std`` is not read.
        start: (b,) an upper bound, positive, per real part, in the units of y.

    Returns:
        (b,) per real part; ``start`` where fewer than four coils see anything, or little was measured far from the
        zero frequency.
    """
    if m.coil_maps is None or m.num_coils < FEWEST_COILS:
        return start
    found = [_row(m[i], float(start[i])) for i in range(len(m))]
    return torch.tensor(found).to(start)


def _row(m: Measurement, start: float) -> float:
    """Of one row."""
    maps = m.coil_maps
    held = m.mask.expand(1, 1, *m.image_shape) & (m.y != 0).any(dim=1, keepdim=True)
    live = (m.y != 0).any(dim=(2, 3), keepdim=True)
    coils = int(live.sum())
    if maps is None or coils < FEWEST_COILS or start <= 0:
        return start
    distance = _distance(held)
    region = held & (distance > _INNER) & (distance < _OUTER)
    if int(region.sum()) < _FEWEST:
        return start
    y = torch.where(held, m.y, 0)
    probe = complex_randn(y.shape, generator=keyed_generator("noise likelihood")).to(y)
    probe = torch.where(region & live, probe, 0)  # silent coils have no residual, either
    operator = sense(maps, held)
    blocks = SenseNormal.of(operator)
    if blocks is None:
        return start
    power = _local_power(y, held)
    known = [(rhs, operator.adjoint(rhs)) for rhs in (y, probe)]
    solutions: list[Tensor | None] = [None, None]
    level = start
    for _ in range(_ROUNDS):
        signal = torch.maximum(power - coils * level**2, _LEAST * power)
        weight = torch.fft.ifftshift(level**2 / signal, dim=(-2, -1))
        gain = (blocks.density + weight).reciprocal()
        left = []
        for i, (rhs, back) in enumerate(known):
            solutions[i] = x = conjugate_gradient(
                lambda p, weight=weight: operator.normal(p) + blocks.precondition(p, weight),  # type: ignore[misc]
                back,
                x0=solutions[i],
                precondition=lambda r, gain=gain: blocks.precondition(r, gain),  # type: ignore[misc]
                max_iterations=_ITERATIONS,
                rtol=_RTOL,
            ).x
            left.append(rhs - operator.forward(x))
        trace = float((probe.conj() * left[1]).real.sum()) / 2
        residual = float(torch.where(region, left[0], 0).abs().square().sum()) / 2
        if not (trace > 0 and residual > 0):
            return start
        previous, level = level, math.sqrt(residual / trace)
        if level >= start:
            return start
        if abs(math.log(level / previous)) < _SETTLED:
            break
    return level


def _distance(held: Tensor) -> Tensor:
    """Distance of every location from the zero frequency, (H, W), 1 at the end of what was measured along an axis."""
    axes = []
    for size, lines in zip(held.shape[-2:], (held[0, 0].any(dim=1), held[0, 0].any(dim=0)), strict=True):
        place = (torch.arange(size, device=held.device) - size // 2).abs().float()
        axes.append(place / place[lines].max().clamp_min(1))
    return torch.hypot(axes[0][:, None], axes[1][None])


def _local_power(y: Tensor, held: Tensor) -> Tensor:
    """Mean over the measured neighbours of sum_c |y_c|^2 / 2, (1, 1, H, W); the least there is where none is near."""
    share = _mean(held.float())
    power = _mean(y.abs().square().sum(dim=1, keepdim=True) / 2) / share.clamp_min(1e-9)
    return torch.where(share > 0, power, power[held].min()).clamp_min(torch.finfo(power.dtype).tiny)


def _mean(values: Tensor) -> Tensor:
    return functional.avg_pool2d(values, _NEIGHBOURHOOD, 1, _NEIGHBOURHOOD // 2)
