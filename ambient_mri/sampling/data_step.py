r"""What a data step is: it solves ( A^H A + lam I ) x = A^H y + lam v, and may stop where noise hides its error.

lam = noise_std^2 / r^2; x is the mean of x0 given y = A x0 + noise and the belief x0 ~ N(v, r^2). lam may also be one
for each pixel, r then being one for each pixel. Rows of a batch are (slice, sample) pairs, slice by slice. Two solvers,
equal results: :mod:`~ambient_mri.sampling.exact_step` and :mod:`~ambient_mri.sampling.conjugate_gradient_step`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ambient_mri.tensors import real_inner

__all__ = ["DataStep", "Slack", "enough_energy", "relative_tolerance", "repeat_rows"]

# Where an iterative step stops: residual, in units of lam r; error, in units of the noise that hides it. That small,
# because the estimate misses weakly encoded directions, and because errors of consecutive levels pull the same way.
_ACCURACY, _HIDDEN = 0.1, 0.01


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


def repeat_rows(x: Tensor, repeats: int) -> Tensor:
    """Every row ``repeats`` times, side by side; a view where there is one row."""
    return x.expand(repeats, *x.shape[1:]) if len(x) == 1 else x.repeat_interleave(repeats, dim=0)


def enough_energy(gain: Tensor, slack: Slack, like: Tensor, share: float = 1.0) -> Tensor:
    """The r^H D^-1 r of an error of x that is ``share`` percent of what ``slack`` hides it in, (b,); ``gain``: D^-1.

    With M = A^H A + lam, an error e of residual r = M e has the energy e^H M e = r^H M^-1 r, about r^H D^-1 r. Let it
    be E, spread evenly over the eigenvectors of M, as that of a draw from N(0, noise_std^2 M^-1) is. Over the noise V
    that hides it, with the eigenvalues h of M and Jensen's inequality (u / (noise_std^2 u + added^2) is concave),

        e^H V^-1 e = mean_h[ E / (noise_std^2 + added^2 h) ] <= E / (noise_std^2 + added^2 / mean_h(1 / h))

    and the diagonal D of M stands for the eigenvalues. What is spread evenly over all real numbers of a row of ``like``
    and as large as the noise in each has e^H V^-1 e = their number.
    """
    numbers = like[0].numel() * (2 if like.is_complex() else 1)
    harmonic = 1 / gain.mean(dim=(1, 2, 3))
    return (share * _HIDDEN) ** 2 * numbers * (slack.noise_std.square() + slack.added.square() * harmonic)
