"""fastMRI's masks: the same as its own functions draw, with probabilities that simulation confirms."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.fastmri_masks import KINDS, FastMRIMask
from ambient_mri.masks import effective_acceleration

THEIRS = {
    "random": "RandomMaskFunc",
    "equispaced": "EquiSpacedMaskFunc",
    "equispaced_fraction": "EquispacedMaskFractionFunc",
    "magic": "MagicMaskFunc",
    "magic_fraction": "MagicMaskFractionFunc",
}


@pytest.fixture(scope="module")
def fastmri() -> Any:
    """fastMRI's mask functions; the package is no dependency."""
    pytest.importorskip("fastmri", reason="parity is tested where the package fastmri is installed")
    return importlib.import_module("fastmri.data.subsample")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("acceleration", "fraction"), [(4, 0.08), (8, 0.04), (5, 0.1), (2, 0.0625)])
def test_the_same_masks_as_fastmri(kind: str, acceleration: int, fraction: float, fastmri: Any) -> None:
    function = getattr(fastmri, THEIRS[kind])([fraction], [acceleration])
    law = FastMRIMask(kind, acceleration, fraction)
    for width in (368, 372, 320, 396, 323, 37):
        for seed in (0, 7, 123456, tuple(map(ord, "file1000831.h5"))):
            theirs, low = function((1, 640, width, 2), seed=seed)
            ours = law.draw_seeded((640, width), seed)
            np.testing.assert_array_equal(ours[0, 0, 0].numpy(), theirs[0, 0, :, 0].numpy() == 1)
            assert int(law.always((640, width)).sum()) == low


def test_a_volume_gets_the_mask_that_fastmri_gives_it(fastmri: Any) -> None:
    """fastMRI's data transform seeds its mask with the characters of the file name."""
    name, shape = "file_brain_AXT2_200_2000019.h5", (640, 320)
    mask, _ = fastmri.EquispacedMaskFractionFunc([0.08], [4])((16, *shape, 2), seed=tuple(map(ord, name)))
    ours = FastMRIMask("equispaced_fraction", 4, 0.08).draw_for_file(shape, name)
    np.testing.assert_array_equal(ours[0, 0, 0].numpy(), mask.flatten().numpy() == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_effective_acceleration_counts_measured_lines_of_the_acquired_extent(kind: str) -> None:
    law = FastMRIMask(kind, 4, 0.08)
    mask = law.draw_seeded((1, 368), 3)
    acquired = torch.zeros(1, 1, 1, 368, dtype=torch.bool)
    acquired[..., 24:344] = True
    counted = effective_acceleration(mask, acquired)
    assert counted == pytest.approx(320 / int(mask[..., 24:344].sum()))
    # The centre on top of the comb: equispaced and magic sample more than nominal, the others about as much.
    assert counted < 3.6 if kind in ("equispaced", "magic") else 3.2 < counted < 4.4


@pytest.mark.parametrize("kind", KINDS)
def test_the_centre_is_fastmris_choice_by_default(kind: str) -> None:
    assert FastMRIMask(kind, 4).describe()["center_fraction"] == 0.08
    assert FastMRIMask(kind, 8).describe()["center_fraction"] == 0.04


@pytest.mark.parametrize("kind", KINDS)
def test_conditional_probability_is_that_of_simulated_scans(kind: str, generator: torch.Generator) -> None:
    """Pr(P_j | B P, q), averaged over what B kept, is Pr(P_j and not kept) / Pr(not kept) at every line."""
    law, width, keep = FastMRIMask(kind, 4, 0.1), 40, torch.tensor([0.6])
    always = law.always((1, width))
    predicted, found, seen = torch.zeros(width), torch.zeros(width), torch.zeros(width)
    for _ in range(1500):
        mask = law.draw((1, width), generator)
        kept = mask & (always | (torch.rand(mask.shape, generator=generator) < keep))
        missing = ~kept[0, 0, 0]
        probability = law.probability_sampled(mask, kept, keep)[0, 0, 0]
        predicted += torch.where(missing, probability, 0)
        found += mask[0, 0, 0] & missing
        seen += missing
    outer = ~always[0, 0, 0]
    torch.testing.assert_close((predicted / seen)[outer], (found / seen)[outer], atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_inclusion_probability_is_the_frequency_of_many_draws(kind: str, generator: torch.Generator) -> None:
    law = FastMRIMask(kind, 4, 0.1)
    frequency = sum(law.draw((1, 37), generator).double() for _ in range(1500)) / 1500
    torch.testing.assert_close(law.inclusion_probability((1, 37)), frequency, atol=0.06, rtol=0)


def test_mistakes() -> None:
    with pytest.raises(AmbientMRIError, match=r"kind must be one of 'random'.*Did you mean 'equispaced'"):
        FastMRIMask("equispace")
    with pytest.raises(AmbientMRIError, match="needs a whole acceleration"):
        FastMRIMask("magic", 4.5)
    with pytest.raises(AmbientMRIError, match="lower center_fraction or the acceleration"):
        FastMRIMask("random", 8, 0.2).draw_seeded((1, 40), 0)
    with pytest.raises(AmbientMRIError, match="center_fraction must be between 0 and 1"):
        FastMRIMask("random", 4, 2.0)
