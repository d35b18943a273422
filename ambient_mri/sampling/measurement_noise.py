"""Noise in the space of the measurement: its level in every row, and draws of it for samplers that perturb the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.operators.base import Composition, LinearOperator
from ambient_mri.operators.masking import Mask
from ambient_mri.tensors import complex_randn, randn_like_rows

__all__ = ["MeasurementNoise", "measured", "rows_of_noise"]


def measured(operator: LinearOperator, y: Tensor) -> Tensor:
    """``y``, zero where the mask that A ends with, if it does, lets nothing through: data that do not exist."""
    outermost = _outermost(operator)
    return outermost.H(y) if isinstance(outermost, Mask) else y


def _outermost(operator: LinearOperator) -> LinearOperator:
    return operator.factors[0] if isinstance(operator, Composition) else operator


class MeasurementNoise:
    """White noise in the space of y, drawn only where the operator's mask lets it through.

    Args:
        operator: A, for the rows of the batch.
        like: (b, ...) tensor of y's shape and dtype; its values are not read.
    """

    def __init__(self, operator: LinearOperator, like: Tensor) -> None:
        outermost = _outermost(operator)
        mask = outermost.mask if isinstance(outermost, Mask) else None
        self.like = like
        self.mask = None if mask is None else mask.expand(-1, *like.shape[1:])
        self.places = [] if self.mask is None else [row.flatten().nonzero()[:, 0] for row in self.mask]
        self.counts = [len(places) for places in self.places]

    def real_numbers(self) -> list[int]:
        """Real numbers measured for every row (one entry for all, where the mask is shared)."""
        parts = 2 if self.like.is_complex() else 1
        counts = self.counts or [self.like[0].numel()]
        return [parts * count for count in counts]

    def draw(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Unit-variance noise (per real part), row ``i`` from ``generators[i]``; zero outside the mask."""
        if self.mask is None:
            return randn_like_rows(self.like, generators)
        noise = self.like.new_zeros(len(self.like), self.like[0].numel())
        for row, generator in enumerate(generators):
            noise[row, self.places[self._pick(row)]] = self.draw_row(row, generator)
        return noise.reshape(self.like.shape)

    def draw_row(self, row: int, generator: torch.Generator) -> Tensor:
        """The noise of one row of an operator with a mask, at the places where it is True: (count,)."""
        return _draw(self.counts[self._pick(row)], generator, self.like.dtype).to(self.like.device)

    def _pick(self, row: int) -> int:
        return row if len(self.counts) > 1 else 0


def _draw(count: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    if dtype.is_complex:
        return complex_randn((count,), generator=generator, device=generator.device, dtype=dtype)
    return torch.randn(count, generator=generator, device=generator.device, dtype=dtype)


def rows_of_noise(noise_std: Tensor | float, slices: int, rows: int, like: Tensor) -> Tensor:
    """noise_std for every row, (b,), in the real dtype of ``like``."""
    values = torch.as_tensor(noise_std, dtype=like.real.dtype if like.is_complex() else like.dtype, device=like.device)
    if values.ndim == 0:
        values = values.expand(rows)
    elif len(values) == slices != rows:
        values = values.repeat_interleave(rows // slices)
    if values.shape != (rows,):
        raise AmbientMRIError(f"noise_std must be a number, ({slices},) or ({rows},); got shape {tuple(values.shape)}.")
    good = bool((torch.isfinite(values) & (values >= 0)).all())
    require(good, "noise_std must be finite and not negative (0 for noiseless data).")
    return values
