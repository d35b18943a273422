"""Worlds with a closed form: complex Gaussian images, dense operators, exact posteriors. Everything in complex128.

    x0 = mean + C^(1/2) e,     y = A x0 + noise_std n,     e and n of unit variance per real part
    posterior:  m = mean + G (y - A mean),   V = C - G A C,   G = C A^H ( A C A^H + noise_std^2 I )^-1
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ambient_mri.denoiser import ConditionalDenoiser, Denoiser, GaussianDenoiser
from ambient_mri.operators import LinearOperator, fft, ifft, sense
from ambient_mri.tensors import complex_randn, per_row

__all__ = [
    "GaussianWorld",
    "OptimalAmbient",
    "Posterior",
    "StationaryDenoiser",
    "WhiteDenoiser",
    "dense_matrix",
    "line_mask",
    "small_sense",
    "smooth_coils",
]


@dataclass(frozen=True)
class Posterior:
    """An exact Gaussian posterior.

    Attributes:
        mean: (b, 1, H, W) complex128.
        covariance: (n, n) per real part, the same for every row.
    """

    mean: Tensor
    covariance: Tensor

    @property
    def variance(self) -> Tensor:
        """Pixel-wise variance per real part, (H, W)."""
        return self.covariance.diagonal().real.reshape(self.mean.shape[-2:])


@dataclass(frozen=True)
class GaussianWorld:
    """Images x0 ~ N(mean, covariance).

    Attributes:
        covariance: (n, n) complex128 per real part, n = H W.
        mean: (H, W) complex128.
    """

    covariance: Tensor
    mean: Tensor

    @staticmethod
    def with_decaying_spectrum(height: int, width: int, *, sd: float = 0.25, power: float = 1.5) -> GaussianWorld:
        """Power falls with frequency as (1 + (k/k0)^2)^-power; a window makes it neither stationary nor real."""
        rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in (height, width))
        spectrum = (1 + (rows[:, None] ** 2 + columns[None] ** 2) / 1.5**2) ** -power
        transform = dense_fourier(height, width)
        covariance = transform.mH @ (spectrum.flatten()[:, None] * transform)
        bump = torch.exp(-(rows[:, None] / (0.6 * height)) ** 2 - (columns[None] / (0.6 * width)) ** 2)
        phase = 0.5 * torch.sin(2 * torch.pi * (columns[None] / width + 0.5 * rows[:, None] / height))
        window = ((0.3 + bump) * torch.exp(1j * phase)).flatten()
        covariance = window[:, None] * covariance * window.conj()[None]
        covariance = covariance * (sd**2 / covariance.diagonal().real.mean())
        return GaussianWorld(covariance, (sd * bump * torch.exp(0.3j * rows[:, None] / height)).to(torch.complex128))

    @property
    def shape(self) -> tuple[int, int]:
        """H and W."""
        return int(self.mean.shape[0]), int(self.mean.shape[1])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 1, H, W) complex128."""
        values, basis = torch.linalg.eigh(self.covariance)
        white = complex_randn((count, self.mean.numel()), generator=generator, dtype=torch.complex128)
        images = (white * values.clamp_min(0).sqrt()) @ basis.T
        return self.mean + images.reshape(count, 1, *self.shape)

    def posterior(self, matrix: Tensor, y: Tensor, noise_std: float) -> Posterior:
        """The exact posterior for a dense A (m, n) and data y (b, ...)."""
        cross = self.covariance @ matrix.mH
        noise = noise_std**2 * torch.eye(len(matrix), dtype=matrix.dtype)
        gain = torch.linalg.solve(matrix @ cross + noise, cross.mH).mH
        centred = y.flatten(1) - (matrix @ self.mean.flatten())[None]
        mean = self.mean + (centred @ gain.T).reshape(-1, 1, *self.shape)
        return Posterior(mean, self.covariance - gain @ matrix @ self.covariance)

    def denoiser(self, dtype: torch.dtype = torch.complex128) -> GaussianDenoiser:
        """The analytic denoiser of this world."""
        return GaussianDenoiser(self.covariance.to(dtype), self.mean.to(dtype))


def dense_fourier(height: int, width: int) -> Tensor:
    """The centred orthonormal 2-D DFT as a matrix, from its definition."""

    def one(n: int) -> Tensor:
        index = torch.arange(n, dtype=torch.float64) - n // 2
        return torch.exp(-2j * torch.pi * index[:, None] * index[None] / n) / n**0.5

    return torch.kron(one(height), one(width))


def dense_matrix(operator: LinearOperator, shape: tuple[int, ...]) -> Tensor:
    """A as a matrix (m, n), column by column, for images of ``shape`` (1, H, W); one row of a batch."""
    size = int(torch.tensor(shape).prod())
    basis = torch.eye(size, dtype=torch.complex128).reshape(size, *shape)
    return operator.forward(basis).flatten(1).T.contiguous()


def smooth_coils(coils: int, height: int, width: int) -> Tensor:
    """(1, coils, H, W) complex128, smooth, different in magnitude and phase, sum of squares one at every pixel."""
    rows = torch.linspace(-1, 1, height, dtype=torch.float64)[:, None]
    columns = torch.linspace(-1, 1, width, dtype=torch.float64)[None]
    angles = 2 * torch.pi * torch.arange(coils, dtype=torch.float64) / coils + 0.3
    distance = (rows - angles.sin()[:, None, None]) ** 2 + (columns - angles.cos()[:, None, None]) ** 2
    phase = angles[:, None, None] + 0.7 * rows * angles.cos()[:, None, None] + 0.5 * columns
    maps = torch.polar(torch.exp(-distance / 1.5), phase)
    return (maps / maps.norm(dim=0))[None]


def line_mask(width: int, lines: tuple[int, ...]) -> Tensor:
    """(1, 1, 1, W) bool with ``lines`` sampled."""
    mask = torch.zeros(1, 1, 1, width, dtype=torch.bool)
    mask[..., list(lines)] = True
    return mask


def small_sense(*, size: int = 16, coils: int = 4, dtype: torch.dtype = torch.complex128) -> LinearOperator:
    """SENSE with a fixed 1-D mask of R = 4: two ACS lines and two outer ones."""
    lines = (size // 2 - 5 * size // 16, size // 2 - 1, size // 2, size // 2 + size // 4)
    return sense(smooth_coils(coils, size, size).to(dtype), line_mask(size, lines))


class StationaryDenoiser(Denoiser):
    """The analytic denoiser of a stationary Gaussian prior of any matrix size: its power falls with frequency.

    Args:
        sd: Rms of a real channel.
        cutoff: Frequency, in cycles per pixel, at which the power begins to fall.
    """

    def __init__(self, sd: float = 0.25, cutoff: float = 0.04) -> None:
        super().__init__(sd, 1e-3, 100.0)
        self.cutoff = cutoff

    def power(self, shape: tuple[int, int]) -> Tensor:
        """Variance of every Fourier coefficient per real part, (H, W), zero frequency at n//2."""
        rows, columns = ((torch.arange(n) - n // 2) / n for n in shape)
        spectrum = (1 + (rows[:, None] ** 2 + columns[None] ** 2) / self.cutoff**2) ** -1.5
        return spectrum * (self.sd**2 / spectrum.mean())

    def draw(self, count: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Images of this prior, (count, 1, H, W) complex64."""
        return ifft(complex_randn((count, 1, *shape), generator=generator) * self.power(shape).sqrt())

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        power = self.power((int(x_t.shape[-2]), int(x_t.shape[-1])))
        return ifft(fft(x_t) * (power / (power + per_row(sigma, x_t).square())))

    def posterior_std(self, sigma: Tensor) -> Tensor:
        power, square = self.power((32, 32)).flatten()[None], sigma.square()[:, None]
        return (power * square / (power + square)).mean(dim=1).sqrt()


class WhiteDenoiser(Denoiser):
    """The analytic denoiser of independent pixels N(0, sd^2), real or complex: here a scalar r_t is the whole truth."""

    def __init__(self, sd: float) -> None:
        super().__init__(sd, 1e-3, 100.0)

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return x_t * (self.sd**2 / (self.sd**2 + per_row(sigma, x_t).square()))


class OptimalAmbient(ConditionalDenoiser):
    """The best ambient network there can be in a Gaussian world: E[x0 | z, A_tilde] in closed form, row by row."""

    def __init__(self, world: GaussianWorld) -> None:
        sd = float(world.covariance.diagonal().real.mean().sqrt())
        super().__init__(torch.nn.Identity(), sd=sd, sigma_min=1e-6, sigma_max=100.0, precision="fp32")
        self.world = world

    def forward(self, z: Tensor, sigma: Tensor, operator: LinearOperator, kept: Tensor) -> Tensor:
        rows = []
        for row, level in enumerate(sigma.tolist()):
            mask = kept[row if len(kept) > 1 else 0].expand(z.shape[1:]).flatten()
            single = sense(operator.factors[-1].coil_maps[:1], kept[row : row + 1] if len(kept) > 1 else kept)
            matrix = dense_matrix(single, (1, *self.world.shape))[mask]
            rows.append(self.world.posterior(matrix, z[row : row + 1].flatten(1)[:, mask], level).mean)
        return torch.cat(rows).to(z.dtype)
