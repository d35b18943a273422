r"""How well a scan's coil maps explain the scan: an effective noise level from the residual of its calibration lines.

    x_low = argmin || A_acs x - y_acs ||^2 + lam || x ||^2
    eps^2 = ( || y_acs - A_acs x_low ||^2 - (1 - 1/C) m_acs noise_std^2 ) / ( (1 - 1/C) || signal_acs ||^2 )
    effective_noise_std^2 = noise_std^2 + eps^2 || signal ||^2 / m

A_acs is A with the calibration region as its mask; m counts real numbers. With exact maps the residual is noise, less
the share that an image fits of C coils. What is above it is an error of the maps, and in k-space that error is the
signal, convolved with something narrow: it is proportional to the signal around it, large in the calibration region
and tens of times smaller farther out. So it is measured as a share eps of the signal, and laid on all samples by what
signal they hold (|| signal ||^2 = || y ||^2 less the noise). A sampler that trusts the data beyond this level fits the
errors of the maps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ambient_mri.coil_maps import find_acs
from ambient_mri.measurement import Measurement
from ambient_mri.operators import sense, solve_regularized

__all__ = ["effective_noise_std"]

# Light: at the norm of A, which is one, it biases the residual by a thousandth of the signal.
_LAM = 1e-3


def effective_noise_std(m: Measurement) -> tuple[Tensor, Tensor]:
    """The effective noise level of every row, and whether the calibration lines agree with the level of the scan.

    Args:
        m: k-space (not hybrid), mask and coil maps.

    Returns:
        The level, (b,), per real part, in the units of the scaled y, never below ``m.noise_std``; and chi^2, (b,), the
        mean square of the residual over what ``m.noise_std`` leaves of it: 1 with exact maps, more with errors of the
        maps, less where ``m.noise_std`` is too high. Without a calibration region, or with a single coil, whose map
        cannot contradict it, ``m.noise_std`` and NaN.
    """
    acs, variance = find_acs(m.mask, m.image_shape), m.noise_std.square()
    if acs is None or m.coil_maps is None or m.num_coils == 1:
        return m.noise_std, torch.full_like(variance, torch.nan)
    region = torch.zeros(1, 1, *m.image_shape, dtype=torch.bool, device=m.y.device)
    region[..., slice(*acs.rows), slice(*acs.cols)] = True
    operator = sense(m.coil_maps, region)
    data = m.y * region
    image = solve_regularized(operator, operator.adjoint(data), _LAM, max_iterations=50, rtol=1e-3).x
    misfit = _mean_power(data - operator.forward(image), region) / (1 - 1 / m.num_coils)
    calibration, everywhere = ((_mean_power(m.y, where) - variance).clamp_min(0) for where in (region, m.mask))
    share = (misfit - variance).clamp_min(0) / calibration.clamp_min(torch.finfo(misfit.dtype).tiny)
    return (variance + share * everywhere).sqrt(), misfit / variance


def _mean_power(y: Tensor, where: Tensor) -> Tensor:
    """Mean square of the real numbers of ``y`` (b, C, H, W) at the locations ``where`` (b or 1, 1, H or 1, W or 1)."""
    count = where.expand(-1, -1, *y.shape[-2:]).sum(dim=(1, 2, 3)) * y.shape[1]
    return (y * where).abs().square().sum(dim=(1, 2, 3)) / (2 * count)
