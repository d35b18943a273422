r"""What the samplers that differentiate the denoiser share: the Jacobian's transpose, and the move to the next level.

    g = J^T v ,  J = dD(x_t)/dx_t in real coordinates
    x_next = D_y + sqrt(sigma_next^2 - s^2) (x_t - D_y) / sigma + s e
    s = eta sigma_next sqrt(1 - sigma_next^2 / sigma^2)

D_y is the denoiser after guidance, e white. eta = 0 is Euler's step of the probability-flow equation, eta = 1 the
ancestral step of a diffusion model.

Reference: Song et al. 2021, arXiv:2010.02502 (DDIM), equations 12 and 16, for variance-exploding noise.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NoReturn, TypeAlias

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.denoiser import Denoiser
from ambient_mri.operators.base import LinearOperator
from ambient_mri.sampling.base import Sampler
from ambient_mri.sampling.data_step import DataStep, Slack
from ambient_mri.sampling.problem import Level, Problem
from ambient_mri.tensors import per_row, real_inner

__all__ = ["VJP", "AncestralSampler", "NoDataStep", "WithoutDataStep", "row_norm", "value_and_vjp"]

VJP: TypeAlias = Callable[[Tensor], Tensor]


def value_and_vjp(problem: Problem, function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, VJP]:
    """``function(x)`` and v -> J^T v, J its Jacobian at ``x`` in real coordinates (real and imaginary parts).

    Works inside ``torch.no_grad``. The graph lives as long as the returned function, which may be called repeatedly and
    counts its calls in ``problem.gradients``.
    """
    require(
        not torch.is_inference_mode_enabled(),
        "this sampler differentiates the denoiser, which torch.inference_mode() forbids. Leave that mode: samplers "
        "keep no gradients but those they need.",
    )
    with torch.enable_grad(), _kept_graph():
        state = x.detach().requires_grad_()
        value = function(state)

    def vjp(v: Tensor) -> Tensor:
        problem.gradients += 1
        with _kept_graph():
            (product,) = torch.autograd.grad(value, state, v, retain_graph=True)
        return product

    return value.detach(), vjp


def _kept_graph() -> AbstractContextManager[None]:
    """Where compiled networks keep what their backward pass needs, so that it can be run again.

    Torch looks when it makes the graph, and when it goes back through it.
    """
    patch: AbstractContextManager[None] = functorch_config.patch(donated_buffer=False)
    return patch


def row_norm(x: Tensor) -> Tensor:
    """||x|| of every row, (b,)."""
    return real_inner(x, x).sqrt()


class NoDataStep(DataStep):
    """Stands where a sampler solves no regularised normal equations, so that nothing is prepared for them."""

    name = "none"

    def __call__(self, data: Tensor, guess: Tensor, lam: Tensor, rtol: Tensor, slack: Slack | None = None) -> NoReturn:
        raise AmbientMRIError("this sampler has no data step.")


class WithoutDataStep(Sampler):
    """A sampler that uses A and A^H alone."""

    def make_data_step(self, operator: LinearOperator, **settings: Any) -> DataStep:
        """None is needed."""
        return NoDataStep()


class AncestralSampler(Sampler):
    """A sampler that moves x_t along the reverse diffusion of a guided denoiser.

    Args:
        steps: Number of noise levels.
        eta: Share of fresh noise: 1 is the ancestral step, 0 the deterministic one.
        options: Of :class:`Sampler`. ``sigma_min`` is sd / 100 when not given, whatever the noise of the data: the last
            step returns a mean given its state, so what the state's own noise hides is lost to the spread.
    """

    accepts: ClassVar[tuple[str, ...]] = ("clean",)
    refusal: ClassVar[str] = (
        "it propagates the likelihood through E[x0 | x_t]; an ambient network gives E[x0 | A_tilde x_t], whose "
        "Jacobian is blind to what its further mask removed. Use split_gibbs, dds or adps_fixed."
    )

    def __init__(self, steps: int = 100, *, eta: float = 1.0, **options: Any) -> None:
        super().__init__(steps, **options)
        require(0 <= eta <= 1, f"eta must lie between 0 and 1; got {eta}.")
        self.eta = eta

    def sigma_range(self, denoiser: Denoiser, noise_std: float) -> tuple[float, float]:
        """(sigma_max, sigma_min); the lower end does not depend on the data's noise."""
        return super().sigma_range(denoiser, 0.0)

    def move(self, problem: Problem, level: Level, x_t: Tensor, denoised: Tensor) -> Tensor:
        """x_next (module docstring); ``denoised`` itself at the last level."""
        if level.last:
            return denoised
        fresh = self.eta * level.sigma_next * (1 - (level.sigma_next / level.sigma).square()).clamp_min(0).sqrt()
        kept = (level.sigma_next.square() - fresh.square()).clamp_min(0).sqrt() / level.sigma
        x = denoised + per_row(kept, x_t) * (x_t - denoised)
        return x + per_row(fresh, x_t) * problem.image_noise() if self.eta > 0 else x
