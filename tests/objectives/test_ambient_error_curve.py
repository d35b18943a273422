"""The error of an ambient network from corrupted data alone, against its closed form in a Gaussian world.

Four pixels, or four lines of k-space seen by one coil or three; a linear network h = s Theta* z for every further mask,
Theta* the optimal one. Its error is known exactly for each mask,

    tr[ (s Theta* A - I) C (s Theta* A - I)^H + s^2 sigma^2 Theta* Theta*^H ] / n ,

and so is the law of the masks.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from ambient_mri.corruption import Corruption, PixelMasking, Undersampling
from ambient_mri.corruption.thinning import ThinnedMasks
from ambient_mri.masks import EquispacedLines, IndependentLines, RandomLines
from ambient_mri.measurement import Measurement
from ambient_mri.operators.base import LinearOperator
from ambient_mri.tensors import RowStreams, keyed_generator
from ambient_mri.training.error_curve import ambient_error_curve, ambient_squared_error, while_sampling
from tests.objectives.gaussian import SIGMA, WIDTH, best_map, code_of, covariance, dense, world

KEEP, COUNT = 0.6, 4000
INDEPENDENT = IndependentLines(1.6, 0)
CASES: dict[str, tuple[ThinnedMasks, int]] = {
    "masked pixels": (PixelMasking(0.6, keep=(KEEP, KEEP)), 1),
    "one coil": (Undersampling(INDEPENDENT, core=0, keep=(KEEP, KEEP)), 1),
    "three coils": (Undersampling(INDEPENDENT, core=0, keep=(KEEP, KEEP)), 3),
    "a fixed number of lines": (Undersampling(RandomLines(2, 0), core=0, keep=(KEEP, KEEP)), 3),
}


@cache
def scans(case: str, noise_std: float) -> Measurement:
    corruption, coils = CASES[case]
    return world(corruption, coils, noise_std)[0][:COUNT]


class LinearNetwork(nn.Module):
    """h = s Theta*[kept] z, and its error in closed form."""

    sd, sigma_min, sigma_max = 1.0, 0.01, 20.0

    def __init__(self, corruption: Corruption, m: Measurement, share: float = 1.0) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))
        masks = torch.tensor(list(product([False, True], repeat=WIDTH))).reshape(-1, 1, 1, 1, WIDTH)
        self.operators = {int(code_of(kept)): dense(corruption, m, kept) for kept in masks}

    def forward(self, z: Tensor, sigma: Tensor, operator: LinearOperator, kept: Tensor) -> Tensor:
        flat, codes = z.flatten(1), code_of(kept)
        found = flat.new_zeros(len(z), WIDTH)
        for level in sigma.unique().tolist():
            for code in codes.unique().tolist():
                rows = (codes == code) & (sigma == level)
                found[rows] = flat[rows] @ self.table(code, level).to(z.dtype).T
        return found.reshape(-1, 1, 1, WIDTH)

    def table(self, code: int, sigma: float) -> Tensor:
        a = self.operators[code]
        found = torch.zeros(WIDTH, len(a), dtype=a.dtype)
        if code:
            best, _, live = best_map(a, sigma)
            found[:, live] = float(self.share.detach()) * best
        return found

    def squared_error(self, code: int, sigma: float) -> float:
        """Per real number of the image."""
        theta, c = self.table(code, sigma), covariance().to(torch.complex128)
        gap = theta @ self.operators[code] - torch.eye(WIDTH)
        error = gap @ c @ gap.mH + sigma**2 * theta @ theta.mH
        return float(error.diagonal().real.sum()) / WIDTH


def probabilities(corruption: ThinnedMasks) -> dict[int, float]:
    """Pr(a further mask), for the masks that count."""
    found = {}
    for kept in product([0, 1], repeat=WIDTH):
        k, code = sum(kept), sum(bit * 2**i for i, bit in enumerate(kept))
        if isinstance(corruption.law, RandomLines):  # two lines of four; both kept says nothing of the others
            found[code] = 0.0 if k == 2 else math.comb(2, k) * KEEP**k * (1 - KEEP) ** (2 - k) / math.comb(WIDTH, k)
        else:
            rate = KEEP * float(corruption.law.inclusion_probability((1, WIDTH)).mean())
            found[code] = rate**k * (1 - rate) ** (WIDTH - k)
        found[code] *= k <= 2 or not isinstance(corruption.law, RandomLines)
    return {code: value / sum(found.values()) for code, value in found.items()}


def expected(network: LinearNetwork, corruption: ThinnedMasks, sigma: float) -> float:
    return sum(p * network.squared_error(code, sigma) for code, p in probabilities(corruption).items())


@pytest.mark.parametrize(("noise_std", "share"), [(0.0, 0.6), (0.2, 1.0)])
@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_unbiased(case: str, noise_std: float, share: float) -> None:
    """For the optimal network and for one that is not, close to the noise of the data and far above it."""
    corruption, m = CASES[case][0], scans(case, noise_std)
    network = LinearNetwork(corruption, m, share)
    for sigma in (SIGMA, 2.0):
        streams = RowStreams("error", str(sigma), rows=range(COUNT))
        energy, counts = ambient_squared_error(network, m, corruption, torch.full((COUNT,), sigma), streams)
        exact, energy = expected(network, corruption, sigma), energy[counts].double()
        standard_error = float(energy.std()) / len(energy) ** 0.5
        assert abs(float(energy.mean()) - exact) < 4 * standard_error
        assert standard_error < 0.04 * exact, "few draws say nothing"


class Rows:
    """The rows of a measurement as a set of scans."""

    def __init__(self, m: Measurement) -> None:
        self.m = m

    def __len__(self) -> int:
        return len(self.m)

    def __getitem__(self, index: int) -> Measurement:
        return self.m[index]


def test_the_curve_of_the_optimal_network() -> None:
    corruption, m = CASES["three coils"][0], scans("three coils", 0.2)
    network = LinearNetwork(corruption, m)
    sigmas, errors = ambient_error_curve(network, Rows(m), corruption, levels=3, count=250)
    assert sigmas.tolist() == pytest.approx([0.24, (0.24 * 20) ** 0.5, 20.0], rel=1e-4)  # from 1.2 noise_std
    exact = [expected(network, corruption, float(sigma)) for sigma in sigmas]
    for sigma, error, truth in zip(sigmas, errors.tolist(), exact, strict=True):
        streams = RowStreams("spread", rows=range(COUNT))
        spread = ambient_squared_error(network, m, corruption, sigma.expand(COUNT), streams)[0].std()
        assert abs(error**2 - truth) < 4 * float(spread) / 250**0.5 < 0.7 * truth
    assert exact[-1] == pytest.approx(1.0, abs=0.01) and exact[0] > 0.3, "what is missing stays missing"


def test_what_cannot_be_judged_is_left_out() -> None:
    """A comb is known from one of its lines: nothing tells of the others. Fully sampled scans are another question."""
    corruption, m = CASES["one coil"][0], scans("one coil", 0.2)[:20]
    comb = Undersampling(EquispacedLines(2, 0), core=0, keep=(0.999, 0.999))  # one of its lines is kept
    combs = torch.cat([comb.law.draw((1, WIDTH), keyed_generator("comb", i)) for i in range(20)])
    combed = replace(m, y=m.y * combs, mask=combs)
    network = LinearNetwork(corruption, m)
    assert len(ambient_error_curve(network, Rows(m), corruption, levels=3)[0]) > 0
    for judge, rows in ((comb, combed), (corruption, replace(m, mask=torch.ones_like(m.mask)))):
        sigmas, errors = ambient_error_curve(network, Rows(rows), judge, levels=3)
        assert len(sigmas) == len(errors) == 0


def test_the_further_masks_of_a_sampler_have_no_cap() -> None:
    training = Undersampling(RandomLines(4, 4), keep=(0.2, 0.9), weight_cap=5.0)
    sampling = while_sampling(training)
    assert sampling is not None and sampling.keep == (0.5, 0.9) and sampling.weight_cap is None
    assert training.keep == (0.2, 0.9) and training.weight_cap == 5.0
    assert sampling.law is training.law
