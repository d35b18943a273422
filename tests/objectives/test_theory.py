"""Why the ambient objective is what it is: in a Gaussian world, what it leaves out or changes must fail, and does.

scoring under A_tilde          leaves what A_tilde does not see undetermined
a further mask that is fixed   tells which lines were not sampled: they are never a target
a further mask for each scan   is right on average over infinitely many scans, and learns less from few
no weights                     changes the solution of every model that shares parameters among masks
sigma = noise_std              the lines that B removed are predicted optimally; those that it kept, by no one
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ambient_mri.corruption import Further, Undersampling
from ambient_mri.masks import IndependentLines
from ambient_mri.measurement import Measurement
from ambient_mri.objectives import AmbientObjective
from ambient_mri.operators.base import LinearOperator
from ambient_mri.tensors import RowGenerators, RowStreams
from tests.objectives.gaussian import (
    CASES,
    SIGMA,
    WIDTH,
    LinearTable,
    MemoisedDraws,
    best_map,
    code_of,
    covariance,
    dense,
    excess_error,
    fit,
    objective_of,
    world,
)

# Every line of the plane, seen by the coil: unitary, as one coil of modulus one is.
ALL_LINES = torch.ones(1, 1, 1, WIDTH, dtype=torch.bool)

Residual = tuple[Tensor, Tensor, Tensor]


class ScoredUnderTheFurtherMask(AmbientObjective):
    """The loss looks at what the network saw, and nowhere else."""

    def _residual(self, z: Tensor, batch: Measurement, further: Further, *args: Tensor) -> Residual:
        gain, target, weights = super()._residual(z, batch, further, *args)
        return gain, target, weights * further.kept


class FixedFurtherMask(Undersampling):
    """The same B for all scans and steps."""

    lines: tuple[int, ...] = (0, 1)

    def further(self, m: Measurement, generators: RowGenerators) -> Further:
        kept = torch.zeros_like(m.mask)
        kept[..., list(self.lines)] = True
        kept = kept & m.mask
        return replace(
            super().further(m, generators), operator=self._operator(m, kept), kept=kept, weights=m.mask.float()
        )


class FrozenFurtherMask(Undersampling):
    """One B for each scan, a function of its key."""

    def further(self, m: Measurement, generators: RowGenerators) -> Further:
        rows = range(int(m.key[0]), int(m.key[0]) + len(m))
        return super().further(m, RowStreams("frozen", rows=rows))


def test_scoring_under_the_further_mask_leaves_the_rest_undetermined(draws: MemoisedDraws) -> None:
    """Any answer outside the lines that were kept has the same loss, and training ends where it began there."""
    corruption, coils = CASES["one coil"]
    m, _ = world(corruption, coils, 0.0)
    wrong = ScoredUnderTheFurtherMask(corruption, objective_of(corruption).noise, one_step_share=0.0)
    encode = dense(corruption, m, ALL_LINES)
    model, moved = LinearTable(coils), LinearTable(coils)
    with torch.no_grad():
        for table in (model, moved):
            table.theta.normal_(generator=torch.Generator().manual_seed(0))
        matrix = torch.view_as_complex(moved.theta)
        for code in range(2**WIDTH):
            unseen = [j for j in range(WIDTH) if not code >> j & 1]
            step = encode[unseen].mH @ torch.ones(len(unseen), WIDTH, dtype=torch.complex128)
            matrix[code] += 3.0 * step.to(matrix.dtype)
    loss = lambda f, table: float(f(table, m, RowStreams("loss", rows=range(len(m)))).value.detach())  # noqa: E731
    assert loss(wrong, moved) == pytest.approx(loss(wrong, model), rel=1e-4)
    assert loss(objective_of(corruption), moved) > 2 * loss(objective_of(corruption), model)
    assert excess_error(fit(wrong, m, LinearTable(coils), draws), corruption, m) > 0.3


def test_a_fixed_further_mask_leaves_its_own_lines_without_supervision(draws: MemoisedDraws) -> None:
    """A line that B would have kept, and that is not among the kept ones, was surely not sampled: E[A^H A | A_tilde]
    is singular there, however many scans there are. A B that is drawn leaves it open.
    """
    law = IndependentLines(1.6, 0)
    fixed, fresh = (kind(law, core=0, keep=(0.6, 0.6)) for kind in (FixedFurtherMask, Undersampling))
    m, _ = world(fresh, 1, 0.0)
    found = fit(objective_of(fixed), m, LinearTable(1), draws)
    theta = torch.view_as_complex(found.theta.detach()).to(torch.complex128)
    encode = dense(fresh, m, ALL_LINES)
    for code, missing in ((0b01, 1), (0b10, 0)):  # one of lines 0 and 1 was sampled, the other was not
        kept = torch.tensor([bool(code >> j & 1) for j in range(WIDTH)]).reshape(1, 1, 1, WIDTH)
        best, _, live = best_map(dense(fresh, m, kept), SIGMA)
        answer, right = encode @ theta[code][:, live], encode @ best
        assert float(answer[missing].abs().max()) < 1e-4, "nothing ever pulled it from zero"
        assert float(right[missing].abs().max()) > 0.2
        assert float((answer[2:] - right[2:]).abs().max()) < 0.1, "lines that B never keeps are learned"


def test_frozen_further_masks_learn_less_from_the_same_scans(draws: MemoisedDraws) -> None:
    """With one B a scan, the few scans there are show few pairs of input and target; fresh ones show them all."""
    law, few = IndependentLines(1.6, 0), 120
    settings = {"core": 0, "keep": (0.6, 0.6)}
    fresh, frozen = Undersampling(law, **settings), FrozenFurtherMask(law, **settings)
    m, _ = world(fresh, 1, 0.0)
    errors = {
        name: excess_error(fit(objective_of(c), m[:few], LinearTable(1), draws, repeats=16, iterations=40), fresh, m)
        for name, c in (("fresh", fresh), ("frozen", frozen))
    }
    assert errors["frozen"] > 1.3 * errors["fresh"]
    # Many scans make up for it: with a mask of its own for each, the population is the same.
    assert excess_error(fit(objective_of(frozen), m, LinearTable(1), draws), fresh, m) < 0.12


# --- a model that shares its parameters among all masks --------------------------------------------------------------


class SharedMap(nn.Module):
    """x_hat = E^H Theta z, E the unitary encoding, with one Theta for all further masks: too few parameters to be right
    for each.
    """

    sd = 1.0

    def __init__(self, encode: Tensor) -> None:
        super().__init__()
        self.encode = encode
        self.theta = nn.Parameter(torch.zeros(WIDTH, WIDTH, 2))

    def forward(self, z: Tensor, sigma: Tensor, operator: LinearOperator, kept: Tensor) -> Tensor:
        lines = z.flatten(1) @ torch.view_as_complex(self.theta).T
        return (lines @ self.encode.conj().to(z.dtype)).reshape(-1, 1, 1, WIDTH)

    def loss_weight(self, sigma: Tensor, rate: Tensor) -> Tensor:
        return torch.ones_like(sigma)


class Unweighted(AmbientObjective):
    """Every sampled line counts once."""

    def _residual(self, z: Tensor, batch: Measurement, further: Further, *args: Tensor) -> Residual:
        return super()._residual(z, batch, replace(further, weights=batch.mask.float()), *args)


def shared_solution(c: Tensor, p: float, q: float, *, own: float) -> Tensor:
    """The best Theta in closed form for lines of covariance ``c``, sampled with p and kept with q.

    ``own`` is Pr(line j is scored | what was kept elsewhere): 1 in the supervised loss, p without weights.
    Line j of the residual is scored where it was kept (with pq) or, with probability own - pq, where it was not.
    """
    rate, theta = p * q, torch.zeros(WIDTH, WIDTH, dtype=torch.complex128)
    for j in range(WIDTH):
        with_line = torch.full((WIDTH,), rate * own, dtype=torch.float64)  # E[w_j b_k]
        with_line[j] = rate
        pairs = rate * with_line[:, None].expand(WIDTH, WIDTH).clone()  # E[w_j b_k b_l]
        pairs[j], pairs[:, j] = rate * rate, rate * rate
        pairs.diagonal().copy_(with_line)
        gram = pairs * c + torch.diag(with_line * SIGMA**2)
        theta[j] = torch.linalg.solve(gram.T, with_line * c[j])
    return theta


def supervised_error(theta: Tensor, c: Tensor, p: float, q: float) -> float:
    """E||E x0 - Theta z||^2 / E||x0||^2, over all masks."""
    rate = p * q
    pairs = torch.full((WIDTH, WIDTH), rate * rate, dtype=torch.float64)
    pairs.diagonal().fill_(rate)
    gram = pairs * c + rate * SIGMA**2 * torch.eye(WIDTH)
    error = c - 2 * rate * theta @ c + theta @ gram @ theta.mH
    return float(error.diagonal().real.sum() / c.diagonal().real.sum())


def test_weights_make_a_shared_model_solve_the_supervised_problem(draws: MemoisedDraws) -> None:
    """With a map for each mask, weights change the variance alone. With one map for all they decide what it is: with
    them the best for complete images, without them one that copies its input and underrates what is missing.
    """
    q = 0.6
    corruption = Undersampling(IndependentLines(4.0, 0), core=0, keep=(q, q))
    p = float(corruption.law.inclusion_probability((1, WIDTH)).flatten()[0])
    m, _ = world(corruption, 1, 0.0)
    noise, encode = objective_of(corruption).noise, dense(corruption, m, ALL_LINES)
    c = encode @ covariance().to(torch.complex128) @ encode.mH
    found = {}
    for name, kind in (("weighted", AmbientObjective), ("unweighted", Unweighted)):
        model = fit(kind(corruption, noise, one_step_share=0.0), m, SharedMap(encode), draws, repeats=4)
        found[name] = torch.view_as_complex(model.theta.detach()).to(torch.complex128)
    supervised, without = shared_solution(c, p, q, own=1.0), shared_solution(c, p, q, own=p)
    best, worse = supervised_error(supervised, c, p, q), supervised_error(without, c, p, q)
    assert supervised_error(found["weighted"], c, p, q) < best + 0.2 * (worse - best)
    assert supervised_error(found["unweighted"], c, p, q) > best + 0.8 * (worse - best)
    assert float((found["unweighted"] - without).norm()) < 0.3 * float((without - supervised).norm())
    assert float((found["weighted"] - supervised).norm()) < 0.5 * float((without - supervised).norm())


# --- noisy measurements ----------------------------------------------------------------------------------------------


def test_at_the_noise_of_the_data_the_removed_lines_are_predicted_optimally(draws: MemoisedDraws) -> None:
    """sigma = noise_std, z = B y: E[line | z] where B removed a line; no gradient at all where it kept one."""
    corruption, noise_std = CASES["one coil"][0], 0.3
    m, _ = world(corruption, 1, noise_std)
    encode = dense(corruption, m, ALL_LINES)
    objective = AmbientObjective(corruption, one_step_share=1 - 1e-9)
    found = fit(objective, m, LinearTable(1), draws, repeats=4)
    theta = torch.view_as_complex(found.theta.detach()).to(torch.complex128)
    for code in (0b0010, 0b0110, 0b1011):
        kept = torch.tensor([bool(code >> j & 1) for j in range(WIDTH)]).reshape(1, 1, 1, WIDTH)
        assert int(code_of(kept)) == code
        best, gram, live = best_map(dense(corruption, m, kept), noise_std)
        answer, right = encode @ theta[code][:, live], encode @ best
        gap = (answer - right)[~live]
        error = (gap @ gram @ gap.mH).diagonal().real.sum() / covariance().diagonal().real.sum()
        assert float(error) ** 0.5 < 0.12
        assert float((right[~live] @ gram @ right[~live].mH).diagonal().real.sum()) > 0.1
        assert float(answer[live].abs().max()) < 1e-4
