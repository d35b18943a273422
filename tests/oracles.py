"""Worlds with a closed form: complex Gaussian images, dense operators, exact posteriors. Everything in complex128.

x0 = mean + C^(1/2) e,     y = A x0 + noise_std n,     e and n of unit variance per real part
posterior:  m = mean + G (y - A mean),   V = C - G A C,   G = C A^H ( A C A^H + noise_std^2 I )^-1
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ambient_mri import metrics
from ambient_mri.denoiser import ConditionalDenoiser, Denoiser, GaussianDenoiser
from ambient_mri.operators import LinearOperator, fft, ifft, sense
from ambient_mri.sampling import Sampler, SamplerResult
from ambient_mri.tensors import complex_randn, keyed_generator, per_row

__all__ = [
    "GaussianWorld",
    "MixtureDenoiser",
    "OptimalAmbient",
    "Posterior",
    "PosteriorScene",
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
        bump = torch.exp(-((rows[:, None] / (0.6 * height)) ** 2) - (columns[None] / (0.6 * width)) ** 2)
        phase = 0.5 * torch.sin(2 * torch.pi * (columns[None] / width + 0.5 * rows[:, None] / height))
        window = ((0.3 + bump) * torch.exp(1j * phase)).flatten()
        covariance = window[:, None] * covariance * window.conj()[None]
        covariance = covariance * (sd**2 / covariance.diagonal().real.mean())
        return GaussianWorld(covariance, (sd * bump * torch.exp(0.3j * rows[:, None] / height)).to(torch.complex128))

    @staticmethod
    def object_in_an_empty_field(size: int) -> GaussianWorld:
        """A disc of half the field's width; outside, image and standard deviation are a hundredth."""
        world = GaussianWorld.with_decaying_spectrum(size, size)
        place = torch.arange(size, dtype=torch.float64) - size / 2 + 0.5
        inside = (place[:, None].square() + place.square()).sqrt() < size / 4
        window = torch.where(inside, 1.0, 0.01).flatten().to(world.covariance.dtype)
        return GaussianWorld(window[:, None] * world.covariance * window, world.mean * window.reshape(size, size))

    @property
    def shape(self) -> tuple[int, int]:
        """H and W."""
        return int(self.mean.shape[0]), int(self.mean.shape[1])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 1, H, W) complex128; no phase or order that LAPACK gives eigenvectors enters."""
        values, basis = torch.linalg.eigh(self.covariance)
        root = (basis * values.clamp_min(0).sqrt()) @ basis.mH
        white = complex_randn((count, self.mean.numel()), generator=generator, dtype=torch.complex128)
        images = white @ root.T
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


@dataclass(frozen=True)
class PosteriorScene:
    """A few truths of a Gaussian world, their data under SENSE, and the exact posterior.

    Attributes:
        world: Of the images.
        operator: A, complex128.
        matrix: A, dense.
        truth: (n, 1, H, W).
        y: (n, coils, H, W).
        noise_std: Of y, per real part.
        exact: The posterior of every truth.
    """

    world: GaussianWorld
    operator: LinearOperator
    matrix: Tensor
    truth: Tensor
    y: Tensor
    noise_std: float
    exact: Posterior

    @staticmethod
    def make(
        size: int,
        noise_std: float,
        *,
        lines: tuple[int, ...],
        truths: int = 2,
        coils: int = 4,
        world: GaussianWorld | None = None,
    ) -> PosteriorScene:
        """A world of ``size`` x ``size`` images, measured at ``lines`` by ``coils``."""
        world = world or GaussianWorld.with_decaying_spectrum(size, size)
        operator = sense(smooth_coils(coils, size, size), line_mask(size, lines))
        generator = keyed_generator("posterior scene", size)
        truth = world.draw(truths, generator)
        clean = operator.forward(truth)
        noise = noise_std * complex_randn(clean.shape, generator=generator, dtype=clean.dtype)
        y = clean + noise * line_mask(size, lines)
        matrix = dense_matrix(operator, (1, size, size))
        # Rows outside the mask are zero: without noise they would make the exact system singular.
        sampled = matrix.abs().sum(dim=1) > 0
        exact = world.posterior(matrix[sampled], y.flatten(1)[:, sampled], max(noise_std, 1e-6))
        return PosteriorScene(world, operator, matrix, truth, y, noise_std, exact)

    def run(self, sampler: Sampler, samples: int) -> tuple[Tensor, SamplerResult]:
        """(n, samples, 1, H, W) complex128, drawn in single precision, and the sampler's own result."""
        count, single = len(self.truth), torch.complex64
        generators = [keyed_generator("sample", i, k) for i in range(count) for k in range(samples)]
        masking, _, coils = self.operator.factors  # type: ignore[attr-defined]
        operator = sense(coils.coil_maps.to(single), masking.mask)
        prior, y = self.world.denoiser(single), self.y.to(single)
        result = sampler.sample(prior, operator, y, self.noise_std, generators=generators)
        return result.x.reshape(count, samples, 1, *self.world.shape).to(torch.complex128), result

    def scores(self, samples: Tensor) -> dict[str, float]:
        """Of (n, samples, 1, H, W).

        nrmse: expected error of the sampler's mean over that of the exact mean, free of the error that a finite number
        of samples adds; nrmse_exact: that of the exact mean, relative to the images. variance and data_variance: of the
        image and of A x, over the exact ones; spectrum_1 to spectrum_4: that of the image in quarters of the exact
        posterior's principal axes, the widest first. coverage90, for 32 samples and more: the expected share of true
        values in the central 90 % interval of the samples, over truths that these data leave possible.
        """
        count, draws = samples.shape[:2]
        mean, spread = samples.mean(1), samples.var(1)
        variance = 2 * self.exact.variance.sum()
        distance = ((mean - self.exact.mean).abs().square().sum() - spread.sum() / draws) / count
        centred = (samples - mean[:, None]).flatten(0, 1)
        seen = self.operator.forward(centred).abs().square().sum() / (draws - 1)
        in_data = (self.matrix @ self.exact.covariance @ self.matrix.mH).diagonal().real.sum()
        energy = self.world.mean.abs().square() + 2 * self.world.covariance.diagonal().real.reshape_as(self.world.mean)
        eigenvalues, axes = torch.linalg.eigh(self.exact.covariance)
        along = (centred.flatten(1) @ axes.conj()).abs().square().sum(dim=0) / (draws - 1) / (2 * count)
        quarters = enumerate(zip(along.flip(0).chunk(4), eigenvalues.flip(0).chunk(4), strict=True), start=1)
        found = {f"spectrum_{i}": float(drawn.sum() / wanted.sum()) for i, (drawn, wanted) in quarters}
        if draws >= metrics.MINIMUM_COVERAGE_SAMPLES:
            found["coverage90"] = self._expected_coverage(samples)
        return {
            **found,
            "nrmse": float((1 + distance / variance).clamp_min(0).sqrt()),
            "nrmse_exact": float((variance / energy.sum()).sqrt()),
            "variance": float(spread.sum() / (count * variance)),
            "data_variance": float(seen / (2 * count * in_data)),
        }

    def _expected_coverage(self, samples: Tensor, draws: int = 100) -> float:
        """Of the 90 % interval, over independent draws of every pixel from the exact posterior."""
        total = 0.0
        for i, x in enumerate(samples):
            noise = complex_randn((draws, *x.shape[1:]), generator=keyed_generator("coverage", i), dtype=x.dtype)
            truths = self.exact.mean[i] + self.exact.variance.sqrt() * noise
            rows = x.expand(-1, draws, -1, -1)
            total += metrics.coverage(rows.numpy(), truths[:, 0].numpy())
        return total / len(samples)


class MixtureDenoiser(Denoiser):
    """The analytic denoiser of independent pixel pairs, each from a mixture of round Gaussians; images (b, 1, n, 2).

    Args:
        means: (k, 2).
        weights: (k,), of sum one.
        spread: Standard deviation of every component.
    """

    def __init__(self, means: Tensor, weights: Tensor, spread: float) -> None:
        second = (weights[:, None] * (means.square() + spread**2)).sum(0).mean()
        super().__init__(float(second.sqrt()), 1e-3, 100.0)
        self.means, self.weights, self.spread = means, weights, spread

    def responsibility(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Pr(component | x_t), (b, 1, n, k)."""
        variance = self.spread**2 + per_row(sigma, x).square()
        distance = (x[..., None, :] - self.means).square().sum(-1)
        return (self.weights.log() - 0.5 * distance / variance).softmax(-1)

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        level = per_row(sigma, x_t)
        gain = (self.spread**2 / (self.spread**2 + level.square()))[..., None]
        each = self.means + gain * (x_t[..., None, :] - self.means)
        return (self.responsibility(x_t, sigma)[..., None] * each).sum(-2)

    def posterior_weights(self, y: float, noise_std: float) -> Tensor:
        """Pr(component | first pixel of the pair measured), (k,)."""
        variance = self.spread**2 + noise_std**2
        return (self.weights.log() - 0.5 * (y - self.means[:, 0]).square() / variance).softmax(0)


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
