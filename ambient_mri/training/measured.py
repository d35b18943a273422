"""What a finished run was trained on, read again: its corruption, and some of its measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import OmegaConf

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.corruption import ImageCorruption, Undersampling
from ambient_mri.data.datasets import ScanDataset
from ambient_mri.measurement import Measurement
from ambient_mri.training.estimates import evenly_spaced
from ambient_mri.training.laws import scan_corruption
from ambient_mri.training.natural import ImageFolder
from ambient_mri.training.setup import image_split, scan_set

__all__ = ["measurements_of_run"]


def measurements_of_run(run_dir: Path, count: int) -> tuple[Undersampling | ImageCorruption, Measurement]:
    """``count`` training items of a run, evenly spread over those of one matrix size, and the law they follow.

    Items are repeated where there are fewer.

    Raises:
        AmbientMRIError: If there is no such run, or its data are gone.
    """
    stored = run_dir / "config.yaml"
    require(
        stored.is_file(),
        f"{run_dir} is no run folder (there is no config.yaml): the masks of an ambient network come from what it was "
        "trained on. Give the run folder.",
    )
    cfg: Any = OmegaConf.load(stored)
    data: Any
    corruption: Undersampling | ImageCorruption | None
    if issubclass(get_class(cfg.data._target_), ImageFolder):
        split = image_split(cfg)
        data, corruption = split.corrupted("train"), split.corruption
    else:
        data = ScanDataset(scan_set(cfg, run_dir).train, in_memory=False)
        corruption = scan_corruption(cfg, data)
    if corruption is None or data is None:
        raise AmbientMRIError(f"{run_dir} was trained on nothing that was measured.")
    usable = [i for i, size in enumerate(data.sizes) if size == data.sizes[0]]
    picked = [usable[i] for i in evenly_spaced(len(usable), count)]
    return corruption, Measurement.collate([data[picked[i % len(picked)]] for i in range(count)])
