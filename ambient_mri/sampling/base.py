r"""What a sampler is: a noise ladder, a start, a loop, and one step that a subclass writes.

Symbols: x_t = x0 + sigma n, the state at diffusion noise sigma; D(x_t) = E[x0 | x_t], the denoiser; r_t its posterior
standard deviation per real part; y = A x0 + noise of standard deviation noise_std per real part;
lam_t = noise_std^2 / r_t^2.

A sampler takes (denoiser, operator, y, noise_std) and knows nothing of MRI. The rows of a batch are (slice, sample)
pairs, slice by slice, and every row owns its random stream and its ladder: a result does not depend on the batch that
it was computed in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from ambient_mri._checks import PriorError, check_finite, check_positive, require
from ambient_mri.denoiser import AmbientDenoiser, ConditionalDenoiser, Denoiser
from ambient_mri.noise import karras_ladder
from ambient_mri.operators.base import LinearOperator
from ambient_mri.sampling.data_step import DataStep, Slack, relative_tolerance, repeat_rows
from ambient_mri.sampling.data_step_choice import make_data_step
from ambient_mri.sampling.measurement_noise import measured, rows_of_noise
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row

__all__ = ["Callback", "Sampler", "SamplerResult"]

# Lowest lam_t: noiseless data count as data with a noise of r_t / 100; single precision still tells what A sees.
LAM_FLOOR = 1e-4
# Why samplers refuse a feed-forward network.
FEEDFORWARD = (
    "it reconstructs in one step at the noise level of the data, and was never trained to denoise at another. Use "
    "one_step."
)


@dataclass(frozen=True)
class SamplerResult:
    """What a sampler returns.

    Attributes:
        x: (b, 1, H, W), in the units of the denoiser.
        status: How the run went: evaluations, sigma range, data step, iterations, largest residual of the last solve.
    """

    x: Tensor
    status: dict[str, Any] = field(default_factory=dict)


Callback: TypeAlias = Callable[[Level, Tensor], None]


class Sampler(ABC):
    """A posterior sampler.

    Args:
        steps: Number of noise levels.
        sigma_max: Highest level; 10 sd of the denoiser when not given.
        sigma_min: Lowest level; max(noise_std / 2, sd / 100) when not given.
        rho: Curvature of the ladder (EDM equation 5).
        data_step: ``"auto"``, ``"exact"`` or ``"conjugate_gradient"`` (see :func:`make_data_step`).
        cg_iterations: Upper bound on the iterations of a data step by conjugate gradients.

    Attributes:
        name: The name that users select it by.
        accepts: Kinds of denoiser that it is valid for, "clean" and "ambient".
        refusal: Why it is not valid for the other kind.
        stochastic: Whether samples differ.
    """

    name: ClassVar[str]
    accepts: ClassVar[tuple[str, ...]] = ("clean", "ambient")
    refusal: ClassVar[str] = ""
    stochastic: ClassVar[bool] = True

    def __init__(
        self,
        steps: int = 50,
        *,
        sigma_max: float | None = None,
        sigma_min: float | None = None,
        rho: float = 7.0,
        data_step: str = "auto",
        cg_iterations: int = 100,
    ) -> None:
        require(steps >= 1, f"{self.name} needs at least one step; got {steps}.")
        check_positive("rho", rho)
        self.steps, self.sigma_max, self.sigma_min, self.rho = int(steps), sigma_max, sigma_min, rho
        self.data_step, self.cg_iterations = data_step, cg_iterations

    @abstractmethod
    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        """The state at ``level.sigma_next``, given the state at ``level.sigma``; at the last level the result."""

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        noise_std: Tensor | float,
        *,
        generators: Sequence[torch.Generator],
        image_shape: tuple[int, ...] | None = None,
        x_init: Tensor | None = None,
        data_step: DataStep | None = None,
        callback: Callback | None = None,
    ) -> SamplerResult:
        """Draw one sample a row of p(x0 | y).

        Args:
            denoiser: The prior.
            operator: A, for the rows of ``y``.
            y: (n, ...) measured data of n slices, n = b or a divisor of it.
            noise_std: Per real part, in the units of ``y``; a number, (n,) or (b,).
            generators: One a row, b in all, rows ordered slice by slice.
            image_shape: Shape of one image, to be checked; it follows from ``operator`` and ``y``.
            x_init: (b, 1, H, W) image around which the chain starts; zero when not given.
            data_step: A prepared one, so that several calls for the same slices share its decomposition.
            callback: Called with (level, new state) after every step.

        Raises:
            PriorError: If this sampler is not valid for the kind of denoiser.
            AmbientMRIError: If shapes do not fit, or the result is not finite.
        """
        self.check_denoiser(denoiser)
        problem = self._pose(denoiser, operator, y, noise_std, generators, image_shape, data_step)
        return self._walk(problem, x_init, callback, "Are noise_std and the scale of y right? See the prior's sd.")

    def make_data_step(
        self,
        operator: LinearOperator,
        *,
        slices: int,
        samples: int,
        device: torch.device | str = "cpu",
        ambient: bool = False,
    ) -> DataStep:
        """The data step of a run of ``samples`` samples a slice, to be shared by several calls of :meth:`sample`.

        ``ambient``: for an ambient denoiser.
        """
        return make_data_step(
            operator,
            slices=slices,
            samples=samples,
            steps=self.steps,
            method=self.data_step,
            max_iterations=self.cg_iterations,
            device=device,
            local=self._lam_is_local(ambient),
        )

    def _lam_is_local(self, ambient: bool) -> bool:
        """Whether the data step is given a lam for each pixel."""
        return False

    def check_denoiser(self, denoiser: object) -> None:
        """Raise unless this sampler is valid for the kind of ``denoiser``.

        Raises:
            PriorError: With the reason.
        """
        require(
            not isinstance(denoiser, ConditionalDenoiser),
            "an ambient network is no denoiser of x_t by itself; wrap it: model.as_denoiser(corruption, measurement, "
            "generators).",
            PriorError,
        )
        self.check_kind(denoiser.model.kind if isinstance(denoiser, AmbientDenoiser) else "clean")

    def check_kind(self, kind: str) -> None:
        """Raise unless this sampler is valid for priors of ``kind``, "clean", "ambient" or "feedforward".

        Raises:
            PriorError: With the reason.
        """
        reason = FEEDFORWARD if kind == "feedforward" else self.refusal
        message = f"{self.name} is not valid for a prior of kind {kind!r}: {reason}"
        require(kind in self.accepts, message, PriorError)

    def describe(self) -> dict[str, Any]:
        """The settings, as plain data."""
        return {"sampler": self.name, **vars(self)}

    def sigma_range(self, denoiser: Denoiser, noise_std: float) -> tuple[float, float]:
        """(sigma_max, sigma_min) for one row, inside the range that the denoiser was made for."""
        high = 10 * denoiser.sd if self.sigma_max is None else self.sigma_max
        low = max(noise_std / 2, denoiser.sd / 100) if self.sigma_min is None else self.sigma_min
        high = min(high, denoiser.sigma_max)
        # Data noisier than the ladder is high still get a ladder.
        low = min(max(low, denoiser.sigma_min), 0.5 * high)
        return high, low

    def ladder(self, denoiser: Denoiser, noise_std: float) -> Tensor:
        """Noise levels for one row, (steps,), descending."""
        return karras_ladder(self.steps, *self.sigma_range(denoiser, noise_std), self.rho)

    def _walk(
        self, problem: Problem, x_init: Tensor | None, callback: Callback | None, if_not_finite: str
    ) -> SamplerResult:
        """From the first level to the last one."""
        levels = self._levels(problem)
        x = self._start(problem, levels[0].sigma, x_init)
        for level in levels:
            x = self.step(problem, level, x)
            if callback is not None:
                callback(level, x)
        check_finite(f"the result of {self.name}", x, if_not_finite)
        return SamplerResult(x, self._status(problem, levels))

    def _levels(self, problem: Problem) -> list[Level]:
        """The ladder of every row, with what follows from it."""
        denoiser, noise_std, sigmas = problem.denoiser, problem.noise_std, self._sigmas(problem)
        following = torch.cat([sigmas[1:], torch.zeros_like(sigmas[:1])])
        r_t = torch.stack([denoiser.posterior_std(sigma) for sigma in sigmas])
        lam = (noise_std / r_t).square().clamp_min(LAM_FLOOR)
        rtol = relative_tolerance(problem.backprojection, lam, r_t)
        last = len(sigmas) - 1
        # lam r_t^2 is the variance of the noise in y, floored as lam is.
        slack = [Slack(lam[i].sqrt() * r_t[i], following[i]) for i in range(last)] + [None]
        return [
            Level(i, sigmas[i], following[i], r_t[i], lam[i], rtol[i], i == last, slack[i]) for i in range(len(sigmas))
        ]

    def _sigmas(self, problem: Problem) -> Tensor:
        """The ladders of all rows, (steps, b)."""
        values = problem.noise_std.tolist()
        ladders = {value: self.ladder(problem.denoiser, value) for value in set(values)}
        return torch.stack([ladders[value] for value in values], dim=1).to(problem.noise_std)

    def _pose(
        self,
        denoiser: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        noise_std: Tensor | float,
        generators: Sequence[torch.Generator],
        image_shape: tuple[int, ...] | None,
        data_step: DataStep | None,
    ) -> Problem:
        slices, rows = len(y), len(generators)
        require(
            rows > 0 and rows % max(slices, 1) == 0,
            f"{rows} generators do not fit y of {slices} slices: one generator a row is needed, and the same number of "
            "rows for every slice.",
        )
        check_finite("y", y)
        y = measured(operator, y)
        backprojection = operator.H(y)
        found = tuple(backprojection.shape[1:])
        require(
            image_shape is None or tuple(image_shape) == found,
            f"image_shape is {image_shape}, but {operator.name} and y make images of shape {found}.",
        )
        repeats = rows // slices
        if data_step is None:
            ambient = isinstance(denoiser, AmbientDenoiser)
            device = y.device
            data_step = self.make_data_step(operator, slices=slices, samples=repeats, device=device, ambient=ambient)
        return Problem(
            denoiser=denoiser,
            operator=operator.repeat_interleave(repeats) if repeats > 1 else operator,
            data=y,
            noise_std=rows_of_noise(noise_std, slices, rows, backprojection),
            generators=generators,
            backprojection=repeat_rows(backprojection, repeats),
            data_step=data_step,
        )

    def _start(self, problem: Problem, sigma: Tensor, x_init: Tensor | None) -> Tensor:
        noise = per_row(sigma, problem.backprojection) * problem.image_noise()
        if x_init is None:
            return noise
        require(
            x_init.shape == noise.shape,
            f"x_init must have shape {tuple(noise.shape)}, one image a row; got {tuple(x_init.shape)}.",
        )
        return x_init.to(noise) + noise

    def _status(self, problem: Problem, levels: list[Level]) -> dict[str, Any]:
        residual = problem.data_step.residual
        return {
            "sampler": self.name,
            "evaluations": problem.evaluations,
            "gradients": problem.gradients,
            "sigma_max": float(levels[0].sigma.max()),
            "sigma_min": float(levels[-1].sigma.min()),
            "data_step": problem.data_step.name,
            "data_step_iterations": problem.data_step.iterations,
            "data_step_residual": 0.0 if residual is None else float(residual.max()),
        }
