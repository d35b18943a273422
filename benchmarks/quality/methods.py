"""Ways to reconstruct a case: baselines at the weight that is best for it, priors as a user runs them, A-DPS tuned.

Every way gives :class:`Estimate`: an image with the name that it has in the record. Our reconstructions have no setting
that differs between cases; a baseline's weight is chosen with the reference in hand, a generous opponent.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_mri import baselines, metrics
from ambient_mri.measurement import Measurement
from ambient_mri.prior import Prior
from ambient_mri.reconstruct import Reconstruction, ReconstructionWarning, reconstruct
from ambient_mri.report.records import BASELINES
from ambient_mri.sampling import Sampler, make_sampler
from benchmarks.quality.cases import ACS, Case, measure, noise_of, score
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.prior_evaluation import ADPS_SAMPLES, ADPS_WEIGHTS, HeldOut, adps_weight, methods_of


@dataclass
class Estimate:
    """An image and how it was made.

    Attributes:
        method: Its name in the record.
        image: (H, W) magnitude.
        seconds: Wall clock.
        factors: Further factors of its rows, such as the number of steps.
        found: Further metrics of the whole image: name to value.
        inside: Further metrics inside the support: name to value.
        std: (H, W) standard deviation of the magnitude as the user gets it, where there is one.
    """

    method: str
    image: np.ndarray
    seconds: float
    factors: dict[str, Any] = field(default_factory=dict)
    found: dict[str, float] = field(default_factory=dict)
    inside: dict[str, float | None] = field(default_factory=dict)
    std: np.ndarray | None = None


@dataclass(frozen=True)
class Unit:
    """A run that makes one or several estimates of a case.

    Attributes:
        methods: The names that it makes.
        run: From a case to them.
        valid: The cases that it is run on.
    """

    methods: tuple[str, ...]
    run: Callable[[Case], list[Estimate]]
    valid: Callable[[Case], bool] = lambda case: True


def zero_filled(case: Case) -> list[Estimate]:
    """|A^H y|."""
    m = measure(case)
    start = time.perf_counter()
    image = baselines.zero_filled(m)[0, 0].abs().numpy()
    return [Estimate("zero_filled", image, time.perf_counter() - start)]


def best_of_grid(case: Case, m: Measurement, method: str) -> tuple[np.ndarray, float, float]:
    """The baseline at its best regularisation, judged by PSNR against the reference; seconds are those of one run."""
    best: tuple[float, np.ndarray, float, float] | None = None
    for weight in baselines.default_lambda_grid(method):
        start = time.perf_counter()
        image = solve(m, method, weight)[0, 0].abs().numpy()
        seconds = time.perf_counter() - start
        quality = score(case, image)["psnr"]
        if best is None or quality > best[0]:
            best = (quality, image, weight, seconds)
    if best is None:
        raise SystemExit(f"{method} has no grid of weights")
    return best[1], best[2], best[3]


def solve(m: Measurement, method: str, weight: float) -> Tensor:
    """A baseline at a weight of :func:`~ambient_mri.baselines.default_lambda_grid`, (1, 1, H, W)."""
    solvers: dict[str, Callable[..., Tensor]] = {
        "cg_sense": baselines.cg_sense,
        "l1_wavelet": baselines.l1_wavelet,
        "total_variation": baselines.total_variation,
        "bart_l1_wavelet": lambda m, lam: baselines.bart_pics(m, "wavelet", lam),
        "bart_total_variation": lambda m, lam: baselines.bart_pics(m, "tv", lam),
    }
    relative = method.startswith("bart") or method == "cg_sense"
    return solvers[method](m, weight if relative else weight * float(baselines.zero_filled(m).abs().max()))


def available_baselines() -> list[str]:
    """The baselines that can run here, BART's where the program is installed."""
    from shutil import which

    bart = ["bart_l1_wavelet", "bart_total_variation"] if which("bart") else []
    return ["cg_sense", "l1_wavelet", "total_variation", *bart]


def baseline_unit(method: str) -> Unit:
    """A baseline at its best weight."""

    def run(case: Case) -> list[Estimate]:
        image, weight, seconds = best_of_grid(case, measure(case), method)
        return [Estimate(method, image, seconds, {"regularisation": weight})]

    return Unit((method,), run)


def ours(
    case: Case, prior: Prior, sampler: str | Sampler, samples: int, steps: int | None, **options: Any
) -> tuple[Reconstruction, float]:
    """The reconstruction as a user makes it, and its seconds; further options are those of ``reconstruct``."""
    start = time.perf_counter()
    with warnings.catch_warnings():  # few ACS lines are what is measured here
        warnings.simplefilter("ignore", ReconstructionWarning)
        rec = reconstruct(
            case.undersampled,
            mask=case.mask,
            prior=prior,
            sampler=sampler,
            samples=samples,
            steps=steps,
            progress=False,
            **options,
        )
    return rec, time.perf_counter() - start


def one_step_unit(name: str, prior: Prior) -> Unit:
    """One step of an ambient network, or a feed-forward network: ``ssdu`` and ``ssdu_weighted`` keep their names."""
    method = name if name in BASELINES else f"{name}/one_step/point"

    def run(case: Case) -> list[Estimate]:
        rec, seconds = ours(case, prior, "one_step", 1, None)
        return [Estimate(method, np.abs(rec.mean[0]), seconds)]

    return Unit((method,), run)


def samples_unit(name: str, prior: Prior, samples: int, steps: int, **options: Any) -> Unit:
    """Split Gibbs, ``options`` its own: the mean of the samples, and the first of them."""
    mean, single = f"{name}/split_gibbs/mean{samples}", f"{name}/split_gibbs/sample"

    def run(case: Case) -> list[Estimate]:
        rec, seconds = ours(case, prior, make_sampler("split_gibbs", steps=steps, **options), samples, None)
        std = None if rec.magnitude_std is None else rec.magnitude_std[0]
        chi2 = {"chi2_residual": float(rec.residual[0])}
        first = Estimate(mean, np.abs(rec.mean[0]), seconds, {"nfe": steps}, chi2, honesty(case, rec), std)
        return [first, Estimate(single, np.abs(rec.samples[0, 0]), seconds / samples, {"nfe": steps})]

    return Unit((mean, single), run)


def dds_unit(name: str, prior: Prior, steps: int) -> Unit:
    """DDS, one run."""

    def run(case: Case) -> list[Estimate]:
        rec, seconds = ours(case, prior, "dds", 1, steps)
        return [Estimate(f"{name}/dds/point", np.abs(rec.mean[0]), seconds, {"nfe": steps})]

    return Unit((f"{name}/dds/point",), run)


def honesty(case: Case, rec: Reconstruction) -> dict[str, float | None]:
    """Coverage (32 samples and more) and variance ratio inside the support, the reference's own noise counted."""
    samples = np.abs(rec.samples[0])
    if len(samples) < metrics.MINIMUM_COVERAGE_SAMPLES:
        return {}
    factor, noise = metrics.fit_scale(np.abs(rec.mean[0]), case.reference), reference_noise(case)
    arguments = (factor * samples, case.reference)
    ratio = metrics.variance_ratio(*arguments, noise, support=case.support)
    covered = metrics.coverage(*arguments, 0.9, noise, support=case.support)
    return {"coverage90": covered, "variance_ratio": ratio if np.isfinite(ratio) else None}


def reference_noise(case: Case) -> float:
    """Noise of the reference that the reconstruction does not share: it knows the noise of the sampled 1 / R."""
    unshared = 1 - np.broadcast_to(case.mask, case.reference.shape).mean()
    level = case.reference_noise_std
    if level is None:
        level = noise_of(case.kspace, np.ones(case.kspace.shape[-1], dtype=bool))
    return level * float(np.sqrt(unshared))


def adps_unit(
    name: str, prior: Prior, steps: int, tuning: Sequence[Case], chosen: Sequence[Case], book: Ledger
) -> Unit:
    """A-DPS as published on the ``chosen`` cases; its step is chosen for each R on the ``tuning`` scans.

    The choice is kept in the record, and not made again.
    """
    mean, single = f"{name}/adps/mean{ADPS_SAMPLES}", f"{name}/adps/sample"
    scored = {tuple(case.factors.items()) for case in chosen}

    def run(case: Case) -> list[Estimate]:
        m = measure(case)
        sampler, keep = _tuned_adps(
            name, prior, steps, [c for c in tuning if c.acceleration == case.acceleration], m, book
        )
        start = time.perf_counter()
        drawn = methods_of(name, prior, samples=0, steps=0, adps={"adps": (sampler, keep)})[mean](m)
        seconds = time.perf_counter() - start
        factors = {"nfe": steps, "regularisation": vars(sampler)["likelihood_weight"]}
        first = Estimate(mean, drawn.mean(dim=0).abs().numpy(), seconds, factors)
        return [first, Estimate(single, drawn[0].abs().numpy(), seconds / len(drawn), factors)]

    return Unit((mean, single), run, lambda case: case.law == "random" and tuple(case.factors.items()) in scored)


def _tuned_adps(
    name: str, prior: Prior, steps: int, tuning: Sequence[Case], m: Measurement, book: Ledger
) -> tuple[Sampler, float]:
    """A-DPS at its best step l, and the share of outer lines that its further mask keeps."""
    key = f"{name}, R = {tuning[0].acceleration}, {steps} steps"
    known = book.recalled("adps", key)
    if known is None:
        truths = [(held, torch.from_numpy(c.reference) / held.scale) for c in tuning for held in [measure(c)]]
        cases = HeldOut(scored=[(m, truths[0][1])], tuning=truths, acs_lines=ACS.get(tuning[0].acceleration, 8))
        sampler, keep = adps_weight(prior, cases, name="adps", steps=steps)
        known = {"likelihood_weight": vars(sampler)["likelihood_weight"], "keep": keep, "of": list(ADPS_WEIGHTS)}
        book.remember("adps", key, {**known, "tuned_on": [c.name for c in tuning]})
    return make_sampler("adps", steps=steps, likelihood_weight=known["likelihood_weight"]), known["keep"]
