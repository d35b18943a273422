"""azula's and deepinv's samplers, called on this project's denoisers and operators. Not part of the package.

Both libraries hold real tensors: an image is a row of 2 H W real numbers, real and imaginary part in turns, which is
also the order in which this project draws complex noise. With the same seed, one row and double precision, a library's
torch.randn_like and this project's generators give the same numbers.

torchvision, which deepinv imports, has no build for the processor alone; its Python part asks for two operators of its
compiled part at import, and nothing here calls them. They are declared, so that the import succeeds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ambient_mri.denoiser import Denoiser
from ambient_mri.operators import LinearOperator
from ambient_mri.sampling.exact_step import ExactStep

for _name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
azula, deepinv = importlib.import_module("azula"), importlib.import_module("deepinv")
_Schedule: Any = azula.noise.Schedule
_AzulaDenoiser: Any = azula.denoise.Denoiser
_DeepinvDenoiser: Any = deepinv.models.Denoiser

__all__ = ["Case", "azula", "azula_denoiser", "azula_run", "deepinv", "deepinv_diffpir", "deepinv_posterior"]

# Of the libraries' solvers, which stop by count: with a denoiser's Jacobian in every iteration, and without.
ITERATIONS, MANY = 50, 150


def to_real(x: Tensor) -> Tensor:
    """Complex (b, ...) to real (b, 2n)."""
    return torch.view_as_real(x.resolve_conj()).flatten(1)


def to_complex(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inverse of :func:`to_real` for rows of ``shape``."""
    return torch.view_as_complex(x.reshape(len(x), *shape, 2))


@dataclass
class Case:
    """What both sides are given.

    Attributes:
        denoiser: D, complex images.
        operator: A, of one row of double precision.
        y: (1, coils, H, W).
        noise_std: Per real part.
        image: Shape of an image, (1, H, W).
        level: sigma of the latest call of D, for what a library asks without saying at which level.
    """

    denoiser: Denoiser
    operator: LinearOperator
    y: Tensor
    noise_std: float
    image: tuple[int, int, int]
    level: float = 0.0

    @property
    def numbers(self) -> int:
        """Real numbers of an image."""
        return 2 * self.image[-1] * self.image[-2]

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """D on real rows, in their dtype and in double precision inside."""
        self.level = float(torch.as_tensor(sigma).detach().flatten()[0])
        level = torch.full((len(x),), self.level, dtype=torch.float64)
        return to_real(self.denoiser(to_complex(x.double(), self.image), level)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """A on real rows."""
        return to_real(self.operator.forward(to_complex(x.double(), self.image))).to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H on real rows."""
        return to_real(self.operator.adjoint(to_complex(y.double(), tuple(self.y.shape[1:])))).to(y.dtype)

    def data(self, rows: int, unit: float = 1.0) -> Tensor:
        """y / unit for ``rows`` rows, real."""
        return to_real(self.y / unit).expand(rows, -1).contiguous()

    def start(self, rows: int, seed: int) -> Tensor:
        """White noise from the global stream, which goes on from there: one real row an image."""
        torch.manual_seed(seed)
        return torch.randn(rows, self.numbers, dtype=torch.float64)


class LadderSchedule(_Schedule):
    """azula's schedule that is this project's ladder, t = 1 at its top and t = 0 at its end.

    Args:
        levels: Descending.
        unit: Of the library's images.
        preserving: Variance-preserving states, x / sqrt(1 + sigma^2); else variance-exploding ones.
    """

    def __init__(self, levels: Tensor, unit: float = 1.0, *, preserving: bool = False) -> None:
        self.levels, self.preserving = levels.double() / unit, preserving

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        index = ((1 - t.double()) * (len(self.levels) - 1)).round().long()
        sigma = self.levels[index]
        alpha = (1 + sigma.square()).rsqrt() if self.preserving else torch.ones_like(sigma)
        return alpha, alpha * sigma


def azula_denoiser(case: Case, schedule: LadderSchedule, unit: float = 1.0) -> Any:
    """D as azula's denoiser of images in units of ``unit``."""

    class Adapter(_AzulaDenoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = schedule(t)
            mean = case.denoise(unit * x_t / alpha, unit * sigma / alpha) / unit
            return azula.denoise.DiracPosterior(mean=mean)

    return Adapter()


def azula_run(case: Case, sampler: Any, rows: int, seed: int, unit: float = 1.0) -> Tensor:
    """Complex samples of a sampler of azula's, (rows, 1, H, W)."""
    x = sampler.denoiser.schedule(torch.ones(()))[1] * case.start(rows, seed)
    return to_complex(unit * sampler(x), case.image)


def regularised_inverse(case: Case, operator: LinearOperator) -> Callable[[Tensor], Tensor]:
    """The pseudo-inverse that azula's PGDM asks for, of noisy data: (A^H A + noise_std^2 / r^2)^-1 A^H at D's level."""
    solve = ExactStep(operator)

    def inverse(y: Tensor) -> Tensor:
        image = to_complex(case.adjoint(y), case.image)
        sigma, sd = case.level, case.denoiser.sd
        lam = torch.full((len(y),), case.noise_std**2 * (1 / sigma**2 + 1 / sd**2), dtype=torch.float64)
        return to_real(solve(image, torch.zeros_like(image), lam, lam))

    return inverse


def deepinv_physics(case: Case, noise_std: float) -> Any:
    """A as deepinv's physics."""
    return deepinv.physics.LinearPhysics(
        A=lambda x, **_: case.forward(x),
        A_adjoint=lambda y, **_: case.adjoint(y),
        noise_model=deepinv.physics.GaussianNoise(noise_std),
        max_iter=MANY,
        tol=1e-10,
    )


def deepinv_denoiser(case: Case, unit: float, offset: float = 0.0) -> Any:
    """D as deepinv's denoiser of images x unit + offset."""

    class Adapter(_DeepinvDenoiser):
        def forward(self, x: Tensor, sigma: Tensor | float, **_: Any) -> Tensor:
            return case.denoise((x - offset) / unit, torch.as_tensor(sigma) / unit) * unit + offset

    return Adapter()


def deepinv_posterior(case: Case, levels: Tensor, fidelity: str, rows: int, seed: int, **options: Any) -> Tensor:
    """Samples of deepinv's PosteriorDiffusion: its ancestral solver on this project's ladder, images in units of sd.

    Args:
        case: The problem.
        levels: The ladder with its final zero.
        fidelity: Name of the data fidelity, of ``deepinv.sampling``.
        rows: Samples.
        seed: Of the start and of the solver.
        options: Of the data fidelity.
    """
    unit = 1 / case.denoiser.sd
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(rows, case.numbers, dtype=torch.float64, generator=generator)
    sde = deepinv.sampling.EDMDiffusionSDE(
        sigma_t=lambda t: t, sigma_prime_t=torch.ones_like, variance_exploding=True, alpha=1.0, minus_one_one=False
    )
    sampler = deepinv.sampling.PosteriorDiffusion(
        data_fidelity=getattr(deepinv.sampling, fidelity)(**options),
        denoiser=deepinv_denoiser(case, unit),
        sde=sde,
        solver=deepinv.sampling.DDPMSolver(timesteps=levels.double() * unit, rng=generator),
        minus_one_one=False,
    )
    x_init = start * float(levels[0]) * unit
    x = sampler(case.data(rows, 1 / unit), deepinv_physics(case, case.noise_std * unit), x_init=x_init)
    return to_complex(x.detach() / unit, case.image)


def exact_proximal_step(case: Case, floor: float) -> Callable[..., Tensor]:
    """deepinv's prox_l2, argmin gamma ||A x - y||^2 / 2 + ||x - z||^2 / 2, with 1 / gamma of at least ``floor``."""
    solve = ExactStep(case.operator)

    def prox(z: Tensor, y: Tensor, gamma: Tensor | float, **_: Any) -> Tensor:
        lam = torch.full((len(z),), max(1 / float(gamma), floor), dtype=torch.float64)
        return to_real(solve(to_complex(case.adjoint(y), case.image), to_complex(z, case.image), lam, lam))

    return prox


def deepinv_diffpir(
    case: Case, steps: int, weight: float, rows: int, seed: int, *, floor: float = 0.0
) -> tuple[Tensor, Tensor, float]:
    """Samples of deepinv's DiffPIR, the ladder that it made, and the factor of its last state.

    It holds images in [0, 1]: x unit + 1/2, with a unit so small that its clipping never acts. It returns the state at
    its last level times sqrt(alpha), before that level's own denoising.

    Args:
        case: The problem.
        steps: Levels.
        weight: Its lambda.
        rows: Samples.
        seed: Of the global stream.
        floor: Solves its systems directly, with at least this rho, as ours does; its own conjugate gradients are far
            from converged where rho is small.
    """
    unit = 0.2
    sampler = deepinv.sampling.DiffPIR(
        model=deepinv_denoiser(case, unit, 0.5),
        data_fidelity=deepinv.optim.data_fidelity.L2(),
        sigma=unit * case.noise_std,
        max_iter=steps,
        zeta=0.3,
        lambda_=weight,
    )
    middle = torch.full((rows, case.numbers), 0.5, dtype=torch.float64)
    physics = deepinv_physics(case, unit * case.noise_std)
    if floor:
        physics.prox_l2 = exact_proximal_step(case, floor)
    torch.manual_seed(seed)
    x = sampler(case.data(rows, 1 / unit) + case.forward(middle), physics, x_init=middle)
    # Its sigma belongs to images in [-1, 1].
    levels = sampler.sigmas[sampler.seq.long()].double() / (2 * unit)
    factor = float(sampler.sqrt_alphas_cumprod[0])
    return to_complex((x - 0.5) / unit, case.image), levels, factor
