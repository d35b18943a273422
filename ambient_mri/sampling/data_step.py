r"""The data step that every sampler shares: pull an image towards the measurement, for one batch of rows.

    ( A^H A + lam I ) x = A^H y + lam v                     lam = noise_std^2 / r^2

x is the mean of x0 given y = A x0 + noise and the belief x0 ~ N(v, r^2). Two solvers, equal results:

* **exact**, for SENSE with a mask that is constant along the readout. A^H A couples pixels along the phase-encode axis
  alone, so it splits into one W x W Hermitian block a readout position, G = K * (S^H S) with K = F^H P F and * entry by
  entry. With G = Q diag(g) Q^H, computed once a scan, every step for every lam and every sample is two batched
  products: x = Q ( Q^H (A^H y + lam v) / (g + lam) ).
* **conjugate gradients** from v, for any operator; for SENSE with one mask for all coils they are preconditioned by the
  diagonal of the system in k-space. They stop when the residual is a tenth of lam r, the size of the prior's own
  uncertainty in this equation (:func:`relative_tolerance`): few iterations where lam is large, and as many as weakly
  encoded directions need where it is small. Where the caller says what noise will hide an error (:class:`Slack`), the
  preconditioned ones stop before, where the error is a percent of that noise by its estimate.

lam may also be one for each pixel, r then being one for each pixel. Conjugate gradients solve it: with the table of the
exact step for the coefficients Q^H x, preconditioned by the exact inverse for the mean of r^2, at two batched products
an iteration; without it preconditioned by the diagonal of the system in the image, at two to four times the
iterations.

Rows of a batch are (slice, sample) pairs, slice by slice; the blocks are kept once a slice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, check_option, require
from ambient_mri.operators.base import Composition, LinearOperator
from ambient_mri.operators.coils import CoilSensitivities
from ambient_mri.operators.fourier import Fourier2d, fft, ifft
from ambient_mri.operators.linear_solvers import conjugate_gradient
from ambient_mri.operators.masking import Mask
from ambient_mri.operators.sense import SenseNormal
from ambient_mri.sampling.measurement_noise import MeasurementNoise
from ambient_mri.tensors import add_scaled, keyed_generator, per_row, real_inner

__all__ = [
    "ConjugateGradientStep",
    "DataStep",
    "ExactStep",
    "MeasurementNoise",
    "Slack",
    "exact_bytes",
    "make_data_step",
    "relative_tolerance",
    "repeat_rows",
]

# Largest table of eigenvectors that "auto" makes.
EXACT_MEMORY = 2**30
# Seconds on one CPU core, measured at 128 to 256 pixels and 4 to 16 coils; only their ratios decide. That of conjugate
# gradients is a middle: 1e-7 where noise_std is 0.05, up to 7e-7 where it is 0.005.
_EIGH, _APPLY, _APPLY_ROW, _CG_PIXEL = 0.8e-9, 4e-9, 0.1e-9, 3e-7
# With a lam for each pixel: products of the exact step over those of a white one, and conjugate gradients without it.
_LOCAL_PRODUCTS, _CG_LOCAL_PIXEL = 5.0, 1.2e-7
# Where conjugate gradients stop: residual, in units of lam r; error, in units of the noise that hides it. That small,
# because the estimate misses weakly encoded directions, and because errors of consecutive levels pull the same way.
_ACCURACY, _HIDDEN = 0.1, 0.01
# With a lam for each pixel the residual says less of them. Residual and error at which to stop, in shares of the above:
# with the diagonal in the image, which misses most, and with the exact inverse for the mean of r^2.
_LOCAL_RESIDUAL, _LOCAL_HIDDEN = 0.1, 0.3
_BASIS_RESIDUAL = 0.2
# Eigendecompositions at a time, to bound the workspace.
_CHUNK = 64


@dataclass(frozen=True)
class Slack:
    """What hides an error of x: noise of variance noise_std^2 / (g + lam) + added^2 per real part, in the direction of
    every eigenvalue g of A^H A.

    Attributes:
        noise_std: (b,), of y: x is drawn from a Gaussian of covariance noise_std^2 (A^H A + lam)^-1.
        added: (b,), of white noise that the caller adds to x.
    """

    noise_std: Tensor
    added: Tensor


class DataStep(ABC):
    """Solves (A^H A + lam I) x = data + lam guess.

    Attributes:
        name: For records.
        iterations: Solver iterations so far.
        residual: Largest relative residual of the latest solve, (b,); None for a direct solver.
    """

    name: str
    iterations: int = 0
    residual: Tensor | None = None

    @abstractmethod
    def __call__(self, data: Tensor, guess: Tensor, lam: Tensor, rtol: Tensor, slack: Slack | None = None) -> Tensor:
        """Solve for every row.

        Args:
            data: A^H y, (b, 1, H, W).
            guess: v, same shape.
            lam: (b,) or (b, 1, H, W), positive.
            rtol: (b,) residual relative to the right-hand side at which an iterative solver may stop.
            slack: Lets it stop before, where the error is a percent of this noise by its estimate.

        Returns:
            x, same shape.
        """


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
        numbers = guess[0].numel() * (2 if guess.is_complex() else 1)
        hidden = _HIDDEN * (_LOCAL_HIDDEN if local else 1)
        result = conjugate_gradient(
            lambda p: add_scaled(self._normal(p), weight, p),
            add_scaled(data, weight, guess),
            x0=guess,
            residual=residual,
            precondition=precondition,
            max_iterations=self.max_iterations,
            rtol=rtol * _LOCAL_RESIDUAL if local else rtol,
            enough=None if gain is None or slack is None else hidden**2 * _hiding_energy(gain, slack, numbers),
        )
        self.iterations += result.iterations
        self.residual = result.residual
        return result.x

    def _preconditioner(self, lam: Tensor, like: Tensor) -> tuple[Tensor | None, Callable[[Tensor], Tensor] | None]:
        """Reciprocal of the diagonal that stands for the system, and D^-1."""
        if lam.ndim > 1:
            gain = (self._mean_gain(like) + lam).reciprocal()
            return gain, lambda r: r * gain
        blocks = self._blocks
        if blocks is None:
            return None, None
        gain = blocks.diagonal(lam).reciprocal()
        return gain, lambda r: blocks.precondition(r, gain)

    def _mean_gain(self, like: Tensor) -> Tensor:
        """Mean of the diagonal of A^H A, (b, 1, 1, 1), by a probe that every row shares."""
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


class ExactStep(DataStep):
    """The exact solution for SENSE with a mask that is constant along one axis; iterative with a lam for each pixel.

    Args:
        operator: ``Mask @ Fourier2d @ CoilSensitivities`` with such a mask.
        max_iterations: Upper bound on iterations.

    Raises:
        AmbientMRIError: For any other operator.
    """

    name = "exact"

    def __init__(self, operator: LinearOperator, *, max_iterations: int = 100) -> None:
        require(max_iterations >= 1, f"max_iterations must be at least 1; got {max_iterations}.")
        self.max_iterations = max_iterations
        parts = _line_sense(operator)
        if parts is None:
            raise AmbientMRIError(
                f"the exact data step needs SENSE with a mask that is constant along one axis; got {operator!r}. "
                "Use data_step='conjugate_gradient', or 'auto'."
            )
        maps, lines, self.transposed = parts
        self.basis_conj, self.eigenvalues = _eigenvectors(maps, lines)

    @property
    def slices(self) -> int:
        """Number of slices whose blocks are kept."""
        return self.eigenvalues.shape[0]

    def __call__(self, data: Tensor, guess: Tensor, lam: Tensor, rtol: Tensor, slack: Slack | None = None) -> Tensor:
        return self._solve(data, guess, lam, None, rtol, slack)

    def perturbed(
        self, data: Tensor, guess: Tensor, lam: Tensor, white: Tensor, rtol: Tensor, slack: Slack | None = None
    ) -> Tensor:
        """The solution with data + A^H e instead of data, for the noise e of y: (A^H A)^(1/2) w has the law of A^H e.

        Noise of the size of an image, and no transform to draw it with. The square root, unlike the eigenvectors, is a
        continuous function of A: rounding does not choose another sample.

        Args:
            data: A^H y, (b, 1, H, W).
            guess: v, same shape.
            lam: (b,) or (b, 1, H, W), positive.
            white: w, same shape as ``data``: white noise with the level of e.
            rtol: (b,), read where lam is one for each pixel, as by a call.
            slack: Likewise.
        """
        return self._solve(data, guess, lam, white, rtol, slack)

    def _solve(
        self, data: Tensor, guess: Tensor, lam: Tensor, white: Tensor | None, rtol: Tensor, slack: Slack | None
    ) -> Tensor:
        if self.transposed:
            data, guess, white = data.mT, guess.mT, None if white is None else white.mT
            lam = lam if lam.ndim == 1 else lam.mT
        eigenvalues = self._of_rows(len(guess))
        if lam.ndim == 1:
            weight = per_row(lam, guess)
            right = self._coefficients(data + weight * guess)
            if white is not None:
                right = right + eigenvalues.sqrt() * self._coefficients(white)
            image = self._image(right / (eigenvalues + weight))
        else:
            image = self._solve_local(data, guess, lam, white, rtol, slack, eigenvalues)
        return image.mT if self.transposed else image

    def _solve_local(
        self,
        data: Tensor,
        guess: Tensor,
        lam: Tensor,
        white: Tensor | None,
        rtol: Tensor,
        slack: Slack | None,
        eigenvalues: Tensor,
    ) -> Tensor:
        """Conjugate gradients for the coefficients, preconditioned by the exact inverse for the mean of r^2."""
        mean = lam.reciprocal().mean(dim=(1, 2, 3), keepdim=True).reciprocal()
        deviation, diagonal = lam - mean, eigenvalues + mean
        gain = diagonal.reciprocal()
        start = self._coefficients(guess)
        residual = self._coefficients(data) - eigenvalues * start
        if white is not None:
            residual = residual + eigenvalues.sqrt() * self._coefficients(white)
        numbers = guess[0].numel() * 2
        result = conjugate_gradient(
            lambda c: (self._coefficients(self._image(c) * deviation)).addcmul_(c, diagonal),
            add_scaled(data, lam, guess),  # its norm alone is read
            x0=start,
            residual=residual,
            precondition=lambda r: r * gain,
            max_iterations=self.max_iterations,
            rtol=rtol * _BASIS_RESIDUAL,
            enough=None if slack is None else _HIDDEN**2 * _hiding_energy(gain, slack, numbers),
        )
        self.iterations += result.iterations
        self.residual = result.residual
        return self._image(result.x)

    def _of_rows(self, count: int) -> Tensor:
        """g for ``count`` rows, (count or 1, 1, H, W)."""
        values = self.eigenvalues[:, None]
        return values if self.slices in (1, count) else values.repeat_interleave(count // self.slices, dim=0)

    def _coefficients(self, image: Tensor) -> Tensor:
        """Q^H x, (b, 1, H, W) -> same."""
        return self._by_position(image, self.basis_conj)

    def _image(self, coefficients: Tensor) -> Tensor:
        """Q c, same shapes, as conj( conj(c) Q^H ): one stored table serves both products."""
        return torch.conj_physical(self._by_position(torch.conj_physical(coefficients), self.basis_conj.mT))

    def _by_position(self, x: Tensor, table: Tensor) -> Tensor:
        """Every readout position of ``x`` (b, 1, H, W) times its own matrix (slices, H, W, W), samples side by side."""
        places = x.reshape(self.slices, -1, *x.shape[-2:]).transpose(1, 2)
        return (places @ table).transpose(1, 2).reshape(x.shape)


def make_data_step(
    operator: LinearOperator,
    *,
    slices: int,
    samples: int,
    steps: int,
    method: str = "auto",
    max_iterations: int = 100,
    device: torch.device | str = "cpu",
    local: bool = False,
) -> DataStep:
    """The data step for one operator.

    "auto" takes the exact one on a CPU where the operator allows it, its table stays below 1 GiB and, by a cost model
    fitted to measured times, it is the faster one for this many steps and samples. On a GPU it takes conjugate
    gradients: transforms are cheap there, and many small eigendecompositions are not.

    Args:
        operator: A, for ``slices`` rows.
        slices: Rows of the operator.
        samples: Samples a slice in the whole run, not in one batch: the choice must not depend on the batch size.
        steps: Data steps of a run.
        method: ``"auto"``, ``"exact"`` or ``"conjugate_gradient"``.
        max_iterations: For conjugate gradients.
        device: Where the data are.
        local: Whether lam is one for each pixel.

    Raises:
        AmbientMRIError: If the method is unknown, or exact and the operator does not allow it.
    """
    check_option("data_step", method, ("auto", "exact", "conjugate_gradient"))
    on_cpu = torch.device(device).type == "cpu"
    if method == "exact" or (method == "auto" and on_cpu and _exact_pays(operator, slices, samples, steps, local)):
        return ExactStep(operator, max_iterations=max_iterations)
    return ConjugateGradientStep(operator, slices=slices, max_iterations=max_iterations)


def relative_tolerance(backprojection: Tensor, lam: Tensor, r: Tensor) -> Tensor:
    """Tolerance of an iterative data step, (..., b): a residual of a tenth of lam r, over the size of A^H y + lam v.

    It depends on the slice and its noise, not on the state: every sample of a slice has the same one.

    Args:
        backprojection: A^H y, (b, 1, H, W).
        lam: (..., b).
        r: (..., b), uncertainty of v per real part.
    """
    parts = 2 if backprojection.is_complex() else 1
    rms = (real_inner(backprojection, backprojection) / (backprojection[0].numel() * parts)).sqrt()
    size = ((1 + lam) * rms).clamp_min(torch.finfo(rms.dtype).tiny)
    # Rounding allows no less than some ten units in the last place.
    return (_ACCURACY * lam * r / size).clamp(10 * torch.finfo(rms.dtype).eps, 0.1)


def exact_bytes(operator: LinearOperator, slices: int) -> int | None:
    """Bytes that the exact step keeps, None where there is no exact step."""
    parts = _line_sense(operator)
    if parts is None:
        return None
    maps = parts[0]
    return slices * maps.shape[-2] * maps.shape[-1] ** 2 * maps.element_size()


def repeat_rows(x: Tensor, repeats: int) -> Tensor:
    """Every row ``repeats`` times, side by side; a view where there is one row."""
    return x.expand(repeats, *x.shape[1:]) if len(x) == 1 else x.repeat_interleave(repeats, dim=0)


def _hiding_energy(gain: Tensor, slack: Slack, numbers: int) -> Tensor:
    """The r^H D^-1 r of an error of x as large as what ``slack`` hides it in, (b,), for rows of ``numbers`` numbers;
    ``gain``: D^-1.

    With M = A^H A + lam, an error e of residual r = M e has the energy e^H M e = r^H M^-1 r, about r^H D^-1 r. Let it
    be E, spread evenly over the eigenvectors of M, as that of a draw from N(0, noise_std^2 M^-1) is. Over the noise V
    that hides it, with the eigenvalues h of M and Jensen's inequality (u / (noise_std^2 u + added^2) is concave),

        e^H V^-1 e = mean_h[ E / (noise_std^2 + added^2 h) ] <= E / (noise_std^2 + added^2 / mean_h(1 / h))

    and the diagonal D of M stands for the eigenvalues. What is spread evenly over all real numbers and as large as the
    noise in each has e^H V^-1 e = numbers.
    """
    harmonic = 1 / gain.mean(dim=(1, 2, 3))
    return numbers * (slack.noise_std.square() + slack.added.square() * harmonic)


def _exact_pays(operator: LinearOperator, slices: int, samples: int, steps: int, local: bool) -> bool:
    parts, size = _line_sense(operator), exact_bytes(operator, slices)
    if parts is None or size is None or size > EXACT_MEMORY:
        return False
    coils, height, width = parts[0].shape[1:]
    products, pixel = (_LOCAL_PRODUCTS, _CG_LOCAL_PIXEL) if local else (1.0, _CG_PIXEL)
    step = products * height * width**2 * (_APPLY + samples * _APPLY_ROW)
    return height * width**3 * _EIGH + steps * step < steps * samples * coils * height * width * pixel


def _line_sense(operator: LinearOperator) -> tuple[Tensor, Tensor, bool] | None:
    """Coil maps, line mask (n, W) and whether both axes were swapped, of a SENSE operator; None for other operators."""
    if not isinstance(operator, Composition) or len(operator.factors) != 3:
        return None
    masking, fourier, coils = operator.factors
    if not (isinstance(masking, Mask) and isinstance(fourier, Fourier2d) and isinstance(coils, CoilSensitivities)):
        return None
    mask, maps = masking.mask, coils.coil_maps
    varying = [axis for axis in (-2, -1) if mask.shape[axis] > 1]
    if len(varying) != 1 or varying[0] not in fourier.axes or mask.shape[1] != 1:
        return None
    transposed = varying[0] == -2
    return maps.mT if transposed else maps, mask.flatten(1), transposed


def _eigenvectors(maps: Tensor, lines: Tensor) -> tuple[Tensor, Tensor]:
    """conj(Q) (n, H, W, W) and g (n, H, W) of every block, for maps (n or 1, C, H, W) and lines (n or 1, W)."""
    width = maps.shape[-1]
    eye = torch.eye(width, dtype=maps.dtype, device=maps.device)
    kernel = ifft(lines[..., None] * fft(eye, axes=(-2,)), axes=(-2,))  # K = F^H P F, (n or 1, W, W)
    slices = max(len(maps), len(lines))
    kernel, columns = kernel.expand(slices, -1, -1), maps.permute(0, 2, 3, 1).expand(slices, -1, -1, -1)
    height = columns.shape[1]
    basis = maps.new_empty(slices, height, width, width)
    eigenvalues = maps.real.new_empty(slices, height, width)
    for i in range(slices):
        for first in range(0, height, _CHUNK):
            part = slice(first, first + _CHUNK)
            block = kernel[i] * (columns[i, part].conj() @ columns[i, part].mT)
            values, vectors = torch.linalg.eigh(block)
            basis[i, part], eigenvalues[i, part] = vectors.conj(), values.clamp_min(0)
    return basis, eigenvalues
