"""This project's samplers against azula's and deepinv's: the same denoiser, operator, ladder, and two comparisons.

    PYTHONPATH=. CROSSCHECK/bin/python benchmarks/quality/crosscheck.py

CROSSCHECK is an environment of its own, made as crosscheck_requirements.txt says. A Gaussian world, whose denoiser has
a closed form: complex images, 4 coils, 4 of 12 lines, noise_std 0.05. Each sampler of ours is compared with the
library's twice: from the same noise, where equal equations give equal paths, and by the mean and the pixel-wise
standard deviation of independent samples, against what as many samples of one and the same sampler differ by
(permutation tests, at 1 % for all of them together).

Where two differ as they are, ours is given the library's rule by a subclass below, and compared again. With --prior,
paths are compared with a trained network on a phantom, too.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the test-bed is that of the tests

from ambient_mri.data.phantom import BrainPhantom  # noqa: E402
from ambient_mri.denoiser import CleanDenoiser, Denoiser  # noqa: E402
from ambient_mri.operators import sense  # noqa: E402
from ambient_mri.prior import load_prior  # noqa: E402
from ambient_mri.report.records import Row, write_records  # noqa: E402
from ambient_mri.sampling import DPS, MMPS, DiffPIR, Heun, Level, PiGDM, Problem, Sampler  # noqa: E402
from ambient_mri.sampling.base import LAM_FLOOR  # noqa: E402
from ambient_mri.sampling.guidance import value_and_vjp  # noqa: E402
from ambient_mri.tensors import complex_randn, keyed_generator  # noqa: E402
from benchmarks.quality import crosscheck_libraries as libraries  # noqa: E402
from benchmarks.quality.crosscheck_libraries import Case, azula, azula_run, deepinv_posterior  # noqa: E402
from benchmarks.quality.ledger import recorded_command  # noqa: E402
from tests.oracles import PosteriorScene, line_mask, smooth_coils  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
NOISE_STD, LINES, SIZE = 0.05, (2, 5, 6, 9), 12
# Of the permutation tests; the chance that any of them is wrong; relative difference of equal paths.
PERMUTATIONS, ALPHA, SAME_PATH = 10_000, 0.01, 1e-4
AS_IS = "nothing: as it is"
DEFINITIONS = {
    "nrmse": "quantity = path: ||ours - theirs|| / ||theirs|| of one sample from the same noise. mean: rms difference "
    "of the two sample means over the rms standard deviation. std: rms of the logarithm of the ratio of pixel-wise "
    "standard deviations. ci95 of the last two: 95 % quantile of the same quantity when samples are exchanged at "
    "random.",
}

Draw = Callable[[int, int], Tensor]  # (rows, seed) -> complex samples


class AlgorithmOnePiGDM(PiGDM):
    """Guidance with the weight r^2 and beside D, as in the paper's algorithm 1."""

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        denoised, vjp = value_and_vjp(problem, lambda x: problem.denoise(x, level.sigma), x_t)
        lam = problem.noise_std.square() * (level.sigma.pow(-2) + problem.denoiser.sd**-2)
        pulled = problem.data_step(problem.backprojection, denoised, lam, level.rtol)
        return self.move(problem, level, x_t, denoised) + vjp(pulled - denoised)


class ScoreDPS(DPS):
    """The gradient of the norm as a score, which the ancestral step multiplies by sigma^2 - sigma_next^2."""

    def _length(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        return self.zeta / 2 * (level.sigma.square() - level.sigma_next.square())


class AncestralDiffPIR(DiffPIR):
    """The share of fresh noise of the ancestral step: zeta = 1 - (sigma_next / sigma)^2."""

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        self.zeta = 1 - float((level.sigma_next[0] / level.sigma[0]).square())
        return super().step(problem, level, x_t)


class GivenLadderDiffPIR(DiffPIR):
    """A given ladder; the last state is returned as it is, times a factor."""

    levels: Tensor
    factor: float

    def ladder(self, denoiser: Denoiser, noise_std: float) -> Tensor:
        return self.levels

    def step(self, problem: Problem, level: Level, x_t: Tensor) -> Tensor:
        return self.factor * x_t if level.last else super().step(problem, level, x_t)


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        sampler: Ours.
        library: The library's, with its settings.
        given: What ours is given that it has not by itself.
        ours: Draws samples.
        theirs: Draws samples.
        why: Why the two differ, where they do.
        path: Whether one sample from the same noise can be compared.
    """

    sampler: str
    library: str
    given: str
    ours: Draw
    theirs: Draw
    why: str = ""
    path: bool = True


def our_draw(case: Case, sampler: Sampler, rows: int, seed: int) -> Tensor:
    """Samples of ours; a single row takes its noise from the stream that ``seed`` alone gives."""
    alone = [torch.Generator().manual_seed(seed)]
    generators = alone if rows == 1 else [keyed_generator("crosscheck", seed, i) for i in range(rows)]
    if isinstance(sampler, Heun):
        return sampler.draw(case.denoiser, case.image, generators, dtype=torch.complex128).x
    return sampler.sample(case.denoiser, case.operator, case.y, case.noise_std, generators=generators).x


def checks(case: Case, steps: int) -> Iterator[Check]:
    """Every comparison; the reasons are given with those that differ."""
    yield from _moment_matching(case, steps)
    yield from _pseudoinverse(case, steps)
    yield from _posterior_sampling(case, steps)
    yield from _half_quadratic(case, steps)
    yield _unconditional(case, steps)


def _schedule(case: Case, sampler: Sampler, **options: Any) -> libraries.LadderSchedule:
    return libraries.LadderSchedule(_levels(case, sampler), **options)


def _levels(case: Case, sampler: Sampler) -> Tensor:
    return torch.cat([sampler.ladder(case.denoiser, case.noise_std), torch.zeros(1)])


def _ours(case: Case, sampler: Sampler) -> Draw:
    return functools.partial(our_draw, case, sampler)


def _moment_matching(case: Case, steps: int) -> Iterator[Check]:
    def azula_mmps(eta: float, rows: int, seed: int) -> Tensor:
        plain = libraries.azula_denoiser(case, _schedule(case, MMPS(steps)))
        noise = azula.linalg.covariance.IsotropicCovariance(case.noise_std**2)
        settings = {"solver": "cg", "iterations": libraries.ITERATIONS}
        guided = azula.guidance.MMPSDenoiser(plain, case.data(rows), case.forward, noise, **settings)
        return azula_run(case, azula.sample.DDIMSampler(guided, eta=eta, steps=steps, silent=True), rows, seed)

    def deepinv_mmps(rows: int, seed: int) -> Tensor:
        settings = {"cg_max_iter": libraries.ITERATIONS, "cg_tol": 1e-8}
        return deepinv_posterior(case, _levels(case, MMPS(steps)), "MomentMatchingDataFidelity", rows, seed, **settings)

    def mmps(eta: float) -> Draw:
        return _ours(case, MMPS(steps, eta=eta, iterations=25, data_step="exact"))

    name = "azula MMPSDenoiser, DDIMSampler(eta={})".format
    why = "azula's eta multiplies the variance of the fresh noise; the paper's (DDIM, equation 16) its deviation."
    solved = "systems solved to rounding"
    yield Check("mmps", name(1), solved, mmps(1.0), functools.partial(azula_mmps, 1.0))
    yield Check("mmps", name(0), f"{solved}, eta = 0", mmps(0.0), functools.partial(azula_mmps, 0.0))
    yield Check("mmps", name(0.5), f"{solved}, eta = 0.5", mmps(0.5), functools.partial(azula_mmps, 0.5), why)
    yield Check("mmps", name(0.5), f"{solved}, eta = sqrt(0.5)", mmps(0.5**0.5), functools.partial(azula_mmps, 0.5))
    yield Check("mmps", "deepinv MomentMatchingDataFidelity, DDPMSolver", solved, mmps(1.0), deepinv_mmps)


def _pseudoinverse(case: Case, steps: int) -> Iterator[Check]:
    def deepinv_pigdm(rows: int, seed: int) -> Tensor:
        settings = {"cg_max_iter": libraries.ITERATIONS, "cg_tol": 1e-8}
        return deepinv_posterior(case, _levels(case, PiGDM(steps)), "PiGDMDataFidelity", rows, seed, **settings)

    def azula_pgdm(rows: int, seed: int) -> Tensor:
        plain = libraries.azula_denoiser(case, _schedule(case, PiGDM(steps)))
        inverse = libraries.regularised_inverse(case, case.operator)
        data = case.data(rows)
        sampler = azula.guidance.PGDMSampler(plain, data, case.forward, inverse, eta=1.0, steps=steps, silent=True)
        return azula_run(case, sampler, rows, seed)

    as_is = _ours(case, PiGDM(steps, data_step="exact"))
    why = "azula's follows the paper's algorithm 1 (weight r^2, beside D); ours and deepinv's the score, equation 7."
    yield Check("pigdm", "deepinv PiGDMDataFidelity, DDPMSolver", AS_IS, as_is, deepinv_pigdm)
    yield Check("pigdm", "azula PGDMSampler(eta=1)", AS_IS, as_is, azula_pgdm, why)
    given = _ours(case, AlgorithmOnePiGDM(steps, data_step="exact"))
    yield Check("pigdm", "azula PGDMSampler(eta=1)", "algorithm 1's weight and place", given, azula_pgdm)


def _posterior_sampling(case: Case, steps: int) -> Iterator[Check]:
    unit, zeta = 2 * case.denoiser.sd, 0.1 * steps / 1000 * math.sqrt(196608 / case.numbers)

    def azula_rows(rows: int, seed: int, *, together: bool = False) -> Tensor:
        if rows > 1 and not together:
            return torch.cat([azula_rows(1, 1000 * seed + i) for i in range(rows)])
        plain = libraries.azula_denoiser(case, _schedule(case, DPS(steps), unit=unit, preserving=True), unit)
        sampler = azula.guidance.DPSSampler(
            plain, case.data(rows, unit), case.forward, zeta=0.2, steps=steps, silent=True
        )
        return azula_run(case, sampler, rows, seed, unit)

    def deepinv_dps(rows: int, seed: int) -> Tensor:
        return deepinv_posterior(case, _levels(case, DPS(steps)), "DPSDataFidelity", rows, seed, weight=weight)

    weight = 20.0
    mapped = "zeta: theirs is 2 zeta sqrt(n/196608) 1000/steps"
    as_is, name = _ours(case, DPS(steps, zeta=zeta)), "azula DPSSampler, variance-preserving"
    norm = "azula takes one norm over the whole batch, so that a row's step is shorter the more rows there are."
    score = (
        "deepinv's is a score, and its step, weight (sigma^2 - sigma_next^2) along the gradient of the norm, changes "
        "with the level; the paper's step is constant."
    )
    yield Check("dps", f"{name}, row by row", mapped, as_is, azula_rows)
    together = functools.partial(azula_rows, together=True)
    yield Check("dps", f"{name}, all rows together", mapped, as_is, together, norm, path=False)
    yield Check("dps", "deepinv DPSDataFidelity, DDPMSolver", AS_IS, as_is, deepinv_dps, score)
    given = _ours(case, ScoreDPS(steps, zeta=weight / case.denoiser.sd))
    yield Check("dps", "deepinv DPSDataFidelity, DDPMSolver", "its step", given, deepinv_dps)


def _half_quadratic(case: Case, steps: int) -> Iterator[Check]:
    def azula_diffpir(eta: float, rows: int, seed: int) -> Tensor:
        plain = libraries.azula_denoiser(case, _schedule(case, DiffPIR(steps)))
        settings = {"lmbda": 2.0, "solver": "cg", "iterations": libraries.MANY}
        guided = azula.guidance.DiffPIRDenoiser(plain, case.data(rows), case.forward, case.noise_std**2, **settings)
        return azula_run(case, azula.sample.DDIMSampler(guided, eta=eta, steps=steps, silent=True), rows, seed)

    def deepinv_diffpir(floor: float, rows: int, seed: int) -> Tensor:
        return libraries.deepinv_diffpir(case, steps, 4.0, rows, seed, floor=floor)[0]

    exact: dict[str, Any] = {"data_step": "exact"}
    name, theirs = "azula DiffPIRDenoiser, DDIMSampler(eta={})".format, "deepinv DiffPIR(lambda_=4, zeta=0.3)"
    why = "azula's fresh noise is the ancestral share, 1 - (sigma_next/sigma)^2; the paper's zeta is a constant."
    again = (
        "deepinv halves the misfit and holds sigma for images in [-1, 1], noise_std for [0, 1]: its lambda is twice "
        "ours; it has its own ladder, no least rho, stops its solver early where rho is small, and returns the state "
        "before the last denoising."
    )
    deterministic = _ours(case, DiffPIR(steps, lam=2.0, zeta=0.0, **exact))
    yield Check("diffpir", name(0), "zeta = 0", deterministic, functools.partial(azula_diffpir, 0.0))
    as_is = _ours(case, DiffPIR(steps, lam=2.0, zeta=0.3, **exact))
    yield Check("diffpir", name(1), AS_IS, as_is, functools.partial(azula_diffpir, 1.0), why)
    ancestral = _ours(case, AncestralDiffPIR(steps, lam=2.0, **exact))
    yield Check("diffpir", name(1), "its share of fresh noise", ancestral, functools.partial(azula_diffpir, 1.0))
    lambda4 = _ours(case, DiffPIR(steps, lam=4.0, **exact))
    yield Check("diffpir", theirs, "lambda = 4", lambda4, functools.partial(deepinv_diffpir, 0.0), again)
    given = GivenLadderDiffPIR(steps, lam=2.0, zeta=0.3, sigma_max=1e9, **exact)
    _, given.levels, given.factor = libraries.deepinv_diffpir(case, steps, 4.0, 1, 0)
    bounded, same = f"{theirs}, solved directly, rho at least {LAM_FLOOR:g}", "lambda = 2, its ladder and its end"
    yield Check("diffpir", bounded, same, _ours(case, given), functools.partial(deepinv_diffpir, LAM_FLOOR))


def _unconditional(case: Case, steps: int) -> Check:
    sampler = Heun(steps, sigma_max=10 * case.denoiser.sd, sigma_min=0.01 * case.denoiser.sd)
    levels = sampler.ladder(case.denoiser, 0.0)

    def azula_heun(rows: int, seed: int) -> Tensor:
        plain = libraries.azula_denoiser(case, libraries.LadderSchedule(levels))
        x = azula_run(case, azula.sample.HeunSampler(plain, steps=steps - 1, silent=True), rows, seed)
        return libraries.to_complex(case.denoise(libraries.to_real(x), levels[-1]), case.image)

    return Check("heun", "azula HeunSampler, then D", AS_IS, _ours(case, sampler), azula_heun)


def distances(ours: Tensor, theirs: Tensor) -> dict[str, tuple[float, float, float]]:
    """(distance, its 95 % quantile and the share above it when samples are exchanged at random) of mean and std."""
    pooled = torch.cat([ours, theirs]).flatten(1)
    pooled = pooled - pooled.mean(0)
    count = len(ours)
    order = torch.rand(PERMUTATIONS, 2 * count, generator=keyed_generator("permutations")).argsort(dim=1)
    signs = torch.cat([torch.arange(2 * count)[None], order]) < count  # the first row: as they are
    first = signs.to(pooled.real.dtype) / count
    second = (~signs).to(pooled.real.dtype) / count
    means = [w.to(pooled.dtype) @ pooled for w in (first, second)]
    power = pooled.abs().square()
    spread = [w @ power - m.abs().square() for w, m in zip((first, second), means, strict=True)]
    scale = power.mean()
    found = {
        "mean": ((means[0] - means[1]).abs().square().mean(1) / scale).sqrt(),
        "std": (0.5 * (spread[0] / spread[1]).log()).square().mean(1).sqrt(),
    }
    return {
        name: (float(v[0]), float(v[1:].quantile(0.95)), float((v[1:] >= v[0]).double().mean()))
        for name, v in found.items()
    }


def measure(case: Case, check: Check, samples: int, world: str, alpha: float = ALPHA) -> list[Row]:
    """The rows of one comparison, tested at ``alpha``; without ``samples``, its path alone."""
    rows: list[Row] = []
    verdict = "same path"
    shared: Row = {"case": check.library, "method": f"{world}/{check.sampler}/sample", "given": check.given}
    if check.path:
        ours, theirs = check.ours(1, 7), check.theirs(1, 7)
        value = float((ours - theirs).norm() / theirs.norm())
        verdict = "same path" if value < SAME_PATH else "differs"
        rows.append({**shared, "metric": "nrmse", "quantity": "path", "value": value, "n": 1, "ci95": None})
    if samples:
        found = distances(check.ours(samples, 1), check.theirs(samples, 2))
        apart = any(share < alpha for _, _, share in found.values())
        verdict = "differs" if apart else ("equal" if verdict == "same path" else verdict)
        for quantity, (value, bound, _) in found.items():
            measured = {"quantity": quantity, "value": value, "n": samples, "ci95": bound}
            rows.append({**shared, "metric": "nrmse", **measured})
    sys.stderr.write(f"{world} {check.sampler} | {check.library} | {check.given}: {verdict}\n")
    return [{**row, "verdict": verdict, "why": check.why} for row in rows]


def gaussian_case() -> Case:
    """The world with a closed form."""
    scene = PosteriorScene.make(SIZE, NOISE_STD, lines=LINES, truths=1)
    return Case(scene.world.denoiser(), scene.operator, scene.y, NOISE_STD, (1, SIZE, SIZE))


def network_case(name: str, size: int = 64) -> Case:
    """A phantom under SENSE, and a trained network in single precision."""
    model = load_prior(name).model
    if not isinstance(model, CleanDenoiser):
        raise SystemExit(f"{name} is no clean prior")
    model.precision = "fp32"
    image = torch.as_tensor(BrainPhantom(size, seed=3).volume(0, 3)[1]).reshape(1, 1, size, size).to(torch.complex128)
    operator = sense(smooth_coils(4, size, size), line_mask(size, (*range(1, size, 4), 31, 32)))
    y = operator.forward(image)
    noise = complex_randn(y.shape, generator=keyed_generator("noise"), dtype=y.dtype) * (y != 0)
    return Case(model.requires_grad_(False), operator, y + NOISE_STD * noise, NOISE_STD, (1, size, size))


def table(rows: list[Row]) -> str:
    """One line a comparison, and the reasons below."""
    lines = [
        "| prior/sampler | library | ours is given | same noise | means | standard deviations | verdict |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    reasons: list[str] = []
    for key in dict.fromkeys((row["method"], row["case"], row["given"]) for row in rows):
        found = {row["quantity"]: row for row in rows if (row["method"], row["case"], row["given"]) == key}
        path = f"{found['path']['value']:.0e}" if "path" in found else ""
        cells = [f"{found[q]['value']:.3f} ({found[q]['ci95']:.3f})" if q in found else "" for q in ("mean", "std")]
        any_row = next(iter(found.values()))
        verdict, why = any_row["verdict"], any_row["why"]
        if verdict == "differs" and why:
            reasons.append(why)
            verdict += f" [{len(reasons)}]"
        lines.append(
            f"| {key[0].rpartition('/')[0]} | {key[1]} | {key[2]} | {path} | {cells[0]} | {cells[1]} | {verdict} |"
        )
    notes = [
        "Same noise: \\|\\|ours - theirs\\|\\| / \\|\\|theirs\\|\\| of one sample. Means: rms difference over "
        "the rms standard deviation of the samples. Standard deviations: rms of the logarithm of their ratio. In "
        "brackets: what 95 % of random exchanges of samples between the two sides stay below.",
        f"same path: within {SAME_PATH:.0e} from the same noise. equal: that, and equal within Monte-Carlo error "
        f"(permutation tests, at {ALPHA:.0%} for all of them together). differs: one of the two is not.",
    ]
    return "\n".join(
        [*lines, "", *(f"- {note}" for note in notes), *(f"- [{i}] {w}" for i, w in enumerate(reasons, 1))]
    )


def main(arguments: list[str] | None = None) -> None:
    """Make all comparisons; write the record and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prior", help="name or folder of a clean prior, for paths with a network")
    parser.add_argument("--network-steps", type=int, default=6)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    command = recorded_command("benchmarks/quality/crosscheck.py", sys.argv[1:] if arguments is None else arguments)
    case = gaussian_case()
    compared = list(checks(case, options.steps))
    alpha = ALPHA / (2 * len(compared))
    rows = [row for check in compared for row in measure(case, check, options.samples, "gaussian", alpha)]
    if options.prior:
        case, label = network_case(options.prior), Path(options.prior).name.lower()
        chosen = [c for c in checks(case, options.network_steps) if c.path and c.sampler not in ("mmps", "heun")]
        rows += [row for check in chosen for row in measure(case, check, 0, label)]
    settings = {name: getattr(options, name) for name in ("samples", "steps", "prior", "network_steps")}
    settings |= {"size": SIZE, "lines": list(LINES), "coils": 4, "noise_std": NOISE_STD}
    settings |= {"libraries": {name: version(name) for name in ("azula", "deepinv", "torchvision")}}
    write_records(options.out / "crosscheck.json", "crosscheck", command, settings, definitions=DEFINITIONS, rows=rows)
    text = table(rows)
    (options.out / "crosscheck.md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
