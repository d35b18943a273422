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

The chains of several slices are one batch; no number of a slice depends on the others. The data step is any of
:mod:`ambient_mri.sampling.data_step`. The result is maps and a noise level; any sampler and any data step then uses
them.

Reference: Ying & Sheng 2007, MRM 57:1196 (JSENSE); Uecker et al. 2008, MRM 60:674 (regularised inversion for image and
maps). Differs: 1. the image's regulariser is a diffusion prior, annealed; 2. cosines, not a weighted Fourier basis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, PriorError, require
from ambient_mri.denoiser import Denoiser
from ambient_mri.measurement import Measurement
from ambient_mri.operators import conjugate_gradient, sense
from ambient_mri.operators.fourier import fft, ifft
from ambient_mri.sampling.base import LAM_FLOOR
from ambient_mri.sampling.batching import free_memory, out_of_memory, rows_per_batch
from ambient_mri.sampling.data_step import relative_tolerance
from ambient_mri.sampling.data_step_choice import make_data_step
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.sampling.split_gibbs import SplitGibbs
from ambient_mri.tensors import keyed_generator, per_row

__all__ = ["JointSettings", "SmoothMaps", "calibrationless_coil_maps", "joint_coil_maps"]

# Share of a normalised map's energy in one cosine coefficient, at 0, 1, 2, ... half periods a field of view (longer
# side): mean over 160 simulated arrays of 4 to 16 coils.
_SPECTRUM = (0.24, 0.12, 0.059, 0.019, 4.8e-3, 1.2e-3, 3.3e-4, 1.2e-4, 5.3e-5, 2.6e-5, 1.6e-5, 9.3e-6, 6.6e-6, 4.2e-6,
             3.0e-6, 2.3e-6, 1.5e-6)  # fmt: skip
# Maps move once the image is rough knowledge: below this multiple of sd.
_START = 3.0
_MAP_ITERATIONS, _MAP_RTOL = 30, 1e-3
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
        data_step: ``"conjugate_gradient"``, ``"exact"`` (masks of lines alone) or ``"auto"``, see
            :func:`~ambient_mri.sampling.data_step.make_data_step`: equal results. An exact step serves one solve here,
            and seldom pays.
    """

    seed: int = 0
    chains: int = 4
    steps: int = 25
    sweeps: int = 3
    data_step: str = "conjugate_gradient"


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
    """Split Gibbs whose rows are the chains of some slices, with the block that updates the maps of each.

    No number of a slice depends on the others: the random streams belong to (slice, chain, level), and each slice
    moves its maps by its own noise levels.

    Args:
        measurement: The slices; their maps are the start.
        settings: How long, with how many chains, and with which data step.
        noise_floor: (n,) noise of the scan; no update goes below.
        temper: Noise of the data, at least, in units of sigma; maps then move from the first level on.
    """

    def __init__(
        self, measurement: Measurement, settings: JointSettings, *, noise_floor: Tensor, temper: float = 0.0
    ) -> None:
        # Kept noise leans towards the data: to what wrong maps explain.
        super().__init__(settings.steps, eta=1.0, data_step=settings.data_step, error="white")
        if measurement.coil_maps is None:
            raise AmbientMRIError("joint estimation starts from coil maps; the measurement has none.")
        self.measurement, self.settings = measurement, settings
        self.noise_floor, self.temper = noise_floor.to(measurement.noise_std), temper
        self.maps: Tensor = measurement.coil_maps
        # Where the likelihood is tempered, no level is known beforehand but the scan's.
        self.noise = self.noise_floor if temper > 0 else measurement.noise_std.maximum(self.noise_floor)
        self.misfit = self.noise
        self.basis = SmoothMaps.of(measurement.image_shape, measurement.num_coils, measurement.y.device)

    def streams(self, level: int) -> list[torch.Generator]:
        """One a row for one level, -1 for the start."""
        m, settings = self.measurement, self.settings
        rows = [(key, chain) for key in m.key for chain in range(settings.chains)]
        return [keyed_generator("joint maps", settings.seed, *row, level, device=m.y.device) for row in rows]

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        problem.generators = self.streams(level.index)
        guess, fresh = problem.denoise(x_t, level.sigma), problem.image_noise()
        if self.temper > 0:
            self.noise = self.noise_floor.maximum(self.temper * level.sigma[:: self.settings.chains])
            problem.noise_std = self._per_chain(self.noise)
        moving = self._moving(problem, level)
        x = self._image(problem, level, guess)
        if bool(moving.any()):
            for sweep in range(self.settings.sweeps):
                if sweep:
                    x = torch.where(self._per_chain(moving), self._image(problem, level, guess), x)
                x = self._update(problem, x, moving)
        return x if level.last else x + per_row(level.sigma_next, x) * fresh

    def _per_chain(self, of_slices: Tensor) -> Tensor:
        return of_slices.repeat_interleave(self.settings.chains, dim=0)

    def _moving(self, problem: Problem, level: Level) -> Tensor:
        """The slices, (n, 1, 1, 1) bool, whose maps move at this level."""
        low = level.sigma[:: self.settings.chains] < _START * problem.denoiser.sd
        return ((low | (self.temper > 0)) & (not level.last)).reshape(-1, 1, 1, 1)

    def _image(self, problem: Problem, level: Level, guess: Tensor) -> Tensor:
        """A draw of the image given the maps."""
        lam = (problem.noise_std / level.r_t).square().clamp_min(LAM_FLOOR)
        data = problem.backprojection + per_row(problem.noise_std, guess) * problem.backprojected_noise()
        perturbed = guess + per_row(level.r_t, guess) * problem.image_noise()
        rtol = relative_tolerance(problem.backprojection, lam, level.r_t)
        return problem.data_step(data, perturbed, lam, rtol)

    def _update(self, problem: Problem, x: Tensor, moving: Tensor) -> Tensor:
        """New maps and noise levels of the slices that move; returns the images with the factor that the maps lost."""
        m, chosen = self.measurement, moving.flatten()
        residual = self.noise_floor.maximum(_residual(m, self.maps, x))
        self.misfit = torch.where(chosen, residual, self.misfit)
        fitted = _fit_maps(m, x, self.maps, self.misfit, self.basis)
        norm = fitted.norm(dim=1, keepdim=True).clamp_min(1e-6)
        self.maps = torch.where(moving, fitted / norm, self.maps)
        x = torch.where(self._per_chain(moving), x * self._per_chain(norm), x)
        self.noise = torch.where(chosen, self.noise.minimum(residual), self.noise)
        operator = sense(self.maps, m.mask, axes=m.axes)
        problem.operator = operator.repeat_interleave(self.settings.chains)
        problem.backprojection = self._per_chain(operator.adjoint(m.y))
        problem.noise_std = self._per_chain(self.noise)
        # One solve for these maps: what a decomposition costs is not shared by the levels.
        problem.data_step = make_data_step(
            operator,
            slices=len(m),
            samples=self.settings.chains,
            steps=1,
            method=self.data_step,
            max_iterations=self.cg_iterations,
            device=x.device,
        )
        return x


def joint_coil_maps(
    denoiser: Any,
    measurement: Measurement,
    noise_floor: Tensor,
    settings: JointSettings | None = None,
    *,
    batch_size: int | str = "auto",
    progress: Callable[[int], object] | None = None,
) -> Measurement:
    """Coil maps estimated together with the image, each slice for itself.

    Args:
        denoiser: A clean denoiser.
        measurement: n slices, with the coil maps to start from (ESPIRiT's, or a low-resolution combination) and the
            effective noise level of these maps.
        noise_floor: (n,) noise of the scan itself, in the same units.
        settings: The defaults when None.
        batch_size: (slice, chain) pairs at a time, all chains of a slice at least; ``"auto"`` goes by their size and
            the memory that is available. The result does not depend on it.
        progress: Called after every level with the number of its (slice, chain) pairs.

    Returns:
        The measurement with new ``coil_maps`` (sum |S|^2 = 1) and ``noise_std``.

    Raises:
        PriorError: If the denoiser is not a clean one.
        AmbientMRIError: If there are no maps to start from, or the data step cannot be made for these masks.
    """
    settings = settings or JointSettings()

    def estimate(m: Measurement, floor: Tensor) -> tuple[Tensor, Tensor]:
        found = _run(_JointSplitGibbs(m, settings, noise_floor=floor), denoiser, progress)
        return found.maps, found.noise

    return _in_batches(estimate, measurement, noise_floor, settings, batch_size)


def calibrationless_coil_maps(
    denoiser: Any,
    measurement: Measurement,
    noise_floor: Tensor,
    settings: JointSettings | None = None,
    *,
    batch_size: int | str = "auto",
    progress: Callable[[int], object] | None = None,
) -> Measurement:
    """Coil maps of a scan without calibration lines, estimated together with the image (module docstring).

    The maps that the measurement brings are not read. Arguments, result and errors are those of
    :func:`joint_coil_maps`; the noise level is the misfit that is left, never less than the noise of the scan.
    """
    settings = settings or JointSettings()

    def estimate(m: Measurement, floor: Tensor) -> tuple[Tensor, Tensor]:
        m = replace(m, coil_maps=_maps_of_first_image(m))
        found = _run(_JointSplitGibbs(m, settings, noise_floor=floor, temper=_TEMPER), denoiser, progress)
        return found.maps, found.misfit

    return _in_batches(estimate, measurement, noise_floor, settings, batch_size)


def _in_batches(
    estimate: Callable[[Measurement, Tensor], tuple[Tensor, Tensor]],
    measurement: Measurement,
    noise_floor: Tensor,
    settings: JointSettings,
    batch_size: int | str,
) -> Measurement:
    """The measurement with the maps and noise levels of ``estimate``, for as many slices at a time as memory allows,
    halved where that was too much.
    """
    device = measurement.y.device
    rows = rows_per_batch(batch_size, measurement.image_shape, measurement.num_coils, device)
    slices = min(len(measurement), max(1, rows // settings.chains))
    while True:
        try:
            parts = [slice(first, first + slices) for first in range(0, len(measurement), slices)]
            found = [estimate(measurement[part], noise_floor[part]) for part in parts]
            maps, levels = torch.cat([m for m, _ in found]), torch.cat([level for _, level in found])
            return replace(measurement, coil_maps=maps, noise_std=levels)
        except (RuntimeError, MemoryError, AmbientMRIError) as error:
            if slices == 1 or not out_of_memory(error):
                raise
        free_memory(device)
        slices //= 2


def _run(sampler: _JointSplitGibbs, denoiser: Any, progress: Callable[[int], object] | None = None) -> _JointSplitGibbs:
    """The sampler after its chains have run."""
    clean = isinstance(denoiser, Denoiser)
    require(clean, "coil_maps='joint' needs a clean prior: an ambient network cannot be annealed.", PriorError)
    m, generators = sampler.measurement, sampler.streams(-1)
    operator = sense(sampler.maps, m.mask, axes=m.axes)

    def done(level: Level, x: Tensor) -> None:
        if progress is not None:
            progress(len(x))

    sampler.sample(denoiser, operator, m.y, sampler.noise, generators=generators, callback=done)
    return sampler


def _maps_of_first_image(m: Measurement) -> Tensor:
    """Maps (n, C, H, W) that fit the root sum of squares of the zero-filled coil images, sum |S|^2 = 1."""
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


def _of_chains(x: Tensor, slices: int) -> Tensor:
    """Images (n K, 1, H, W), slice by slice, as (n, K, 1, H, W)."""
    return x.reshape(slices, -1, *x.shape[1:])


def _residual(m: Measurement, maps: Tensor, x: Tensor) -> Tensor:
    """Rms of y - P F S x per real part, over the chains of every slice, (n,)."""
    images = _of_chains(x, len(m))
    difference = torch.where(m.mask[:, None], m.y[:, None] - fft(maps[:, None] * images, m.axes), 0)
    sampled = m.mask.expand(-1, 1, *m.image_shape).sum(dim=(1, 2, 3))
    measured = sampled * m.num_coils * images.shape[1]
    return (difference.abs().square().sum(dim=(1, 2, 3, 4)) / (2 * measured)).sqrt()


def _fit_maps(m: Measurement, x: Tensor, maps: Tensor, noise_std: Tensor, basis: SmoothMaps) -> Tensor:
    """The maps that explain y best given the images of all chains, (n, C, H, W), not normalised; noise_std (n,)."""
    std, images, mask = basis.std, _of_chains(x, len(m)), m.mask[:, None]

    def adjoint(kspace: Tensor) -> Tensor:
        return basis.coefficients(images.conj() * ifft(kspace, m.axes)).mean(dim=1) * std

    def normal(u: Tensor) -> Tensor:
        predicted = torch.where(mask, fft(images * basis.maps(std * u)[:, None], m.axes), 0)
        return adjoint(predicted) + per_row(noise_std.square(), u) * u

    start = basis.coefficients(maps) / std
    data = adjoint(m.y[:, None])
    solved = conjugate_gradient(normal, data, x0=start, max_iterations=_MAP_ITERATIONS, rtol=_MAP_RTOL)
    return basis.maps(std * solved.x)
