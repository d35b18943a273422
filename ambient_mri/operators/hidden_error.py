r"""Linear systems with A^H A, solved until the error is small against noise that is going to hide it.

    ( A^H A + lam I ) x = b ,      T = D^(-1/2) ( A^H A + lam I ) D^(-1/2) ,      D = a preconditioner

Preconditioned conjugate gradients, so that the energy of the error, e^H (A^H A + lam I) e, falls with every step,
whatever the spectrum is. When to stop is asked direction by direction: the noise that hides an error has covariance

    noise_std^2 (A^H A + lam I)^-1 + added^2 I

the spread of the posterior that x is drawn from, and white noise that the caller adds to x. In the direction of an
eigenvalue t of T, and with the mean d of D for D, that is V(t) = noise_std^2 / t + added^2 d. After k steps the error
is q_k(T) times the first one; the coefficients of the steps give q_k, and a *model* of the spectral measure of T, from
a few Lanczos steps with a random vector, gives how many directions there are at every t. For a white first error of
variance s^2,

    error over V = s^2 sum_i w_i q_k(t_i)^2 / V(t_i) ,      r^H D^-1 r = n s^2 sum_i w_i t_i^2 q_k(t_i)^2

The true left-hand side of the second equation is at hand in every step. The largest s^2 that any step so far asked for
goes into the first: where the first error was not white or the model misses directions, the residual falls more slowly
than the model's, and the rows go on.

Source: Golub & Meurant 2010, "Matrices, Moments and Quadrature", chapters 4 (Lanczos, Gauss quadrature) and 12
(error of conjugate gradients by quadrature); Hestenes & Stiefel 1952, section 3. Differs: 1. the measure is that of a
random vector and not of the residual, so that it is known before the first step, and one serves many systems. 2. a
share of its weight is spread evenly over the spectrum, so that no direction counts for nothing because the random
vector hardly contained it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ambient_mri.tensors import add_scaled, complex_randn, keyed_generator, per_row, real_inner

__all__ = ["ErrorModel", "SpectralMeasure", "solve_to_hidden_error", "spectral_measure"]

# Share of the model's weight that is spread evenly over the spectrum, and over how many nodes.
_SPREAD, _GRID = 0.1, 16
_TINY = 1e-300


@dataclass(frozen=True)
class SpectralMeasure:
    """How the eigenvalues of T are distributed: Gauss quadrature, in double precision.

    Attributes:
        nodes: (n, K), one rule a slice.
        weights: (n, K), each row sums to one.
    """

    nodes: Tensor
    weights: Tensor

    def mean(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean of ``function`` over the eigenvalues, (n,)."""
        return (self.weights * function(self.nodes)).sum(dim=1)

    def spread(self) -> SpectralMeasure:
        """A share of the weight put evenly between the smallest and the largest eigenvalue."""
        steps = torch.linspace(0, 1, _GRID, dtype=self.nodes.dtype, device=self.nodes.device)
        low, high = self.nodes.amin(dim=1, keepdim=True), self.nodes.amax(dim=1, keepdim=True)
        even = low + (high - low) * steps
        weights = torch.cat([(1 - _SPREAD) * self.weights, torch.full_like(even, _SPREAD / _GRID)], dim=1)
        return SpectralMeasure(torch.cat([self.nodes, even], dim=1), weights)

    def row(self, index: int) -> SpectralMeasure:
        """The rule of one slice, (K,)."""
        return SpectralMeasure(self.nodes[index], self.weights[index])

    @classmethod
    def stack(cls, rows: Sequence[SpectralMeasure]) -> SpectralMeasure:
        """Rules of single slices side by side."""
        return cls(torch.stack([r.nodes for r in rows]), torch.stack([r.weights for r in rows]))

    def towards(self, other: SpectralMeasure, share: Tensor) -> SpectralMeasure:
        """The rules a ``share`` (n,) of the way to those of a neighbouring operator with as many nodes."""
        nodes = torch.lerp(self.nodes, other.nodes, share[:, None])
        return SpectralMeasure(nodes, torch.lerp(self.weights, other.weights, share[:, None]))


class ErrorModel:
    """The error of conjugate gradients over the noise that hides it, step by step, for b rows (module docstring).

    Args:
        measure: Of T, for b rows.
        noise_std: (b,), of V.
        added: (b,), of V, times the root of the mean of D.
    """

    def __init__(self, measure: SpectralMeasure, noise_std: Tensor, added: Tensor) -> None:
        model = measure.spread()
        self._nodes = model.nodes
        hidden = noise_std.double().square()[:, None] / self._nodes.clamp_min(_TINY)
        hidden = hidden + added.double().square()[:, None]
        # Of the squared residual, (t q)^2, to the squared error over V.
        self._share = 1 / (self._nodes.square() * hidden).clamp_min(_TINY)
        self._residual = model.weights.sqrt() * self._nodes
        self._direction = self._residual
        self._size = torch.zeros_like(self._nodes[:, 0])

    def step(self, alpha: Tensor, beta: Tensor) -> None:
        """Follow a step of length ``alpha`` (b,), whose next direction holds ``beta`` (b,) of this one."""
        self._residual = self._residual - alpha.double()[:, None] * self._nodes * self._direction
        self._direction = self._residual + beta.double()[:, None] * self._direction

    def error(self, energy: Tensor) -> Tensor:
        """Mean squared error over V, (b,), where r^H D^-1 r is ``energy`` (b,) a direction."""
        square = self._residual.square()
        self._size = torch.maximum(self._size, energy.double() / square.sum(dim=1).clamp_min(_TINY))
        return self._size * (square * self._share).sum(dim=1)


def spectral_measure(normal: Callable[[Tensor], Tensor], like: Tensor, *, steps: int = 20) -> SpectralMeasure:
    """The spectral measure of a positive operator for every row, as a random vector sees it.

    Args:
        normal: T, on tensors shaped like ``like``.
        like: (n, ...), one row a slice; its values are not read.
        steps: Applications of T, at most the number of unknowns.
    """
    one = torch.empty(like[:1].shape, dtype=like.dtype)
    generator = keyed_generator("spectral measure")
    probe = (
        complex_randn(one.shape, generator=generator, dtype=like.dtype)
        if like.is_complex()
        else torch.randn(one.shape, generator=generator, dtype=like.dtype)
    )
    v = (probe / probe.norm()).to(like.device).expand_as(like)
    before, beta = torch.zeros_like(v), torch.zeros_like(real_inner(v, v))
    diagonal, off = [], []
    for _ in range(min(steps, like[0].numel())):
        w = add_scaled(normal(v), per_row(-beta, v), before)
        alpha = real_inner(v, w)
        w = add_scaled(w, per_row(-alpha, v), v)
        beta = real_inner(w, w).sqrt()
        diagonal.append(alpha)
        off.append(beta)
        before, v = v, w / per_row(beta.clamp_min(torch.finfo(beta.dtype).tiny), w)
    main, side = torch.stack(diagonal, dim=1).double().cpu(), torch.stack(off, dim=1).double().cpu()[:, :-1]
    # What rounding leaves of an exhausted Krylov space is no direction.
    side = torch.where(side > 1e-5 * main.abs().amax(dim=1, keepdim=True), side, torch.zeros_like(side))
    matrix = torch.diag_embed(main) + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    nodes, vectors = torch.linalg.eigh(matrix)
    return SpectralMeasure(nodes.clamp_min(0).to(like.device), vectors[:, 0].square().to(like.device))


def solve_to_hidden_error(
    apply: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    start: Tensor,
    residual: Tensor,
    model: ErrorModel,
    *,
    accuracy: float,
    floor: Tensor,
    max_iterations: int,
) -> tuple[Tensor, int]:
    """Preconditioned conjugate gradients, each row as its own system, at least one step.

    Args:
        apply: A^H A + lam I.
        precondition: D^-1.
        start: First x, (b, ...).
        residual: b - (A^H A + lam I) x of the first x.
        model: For these rows, before the first step.
        accuracy: A row stops where its error is this share of the noise that hides it, rms over the directions.
        floor: Or where ||r|| is at most this, (b,).
        max_iterations: Upper bound on the steps.

    Returns:
        x, and the steps of the slowest row.
    """
    x, r, z = start, residual, precondition(residual)
    p, rho = z, real_inner(residual, z)
    tiny = torch.finfo(rho.dtype).tiny
    directions = start[0].numel() * (2 if start.is_complex() else 1)
    model.error(rho / directions)
    active = real_inner(r, r) > floor.square()
    iterations = 0
    while iterations < max_iterations and bool(active.any()):
        iterations += 1
        q = apply(p)
        alpha = torch.where(active, rho / real_inner(p, q).clamp_min(tiny), torch.zeros_like(rho))
        x = add_scaled(x, per_row(alpha, x), p)
        r = add_scaled(r, per_row(-alpha, r), q)
        z = precondition(r)
        rho_next = real_inner(r, z)
        beta = rho_next / rho.clamp_min(tiny)
        p, rho = add_scaled(z, per_row(beta, z), p), rho_next
        model.step(alpha, beta)
        active = active & (model.error(rho / directions) > accuracy**2) & (real_inner(r, r) > floor.square())
    return x, iterations
