"""Every sampler is chosen by name in reconstruct(), with a network as the prior, and gives finite images."""

from __future__ import annotations

import numpy as np
import pytest

from ambient_mri._checks import PriorError
from ambient_mri.sampling import SAMPLERS
from tests.test_reconstruct import NOISE, ambient_prior, run, scan


@pytest.mark.parametrize("name", sorted(n for n, c in SAMPLERS.items() if "clean" in c.accepts))
def test_clean_priors(name: str) -> None:
    kspace, truth, maps, _ = scan()
    found = run(kspace, sampler=name, coil_maps=maps, noise_std=NOISE, samples=2, steps=15)
    assert found.settings["run"]["sampler"] == name
    error = np.linalg.norm(found.mean - truth.numpy()) / np.linalg.norm(truth.numpy())
    # Zero-filled: 0.149. Fifteen levels are far too few for those that take short steps.
    assert error < (0.3 if name in ("dps", "langevin") else 0.135)


@pytest.mark.filterwarnings("ignore:.*do not fit the data:ambient_mri.reconstruct.ReconstructionWarning")
@pytest.mark.parametrize("name", ["msm", "adps", "adps_fixed", "diffpir"])
def test_ambient_priors(name: str) -> None:
    kspace, _, maps, _ = scan()
    arguments = {"sampler": name, "coil_maps": maps, "noise_std": NOISE, "steps": 4}
    found = run(kspace, prior=ambient_prior(), samples=2, **arguments)
    assert found.settings["run"]["sampler"] == name and np.isfinite(found.samples).all()
    assert not np.array_equal(found.samples[:, 0], found.samples[:, 1])
    again = run(kspace, prior=ambient_prior(), samples=2, batch_size=1, **arguments)
    assert np.allclose(again.samples, found.samples, atol=2e-3 * np.abs(found.samples).max())


def test_samplers_of_the_prior_alone_are_refused() -> None:
    with pytest.raises(PriorError, match=r"heun is not valid .* never looks at data\. Use split_gibbs"):
        run(scan()[0], sampler="heun")
