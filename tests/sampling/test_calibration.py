"""The effective noise level: the errors of coil maps, laid on all samples by what signal they hold."""

from __future__ import annotations

import pytest
import torch

from ambient_mri.data.phantom import BrainPhantom
from ambient_mri.data.simulate import simulate_coil_maps
from ambient_mri.masks import PoissonDisc, RandomLines, SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.operators import sense, solve_regularized
from ambient_mri.sampling.calibration import effective_noise_std
from ambient_mri.tensors import keyed_generator


@pytest.mark.parametrize("law", [PoissonDisc(4, 8), RandomLines(4, 12)])
def test_the_effective_noise_is_that_of_all_samples_and_not_of_the_calibration_region(law: SamplingLaw) -> None:
    """Maps with known errors, no noise: the least misfit that any image leaves over all samples is within a factor of
    two of the level, though the calibration region alone has several times as much.
    """
    image = torch.from_numpy(BrainPhantom(96, seed=3)[0])[None, None].to(torch.complex64)
    maps = simulate_coil_maps((96, 96), 8, keyed_generator("right"))[None]
    wrong = maps + 0.1 * simulate_coil_maps((96, 96), 8, keyed_generator("wrong"))[None]
    wrong = wrong / wrong.norm(dim=1, keepdim=True)
    mask, one = law.draw((96, 96), keyed_generator("mask")), torch.ones(1)
    y = sense(maps, mask).forward(image)
    level = float(effective_noise_std(Measurement(y, mask, wrong, 0 * one, one, ("0",)))[0])
    best = solve_regularized(sense(wrong, mask), sense(wrong, mask).adjoint(y), 1e-4, max_iterations=200).x
    misfit = (y - sense(wrong, mask).forward(best)).abs().square()
    sampled = 2 * 8 * int(mask.expand(1, 1, 96, 96).sum())
    over_all = float((misfit.sum() / sampled).sqrt())
    centre = float((misfit[..., 44:52, 44:52].sum() / (2 * 8 * 64)).sqrt())
    assert over_all / 2 < level < 2 * over_all
    assert isinstance(law, RandomLines) or centre > 3 * level
