"""What the step of a sampler may use: one rung of the noise ladder, and the problem that it walks down for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ambient_mri.denoiser import Denoiser
from ambient_mri.operators.base import LinearOperator
from ambient_mri.sampling.conjugate_gradient_step import ConjugateGradientStep
from ambient_mri.sampling.data_step import DataStep, Slack, repeat_rows
from ambient_mri.sampling.exact_step import ExactStep
from ambient_mri.sampling.measurement_noise import MeasurementNoise
from ambient_mri.tensors import per_row, randn_like_rows

__all__ = ["Level", "Problem"]


@dataclass(frozen=True)
class Level:
    """One rung of the ladder.

    Attributes:
        index: Counts from 0.
        sigma: (b,) noise of the state that the step receives.
        sigma_next: (b,) noise of the state that it returns; zero at the last level.
        r_t: (b,) the denoiser's posterior standard deviation at sigma.
        lam: (b,) lam_t, floored.
        rtol: (b,) tolerance of an iterative data step.
        last: Whether the step returns the result.
        slack: Noise that hides an error of the data step, where the state gets sigma_next of noise; none at the last
            level, which is solved to rtol.
    """

    index: int
    sigma: Tensor
    sigma_next: Tensor
    r_t: Tensor
    lam: Tensor
    rtol: Tensor
    last: bool
    slack: Slack | None = None


@dataclass
class Problem:
    """What a step may use.

    Attributes:
        denoiser: D.
        operator: A, for the b rows of the batch.
        data: y for the n slices of the batch; see :attr:`y`.
        noise_std: (b,).
        generators: One a row.
        backprojection: A^H y, (b, 1, H, W).
        data_step: Solver of the regularised normal equations.
        evaluations: Network evaluations so far.
        gradients: Vector-Jacobian products through the network so far.
        memory: What a step keeps for the later steps of the same run.
    """

    denoiser: Denoiser
    operator: LinearOperator
    data: Tensor
    noise_std: Tensor
    generators: Sequence[torch.Generator]
    backprojection: Tensor
    data_step: DataStep
    evaluations: int = 0
    gradients: int = 0
    memory: dict[str, Any] = field(default_factory=dict)
    _noise: MeasurementNoise | None = None

    @property
    def y(self) -> Tensor:
        """y for the b rows."""
        return repeat_rows(self.data, len(self.generators) // len(self.data))

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """D(x_t), counted."""
        self.evaluations += getattr(self.denoiser, "masks", 1)
        return self.denoiser(x_t, sigma)

    def image_noise(self) -> Tensor:
        """White noise in the image, unit variance per real part."""
        return randn_like_rows(self.backprojection, self.generators)

    def backprojected_noise(self) -> Tensor:
        """A^H e with e white in the space of y, unit variance per real part."""
        return self.operator.adjoint(self._measurement_noise().draw(self.generators))

    def _measurement_noise(self) -> MeasurementNoise:
        if self._noise is None:
            rows = self.data[:1].expand(len(self.generators), *self.data.shape[1:])
            self._noise = MeasurementNoise(self.operator, rows)
        return self._noise

    def perturbed_step(
        self, data: Tensor, guess: Tensor, level: Tensor, lam: Tensor, rtol: Tensor, slack: Slack | None = None
    ) -> Tensor:
        """The data step with data + level A^H e, e white in the space of y and drawn where that costs least.

        Args:
            data: A^H y, or a multiple of it, (b, 1, H, W).
            guess: v of the data step, same shape.
            level: Of the noise, per real part, (b,).
            lam: (b,) or (b, 1, H, W).
            rtol: (b,), see :class:`DataStep`.
            slack: Likewise.
        """
        if isinstance(self.data_step, ExactStep):
            white = per_row(level, data) * self.image_noise()
            return self.data_step.perturbed(data, guess, lam, white, rtol, slack)
        if isinstance(self.data_step, ConjugateGradientStep):
            noise, step = self._measurement_noise(), self.data_step
            return step.perturbed(data, guess, level, lam, rtol, noise, self.generators, slack)
        return self.data_step(data + per_row(level, data) * self.backprojected_noise(), guess, lam, rtol, slack)
