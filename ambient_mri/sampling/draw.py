"""The loop of every use of a sampler: (row, sample) pairs in batches, running moments, samples where they are kept.

Each pair owns its random stream, keyed by the row and the number of the sample, so that a result does not depend on the
batch size. The moments are running ones (Chan et al. 1983, Am. Stat. 37:242, equations 1.5): a thousand samples need no
more memory than one batch of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, PriorError, require
from ambient_mri.denoiser import AmbientDenoiser, ConditionalDenoiser, Denoiser
from ambient_mri.operators.base import LinearOperator
from ambient_mri.prior import Prior, load_prior
from ambient_mri.sampling.base import Sampler, SamplerResult
from ambient_mri.sampling.batching import free_memory, out_of_memory
from ambient_mri.sampling.data_step import DataStep, repeat_rows
from ambient_mri.sampling.measurement_noise import MeasurementNoise
from ambient_mri.tensors import keyed_generator

__all__ = [
    "Drawn",
    "Keys",
    "PriorLike",
    "RunningMoments",
    "as_prior",
    "chi2",
    "describe_draw",
    "draw",
    "joined",
    "progress_bar",
    "sample_count",
]

Keys: TypeAlias = Sequence[tuple[int | str, ...]]
PriorLike: TypeAlias = "str | os.PathLike[str] | Prior | Denoiser | ConditionalDenoiser"


@dataclass(frozen=True)
class Drawn:
    """What was drawn for n rows, on the CPU.

    Attributes:
        mean: (n, ...) mean of the samples.
        std: Their standard deviation, both parts of a complex number together; None for a single sample.
        samples: (n, K, ...), or None where they were not kept.
        residual: (n, K) chi^2 of every sample, see :func:`chi2`.
        status: How the first batch went.
        magnitude_std: Standard deviation of the samples' absolute values; None for a single sample.
    """

    mean: Tensor
    std: Tensor | None
    samples: Tensor | None
    residual: Tensor
    status: dict[str, Any]
    magnitude_std: Tensor | None = None


class RunningMoments:
    """Mean and squared deviations of samples that come in batches, in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, samples: Tensor) -> None:
        """Take (n, k, ...) more samples of every row."""
        x = samples.to(torch.complex128 if samples.is_complex() else torch.float64)
        k, mean = x.shape[1], x.mean(dim=1)
        squares = (x - mean[:, None]).abs().square().sum(dim=1)
        if self.count == 0:
            self.count, self.mean, self.squares = k, mean, squares
            return
        total, apart = self.count + k, mean - self.mean
        self.squares = self.squares + squares + apart.abs().square() * (self.count * k / total)
        self.mean = self.mean + apart * (k / total)
        self.count = total

    def std(self) -> Tensor | None:
        """Standard deviation, both parts of a complex number together; None below two samples."""
        return None if self.count < 2 else (self.squares / (self.count - 1)).sqrt()


def draw(
    method: Sampler,
    denoiser: Callable[[Sequence[torch.Generator], int], Denoiser],
    operator: LinearOperator,
    y: Tensor,
    noise_std: Tensor,
    *,
    data_step: DataStep,
    keys: Keys,
    count: int,
    rows: int,
    keep: bool = True,
    progress: Callable[[int], Any] = lambda pairs: None,
) -> Drawn:
    """Draw ``count`` samples for each of the n rows of ``y``.

    Args:
        method: The sampler.
        denoiser: Gives the denoiser of a batch, from its generators and the samples a row in it.
        operator: A, for the rows of ``y``.
        y: (n, ...) data.
        noise_std: (n,), per real part.
        data_step: Prepared for ``operator``.
        keys: Of the random streams, one tuple a row of ``y``; the sample's number is appended.
        count: Samples a row.
        rows: (row, sample) pairs at a time; all rows of ``y`` go side by side, so that it is at least n. Halved, and
            the batch made again, where memory does not suffice; the result is the same.
        keep: Keep every sample, not only the moments.
        progress: Called with the number of pairs after every step of the sampler.
    """
    moments, magnitudes = RunningMoments(), RunningMoments()
    kept, residuals, status = list[Tensor](), list[Tensor](), dict[str, Any]()
    size, first = max(1, rows // len(y)), 0

    def batch(picked: range) -> tuple[SamplerResult, Tensor]:
        generators = [keyed_generator(*key, k, device=y.device) for key in keys for k in picked]
        result = method.sample(
            denoiser(generators, len(picked)),
            operator,
            y,
            noise_std,
            generators=generators,
            data_step=data_step,
            callback=lambda level, x: progress(len(x)),
        )
        return result, chi2(operator, y, result.x, noise_std, len(picked))

    while first < count:
        picked = range(first, min(first + size, count))
        try:
            result, found = batch(picked)
        except (RuntimeError, MemoryError, AmbientMRIError) as error:
            if len(picked) == 1 or not out_of_memory(error):
                raise
            result = None
        if result is None:  # outside the handler: what the failed batch held is free by now
            size = max(1, len(picked) // 2)
            free_memory(y.device)
            continue
        status = status or result.status
        images = result.x.reshape(len(y), len(picked), *result.x.shape[1:]).cpu()
        residuals.append(found.reshape(len(y), len(picked)).cpu())
        moments.add(images)
        magnitudes.add(images.abs())
        if keep:
            kept.append(images)
        first = picked.stop
    std, magnitude_std = (None if s is None else s.to(images.real.dtype) for s in (moments.std(), magnitudes.std()))
    return Drawn(
        moments.mean.to(images.dtype),
        std,
        torch.cat(kept, dim=1) if keep else None,
        torch.cat(residuals, dim=1),
        status,
        magnitude_std,
    )


def joined(parts: Sequence[Drawn]) -> Drawn:
    """Rows one after the other."""

    def together(tensors: Sequence[Tensor | None]) -> Tensor | None:
        present = [t for t in tensors if t is not None]
        return torch.cat(present) if present else None

    return Drawn(
        torch.cat([p.mean for p in parts]),
        together([p.std for p in parts]),
        together([p.samples for p in parts]),
        torch.cat([p.residual for p in parts]),
        parts[0].status,
        together([p.magnitude_std for p in parts]),
    )


def chi2(operator: LinearOperator, y: Tensor, x: Tensor, noise_std: Tensor, repeats: int) -> Tensor:
    """||y - A x||^2 / (m noise_std^2) of every sample, (n * repeats,), m real numbers measured; NaN without noise.

    Without a mask that A ends with, what is exactly zero in y counts as not measured.
    """
    expanded = operator.repeat_interleave(repeats) if repeats > 1 else operator
    data = repeat_rows(y, repeats)
    energy = (data - expanded.forward(x)).abs().square().flatten(1).sum(dim=1)
    noise = MeasurementNoise(expanded, data)
    if noise.mask is None:
        measured = ((data != 0).flatten(1).sum(dim=1) * (2 if data.is_complex() else 1)).clamp_min(1)
    else:
        measured = torch.tensor(noise.real_numbers(), device=x.device)
    level = repeat_rows(noise_std, repeats) if len(noise_std) > 1 else noise_std
    found = energy / (measured * level.square())
    return torch.where(level > 0, found, torch.full_like(found, math.nan))


def as_prior(prior: PriorLike, device: torch.device) -> Prior:
    """The prior that a user named or passed, on ``device``.

    Raises:
        PriorError: If there is no such prior, or it is an ambient denoiser that belongs to another scan.
    """
    if isinstance(prior, Denoiser | ConditionalDenoiser):
        require(
            not isinstance(prior, AmbientDenoiser),
            "this denoiser is bound to another scan; pass the Prior of the ambient network.",
            PriorError,
        )
        kind = "clean" if isinstance(prior, Denoiser) else prior.kind
        return Prior(prior.to(device).eval(), kind, {}, name=type(prior).__name__)
    what = f"prior must be a name, a prior folder, a Prior or a Denoiser; got {type(prior).__name__}."
    require(isinstance(prior, str | os.PathLike | Prior), what, PriorError)
    return load_prior(os.fspath(prior) if isinstance(prior, os.PathLike) else prior, device=device)


def sample_count(method: Sampler, samples: int) -> int:
    """Samples to draw: one from a sampler that makes a point estimate."""
    whole = isinstance(samples, int | np.integer) and not isinstance(samples, bool)
    require(whole, f"samples must be a whole number; got {samples!r}.")
    require(samples >= 1, f"samples must be at least 1; got {samples}.")
    return samples if method.stochastic else 1


def describe_draw(prior: Prior, method: Sampler, samples: int, seed: int, device: torch.device) -> dict[str, Any]:
    """What was asked for, as plain data."""
    return {
        "prior": prior.name,
        "prior_kind": prior.kind,
        "sampler": method.describe(),
        "samples": samples,
        "seed": seed,
        "device": str(device),
        "recalibration": prior.metadata.get("recalibration", {}).get(method.name),
    }


def progress_bar(progress: bool, total: int) -> Any:
    """A bar in a terminal, and nowhere else; nothing without ``progress``."""
    from tqdm.auto import tqdm

    # None: shown in a terminal only.
    return tqdm(total=total, desc="sampling", unit="step", leave=False, disable=None if progress else True)
