r"""The data step by conjugate gradients from v, for any operator.

For SENSE with one mask for all coils they are preconditioned by the diagonal of the system in k-space, K. Where lam is
one for each pixel, and the mask is 2-D, by T K T: K is that of its harmonic mean, lam_0, and T, with g the mean of the
diagonal of A^H A,

    T = diag( (g + lam_0) / (g + lam) )^(1/2)

what the diagonal in the image makes of a lam that is not lam_0. Masks of lines, whose K has few large entries and many
small ones, gain nothing by it: they have the diagonal in the image alone, as operators other than SENSE.

They stop when the residual is a tenth of lam r, the size of the prior's own uncertainty in this equation
(:func:`~ambient_mri.sampling.data_step.relative_tolerance`): few iterations where lam is large, and as many as weakly
encoded directions need where it is small. Where the caller says what noise will hide an
error (:class:`~ambient_mri.sampling.data_step.Slack`), the preconditioned ones stop before, where the error is a
percent of that noise by its estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ambient_mri._checks import require
from ambient_mri.operators.base import LinearOperator
from ambient_mri.operators.linear_solvers import conjugate_gradient
from ambient_mri.operators.sense import SenseNormal
from ambient_mri.sampling.data_step import DataStep, Slack, enough_energy
from ambient_mri.sampling.measurement_noise import MeasurementNoise
from ambient_mri.tensors import add_scaled, keyed_generator, per_row, real_inner

__all__ = ["ConjugateGradientStep"]

# With a lam for each pixel residual and energy say less of the error: those at which to stop, in shares of those with
# one lam; by T K T, and by the diagonal in the image, which misses most.
_LOCAL, _LOCAL_IN_IMAGE = (0.4, 0.5), (0.1, 0.3)


class ConjugateGradientStep(DataStep):
    """Conjugate gradients from the guess, for any operator.

    Args:
        operator: A, for ``slices`` rows.
        slices: Rows of the operator; a batch may hold any multiple of it.
        max_iterations: Upper bound on iterations.
    """

    name = "conjugate_gradient"

    def __init__(self, operator: LinearOperator, *, slices: int, max_iterations: int = 100) -> None:
        require(max_iterations >= 1, f"max_iterations must be at least 1; got {max_iterations}.")
        self.operator, self.slices, self.max_iterations = operator, slices, max_iterations
        self._expanded: tuple[int, LinearOperator] = (1, operator)
        # None for all but SENSE: conjugate gradients without a preconditioner.
        self._blocks = SenseNormal.of(operator)
        self._gain: Tensor | None = None

    def __call__(self, data: Tensor, guess: Tensor, lam: Tensor, rtol: Tensor, slack: Slack | None = None) -> Tensor:
        return self._solve(data, guess, lam, rtol, slack, data - self._normal(guess))

    def perturbed(
        self,
        data: Tensor,
        guess: Tensor,
        level: Tensor,
        lam: Tensor,
        rtol: Tensor,
        noise: MeasurementNoise,
        generators: Sequence[torch.Generator],
        slack: Slack | None = None,
    ) -> Tensor:
        """The solution with data + level A^H e, for e drawn by ``noise``; level (b,), the rest as for a call."""
        blocks = self._blocks
        if blocks is None or blocks.cancels or guess.is_cuda:
            data = data + per_row(level, data) * self._rows(len(guess)).adjoint(noise.draw(generators))
            return self(data, guess, lam, rtol, slack)
        scale = level.expand(len(guess))
        residual = data + blocks.residual(guess, lambda row: scale[row] * noise.draw_row(row, generators[row]))
        # The tolerance is relative to the data without this noise.
        return self._solve(data, guess, lam, rtol, slack, residual)

    def _solve(
        self, data: Tensor, guess: Tensor, lam: Tensor, rtol: Tensor, slack: Slack | None, residual: Tensor
    ) -> Tensor:
        """Conjugate gradients from ``guess``, whose residual in the data, A^H (y - A guess), is known."""
        local = lam.ndim > 1
        weight = lam if local else per_row(lam, guess)
        gain, precondition = self._preconditioner(lam, guess)
        of_residual, of_energy = (1.0, 1.0) if not local else _LOCAL if self._planar else _LOCAL_IN_IMAGE
        result = conjugate_gradient(
            lambda p: add_scaled(self._normal(p), weight, p),
            add_scaled(data, weight, guess),
            x0=guess,
            residual=residual,
            precondition=precondition,
            max_iterations=self.max_iterations,
            rtol=rtol * of_residual,
            enough=None if gain is None or slack is None else enough_energy(gain, slack, guess, of_energy),
        )
        self.iterations += result.iterations
        self.residual = result.residual
        return result.x

    def _preconditioner(self, lam: Tensor, like: Tensor) -> tuple[Tensor | None, Callable[[Tensor], Tensor] | None]:
        """Reciprocal of the diagonal that stands for the system, and D^-1."""
        blocks = self._blocks
        if lam.ndim > 1:
            mean = self._mean_gain(like)
            if blocks is None or not self._planar:
                gain = (mean + lam).reciprocal()
                return gain, lambda r: r * gain
            middle = lam.reciprocal().mean(dim=(1, 2, 3)).reciprocal()
            square = (mean + per_row(middle, lam)) / (mean + lam)
            scale, inner = square.sqrt(), blocks.diagonal(middle).reciprocal()
            gain = square.mean(dim=(1, 2, 3), keepdim=True) * inner
            return gain, lambda r: scale * blocks.precondition(scale * r, inner)
        if blocks is None:
            return None, None
        gain = blocks.diagonal(lam).reciprocal()
        return gain, lambda r: blocks.precondition(r, gain)

    @property
    def _planar(self) -> bool:
        """Whether A is SENSE with a mask that varies along both axes."""
        return self._blocks is not None and len(self._blocks.axes) > 1

    def _mean_gain(self, like: Tensor) -> Tensor:
        """Mean of the diagonal of A^H A, (b, 1, 1, 1); where it is not known, by a probe that every row shares."""
        if self._gain is None and self._blocks is not None:
            self._gain = self._blocks.density.mean(dim=(1, 2, 3)).expand(self.slices)
        if self._gain is None:
            probe = torch.rand(like.shape[1:], generator=keyed_generator("mean gain"), dtype=torch.float64) < 0.5
            signs = (2.0 * probe - 1).to(like).expand(self.slices, *like.shape[1:])
            self._gain = real_inner(signs, self.operator.normal(signs)) / signs[0].numel()
        return per_row(self._gain.repeat_interleave(len(like) // self.slices), like)

    def _normal(self, x: Tensor) -> Tensor:
        """A^H A x."""
        return self._rows(len(x)).normal(x) if self._blocks is None or x.is_cuda else self._blocks(x)

    def _rows(self, count: int) -> LinearOperator:
        """A for ``count`` rows."""
        repeats = count // self.slices
        if repeats != self._expanded[0]:
            self._expanded = (repeats, self.operator.repeat_interleave(repeats))
        return self._expanded[1]
