r"""How well a scan's coil maps explain the scan: an effective noise level from the residual of its calibration lines.

    x_low = argmin || A_acs x - y_acs ||^2 + lam || x ||^2 ,   effective_noise_std = || y_acs - A_acs x_low || / sqrt(m)

A_acs is A with the calibration region as its mask, m the real numbers measured there. With exact maps the residual is
noise, a little less of it than the scan holds; errors of the maps add to it. A sampler that trusts the data beyond this
level fits the errors of the maps, so it uses the larger of this and the noise of the scan.
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


def effective_noise_std(m: Measurement) -> Tensor:
    """The effective noise level of every row, (b,), per real part, in the units of the scaled y.

    Args:
        m: k-space (not hybrid), mask and coil maps.

    Returns:
        The level; zero where the scan has no calibration region or a single coil, whose map cannot contradict it.
    """
    acs = find_acs(m.mask, m.image_shape)
    if acs is None or m.coil_maps is None or m.num_coils == 1:
        return torch.zeros_like(m.noise_std)
    region = torch.zeros(1, 1, *m.image_shape, dtype=torch.bool, device=m.y.device)
    region[..., slice(*acs.rows), slice(*acs.cols)] = True
    operator = sense(m.coil_maps, region)
    data = m.y * region
    image = solve_regularized(operator, operator.adjoint(data), _LAM, max_iterations=50, rtol=1e-3).x
    energy = (data - operator.forward(image)).abs().square().sum(dim=(1, 2, 3))
    return (energy / (2 * m.num_coils * acs.shape[0] * acs.shape[1])).sqrt()
