r"""How well a scan's coil maps explain the scan: an effective noise level from the residual of its calibration lines.

    x_low = argmin || A_acs x - y_acs ||^2 + lam || x ||^2
    misfit = || y_acs - A_acs x_low ||^2 / (f m_acs)
    eps^2 = ( misfit - noise_std^2 ) / || signal_acs ||^2 * m_acs
    effective_noise_std^2 = noise_std^2 + eps^2 || signal ||^2 / m

A_acs is A with the calibration region as its mask; m counts real numbers, and f is the share of noise that the fit
leaves, found with a draw of noise in the place of y_acs. With exact maps the misfit is noise_std^2. What is above it is
an error of the maps, and in k-space that error is the signal, convolved with something narrow: it is proportional to
the signal around it, large in the calibration region and tens of times smaller farther out. So it is measured as a
share eps of the signal, at most all of it, and laid on all samples by what signal they hold (|| signal ||^2 is
|| y ||^2 less the noise). A sampler that trusts the data beyond this level fits the errors of the maps.

That is the level where maps rest on few calibration lines and are wrong throughout. Where they rest on more, hardly any
sample lies in the middle of k-space, and the level is the one that the coils show farther out, errors of the maps
included (:mod:`ambient_mri.coil_maps.noise_likelihood`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ambient_mri.coil_maps import find_acs, likely_noise_std, rows_by_mask
from ambient_mri.measurement import Measurement
from ambient_mri.operators import sense, solve_regularized
from ambient_mri.tensors import complex_randn, keyed_generator

__all__ = ["FEW_LINES", "EffectiveNoise", "effective_noise_std"]

# Coil maps from fewer calibration lines are wrong throughout (benchmarks/quality/maps.py).
FEW_LINES = 6

# Light: at the norm of A, which is one, it biases the residual by a thousandth of the signal.
_LAM = 1e-3
# Share of noise in the residual below which the fit says nothing of the maps.
_LEAST_LEFT = 0.1


class EffectiveNoise(NamedTuple):
    """How noisy scans are, coil maps included; all (b,).

    Attributes:
        level: To sample with, per real part, in the units of the scaled y, never below the ``noise_std`` of the scan.
        of_calibration: What the calibration lines leave, laid on all samples by the signal that they hold.
        agreement: chi^2, the mean square of what is left over what ``noise_std`` leaves: 1 with exact maps, more with
            errors of the maps, less where ``noise_std`` is too high.
    """

    level: Tensor
    of_calibration: Tensor
    agreement: Tensor


def effective_noise_std(m: Measurement) -> EffectiveNoise:
    """The effective noise level of every row, and whether the calibration lines agree with the level of the scan.

    Args:
        m: k-space (not hybrid), mask and coil maps.

    Returns:
        The levels. Where nothing can contradict the maps (no calibration region, a single coil, so few lines that an
        image fits them whatever they hold, no signal), both are ``m.noise_std``, and chi^2 is NaN.
    """
    if len(rows_by_mask(m.mask, len(m))) > 1:  # rows have calibration regions of their own
        parts = [effective_noise_std(m[i]) for i in range(len(m))]
        return EffectiveNoise(*(torch.cat(values) for values in zip(*parts, strict=True)))
    acs, variance = find_acs(m.mask, m.image_shape), m.noise_std.square()
    unknown = EffectiveNoise(m.noise_std, m.noise_std, torch.full_like(variance, torch.nan))
    if acs is None or m.coil_maps is None or m.num_coils == 1:
        return unknown
    region = torch.zeros(1, 1, *m.image_shape, dtype=torch.bool, device=m.y.device)
    region[..., slice(*acs.rows), slice(*acs.cols)] = True
    operator = sense(m.coil_maps, region)
    noise = complex_randn(m.y.shape[1:], generator=keyed_generator("calibration noise")).to(m.y).expand_as(m.y)
    residuals = []
    for data in (m.y * region, noise * region):
        image = solve_regularized(operator, operator.adjoint(data), _LAM, max_iterations=50, rtol=1e-3).x
        residuals.append(_mean_power(data - operator.forward(image), region))
    left = residuals[1] / _mean_power(noise, region)
    misfit = residuals[0] / left
    calibration, everywhere = ((_mean_power(m.y, where) - variance).clamp_min(0) for where in (region, m.mask))
    share = ((misfit - variance) / calibration).nan_to_num(0.0).clamp(0, 1)
    known = left > _LEAST_LEFT
    of_calibration = torch.where(known, (variance + share * everywhere).sqrt(), m.noise_std)
    likely = likely_noise_std(m, of_calibration) if acs.num_lines >= FEW_LINES else of_calibration
    agreement = torch.where(known & (residuals[0] > 0), misfit / variance, unknown.agreement)
    return EffectiveNoise(torch.maximum(likely, m.noise_std), of_calibration, agreement)


def _mean_power(y: Tensor, where: Tensor) -> Tensor:
    """Mean square of the real numbers of ``y`` (b, C, H, W) at the locations ``where`` (b or 1, 1, H or 1, W or 1)."""
    count = where.expand(-1, -1, *y.shape[-2:]).sum(dim=(1, 2, 3)) * y.shape[1]
    return (y * where).abs().square().sum(dim=(1, 2, 3)) / (2 * count)
