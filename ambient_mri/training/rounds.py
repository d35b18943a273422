r"""Expectation-maximisation, round after round: ``python -m ambient_mri.train objective=em init=RUN em.rounds=2``.

    round k     E-step   x_i ~ p_(k-1)(x | y_i)           of every training scan (of an ambient network: one step)
                M-step   p_k: the EDM denoising objective on these images, from the weights of p_(k-1)
                assess   round_k.json, round_k.png        reference-free quantities on held-out scans

A sample carries what the present prior takes for image, the noise that it learned with the scans included, and a round
removes that slowly: of white noise of the variance c s^2 that the data show with variance s^2, the next prior keeps
(c^2 + c (1 + c)) / (1 + c)^2. A network that has seen few images adds noise of its own where there should be none, and
the rounds keep that, too. ``em.average=3`` trains the last round on means of three posterior samples: a third of the
posterior variance is left, noise and structure alike; in every round, it would collapse. ``em.final=mean`` leaves out
the noise of the last, lowest level of every sample, about half that of the scan, and what scans cannot tell from it.

With exact steps E log q(y) never decreases; with approximate ones it is watched: the rounds end when the prior's
prediction of held-out data (k-space lines, pixels) no longer improves, and the prior that predicts best is the result.

run folder: config.yaml scans.json round_0.json (the prior that EM begins with) round_<k>.json round_<k>.png prior/
            round_<k>/: an ordinary run folder, and reconstructions/ with the images it was trained on

Every part is skipped where its files are there: an interrupted run loses a slice of an E-step or the steps of an M-step
since its last checkpoint.

Reference: Rozet et al. 2024, arXiv:2405.13712, algorithm 1. Differs: 1. begins with an ambient network's one-step
reconstructions, not with a Gaussian model; 2. the stop rule.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from ambient_mri._checks import AmbientMRIError, check_option, require
from ambient_mri.data.datasets import ImageDataset
from ambient_mri.prior import Prior, load_prior
from ambient_mri.report.plots import sample_sheet
from ambient_mri.sampling import make_sampler
from ambient_mri.sampling.base import Sampler
from ambient_mri.training.assess import Assessment, Settings, assess
from ambient_mri.training.draws import draw_of, draws_of_card, record_draws
from ambient_mri.training.em import FRESH_NOISE, METHODS, StepSettings, claim, settings_of
from ambient_mri.training.estep import by_method, by_prior
from ambient_mri.training.estimates import evenly_spaced
from ambient_mri.training.export import find_prior
from ambient_mri.training.natural import ImageFolder, ImageSplit
from ambient_mri.training.natural_em import assess_images, restoration
from ambient_mri.training.provenance import write_json
from ambient_mri.training.restored import made_by
from ambient_mri.training.run import IDENTITY, check_same_run, train, write_configuration
from ambient_mri.training.setup import (
    build,
    check_devices,
    check_numbers,
    image_split,
    record_scans,
    require_chain,
    scan_set,
)
from ambient_mri.training.shared_work import is_first, share
from ambient_mri.training.sources import ScanSet

__all__ = ["expectation_maximisation", "stop_reason"]

log = logging.getLogger(__name__)

# May change when a run goes on: more rounds than at first, another rule to stop.
_MAY_CHANGE = ("rounds", "min_improvement")


def expectation_maximisation(cfg: DictConfig) -> Path:
    """Run the rounds that are missing, and export the best prior.

    Args:
        cfg: The configuration, with ``em`` (``configs/objective/em.yaml``).

    Returns:
        The prior folder.

    Raises:
        AmbientMRIError: If there is nothing to begin with, or the folder holds another run.
    """
    run_dir = Path(cfg.run_dir or f"runs/{cfg.data.name}_em")
    check_option("em.first", cfg.em.first, ("prior", *METHODS))
    for name in ("rounds", "average"):
        require(cfg.em[name] >= 1, f"em.{name} must be at least 1; got {cfg.em[name]}.")
    require(
        cfg.em.first != "prior" or cfg.init is not None,
        "objective=em begins with a prior: give init=RUN, the run folder of an ambient network (objective=ambient).",
    )
    images = issubclass(get_class(cfg.data._target_), ImageFolder)
    require(
        not images or cfg.em.first == "prior",
        f"data={cfg.data.name} are images, and em.first={cfg.em.first} reconstructs k-space: choose em.first=prior.",
    )
    check_devices(cfg.trainer)
    check_numbers(cfg)
    _open(cfg, run_dir)
    scans = image_split(cfg) if images else scan_set(cfg, run_dir)
    if isinstance(scans, ScanSet):
        scans.require_names()
    require_chain(cfg, draw_of(scans.manifest), run_dir)
    first = find_prior(cfg.init) if cfg.em.first == "prior" else None
    require(
        cfg.em.average == 1 or cfg.em.rounds > 1 or (first is not None and load_prior(first).kind == "clean"),
        "em.average are posterior samples of a clean prior, and the first round has none: give em.rounds=2 or more.",
    )
    if first is not None:
        _assess(cfg, scans, load_prior(first, compile=cfg.training.compile), run_dir, 0)
    history: list[dict[str, Any]] = []
    previous = first
    for number in range(1, cfg.em.rounds + 1):
        folder = run_dir / f"round_{number}"
        if not (run_dir / f"round_{number}.json").is_file():
            _round(cfg, scans, previous, folder, number)
        history.append(json.loads((run_dir / f"round_{number}.json").read_text()))
        log.info("round %d: %s", number, _words(history[-1]))
        previous = folder / "prior"
        reason = stop_reason([h["held_out_error"] for h in history], cfg.em.min_improvement)
        if reason:
            log.info("stopped after round %d: %s", number, reason)
            break
    return _publish(history, run_dir)


def stop_reason(held_out_errors: Sequence[float], min_improvement: float | None) -> str:
    """Why the rounds should end, in words; empty to go on.

    Args:
        held_out_errors: Error on held-out data after each round so far.
        min_improvement: The least share by which a round is to improve it; None to go on in any case.
    """
    if min_improvement is None or len(held_out_errors) < 2:
        return ""
    before, now = held_out_errors[-2:]
    if now < before * (1 - min_improvement):
        return ""
    return f"the error on held-out data went from {before:.4f} to {now:.4f}, which is no improvement" + (
        f" by more than {min_improvement:g} of it" if min_improvement else ""
    )


def _open(cfg: DictConfig, run_dir: Path) -> None:
    """Check that the folder holds this run or none, and record the configuration."""
    check_same_run(run_dir, _comparable(cfg), (*IDENTITY, "em", "init"))
    begun = (run_dir / "config.yaml").is_file()
    known = f"{run_dir} holds a run already: choose another run_dir, or resume=true to go on with it."
    require(bool(cfg.resume) or not begun, known)
    averaged = [n for n in range(1, cfg.em.rounds) if "average" in made_by(run_dir / f"round_{n}" / "reconstructions")]
    last = (averaged or [0])[0]
    require(
        not averaged,
        f"round {last} of {run_dir} learned from means of posterior samples (em.average), which only the last round "
        f"may: its variance would go on falling. Leave em.rounds at {last}, or choose another run_dir.",
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    if is_first():
        write_configuration(cfg, run_dir / "config.yaml")


def _comparable(cfg: DictConfig) -> DictConfig:
    """The configuration without what may change when the run goes on."""
    found = _plain(cfg)
    for name in _MAY_CHANGE:
        found["em"].pop(name)
    return OmegaConf.create(found)


def _plain(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=True)


def _round(
    cfg: DictConfig, scans: ScanSet | ImageSplit, previous: str | Path | None, folder: Path, number: int
) -> None:
    images = folder / "reconstructions"
    images.mkdir(parents=True, exist_ok=True)
    prior = None if previous is None else load_prior(previous, compile=cfg.training.compile)
    _e_step(cfg, scans, prior, images, number)
    if is_first() and isinstance(scans, ScanSet):
        record_scans(scans.with_references(images.resolve()), folder)
    _wait()
    log.info("round %d: M-step, %d steps", number, cfg.trainer.max_steps)
    train(_m_step(cfg, folder, previous, prior, number))
    _assess(cfg, scans, load_prior(folder / "prior", compile=cfg.training.compile), folder.parent, number)


def _e_step(cfg: DictConfig, scans: ScanSet | ImageSplit, prior: Prior | None, images: Path, number: int) -> None:
    """Reconstructions of the training scans, and of some held-out ones for the M-step's own validation."""
    seed = cfg.seed + number
    batch_size = cfg.em.batch_size
    average = cfg.em.average if number == cfg.em.rounds and prior is not None and prior.kind == "clean" else 1
    files = [*scans.train, *scans.val[: cfg.em.assess.val_volumes]] if isinstance(scans, ScanSet) else []
    if prior is None:
        step = by_method(cfg.em.first, files, images, batch_size=batch_size)
        card: StepSettings = {"method": cfg.em.first}
    else:
        sampler = _sampler(cfg, prior, cfg.em.final)
        if isinstance(scans, ScanSet):
            step = by_prior(prior, sampler, seed, files, images, batch_size=batch_size, average=average)
        else:
            parts = scans.corrupted_parts(held_out=cfg.loader.val_items)
            step = restoration(prior, sampler, seed, parts, folder=images, batch_size=batch_size, average=average)
        card = settings_of(prior, sampler, seed, average)
    if is_first():
        claim(images, card)
        own = draw_of(scans.manifest)
        before = [] if prior is None else draws_of_card(prior.metadata)
        record_draws(images, before if own is None else [*before, own])
    what = f"{len(files)} volumes" if isinstance(scans, ScanSet) else f"{len(scans.images.train)} images"
    log.info("round %d: E-step by %s, %s", number, card["method"], what)
    settings = {**_plain(cfg.trainer), "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    share(step, build(settings))


def _sampler(cfg: DictConfig, prior: Prior, final: str = "sample") -> Sampler:
    """One step for an ambient network, else split Gibbs: samples, never means, or the variance would collapse."""
    if prior.kind != "clean":
        return make_sampler("one_step")
    start = None if cfg.em.start_sd is None else cfg.em.start_sd * prior.model.sd
    return make_sampler("split_gibbs", steps=cfg.em.steps, sigma_max=start, final=final, eta=FRESH_NOISE)


def _m_step(cfg: DictConfig, folder: Path, previous: str | Path | None, prior: Prior | None, number: int) -> DictConfig:
    """The configuration of an ordinary run on the reconstructions; the warm start keeps its preconditioning."""
    settings = _plain(cfg)
    settings["run_dir"] = str(folder)
    settings["seed"] = cfg.seed + number
    settings["data"]["references"] = str(folder / "reconstructions")
    settings["init"] = None if previous is None else str(previous)
    settings["em"]["round"] = number
    if prior is not None and settings["model"]["sd"] is None:
        settings["model"]["sd"] = prior.model.sd
    if prior is not None and settings["model"].get("covariance") == "measured":
        settings["model"]["covariance"] = prior.architecture.get("covariance")
    return OmegaConf.create(settings)


def _assess(cfg: DictConfig, scans: ScanSet | ImageSplit, prior: Prior, run_dir: Path, number: int) -> None:
    """Write ``round_<number>.json`` and its picture, in the first process; the others wait."""
    target = run_dir / f"round_{number}.json"
    if is_first() and not target.is_file():
        prior.to("cuda" if cfg.trainer.accelerator == "gpu" and torch.cuda.is_available() else "cpu")
        found = _held_out(cfg, scans, prior)
        title = f"held-out scans, round {number}"
        names = [found.columns[i % len(found.columns)] for i in range(len(found.pictures))]
        picture = target.with_suffix(".png")
        sample_sheet(found.pictures, picture, names=names, num_columns=len(found.columns), title=title)
        write_json(target, {"round": number, "prior": prior.name, **found.values})
    _wait()


def _held_out(cfg: DictConfig, scans: ScanSet | ImageSplit, prior: Prior) -> Assessment:
    held_out = scans.val if isinstance(scans, ScanSet) else scans.images.val
    require(
        bool(held_out),
        "objective=em judges its rounds on held-out scans or pictures: there is none. Add more, or let the data set "
        "hold more of them out (pictures: data.val_share, or `split` in the .npz).",
        AmbientMRIError,
    )
    settings = Settings(**{k: v for k, v in _plain(cfg.em.assess).items() if k != "val_volumes"})
    sampler = _sampler(cfg, prior)
    if not isinstance(scans, ScanSet):
        (data,) = scans.corrupted_parts(held_out=None)[1:]
        judged = [data.numbers[i] for i in evenly_spaced(len(data), settings.slices)]
        known = [] if scans.images.corrupted else judged
        images = {f"{scans.images.name}/{n}": scans.images.image(n) for n in known}
        return assess_images(prior, data, sampler=sampler, settings=settings, references=images, seed=cfg.seed)
    files = scans.val_references()
    references = ImageDataset(files).by_key() if files else {}
    return assess(prior, scans.val, sampler=sampler, settings=settings, references=references, seed=cfg.seed)


def _publish(history: Sequence[dict[str, Any]], run_dir: Path) -> Path:
    """Export the prior of the round that predicts held-out data best."""
    best = min(history, key=lambda h: h["held_out_error"])["round"]
    if is_first():
        prior = load_prior(run_dir / f"round_{best}" / "prior")
        prior.name, prior.metadata["em_round"] = run_dir.resolve().name, best
        prior.save(run_dir / "prior")
        log.info("prior: %s, of round %d: it predicts held-out data best", run_dir / "prior", best)
    _wait()
    return run_dir / "prior"


def _words(values: dict[str, Any]) -> str:
    found = [f"held-out data {values['held_out_error']:.4f}", f"data residual {values['data_residual']:.3f} noise_std"]
    found += [] if values["sample_std"] is None else [f"sample std {values['sample_std']:.3f} sd"]
    reference = values["with_references"]
    found += [] if reference is None else [f"(with references: PSNR of the mean {reference['psnr_mean']:.2f} dB)"]
    return ", ".join(found)


def _wait() -> None:
    """Until every process has come here; at once where there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
