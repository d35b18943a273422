r"""A stationary Gaussian model of images, and the posterior mean under it: interpolation that knows natural images.

    x ~ N(0, C),   C = U diag(K_1 .. K_c) U^H,   K_k(r) = sum_j w_kj m(r / l_j) + nugget,   m(d) = (1 + d) exp(-d)

U: colours without correlation; m: the Matern covariance of smoothness 3/2, whose mixtures over lengths l_j have the
1 / f^p spectra of natural images and are positive definite for weights w >= 0, at any size of image. Then

    E[x | z] = C A^H ( A C A^H + sigma^2 I )^-1 z ,       z = A x + sigma n

by conjugate gradients, differentiable in z. C is applied by FFT on a grid half as large again, so that opposite edges
do not touch. The nugget is white texture; with it conjugate gradients converge, and data without noise are met exactly.

The error of E[x | z], for a share rho of the locations, from the fixed point of

    v = mean over the spectrum S of  S t / (S + t) ,      t = ( sigma^2 + (1 - rho) v ) / rho

where what is missing counts as noise; exact at rho = 1 (but for edges), an approximation below it.

The covariance is estimated from measurements alone (:func:`fit_stationary`): pairs of pixels that were both measured,
the noise taken off at distance zero.

Reference: Rasmussen & Williams 2006, section 4.2.1 (Matern); Field 1987, J. Opt. Soc. Am. A 4 (1 / f^2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ambient_mri._checks import check_positive, require
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.linear_solvers import conjugate_gradient
from ambient_mri.tensors import per_row

__all__ = ["LENGTHS", "NUGGET", "StationaryGaussian", "fit_stationary", "products_of"]

# Pixels. The mixture is fitted to them; more of them change nothing.
LENGTHS = (0.6, 1.2, 2.4, 4.8, 9.6, 19.2)
# White variance as a share of the whole.
NUGGET = 0.003
# Distances that are fitted, pixels; and the levels of the error's table.
_REACH = 16.0
_LEVELS = 96


class StationaryGaussian(nn.Module):
    """The model (module docstring), for real channels.

    Args:
        colours: U, (c, c), orthonormal columns.
        weights: w, (c, lengths), not negative.
        lengths: l, pixels.
        nugget: White variance as a share of each colour's.

    Raises:
        AmbientMRIError: If sizes do not fit, weights are negative, or a colour has no variance.
    """

    colours: Tensor
    weights: Tensor
    lengths: Tensor

    def __init__(
        self,
        colours: Sequence[Sequence[float]],
        weights: Sequence[Sequence[float]],
        lengths: Sequence[float] = LENGTHS,
        *,
        nugget: float = NUGGET,
    ) -> None:
        super().__init__()
        check_positive("nugget", nugget)
        basis, table, scale = (torch.tensor(v, dtype=torch.float64) for v in (colours, weights, lengths))
        count = len(basis)
        require(
            basis.shape == (count, count) and table.shape == (count, len(scale)) and bool((scale > 0).all()),
            f"colours must be (c, c) and weights (c, {len(scale)}); got {tuple(basis.shape)} and {tuple(table.shape)}.",
        )
        require(bool((table >= 0).all() and (table.sum(1) > 0).all()), "weights must not be negative, nor all zero.")
        for name, value in (("colours", basis), ("weights", table), ("lengths", scale)):
            self.register_buffer(name, value, persistent=False)
        self.nugget = nugget
        self._spectra: dict[tuple[int, int, torch.device], Tensor] = {}
        self._errors: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    def kernel(self, distance: Tensor) -> Tensor:
        """K_k at distances (...), pixels: (c, ...)."""
        table = (distance == 0).double() * self.nugget * self.weights.sum(1).reshape(-1, *[1] * distance.ndim)
        for j, length in enumerate(self.lengths.tolist()):
            weight = self.weights[:, j].reshape(-1, *[1] * distance.ndim)
            table = table + weight * (1 + distance / length) * (-distance / length).exp()
        return table

    def covariance(self, x: Tensor) -> Tensor:
        """C x, (b, c, H, W) real."""
        height, width = x.shape[-2:]
        spectrum = self._spectrum(height, width, x.device)
        basis = self.colours.to(x.dtype)
        size = (_padded(height), _padded(width))
        turned = torch.einsum("bchw,ck->bkhw", x, basis)
        blurred = torch.fft.irfft2(torch.fft.rfft2(turned, s=size) * spectrum.to(x.dtype), s=size)
        return torch.einsum("bkhw,ck->bchw", blurred[..., :height, :width], basis)

    def posterior_mean(self, operator: LinearOperator, z: Tensor, sigma: Tensor, *, iterations: int) -> Tensor:
        """E[x | z], (b, c, H, W).

        Args:
            operator: A, from real images with as many channels as the model has colours.
            z: Data, zero where nothing was measured.
            sigma: Noise of ``z``, (b,).
            iterations: Conjugate-gradient steps, always as many: nothing waits for the GPU.
        """
        level = per_row(sigma.square(), z)
        found = conjugate_gradient(
            lambda w: operator.forward(self.covariance(operator.adjoint(w))) + level * w,
            z,
            max_iterations=iterations,
            rtol=0.0,
        )
        return self.covariance(operator.adjoint(found.x))

    def error(self, sigma: Tensor, rate: Tensor, shape: tuple[int, int]) -> Tensor:
        """Rms error of E[x | z] per pixel and colour, (b,), by the fixed point of the module docstring.

        Args:
            sigma: (b,).
            rate: Share of the locations that were measured, (b,).
            shape: Rows and columns.
        """
        levels, errors = self._error_table(*shape, sigma.device)
        share = rate.to(sigma).clamp(1e-3, 1.0)
        v = errors[-1].expand_as(sigma)  # the variance: from above, the iteration falls to the fixed point
        for _ in range(30):
            t = ((sigma.square() + (1 - share) * v) / share).log()
            v = _interpolate(t, levels, errors)
        return v.sqrt()

    def _spectrum(self, height: int, width: int, device: torch.device) -> Tensor:
        key = (height, width, device)
        if key not in self._spectra:
            rows, columns = _wrapped(_padded(height)), _wrapped(_padded(width))
            distance = (rows[:, None].square() + columns[None].square()).sqrt().to(device)
            full = torch.fft.rfft2(self.kernel(distance)).real
            # Long lengths meet themselves around the grid: what that makes negative is as small as the nugget.
            floor = self.nugget * self.weights.sum(1)[:, None, None]
            self._spectra[key] = torch.maximum(full, floor)
        return self._spectra[key]

    def _error_table(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """ln t, ascending, and v at each of them, float32; the last v is the variance itself."""
        key = (height, width, device)
        if key not in self._errors:
            spectrum = self._spectrum(height, width, device)
            weight = torch.full((spectrum.shape[-1],), 2.0, dtype=torch.float64, device=device)
            weight[0] = 1.0  # the half-plane of a real transform holds all but these columns once
            if _padded(width) % 2 == 0:
                weight[-1] = 1.0
            variance = float(self.kernel(torch.zeros((), device=device)).mean())
            levels = torch.logspace(-8, 8, _LEVELS, dtype=torch.float64, device=device) * variance
            gain = [((spectrum * t / (spectrum + t) * weight).sum(dim=(1, 2))).mean() for t in levels]
            errors = torch.stack(gain) / (_padded(height) * _padded(width))
            self._errors[key] = (levels.log().float(), errors.float())
        return self._errors[key]


def fit_stationary(products: Tensor, counts: Tensor) -> dict[str, Any]:
    """Arguments of :class:`StationaryGaussian` as plain data, from sample covariances at every displacement.

    Args:
        products: Sums over images of y_a(p) y_b(p + d), noise taken off, (c, c, h, w), d wrapped around the grid.
        counts: Numbers of measured pairs, of the same shape.

    Returns:
        ``colours``, ``weights``, ``lengths``.

    The colours are the eigenvectors of the covariance at distance zero. Weights: non-negative least squares over
    displacements up to 16 pixels, each weighted by 1 / (1 + r)^2: interpolation rests on near neighbours.
    """
    from scipy.optimize import nnls

    sample = (products / counts.clamp_min(1)).double().cpu()
    at_zero = 0.5 * (sample[..., 0, 0] + sample[..., 0, 0].T)
    basis = torch.linalg.eigh(at_zero).eigenvectors
    turned = torch.einsum("abhw,ak,bk->khw", sample, basis, basis)
    rows, columns = _wrapped(sample.shape[-2]), _wrapped(sample.shape[-1])
    distance = (rows[:, None].square() + columns[None].square()).sqrt()
    use = (distance <= _REACH) & (counts.cpu().amin(dim=(0, 1)) > 0)
    trust = 1 / (1 + distance[use]).square()
    scaled = distance[use][:, None] / torch.tensor(LENGTHS, dtype=torch.float64)
    design = (1 + scaled) * (-scaled).exp() * trust[:, None]
    weights = []
    for sampled in turned:
        found, _ = nnls(design.numpy(), (sampled[use] * trust).numpy())
        # A colour without any variance (grey pictures stored as colours) keeps a little, so that C has an inverse.
        floor = 1e-4 * float(at_zero.diagonal().mean()) / len(LENGTHS)
        weights.append([max(float(w), floor if found.sum() < len(LENGTHS) * floor else 0.0) for w in found])
    return {"colours": basis.tolist(), "weights": weights, "lengths": list(LENGTHS)}


def correlate(y: Tensor, other: Tensor) -> Tensor:
    """Sums over images and positions of y(p) other(p + d): (b, h, w) twice -> (2h, 2w), d wrapped."""
    size = (2 * y.shape[-2], 2 * y.shape[-1])
    first, second = (torch.fft.rfft2(t.double(), s=size) for t in (y, other))
    return torch.fft.irfft2((first.conj() * second).sum(0), s=size)


def products_of(y: Tensor, mask: Tensor, noise_std: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`fit_stationary` needs, of a batch of masked, noisy images: sums over batches add up.

    Args:
        y: (b, c, H, W), zero where ``mask`` is.
        mask: bool, broadcastable to ``y``.
        noise_std: (b,).
    """
    there = mask.expand_as(y).double()
    count = y.shape[1]
    pairs = [[correlate(y[:, a], y[:, b]) for b in range(count)] for a in range(count)]
    seen = [[correlate(there[:, a], there[:, b]) for b in range(count)] for a in range(count)]
    products, counts = (torch.stack([torch.stack(row) for row in t]) for t in (pairs, seen))
    energy = (there * per_row(noise_std, y).double().square()).sum(dim=(0, 2, 3))
    products[..., 0, 0] -= torch.diag(energy)
    return products, counts.round()


def _padded(length: int) -> int:
    return length + length // 2


def _wrapped(length: int) -> Tensor:
    """Distance from 0 around a ring of ``length`` places."""
    places = torch.arange(length, dtype=torch.float64)
    return torch.minimum(places, length - places)


def _interpolate(at: Tensor, grid: Tensor, values: Tensor) -> Tensor:
    position = at.clamp(float(grid[0]), float(grid[-1]))
    right = torch.searchsorted(grid, position.contiguous()).clamp(1, len(grid) - 1)
    share = (position - grid[right - 1]) / (grid[right] - grid[right - 1])
    return values[right - 1] + share * (values[right] - values[right - 1])
