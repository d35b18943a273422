"""Linear systems with A^H A, every batch row as its own system.

    ( A^H A + lam I ) x = b

Conjugate gradients stop row by row and return their status: a solver that did not converge says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ambient_mri.operators.base import LinearOperator
from ambient_mri.tensors import add_scaled, per_row, real_inner

__all__ = ["CGResult", "conjugate_gradient", "gmres", "solve_regularized"]


# Iterations between two looks at whether any row is still active: on an accelerator a look waits for all that was
# launched, and rows that have converged keep their values until the next one.
_LOOK = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True)
class CGResult:
    """Solution and status of a batched solve.

    Attributes:
        x: Solution, in the shape and units of the right-hand side.
        iterations: Iterations run (of the slowest row; on a GPU up to seven more).
        converged: (b,) bool.
        residual: (b,) relative residual ||b - A x|| / ||b|| (by the recursion).
    """

    x: Tensor
    iterations: int
    converged: Tensor
    residual: Tensor


def conjugate_gradient(
    operator: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    x0: Tensor | None = None,
    residual: Tensor | None = None,
    precondition: Callable[[Tensor], Tensor] | None = None,
    max_iterations: int = 50,
    rtol: float | Tensor = 1e-6,
    enough: Tensor | None = None,
) -> CGResult:
    """Solve ``operator(x) = b`` by (preconditioned) conjugate gradients, each row as its own system.

    Args:
        operator: Hermitian positive-definite map on tensors shaped like ``b`` (a callable or a LinearOperator).
        b: Right-hand side (batch, ...), real or complex.
        x0: Start; zero when not given.
        residual: r = b - operator(x0), where it is known: saves one application, and of ``b`` the norm alone is read.
        precondition: D^-1, Hermitian positive-definite; the identity when not given.
        max_iterations: Upper bound on iterations. With ``rtol=0`` and no ``enough`` exactly this many are run, without
            a look at the residual, so that nothing waits for the GPU.
        rtol: A row stops changing when ||r|| <= rtol * ||b||; a number or (batch,).
        enough: (batch,). Or as soon as r^H D^-1 r <= enough: for D near the operator, the energy of the error.

    Returns:
        Solution in the shape and units of ``b``, with iterations, convergence and residual.

    Source: Hestenes & Stiefel 1952, section 3; Saad 2003, algorithm 9.1 (preconditioned). Differs: 1. batched, a row
    that has converged is frozen.
    """
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    if residual is None:
        residual = b if x0 is None else b - operator(x)
    r = residual
    z, squared, rho = _preconditioned(precondition, r)
    p = z
    tiny = torch.finfo(rho.dtype).tiny
    norm = real_inner(b, b)
    bound = norm * (rtol.to(rho).square() if isinstance(rtol, Tensor) else rtol**2)
    energy = torch.zeros_like(rho) if enough is None else enough.to(rho)
    checked = isinstance(rtol, Tensor) or rtol > 0 or enough is not None
    iterations, look = 0, _LOOK.get(b.device.type, 1)
    for iterations in range(1, max_iterations + 1):
        active = (squared > bound) & (rho > energy)
        if checked and (iterations - 1) % look == 0 and not bool(active.any()):
            iterations -= 1
            break
        q = operator(p)
        alpha = torch.where(active, rho / real_inner(p, q).clamp_min(tiny), torch.zeros_like(rho))
        x = add_scaled(x, per_row(alpha, x), p)
        r = add_scaled(r, per_row(-alpha, r), q)
        z, squared, rho_next = _preconditioned(precondition, r)
        p = add_scaled(z, per_row(rho_next / rho.clamp_min(tiny), z), p)
        rho = rho_next
    converged = (squared <= bound.clamp_min(tiny)) | (rho <= energy)
    return CGResult(x, iterations, converged, (squared / norm.clamp_min(tiny)).sqrt())


def _preconditioned(precondition: Callable[[Tensor], Tensor] | None, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z = D^-1 r, r^H r and r^H z."""
    squared = real_inner(r, r)
    if precondition is None:
        return r, squared, squared
    z = precondition(r)
    return z, squared, real_inner(r, z)


def solve_regularized(
    operator: LinearOperator,
    rhs: Tensor,
    lam: Tensor | float,
    *,
    x0: Tensor | None = None,
    max_iterations: int = 50,
    rtol: float | Tensor = 1e-6,
) -> CGResult:
    """Solve (A^H A + lam I) x = rhs.

    Args:
        operator: A.
        rhs: (b, *domain_shape).
        lam: Regularisation, scalar or (b,), non-negative.
        x0: Start; zero when not given.
        max_iterations: Upper bound on iterations.
        rtol: Relative tolerance, see :func:`conjugate_gradient`.
    """
    weight = per_row(lam, rhs)
    return conjugate_gradient(
        lambda x: add_scaled(operator.normal(x), weight, x), rhs, x0=x0, max_iterations=max_iterations, rtol=rtol
    )


def gmres(operator: Callable[[Tensor], Tensor], b: Tensor, *, iterations: int = 5) -> tuple[Tensor, Tensor]:
    """The x of least residual ||b - operator(x)|| in the Krylov space of ``b``, each row as its own system.

    For maps that are linear over the real numbers only and not symmetric: the Jacobian of a network on real and
    imaginary channels is both. A fixed number of iterations; nothing waits for the GPU.

    Args:
        operator: Linear map on tensors shaped like ``b``.
        b: Right-hand side (batch, ...), real or complex.
        iterations: Applications of ``operator``; as many tensors like ``b`` are kept.

    Returns:
        x, and the relative residual of every row, (batch,).

    Source: Saad & Schultz 1986, SIAM J. Sci. Stat. Comput. 7, algorithm 4, from zero and without restart. Differs: 1.
    the least-squares problem is solved by its normal equations in double precision, so that a row whose Krylov space
    ends early needs no case of its own.
    """
    norm = real_inner(b, b).sqrt()
    tiny = torch.finfo(norm.dtype).tiny
    basis = [b / per_row(norm.clamp_min(tiny), b)]
    hessenberg = torch.zeros(len(b), iterations + 1, iterations, dtype=torch.float64, device=b.device)
    for j in range(iterations):
        image = operator(basis[j])
        scale = real_inner(image, image).sqrt()
        for i, direction in enumerate(basis):
            overlap = real_inner(direction, image)
            hessenberg[:, i, j] = overlap.double()
            image = image - per_row(overlap, image) * direction
        length = real_inner(image, image).sqrt()
        # What rounding leaves of an exhausted space is no direction.
        length = torch.where(length > 10 * torch.finfo(length.dtype).eps * scale, length, torch.zeros_like(length))
        hessenberg[:, j + 1, j] = length.double()
        inverse = torch.where(length > 0, 1 / length.clamp_min(tiny), torch.zeros_like(length))
        basis.append(per_row(inverse, image) * image)
    right = torch.zeros(len(b), iterations + 1, 1, dtype=torch.float64, device=b.device)
    right[:, 0, 0] = norm.double()
    gram = hessenberg.mT @ hessenberg
    # A row whose right-hand side is zero has no equation at all; its weights are zero.
    ridge = (1e-14 * gram.diagonal(dim1=1, dim2=2).sum(1)).clamp_min(1e-200)
    eye = torch.eye(iterations, dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram + ridge[:, None, None] * eye, hessenberg.mT @ right)
    residual = (right - hessenberg @ weights).square().sum(dim=(1, 2)).sqrt().to(norm) / norm.clamp_min(tiny)
    x = torch.zeros_like(b)
    for j, direction in enumerate(basis[:-1]):
        x = x + per_row(weights[:, j, 0], b) * direction
    return x, residual
