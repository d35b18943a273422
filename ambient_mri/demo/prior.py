"""The demo's prior, trained by the package's own training on simulated scans of phantoms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ambient_mri.demo.settings import DemoSettings
from ambient_mri.training.provenance import short_hash

__all__ = ["trained_prior"]


def trained_prior(cache: Path, settings: DemoSettings, seed: int, *, fresh: bool, say: Callable[[str], None]) -> Path:
    """Folder of the ambient prior, trained where it is not there yet.

    An interrupted training goes on where it stopped.

    Args:
        cache: Folder for scans and runs; one run for each set of settings.
        settings: Of the demo.
        seed: Of data and training.
        fresh: Train again, whatever is there.
        say: Told what happens.
    """
    run = cache / short_hash({"seed": seed, **asdict(settings)})
    if fresh and run.is_dir():
        shutil.rmtree(run)
    if _is_finished(run, settings.ambient_steps):
        say(f"found in {run} (--fresh trains again)")
        return run / "prior"
    count, size = settings.volumes * settings.slices, settings.phantom_size
    say(
        f"It sees {count} simulated scans of {size} x {size} phantoms at R = "
        f"{settings.phantom_acceleration:g}: no head, no fully sampled scan. A prior worth using trains for hours; "
        "this one shows the way in minutes."
    )
    say(f"ambient training, {settings.ambient_steps} steps: hide measured lines, and learn to fill them in")
    _train(settings, seed, cache, settings.ambient_steps, objective="ambient", run_dir=run)
    return run / "prior"


def _train(settings: DemoSettings, seed: int, cache: Path, steps: int, **overrides: object) -> None:
    """One run, as ``ambient-mri train`` would do it with these overrides."""
    from ambient_mri.train import compose
    from ambient_mri.training.run import train

    values = {
        "data": "phantom",
        "data.size": settings.phantom_size,
        "data.train_volumes": settings.volumes,
        "data.val_volumes": 4,
        "data.slices": settings.slices,
        "data.seed": seed,
        "data.cache": cache / "scans",
        "corruption": "random_lines",
        "corruption.law.acceleration": settings.phantom_acceleration,
        "corruption.law.acs_lines": settings.phantom_acs_lines,
        "network": "unet_small",
        "network.channels": settings.channels,
        "network.multipliers": list(settings.multipliers),
        "model.precision": "fp32",  # the same numbers on processors with and without bfloat16
        "loader.batch_size": settings.batch_size,
        "training.lr": settings.lr,
        "training.betas": [0.9, settings.beta2],
        "trainer": "cpu",
        "trainer.max_steps": steps,
        "trainer.val_check_interval": steps,
        "seed": seed,
        **overrides,
    }
    train(compose([f"{key}={_for_hydra(value)}" for key, value in values.items()]))


def _for_hydra(value: object) -> str:
    """A value in the grammar of Hydra's overrides, where a path may hold reserved characters."""
    return "'" + str(value.resolve()).replace("'", r"\'") + "'" if isinstance(value, Path) else str(value)


def _is_finished(run: Path, steps: int) -> bool:
    card = run / "prior" / "prior.json"
    return card.is_file() and json.loads(card.read_text()).get("steps") == steps
