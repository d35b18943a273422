r"""The exact data step, for SENSE with a mask that is constant along the readout.

A^H A couples pixels along the phase-encode axis alone, so it splits into one W x W Hermitian block a readout position,
G = K * (S^H S) with K = F^H P F and * entry by entry. With G = Q diag(g) Q^H, computed once a scan and kept once a
slice, every step for every lam and every sample is two batched products: x = Q ( Q^H (A^H y + lam v) / (g + lam) ).

Where lam is one for each pixel there is no such formula; conjugate gradients then solve for the coefficients Q^H x,
preconditioned by the exact inverse for the mean of r^2, at two batched products an iteration.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.operators.base import Composition, LinearOperator
from ambient_mri.operators.coils import CoilSensitivities
from ambient_mri.operators.fourier import Fourier2d, fft, ifft
from ambient_mri.operators.linear_solvers import conjugate_gradient
from ambient_mri.operators.masking import Mask
from ambient_mri.sampling.data_step import DataStep, Slack, enough_energy
from ambient_mri.tensors import add_scaled, full_precision, per_row

__all__ = ["ExactStep", "exact_bytes", "line_sense"]

# With a lam for each pixel: residual at which to stop, in shares of that with one lam.
_LOCAL_RESIDUAL = 0.2
# Eigendecompositions at a time, to bound the workspace.
_CHUNK = 64


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
        parts = line_sense(operator)
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
        result = conjugate_gradient(
            lambda c: (self._coefficients(self._image(c) * deviation)).addcmul_(c, diagonal),
            add_scaled(data, lam, guess),  # its norm alone is read
            x0=start,
            residual=residual,
            precondition=lambda r: r * gain,
            max_iterations=self.max_iterations,
            rtol=rtol * _LOCAL_RESIDUAL,
            enough=None if slack is None else enough_energy(gain, slack, guess),
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
        with full_precision(x.device):
            return (places @ table).transpose(1, 2).reshape(x.shape)


def exact_bytes(operator: LinearOperator, slices: int) -> int | None:
    """Bytes that the exact step keeps, None where there is no exact step."""
    parts = line_sense(operator)
    if parts is None:
        return None
    maps = parts[0]
    return slices * maps.shape[-2] * maps.shape[-1] ** 2 * maps.element_size()


def line_sense(operator: LinearOperator) -> tuple[Tensor, Tensor, bool] | None:
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
            with full_precision(maps.device):
                block = kernel[i] * (columns[i, part].conj() @ columns[i, part].mT)
            values, vectors = torch.linalg.eigh(block)
            basis[i, part], eigenvalues[i, part] = vectors.conj(), values.clamp_min(0)
    return basis, eigenvalues
