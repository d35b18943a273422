"""``python -m ambient_mri.train data=phantom``: training from the command line, with Hydra.

Configuration is looked up in the package (``ambient_mri/configs``, where a wheel carries it), else in the checkout's
``configs/``; ``--config-dir FOLDER`` adds your own. Everything that Hydra offers works: ``--cfg job`` prints the
resolved configuration, ``--multirun`` sweeps.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ambient_mri._checks import AmbientMRIError, reason_of, require

__all__ = ["compose", "config_dir", "main"]

log = logging.getLogger(__name__)

# What is counted takes whole numbers alone; elsewhere 4 and 4.0 are the same.
_COUNTS = frozenset(
    (
        *("seed", "data.seed", "data.limit", "checkpoint_every", "training.warmup_steps", "network.channels"),
        *("trainer.max_steps", "trainer.accumulate_grad_batches", "trainer.num_nodes", "trainer.log_every_n_steps"),
        *("loader.batch_size", "loader.num_workers", "loader.val_items", "em.rounds", "em.steps", "em.batch_size"),
    )
)
# Lightning takes words here, too, such as auto.
_WORD_OR_NUMBER = frozenset({"trainer.devices", "trainer.precision"})


def config_dir() -> Path:
    """The folder of configuration files: of the installed package, else of the checkout.

    Raises:
        AmbientMRIError: If there is neither: the installation is incomplete.
    """
    packaged = Path(str(resources.files("ambient_mri").joinpath("configs")))
    checkout = Path(__file__).resolve().parents[1] / "configs"
    for folder in (packaged, checkout):
        if (folder / "train.yaml").is_file():
            return folder
    raise AmbientMRIError(f"no configuration found in {packaged} or {checkout}. Install the package again.")


def compose(overrides: Sequence[str] = (), *, extra_dir: str | Path | None = None) -> DictConfig:
    """The configuration that the command line ``overrides`` give.

    Raises:
        AmbientMRIError: For an unknown key or option, one line with the nearest match; for a value that is no number
            where a number is needed.
    """
    GlobalHydra.instance().clear()
    search = [f"hydra.searchpath=[file://{Path(extra_dir).resolve()}]"] if extra_dir else []
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            found = hydra.compose("train", overrides=[*overrides, *search])
            _check_values(found, overrides, tuple(search))
            return found
    except (HydraException, OmegaConfBaseException) as error:
        wrong = getattr(error, "override", None)
        raise AmbientMRIError(f"{wrong}: {reason_of(error)}" if wrong else _explain(str(error), overrides)) from error
    finally:
        GlobalHydra.instance().clear()


def main() -> None:
    """Entry point. A mistake of the user ends the program with one line and status 2."""
    try:
        arguments, overrides = _known_arguments(sys.argv[1:])
        if not arguments.multirun and not arguments.help and not arguments.hydra_help:
            compose(overrides, extra_dir=arguments.config_dir)  # Hydra's own messages do not say what was meant
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(_job)()
    except AmbientMRIError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def _job(cfg: DictConfig) -> None:
    from ambient_mri.training.rounds import expectation_maximisation
    from ambient_mri.training.run import train

    try:
        expectation_maximisation(cfg) if "em" in cfg else train(cfg)
    except AmbientMRIError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        log.warning("interrupted; the same command goes on from the last checkpoint")
        sys.exit(130)


def _known_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's options that matter here, and the overrides."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--hydra-help", action="store_true")
    known, rest = parser.parse_known_args(list(argv))
    return known, [a for a in rest if "=" in a and not a.startswith("-")]


def _check_values(cfg: DictConfig, overrides: Sequence[str], search: tuple[str, ...]) -> None:
    """Check every value of the command line against the kind of value that stands in its place without it."""
    given = [o for o in overrides if "=" in o]
    groups = tuple(o for o in given if _group_of(o))
    for override in given:
        key = override.split("=", 1)[0].lstrip("+~")
        value = None if override in groups else OmegaConf.select(cfg, key)
        # Whole numbers go everywhere that numbers go.
        if not isinstance(value, bool | str | float) or key in _WORD_OR_NUMBER:
            continue
        default = OmegaConf.select(_without_values(groups, search), key)
        if key in _COUNTS or isinstance(default, bool | int | float):
            _check_kind(key, value, default)


def _check_kind(key: str, value: bool | str | float, default: Any) -> None:
    """Raise unless ``value`` is a truth value, a whole number or a number, whichever ``key`` takes."""
    if isinstance(default, bool):
        wanted, good, example = "true or false", isinstance(value, bool), str(default).lower()
    else:
        counts, number = key in _COUNTS, isinstance(value, float)
        wanted, good = "a whole number" if counts else "a number", number and not counts
        example = f"{value:.0f}" if counts and isinstance(value, float) and value.is_integer() else str(default)
    require(good, f"{key} must be {wanted}; got {value!r}. Write {key}={example}, say.")


def _group_of(override: str) -> bool:
    """Whether an override chooses a file of a group, such as ``data=phantom``, rather than a value."""
    name = override.split("=", 1)[0].lstrip("+~").split("@")[0]
    return "." not in name and (config_dir() / name).is_dir()


@lru_cache(maxsize=32)
def _without_values(groups: tuple[str, ...], search: tuple[str, ...]) -> DictConfig:
    return hydra.compose("train", overrides=[*groups, *search])


def _explain(message: str, overrides: Sequence[str]) -> str:
    """One line on what was wrong, with the nearest match."""
    first = next((line.strip() for line in message.splitlines() if line.strip()), message)
    missing = re.search(r"Could not find '([^']+)/([^'/]+)'", message)
    if missing:
        group, name = missing.groups()
        options = sorted(p.stem for p in (config_dir() / group).glob("*.yaml"))
        return f"{group}={name} is unknown; {group} must be one of {', '.join(options)}.{_nearest(name, options)}"
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", message)
    if unknown:
        key = _override_of(unknown.group(1) or unknown.group(2), overrides)
        known = list(_keys(_defaults()))
        return f"unknown key {key!r}.{_nearest(key, known)} `python -m ambient_mri.train --cfg job` prints them all."
    return first


def _nearest(word: str, options: Sequence[str]) -> str:
    near = get_close_matches(word, options, n=1, cutoff=0.5)
    if not near:
        leaf = word.split(".")[-1]
        near = [
            o for o in options if o.split(".")[-1] in get_close_matches(leaf, [o.split(".")[-1] for o in options], n=1)
        ]
    return f" Did you mean {near[0]!r}?" if near else ""


def _override_of(name: str, overrides: Sequence[str]) -> str:
    keys = [o.split("=", 1)[0].lstrip("+~") for o in overrides]
    return next((k for k in keys if k == name or k.split(".")[-1] == name), name)


def _defaults() -> DictConfig:
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose("train")


def _keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    for key in cfg if OmegaConf.is_dict(cfg) else ():
        name = f"{prefix}.{key}" if prefix else str(key)
        yield name
        node = cfg._get_node(key)
        if OmegaConf.is_dict(node):
            yield from _keys(node, name)


if __name__ == "__main__":
    main()
