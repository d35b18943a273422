"""From any linear measurement and a clean prior to a solution with its uncertainty.

    y = A x + noise      ->      samples of p(x | y): mean, std, residual, and the samples where they are kept

Inpainting, denoising, deblurring, MRI: A is any :class:`~ambient_mri.operators.LinearOperator`, images have the
channels that the prior has.

The units of y are those of the prior's images, or ``scale`` of them: y / scale is solved, and x is given back in the
units of y. ``scale="auto"`` asks nothing of A: it makes the best multiple of A^H y as strong as the prior's images are,

    x_a = a A^H y,   a = <A A^H y, y> / ||A A^H y||^2,      scale = rms(x_a) (1 - m s^2 / ||y||^2)^(1/2) / sd

with m the real numbers that were measured (what is exactly zero was not), s their noise, and one scale for all rows, as
the slices of a volume have. What A hides is missing from x_a: the scale is right where A sees nearly all of the energy
of an image (MRI with calibration lines, blur, lower resolution), else too low by the root of the share that it sees
(0.77 with 60 % of the pixels). Priors that were trained with varied intensities bear that. For MRI,
:func:`~ambient_mri.reconstruct` does better: it measures the level that the prior was trained with, from the centre of
k-space.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import PriorError, check_option, check_positive, require
from ambient_mri.denoiser import Denoiser
from ambient_mri.operators import LinearOperator
from ambient_mri.prior import Prior
from ambient_mri.reconstruct.result import MISFIT, ReconstructionWarning
from ambient_mri.sampling import Sampler, make_sampler
from ambient_mri.sampling.automatic import given_steps, with_automatic_steps
from ambient_mri.sampling.batching import rows_per_batch
from ambient_mri.sampling.draw import (
    PriorLike,
    as_prior,
    describe_draw,
    draw,
    progress_bar,
    sample_count,
)
from ambient_mri.sampling.full_view import whole_image_model
from ambient_mri.sampling.measurement_noise import measured
from ambient_mri.tensors import choose_device, complex_randn, keyed_generator, per_row
from ambient_mri.uncertainty import Spread, kept_samples, recalibration_factor

__all__ = ["Solution", "solve"]

# As many as this are kept without being asked for.
_KEPT = 8
# Images this much stronger than the prior's are in other units, and so are complex ones this much weaker: a mask that
# leaves a hundredth of an image makes its best guess a tenth as strong.
_TOO_STRONG, _TOO_WEAK = 10, 20


@dataclass(frozen=True, eq=False)
class Solution:
    """The outcome of :func:`solve`, on the CPU.

    Attributes:
        mean: (b, c, H, W) mean of the samples.
        std: Standard deviation of the samples (of both parts together, where complex), times the prior's recalibration
            factor where it has one for the sampler (``settings["recalibration"]``); None for a single sample.
        samples: (b, samples, c, H, W), or None where they were not kept.
        residual: (b,) chi^2 = ||y - A x||^2 / (m noise_std^2), mean over the samples; near 1 for honest samples, NaN
            where noise_std is 0.
        settings: Everything that made it, as plain data.
    """

    mean: Tensor
    std: Tensor | None
    samples: Tensor | None
    residual: Tensor
    settings: dict[str, Any]

    @property
    def status(self) -> dict[str, Any]:
        """How the sampler's first batch went: evaluations, sigma range, data step, iterations, residual."""
        return self.settings["run"]

    @property
    def recalibration_factor(self) -> float:
        """Factor that ``std`` contains; the prior's card says on which scans it was measured."""
        return recalibration_factor(self.settings)

    def quantile(self, q: float) -> Tensor:
        """Pixel-wise quantile of the samples, of their magnitude where complex, (b, c, H, W); recalibrated as ``std``.

        Args:
            q: Between 0 and 1.

        Raises:
            AmbientMRIError: If the samples were not kept, or ``q`` is no quantile.
        """
        return torch.from_numpy(self._spread.quantile(q)).to(self.mean.real.dtype)

    def principal_components(self, k: int = 3) -> tuple[Tensor, Tensor]:
        """The k directions in which the samples differ most, images (b, k, c, H, W) of norm one.

        Returns:
            The images, and the standard deviation along each, (b, k), recalibrated as ``std``
            (see :mod:`ambient_mri.uncertainty`).

        Raises:
            AmbientMRIError: If the samples were not kept, or there are not more than k of them.
        """
        images, deviation = self._spread.principal_components(k)
        return torch.from_numpy(images), torch.from_numpy(deviation).to(self.mean.real.dtype)

    @property
    def _spread(self) -> Spread:
        return Spread(kept_samples(self.samples, "solve").numpy(), self.recalibration_factor)


def _check_channels(image: Tensor, operator: LinearOperator, prior: Prior) -> None:
    """Raise unless A^H y has the real channels that the prior models."""
    if not prior.architecture:
        return
    found = image.shape[1] * (2 if image.is_complex() else 1)
    expected = int(prior.architecture.get("image_channels", 2))
    hint = "Use another prior."
    if image.ndim == 4 and not image.is_complex() and image.shape[-1] == expected:
        hint = "Channels come second: y.permute(0, 3, 1, 2)."
    elif not image.is_complex() and expected == 2:
        hint = "Pass y.to(torch.complex64)."
    require(
        found == expected,
        f"prior {prior.name!r} models images of {expected} real channels (a complex image has 2); y and "
        f"{operator.name} make {tuple(image.shape)} {image.dtype}. {hint}",
    )


def _other_units(y: Tensor, operator: LinearOperator, sd: float, noise_std: Tensor) -> str:
    """What tells that images are in other units than the prior's, and the fix; empty where nothing does.

    Far too strong, complex ones far too weak, or real ones nowhere negative.

    Noise makes some of [0, 1] negative: where there is little of it, four of its standard deviations are allowed for.
    """
    image = operator.adjoint(y)
    if image.is_complex():
        return _other_strength(y, operator, sd, noise_std)
    again = operator.forward(image)
    best = float((again.conj() * y).real.sum(dtype=torch.float64)) / max(_energy(again), 1e-30)
    rms = best * (_energy(image) / image.numel()) ** 0.5
    fix = ""
    if rms > _TOO_STRONG * sd:
        fix = f"they are about {rms / sd:.0f} times as strong as those. For grey levels, y / 127.5 - 1"
    elif bool((image >= -_noise_of(y, operator, noise_std, most=sd / 8) * 4).all()) and bool((image > 0).any()):
        fix = "none of them is negative. If they lie in [0, 1], 2 y - 1"
    if not fix:
        return ""
    return f"the prior's images lie in [-1, 1]; going by A^H y, {fix}, and noise_std likewise (or say scale=)."


def _other_strength(y: Tensor, operator: LinearOperator, sd: float, noise_std: Tensor) -> str:
    """Likewise, of complex images."""
    if _energy(y) <= 2 * _noise_energy(y, noise_std):  # says little of the image
        return ""
    ratio = _strength(y, operator, noise_std) / sd
    if 1 / _TOO_WEAK < ratio < _TOO_STRONG:
        return ""
    how = f"{ratio:.3g} times as strong as" if ratio > 1 else f"{1 / max(ratio, 1e-30):.3g} times weaker than"
    return (
        f"going by A^H y, the images are about {how} those of the prior: pass scale='auto', or scale= (units of y per "
        "unit of the prior)."
    )


def _noise_of(y: Tensor, operator: LinearOperator, noise_std: Tensor, *, most: float) -> float:
    """Largest standard deviation that the noise of y gives to A^H y, by one draw; 0 where it is above ``most``."""
    level = float(noise_std.max())
    if level == 0:
        return 0.0
    generator = keyed_generator("noise of y")
    noise = complex_randn(y.shape, generator=generator) if y.is_complex() else torch.randn(y.shape, generator=generator)
    image = operator.adjoint(noise.to(y) * (y != 0))
    found = level * (_energy(image) / max(int((image != 0).sum()), 1)) ** 0.5
    return found if found <= most else 0.0


def _checked_scale(scale: float | str | None) -> float:
    if isinstance(scale, str):
        check_option("scale", scale, ("auto",))
    check_positive("scale", 1.0 if scale is None else float(scale))
    return 1.0 if scale is None else float(scale)


def _matched_scale(y: Tensor, operator: LinearOperator, sd: float, noise_std: Tensor) -> float:
    """Units of y per unit of the prior, by the strength of A^H y (module docstring).

    Raises:
        AmbientMRIError: If the prior is one of real images, or y holds no more energy than the noise.
    """
    back = operator.adjoint(y)
    require(
        back.is_complex(),
        "scale='auto' is for priors of complex images; real images have a range of their own, [-1, 1]: give the scale "
        "of y, 1 where its images have that range.",
    )
    require(
        _energy(y) > _noise_energy(y, noise_std),
        "y holds no more energy than its noise_std explains, so that its scale cannot be found: check noise_std, or "
        "give the scale.",
    )
    return _strength(y, operator, noise_std) / sd


def _strength(y: Tensor, operator: LinearOperator, noise_std: Tensor) -> float:
    """Rms per real part of the best multiple of A^H y (complex), what noise adds taken off (module docstring)."""
    back = operator.adjoint(y)
    again = operator.forward(back)
    best = float((again.conj() * y).real.sum(dtype=torch.float64)) / max(_energy(again), 1e-300)
    rms = best * (_energy(back) / (2 * back.numel())) ** 0.5
    return rms * (1 - _noise_energy(y, noise_std) / _energy(y)) ** 0.5


def _noise_energy(y: Tensor, noise_std: Tensor) -> float:
    """Expected energy of the noise in y, where it was measured (what is exactly zero was not)."""
    return 2 * _energy((y != 0) * per_row(noise_std, y))


def _energy(x: Tensor) -> float:
    return float(x.abs().square().sum(dtype=torch.float64))


def solve(
    y: Tensor | np.ndarray,
    operator: LinearOperator,
    prior: PriorLike,
    *,
    noise_std: float | Tensor,
    scale: float | str | None = None,
    samples: int = 4,
    sampler: str | Sampler = "split_gibbs",
    steps: int | str | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    keep_samples: bool | None = None,
    progress: bool = False,
) -> Solution:
    """Draw samples of p(x | y = A x + noise) for any linear operator: inpainting, denoising, deblurring, ...

    Args:
        y: (b, ...) data, a tensor or an array; complex where the prior is one of complex images, such as those of MRI.
            What lies where a :class:`~ambient_mri.operators.Mask`, A's last factor, is False is not looked at.
            In units in which x has those of the prior (for complex priors an rms of about ``prior.model.sd`` a real
            part, natural images lie in [-1, 1]), or see ``scale``.
        operator: A, on ``device``, for the b rows of ``y``.
        prior: A clean prior: a name, a prior folder, a Prior, or a Denoiser.
        noise_std: Noise of y per real part (and per imaginary part, where complex), in its units: a number or (b,).
        scale: Units of y per unit of the prior; 1 when None. ``"auto"``: one for all rows, by the strength of A^H y
            (module docstring), for priors of complex images.
        samples: Samples for each row of ``y``.
        sampler: A name, one of :data:`~ambient_mri.sampling.SAMPLERS`, or a Sampler.
        steps: Number of noise levels; the sampler's own default when None. ``"auto"``: by ``noise_std`` and the prior's
            error curve (:mod:`ambient_mri.sampling.automatic`).
        seed: Of the samples.
        device: That of ``y`` when None.
        batch_size: Rows times samples at a time, by their size when None; all rows of ``y`` are solved side by side, so
            that it is at least b. The result does not depend on it.
        keep_samples: Whether every sample is returned; up to 8 of them when None. Mean and standard deviation are
            running ones: without the samples, a thousand need no more memory than a batch.
        progress: Show a progress bar, in a terminal.

    Warns:
        ReconstructionWarning: If images are in other units than the prior's, as far as A^H y tells, or the solutions do
            not fit the data.

    Raises:
        PriorError: If there is no such prior, or the sampler or this function is not valid for its kind.
        AmbientMRIError: If shapes or values do not fit.
    """
    y = torch.as_tensor(y)
    require(
        isinstance(operator, LinearOperator),
        f"operator must be a LinearOperator of ambient_mri.operators; got {type(operator).__name__}. Wrap yours with "
        "from_sigpy, from_deepinv or from_scipy, or write a subclass with forward and adjoint.",
    )
    where = y.device if device is None else choose_device(device)
    method, loaded = make_sampler(sampler, given_steps(steps)), as_prior(prior, where)
    model = whole_image_model(loaded.model, loaded.metadata)
    if not isinstance(model, Denoiser):
        raise PriorError(
            f"solve() needs a clean prior; this one is of kind {loaded.kind!r}: such a network must know which "
            "measurements are missing. Use reconstruct() for k-space; for images refine it, objective=em init=RUN."
        )
    method.check_kind("clean")
    count, y = sample_count(method, samples), y.to(where)
    y = measured(operator, y)
    back = operator.H(y)
    _check_channels(back, operator, loaded)
    levels = torch.as_tensor(noise_std, dtype=torch.float32, device=where)
    require(
        levels.shape in ((), (1,), (len(y),)),
        f"noise_std must be one number, or one for each of the {len(y)} rows of y; got shape {tuple(levels.shape)}.",
    )
    levels = levels.expand(len(y))
    unit = _matched_scale(y, operator, model.sd, levels) if scale == "auto" else _checked_scale(scale)
    y, levels = y / unit, levels / unit
    doubt = _other_units(y, operator, model.sd, levels) if loaded.architecture else ""
    if doubt:
        warnings.warn(doubt, ReconstructionWarning, stacklevel=2)
    if steps == "auto":
        method = with_automatic_steps(method, model, float(levels.median()))
    shape = (int(back.shape[-2]), int(back.shape[-1]))
    channels = -(-y[0].numel() // (shape[0] * shape[1]))  # of data, in units of an image
    rows = rows_per_batch("auto" if batch_size is None else batch_size, shape, channels, where)

    def denoiser(generators: Sequence[torch.Generator], repeats: int) -> Denoiser:
        return model

    with progress_bar(progress, len(y) * count * method.steps) as bar:
        drawn = draw(
            method,
            denoiser,
            operator,
            y,
            levels,
            data_step=method.make_data_step(operator, slices=len(y), samples=count, device=where),
            keys=[("solve", seed, row) for row in range(len(y))],
            count=count,
            rows=rows,
            keep=count <= _KEPT if keep_samples is None else keep_samples,
            progress=bar.update,
        )
    settings = {**describe_draw(loaded, method, count, seed, where), "operator": repr(operator), "run": drawn.status}
    std = None if drawn.std is None else drawn.std * (unit * recalibration_factor(settings))
    kept = None if drawn.samples is None else drawn.samples * unit
    residual = drawn.residual.mean(dim=1)
    if not doubt and (worst := float(residual.nan_to_num(0.0).max())) > MISFIT:
        warnings.warn(
            f"the solutions do not fit the data: chi^2 of the residual is {worst:.3g}, where 1 is expected. Check "
            "noise_std, the operator and the scale of y, or take more steps.",
            ReconstructionWarning,
            stacklevel=2,
        )
    return Solution(drawn.mean * unit, std, kept, residual, settings | {"scale": unit})
