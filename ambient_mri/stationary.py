r"""A stationary Gaussian model of images, and its posterior mean: interpolation and smoothing that know natural images.

    x ~ N(0, C) ,   C = U diag(K_1 .. K_c) U^T ,   K_k(r) = sum_j w_kj m(r / l_j) + nugget ,   m(d) = (1 + d) exp(-d)

U: colours without correlation; m: the Matern covariance of smoothness 3/2, whose mixtures over lengths l_j have the
1 / f^p spectra of natural images and are positive definite for w >= 0, at any size of image. For z = A x + sigma n the
posterior mean has a smooth part x_s and a white one,

    ( A^H A + lam S^-1 ) x_s = A^H z ,      x = x_s + (nugget / lam) A^H (z - A x_s) ,      lam = sigma^2 + nugget

exact where the rows of A are orthonormal (every mask), so that data without noise are met exactly. S, the spectrum, is
applied by FFT on a grid half as large again: opposite edges do not touch. Conjugate gradients are preconditioned by
S / (rho S + lam), rho the share of the locations, exact at rho = 1 but for edges; they are differentiable in z.

The covariance is estimated from measurements alone (:func:`fit_stationary`): products of pixels that were both
measured, the noise taken off at distance zero.

Reference: Rasmussen & Williams 2006, sections 2.2 and 4.2.1 (Matern); Field 1987, J. Opt. Soc. Am. A 4 (1 / f^2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri._checks import check_positive, require
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.linear_solvers import conjugate_gradient
from ambient_mri.tensors import keyed_generator, per_row

__all__ = ["LENGTHS", "NUGGET", "StationaryGaussian", "fit_stationary", "products_of"]

# Pixels. The mixture is fitted to them; more of them change nothing.
LENGTHS = (0.6, 1.2, 2.4, 4.8, 9.6, 19.2)
# White variance as a share of the largest variance of a colour. With 0.003 the solution is 0.1 dB better on natural
# images, and conjugate gradients need twice as many steps.
NUGGET = 0.005
# Distances that are fitted, pixels.
_REACH = 16.0
# Side of the images, rates, and sigmas (in units of the standard deviation) for which errors are tabulated.
_SIDE = 16
_RATES = tuple(0.05 + 0.95 * i / 8 for i in range(9))
_SIGMAS = tuple(10 ** (-3 + 0.2 * i) for i in range(26))
# What missing locations add to the preconditioner, in units of the variance; it bears on speed alone.
_ALIASING = 0.03


class StationaryGaussian(nn.Module):
    """The model (module docstring), for real channels.

    Args:
        colours: U, (c, c), orthonormal columns.
        weights: w, (c, lengths), not negative.
        lengths: l, pixels.
        nugget: White variance as a share of the largest variance of a colour.

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
        self.nugget = nugget * float(table.sum(1).max())
        self._spectra: dict[tuple[int, int, torch.device], Tensor] = {}
        self._errors: dict[torch.device, Tensor] = {}

    @property
    def std(self) -> float:
        """Standard deviation of a pixel's colour."""
        return (float(self.weights.sum(1).mean()) + self.nugget) ** 0.5

    def kernel(self, distance: Tensor) -> Tensor:
        """K_k without the nugget at distances (...), pixels: (c, ...), float64."""
        distance = distance.to(self.weights)
        table = torch.zeros(len(self.weights), *distance.shape, dtype=torch.float64, device=distance.device)
        for j, length in enumerate(self.lengths.tolist()):
            weight = self.weights[:, j].reshape(-1, *[1] * distance.ndim)
            table = table + weight * (1 + distance / length) * (-distance / length).exp()
        return table

    def posterior_mean(
        self, operator: LinearOperator, z: Tensor, sigma: Tensor, rate: Tensor, *, iterations: int
    ) -> Tensor:
        """E[x | z], (b, c, H, W).

        Args:
            operator: A, from real images with as many channels as the model has colours.
            z: Data, zero where nothing was measured.
            sigma: Noise of ``z``, (b,).
            rate: Share of the locations that were measured, (b,).
            iterations: Conjugate-gradient steps, always as many: nothing waits for the GPU.
        """
        back = operator.adjoint(z)
        height, width = back.shape[-2:]
        size, basis = (_padded(height), _padded(width)), self.colours.to(back.dtype)
        spectrum = self._spectrum(height, width, back.device).to(back.dtype)
        lam, share = per_row(sigma.square() + self.nugget, back), per_row(rate, back)

        def image(x: Tensor) -> Tensor:
            return torch.einsum("bkhw,ck->bchw", x[..., :height, :width], basis)

        def coefficients(x: Tensor) -> Tensor:
            turned = torch.einsum("bchw,ck->bkhw", x, basis)
            return functional.pad(turned, (0, size[1] - width, 0, size[0] - height))

        def filtered(x: Tensor, gain: Tensor) -> Tensor:
            return torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=size)

        smooth = conjugate_gradient(
            lambda x: coefficients(operator.normal(image(x))) + filtered(x, lam / spectrum),
            coefficients(back),
            precondition=lambda r: filtered(
                r, spectrum / (share * spectrum + lam + _ALIASING * (1 - share) * self.std**2)
            ),
            max_iterations=iterations,
            rtol=0.0,
        )
        x = image(smooth.x)
        return x + self.nugget / lam * (back - operator.normal(x))

    def error(self, sigma: Tensor, rate: Tensor) -> Tensor:
        """Rms error of E[x | z] per pixel and colour, (b,), for random pixels: by a table of exact values.

        Args:
            sigma: (b,).
            rate: Share of the locations that were measured, (b,).
        """
        table = self._error_table(sigma.device)
        across = (sigma.float() / self.std).clamp(_SIGMAS[0], _SIGMAS[-1]).log10().add(3).div(0.2)
        down = (rate.to(sigma).float().clamp(_RATES[0], 1.0) - _RATES[0]) * (8 / 0.95)
        column, row = across.floor().clamp(0, len(_SIGMAS) - 2).long(), down.floor().clamp(0, len(_RATES) - 2).long()
        right, below = across - column, down - row
        upper = table[row, column] * (1 - right) + table[row, column + 1] * right
        lower = table[row + 1, column] * (1 - right) + table[row + 1, column + 1] * right
        return (upper * (1 - below) + lower * below).exp() * self.std

    def _spectrum(self, height: int, width: int, device: torch.device) -> Tensor:
        key = (height, width, device)
        if key not in self._spectra:
            full = torch.fft.rfft2(self.kernel(_distances(_padded(height), _padded(width)))).real
            # Long lengths meet themselves around the grid, which makes a little of it negative.
            floor = 1e-4 * self.weights.sum(1)[:, None, None]
            self._spectra[key] = torch.maximum(full, floor).to(device)
        return self._spectra[key]

    def _error_table(self, device: torch.device) -> Tensor:
        """ln(error / std) at (_RATES, _SIGMAS): the exact posterior covariance on one random mask a rate."""
        if device not in self._errors:
            place = torch.cartesian_prod(*[torch.arange(_SIDE, dtype=torch.float64)] * 2)
            kernel = self.kernel(torch.cdist(place, place).to(self.weights.device)).cpu()
            kernel = kernel + self.nugget * torch.eye(len(place), dtype=torch.float64)
            noise = (torch.tensor(_SIGMAS, dtype=torch.float64) * self.std).square()
            rows = []
            for rate in _RATES:
                order = torch.randperm(len(place), generator=keyed_generator("stationary", round(100 * rate)))
                seen = order[: max(1, round(rate * len(place)))]
                values, vectors = torch.linalg.eigh(kernel[:, seen][:, :, seen])
                known = (kernel[:, :, seen] @ vectors).square().sum(dim=1)  # (c, seen)
                explained = (known[..., None] / (values[..., None] + noise)).sum(dim=1)
                total = kernel.diagonal(dim1=1, dim2=2).sum(1)[:, None]
                rows.append((total - explained).clamp_min(0).mean(0) / len(place))
            table = 0.5 * torch.stack(rows).clamp_min(1e-12).log() - torch.tensor(self.std).log()
            self._errors[device] = table.float().to(device)
        return self._errors[device]


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
    distance = _distances(sample.shape[-2], sample.shape[-1])
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


def _correlate(y: Tensor, other: Tensor) -> Tensor:
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
    pairs = [[_correlate(y[:, a], y[:, b]) for b in range(count)] for a in range(count)]
    seen = [[_correlate(there[:, a], there[:, b]) for b in range(count)] for a in range(count)]
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


def _distances(height: int, width: int) -> Tensor:
    """Distance from the origin around a torus, (height, width)."""
    return (_wrapped(height)[:, None].square() + _wrapped(width)[None].square()).sqrt()
