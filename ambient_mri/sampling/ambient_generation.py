r"""Unconditional images from an ambient network itself, as published, beside the route through EM.

One further corruption A_tilde, drawn once a sample, is used at every level; h is the ambient network.

    fixed mask                 x_next = (s'/s) x + (1 - s'/s) h(A_tilde x)
    reconstruction guidance    ... - w grad_x  mean over guides A_i of || h(A_tilde x) - h(A_i x) ||^2

The first is Euler's method for the probability flow of A_tilde x: what A_tilde hides gets its conditional mean, so
that these images are smoother than the training images were, the more the sparser A_tilde is. The second pulls x to
where the network says the same under other masks, fresh at every step. A prior whose samples are images needs EM.

Reference: Daras et al. 2023, arXiv:2305.19256, section 4. Differs: 1. the noise of the state is completed to the noise
that the network was trained on (:meth:`~ambient_mri.corruption.Corruption.lift`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ambient_mri._checks import check_finite, check_positive, require
from ambient_mri.corruption import Corruption, Further
from ambient_mri.denoiser import AmbientDenoiser, ConditionalDenoiser
from ambient_mri.measurement import Measurement
from ambient_mri.noise import karras_ladder
from ambient_mri.tensors import randn_like_rows

__all__ = ["AmbientGeneration"]


class AmbientGeneration:
    """The published samplers (module docstring).

    Args:
        steps: Noise levels.
        guides: Further masks to agree with, fresh at every step; 0 for the sampler with a fixed mask alone.
        guidance: w.
        sigma_max: Highest level; 10 sd of the network when not given.
        sigma_min: Lowest level; sd / 100 when not given.
        rho: Curvature of the ladder.
    """

    def __init__(
        self,
        steps: int = 50,
        *,
        guides: int = 0,
        guidance: float = 5e-4,
        sigma_max: float | None = None,
        sigma_min: float | None = None,
        rho: float = 7.0,
    ) -> None:
        require(steps >= 1, f"at least one step is needed; got {steps}.")
        require(guides >= 0, f"guides must not be negative; got {guides}.")
        check_positive("guidance", guidance, allow_zero=True)
        self.steps, self.guides, self.guidance = steps, guides, guidance
        self.sigma_max, self.sigma_min, self.rho = sigma_max, sigma_min, rho

    @torch.no_grad()
    def generate(
        self,
        model: ConditionalDenoiser,
        corruption: Corruption,
        measurement: Measurement,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """One image a row.

        Args:
            model: The ambient network.
            corruption: Draws A_tilde.
            measurement: What A_tilde is drawn from, a row an image: the masks, maps and parameters of some training
                items. Its ``y`` gives shapes alone.
            generators: One a row.

        Returns:
            Images (b, c, H, W).

        Raises:
            AmbientMRIError: If the number of generators is not that of the rows, or the result is not finite.
        """
        rows = len(measurement)
        require(len(generators) == rows, f"one generator a row is needed: {rows} rows, {len(generators)} generators.")
        measurement = corruption.simplified(measurement)
        denoiser = model.as_denoiser(corruption, measurement, generators)
        fixed = corruption.further(measurement, generators)
        like = fixed.operator.adjoint(torch.zeros_like(measurement.y))
        high = min(10 * model.sd if self.sigma_max is None else self.sigma_max, model.sigma_max)
        low = max(model.sd / 100 if self.sigma_min is None else self.sigma_min, model.sigma_min)
        ladder = karras_ladder(self.steps, high, min(low, 0.5 * high), self.rho).tolist()
        x = high * randn_like_rows(like, generators)
        for sigma, following in zip(ladder, [*ladder[1:], 0.0], strict=True):
            x = self._step(denoiser, fixed, x, (sigma, following))
        check_finite("the generated images", x, "Lower guidance.")
        return x

    def _step(self, denoiser: AmbientDenoiser, fixed: Further, x: Tensor, levels: tuple[float, float]) -> Tensor:
        sigma = torch.full((len(x),), levels[0], device=x.device)
        ratio = levels[1] / levels[0]
        if not self.guides:
            h = denoiser.denoise_partial(x, sigma, fixed.operator, fixed.kept)
            return ratio * x + (1 - ratio) * h
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            h = denoiser.denoise_partial(state, sigma, fixed.operator, fixed.kept)
            gap = torch.zeros((), device=x.device)
            for _ in range(self.guides):
                guide = denoiser.corruption.further(denoiser.measurement, denoiser.generators)
                other = denoiser.denoise_partial(state, sigma, guide.operator, guide.kept)
                gap = gap + (h - other).abs().square().sum() / self.guides
            (gradient,) = torch.autograd.grad(gap, state)
        return (ratio * x + (1 - ratio) * h - self.guidance * gradient).detach()
