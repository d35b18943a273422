r"""Coil maps and image together: split Gibbs with a block that updates the maps.

Symbols: P F S x = y without noise; S_c the map of coil c, here S_c = B s_c with B the cosines of low order (a smooth
basis that needs no periodicity); q_c^2 the prior variance of a coefficient per real part.

Given the images of K chains x_1 .. x_K, y is linear in the maps, and one small system serves all coils:

    s = argmin  1/K sum_k || y - P F (B s) x_k ||^2 / noise_std^2  +  || s / q ||^2

The mean over chains is what makes this the M-step of expectation-maximisation: what the samples disagree on cannot be
explained by maps. Then sum_c |S_c|^2 = 1 is restored and the factor moved into the images, and the noise level becomes
the residual that is left, never less than the noise of the scan. A level does this several times, image by its exact
conditional and maps in turn.

q comes from the physics of receive coils alone: the power spectrum of normalised maps of circular loops, by the law of
Biot and Savart (:class:`ambient_mri.data.simulate.CoilArray`), with a smooth phase of 1 radian rms.

**Without calibration lines** there are no maps to start from: those of aliased images are wrong, and a sampler that
trusts the data under them keeps to what they made. :func:`calibrationless_coil_maps` starts from an image instead, the
root sum of squares of the zero-filled coil images (real and positive: the phase is the maps'), fits maps to it, and
tempers the likelihood: at noise level sigma of the image, the data count as no better than sigma / 10, so that image
and maps become sharp together.

The result is maps and a noise level; any sampler and any data step then uses them.

Reference: Ying & Sheng 2007, MRM 57:1196 (JSENSE); Uecker et al. 2008, MRM 60:674 (regularised inversion for image and
maps). Differs: 1. the image's regulariser is a diffusion prior, annealed; 2. cosines, not a weighted Fourier basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, PriorError, require
from ambient_mri.denoiser import Denoiser
from ambient_mri.measurement import Measurement
from ambient_mri.operators import conjugate_gradient, sense
from ambient_mri.operators.fourier import fft, ifft
from ambient_mri.sampling.base import LAM_FLOOR, Level, Problem
from ambient_mri.sampling.data_step import ConjugateGradientStep, relative_tolerance
from ambient_mri.sampling.split_gibbs import SplitGibbs
from ambient_mri.tensors import keyed_generator, per_row

__all__ = ["JointSettings", "SmoothMaps", "calibrationless_coil_maps", "joint_coil_maps"]

# Share of a normalised map's energy in one cosine coefficient, at 0, 1, 2, ... half periods a field of view (longer
# side): mean over 160 simulated arrays of 4 to 16 coils.
_SPECTRUM = (0.24, 0.12, 0.059, 0.019, 4.8e-3, 1.2e-3, 3.3e-4, 1.2e-4, 5.3e-5, 2.6e-5, 1.6e-5, 9.3e-6, 6.6e-6, 4.2e-6,
             3.0e-6, 2.3e-6, 1.5e-6)  # fmt: skip
# Maps move once the image is rough knowledge: below this multiple of sd.
_START = 3.0
_MAP_ITERATIONS = 30
# Without calibration lines: noise of the data, at least, in units of sigma, and fits of the maps to the first image.
_TEMPER, _FIRST_FITS = 0.1, 3


@dataclass(frozen=True)
class JointSettings:
    """How maps and image are estimated together.

    Attributes:
        seed: The chains of a slice are keyed by (seed, slice): the result does not depend on batches.
        chains: Samples whose mean fit gives the maps.
        steps: Number of noise levels.
        sweeps: Alternations of image and maps a level.
    """

    seed: int = 0
    chains: int = 4
    steps: int = 25
    sweeps: int = 3


@dataclass(frozen=True)
class SmoothMaps:
    """The smooth basis B and the prior of its coefficients.

    Attributes:
        rows: (H, I) cosines along rows, orthonormal columns.
        columns: (W, J) cosines along columns.
        std: (I, J) prior standard deviation of a coefficient per real part, for one coil.
    """

    rows: Tensor
    columns: Tensor
    std: Tensor

    @classmethod
    def of(cls, shape: tuple[int, int], num_coils: int, device: torch.device) -> SmoothMaps:
        """The basis for ``shape`` = (H, W) and ``num_coils`` coils."""
        top = len(_SPECTRUM) - 1
        orders = [torch.arange(min(n, int(top * n / max(shape)) + 1), device=device) for n in shape]
        along = [order * (max(shape) / n) for order, n in zip(orders, shape, strict=True)]
        radius = (along[0][:, None].square() + along[1][None].square()).sqrt()
        table = torch.tensor(_SPECTRUM, device=device).log()
        low = radius.floor().clamp_max(top - 1).long()
        # Linear in the logarithm, and on beyond the table's end.
        share = torch.exp(table[low] + (radius - low) * (table[low + 1] - table[low]))
        std = (share * shape[0] * shape[1] / (2 * num_coils)).sqrt()
        return cls(_cosines(shape[0], orders[0]), _cosines(shape[1], orders[1]), std)

    def maps(self, coefficients: Tensor) -> Tensor:
        """B s: (..., I, J) complex to (..., H, W)."""
        return self.rows.to(coefficients) @ coefficients @ self.columns.to(coefficients).T

    def coefficients(self, maps: Tensor) -> Tensor:
        """B^H S, also the best fit, the columns being orthonormal."""
        return self.rows.to(maps).T @ maps @ self.columns.to(maps)


class _JointSplitGibbs(SplitGibbs):
    """Split Gibbs for one slice, whose rows are chains, with the block that updates the maps.

    Args:
        measurement: The slice; its maps are the start.
        settings: How long, and with how many chains.
        noise_floor: Noise of the scan; no update goes below.
        temper: Noise of the data, at least, in units of sigma; maps then move from the first level on.
    """

    def __init__(
        self, measurement: Measurement, settings: JointSettings, *, noise_floor: float, temper: float = 0.0
    ) -> None:
        super().__init__(settings.steps, data_step="conjugate_gradient", error="white")
        if measurement.coil_maps is None:
            raise AmbientMRIError("joint estimation starts from coil maps; the measurement has none.")
        self.measurement, self.settings = measurement, settings
        self.noise_floor, self.temper = noise_floor, temper
        self.maps: Tensor = measurement.coil_maps
        self.noise = self.misfit = max(float(measurement.noise_std), noise_floor)
        self.basis = SmoothMaps.of(measurement.image_shape, measurement.num_coils, measurement.y.device)

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        guess = problem.denoise(x_t, level.sigma)
        moving = not level.last and (self.temper > 0 or bool((level.sigma < _START * problem.denoiser.sd).all()))
        if self.temper > 0:
            self.noise = max(self.noise_floor, self.temper * float(level.sigma.max()))
            problem.noise_std = torch.full_like(problem.noise_std, self.noise)
        for _ in range(self.settings.sweeps if moving else 1):
            x = self._image(problem, level, guess)
            if moving:
                x = self._update(problem, x)
        return x if level.last else x + per_row(level.sigma_next, x) * problem.image_noise()

    def _image(self, problem: Problem, level: Level, guess: Tensor) -> Tensor:
        """A draw of the image given the maps."""
        lam = (problem.noise_std / level.r_t).square().clamp_min(LAM_FLOOR)
        data = problem.backprojection + per_row(problem.noise_std, guess) * problem.backprojected_noise()
        perturbed = guess + per_row(level.r_t, guess) * problem.image_noise()
        rtol = relative_tolerance(problem.backprojection, lam, level.r_t)
        return problem.data_step(data, perturbed, lam, rtol)

    def _update(self, problem: Problem, x: Tensor) -> Tensor:
        """New maps and noise level; returns the images with the factor that the maps lost."""
        m = self.measurement
        residual = _residual(m, self.maps, x)
        self.misfit = max(self.noise_floor, residual)
        fitted = _fit_maps(m, x, self.maps, self.misfit, self.basis)
        norm = fitted.norm(dim=1, keepdim=True).clamp_min(1e-6)
        self.maps, x = fitted / norm, x * norm
        self.noise = max(self.noise_floor, min(self.noise, residual))
        operator = sense(self.maps, m.mask, axes=m.axes)
        problem.operator = operator.repeat_interleave(len(x))
        problem.backprojection = operator.adjoint(m.y).expand_as(x)
        problem.noise_std = torch.full_like(problem.noise_std, self.noise)
        problem.data_step = ConjugateGradientStep(operator, slices=1, max_iterations=self.cg_iterations)
        return x


def joint_coil_maps(
    denoiser: Any, measurement: Measurement, noise_floor: Tensor, settings: JointSettings | None = None
) -> Measurement:
    """Coil maps estimated together with the image, each slice on its own.

    Args:
        denoiser: A clean denoiser.
        measurement: n slices, with the coil maps to start from (ESPIRiT's, or a low-resolution combination) and the
            effective noise level of these maps.
        noise_floor: (n,) noise of the scan itself, in the same units.
        settings: The defaults when None.

    Returns:
        The measurement with new ``coil_maps`` (sum |S|^2 = 1) and ``noise_std``.

    Raises:
        PriorError: If the denoiser is not a clean one.
        AmbientMRIError: If there are no maps to start from.
    """
    samplers, settings = [], settings or JointSettings()
    for i in range(len(measurement)):
        sampler = _JointSplitGibbs(measurement[i], settings, noise_floor=float(noise_floor[i]))
        samplers.append(_run(sampler, denoiser))
    return _with_maps(measurement, [s.maps for s in samplers], [s.noise for s in samplers])


def calibrationless_coil_maps(
    denoiser: Any, measurement: Measurement, noise_floor: Tensor, settings: JointSettings | None = None
) -> Measurement:
    """Coil maps of a scan without calibration lines, estimated together with the image (module docstring).

    The maps that the measurement brings are not read. Arguments, result and errors are those of
    :func:`joint_coil_maps`; the noise level is the misfit that is left, never less than the noise of the scan.
    """
    samplers, settings = [], settings or JointSettings()
    for i in range(len(measurement)):
        m, floor = measurement[i], float(noise_floor[i])
        m = replace(m, coil_maps=_maps_of_first_image(m))
        sampler = _JointSplitGibbs(m, settings, noise_floor=floor, temper=_TEMPER)
        sampler.sigma_min = max(floor / 2, getattr(denoiser, "sd", 0.0) / 100)
        samplers.append(_run(sampler, denoiser))
    return _with_maps(measurement, [s.maps for s in samplers], [s.misfit for s in samplers])


def _run(sampler: _JointSplitGibbs, denoiser: Any) -> _JointSplitGibbs:
    """The sampler after its chains have run."""
    clean = isinstance(denoiser, Denoiser)
    require(clean, "coil_maps='joint' needs a clean prior: an ambient network cannot be annealed.", PriorError)
    m, settings = sampler.measurement, sampler.settings
    streams = [("joint maps", settings.seed, m.key[0], k) for k in range(settings.chains)]
    generators = [keyed_generator(*stream, device=m.y.device) for stream in streams]
    operator = sense(sampler.maps, m.mask, axes=m.axes)
    sampler.sample(denoiser, operator, m.y, sampler.noise, generators=generators)
    return sampler


def _with_maps(measurement: Measurement, maps: list[Tensor], levels: list[float]) -> Measurement:
    return replace(measurement, coil_maps=torch.cat(maps), noise_std=torch.tensor(levels).to(measurement.noise_std))


def _maps_of_first_image(m: Measurement) -> Tensor:
    """Maps (1, C, H, W) that fit the root sum of squares of the zero-filled coil images, sum |S|^2 = 1."""
    basis = SmoothMaps.of(m.image_shape, m.num_coils, m.y.device)
    x = ifft(m.y, m.axes).abs().square().sum(dim=1, keepdim=True).sqrt().to(m.y)
    maps = torch.zeros_like(m.y)
    for _ in range(_FIRST_FITS):
        maps = _fit_maps(m, x, maps, _residual(m, maps, x), basis)
    return maps / maps.norm(dim=1, keepdim=True).clamp_min(1e-6)


def _cosines(length: int, orders: Tensor) -> Tensor:
    """(length, orders) orthonormal cosines, DCT-II."""
    position = torch.arange(length, device=orders.device) + 0.5
    table = torch.cos(math.pi * position[:, None] * orders[None] / length) * math.sqrt(2 / length)
    table[:, 0] /= math.sqrt(2)
    return table


def _residual(m: Measurement, maps: Tensor, x: Tensor) -> float:
    """Rms of y - P F S x per real part, over the chains."""
    difference = torch.where(m.mask, m.y - fft(maps * x, m.axes), 0)
    measured = m.mask.expand(1, 1, *m.image_shape).sum() * m.num_coils * len(x)
    return float((difference.abs().square().sum() / (2 * measured)).sqrt())


def _fit_maps(m: Measurement, x: Tensor, maps: Tensor, noise_std: float, basis: SmoothMaps) -> Tensor:
    """The maps that explain y best given the images of all chains, (1, C, H, W), not normalised."""
    std = basis.std

    def adjoint(kspace: Tensor) -> Tensor:
        return basis.coefficients(x.conj() * ifft(kspace, m.axes)).mean(dim=0, keepdim=True) * std

    def normal(u: Tensor) -> Tensor:
        predicted = torch.where(m.mask, fft(x * basis.maps(std * u), m.axes), 0)
        return adjoint(predicted) + noise_std**2 * u

    start = basis.coefficients(maps) / std
    solved = conjugate_gradient(normal, adjoint(m.y), x0=start, max_iterations=_MAP_ITERATIONS, rtol=1e-3)
    return basis.maps(std * solved.x)
