"""Scans and references, folder by folder: reconstructions, scores and a table, for every prior and sampler.

    OUT/<prior>/<sampler>/<scan>/slice_0003.h5      one reconstruction a slice, written whole or not at all
    OUT/evaluation.json, OUT/evaluation.md          result records and the table made from them

A slice whose file is there is not reconstructed again, so that an interrupted evaluation goes on where it stopped; a
file that was made with other settings is an error, not a result. Scale and noise level are those of the whole volume,
as in :func:`~ambient_mri.reconstruct.reconstruct`. Reference files are opened for the scores alone.

Several processes share the slices of every volume (:mod:`ambient_mri.training.shared_work`), one a GPU; their number
changes no result but for the order of sums. The first one scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from ambient_mri import metrics
from ambient_mri._checks import DataError, require
from ambient_mri.data.files import SliceSelection
from ambient_mri.data.readers import read_reference
from ambient_mri.data.writers import read_reconstruction
from ambient_mri.prior import Prior
from ambient_mri.reconstruct import Reconstruction, ReconstructionWarning, reconstruct
from ambient_mri.reconstruct.volume import Volume, read_raw
from ambient_mri.report.records import ResultFile, Row, append_records, read_records
from ambient_mri.report.tables import markdown_table
from ambient_mri.sampling import make_sampler
from ambient_mri.sampling.draw import choose_device

__all__ = ["Evaluation", "pair_files", "reconstructed"]

_KSPACE = (".h5", ".hdf5", ".npz", ".npy")
_SCORES = ("psnr", "ssim", "nmse", "nrmse")

# make(index, device): write the file of that number.
_Make: TypeAlias = Callable[[int, torch.device], object]
# (files, make, networks that it uses): make the files that are missing.
_MakeAll: TypeAlias = Callable[[Sequence[Path], _Make, Sequence[nn.Module]], None]


def pair_files(scans: Path, references: Path) -> list[tuple[Path, Path]]:
    """Scans with the reference files of the same stem, sorted; two files are a pair whatever they are called.

    Raises:
        DataError: If there is no scan, or a scan has no reference; never paired by position.
    """
    if scans.is_file() and references.is_file():
        return [(scans, references)]
    for folder in (scans, references):
        require(folder.is_dir(), f"{folder}: no such folder. Give two folders, or two files.", DataError)
    shown = sorted(p for p in scans.iterdir() if p.suffix.lower() in _KSPACE and not p.name.startswith("."))
    require(len(shown) > 0, f"{scans}: no k-space file ({', '.join(_KSPACE)}) in this folder.", DataError)
    found = {p.stem: p for p in references.iterdir() if p.suffix.lower() in (".h5", ".hdf5")}
    missing = [p.name for p in shown if p.stem not in found]
    require(
        not missing,
        f"{references}: no reference for {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}. Scan and "
        "reference are paired by the name before the ending.",
        DataError,
    )
    return [(p, found[p.stem]) for p in shown]


def reconstructed(
    pairs: Sequence[tuple[Path, Path]], *, mask: np.ndarray | None = None, slices: SliceSelection = None, **options: Any
) -> Iterator[tuple[Reconstruction, np.ndarray]]:
    """Reconstruction and reference of every pair, for :func:`~ambient_mri.reconstruct.measure_recalibration`.

    Args:
        pairs: See :func:`pair_files`.
        mask: Applied to every scan, where the files are fully sampled.
        slices: Of every scan.
        options: Of :func:`~ambient_mri.reconstruct.reconstruct`.
    """
    for scan, reference in pairs:
        found = reconstruct(scan, mask=mask, slices=slices, **options)
        yield found, read_reference(reference, found.settings["slices"])


@dataclass(frozen=True)
class _Volume:
    """What the scores need to know of a scan: its name, numbers of its slices, acceleration."""

    stem: str
    slices: tuple[int, ...]
    acceleration: float

    def files(self, folder: Path) -> list[Path]:
        """One a slice."""
        return [folder / self.stem / f"slice_{index:04d}.h5" for index in self.slices]


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate, and where to.

    Attributes:
        out: Folder of the results.
        samples: Samples a slice.
        steps: Noise levels; each sampler's own number when None.
        seed: Of the samples.
        device: As for :func:`~ambient_mri.reconstruct.reconstruct`.
        mask: Applied to every scan, where the files are fully sampled.
        slices: Of every scan; all when None.
        processes: That share the slices, on this machine; the same command line starts them all.
    """

    out: Path
    samples: int = 8
    steps: int | None = None
    seed: int = 0
    device: str | torch.device = "auto"
    mask: np.ndarray | None = None
    slices: SliceSelection = None
    processes: int = 1

    def run(
        self, pairs: Sequence[tuple[Path, Path]], priors: Sequence[Prior], samplers: Sequence[str], command: str = ""
    ) -> ResultFile | None:
        """Reconstruct what is missing, score every volume, and write records and table.

        Args:
            pairs: Scan and reference files.
            priors: Every one with every sampler; names must differ.
            samplers: Names.
            command: Recorded.

        Returns:
            The records; None in every process but the first, where there are several.

        Raises:
            DataError: If files cannot be read, or do not fit each other or these settings.
            PriorError: If a sampler is not valid for a prior.
            AmbientMRIError: If there are fewer GPUs than processes.
        """
        names = [prior.name for prior in priors]
        require(len(set(names)) == len(names), f"priors must have different names; got {', '.join(names)}.")
        for prior in priors:
            for name in samplers:
                make_sampler(name, self.steps).check_kind(prior.kind)
        methods = [(prior, name) for prior in priors for name in samplers]
        make_all, is_first = _sharing(self.processes, choose_device(self.device))
        with warnings.catch_warnings():
            if not is_first:  # the first process says it
                warnings.simplefilter("ignore")
            volumes = [self._reconstruct(scan, methods, make_all) for scan, _ in pairs]
        if not is_first:
            return None
        path, settings = self.out / "evaluation.json", self._settings()
        for volume, (_, reference) in zip(volumes, pairs, strict=True):
            for prior, name in methods:
                rows = self._rows(volume, reference, prior.name, name)
                append_records(path, "evaluation", command, settings, rows=rows)
        result = read_records(path)
        path.with_suffix(".md").write_text(_table(result))
        return result

    def _reconstruct(self, scan: Path, methods: Sequence[tuple[Prior, str]], make_all: _MakeAll) -> _Volume:
        """Make the files of a scan's slices that are missing."""
        raw = read_raw(scan, self.mask, None, self.slices)
        found = _Volume(scan.stem, tuple(raw.slice_indices), raw.acceleration)
        work = [(*m, i, file) for m in methods for i, file in enumerate(found.files(self._folder(m[0].name, m[1])))]
        measured = cache(lambda: Volume.measure(raw))

        def make(index: int, device: torch.device) -> None:
            (prior, sampler, i, file), volume = work[index], measured()
            with warnings.catch_warnings():  # in the settings of every file
                warnings.simplefilter("ignore", ReconstructionWarning)
                made = reconstruct(
                    raw,
                    prior=prior,
                    slices=[i],
                    scale=volume.scale,
                    noise_std=float(volume.noise_std[i]) * volume.scale,
                    sampler=sampler,
                    samples=self.samples,
                    steps=self.steps,
                    seed=self.seed,
                    device=device,
                    progress=False,
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            made.save(file)

        make_all([file for *_, file in work], make, [prior.model for prior, _ in methods])
        return found

    def _folder(self, prior: str, sampler: str) -> Path:
        return self.out / prior / sampler

    def _rows(self, volume: _Volume, reference: Path, prior: str, sampler: str) -> list[Row]:
        """Scores of one volume."""
        files = volume.files(self._folder(prior, sampler))
        contents = [read_reconstruction(file) for file in files]
        described = make_sampler(sampler, self.steps).describe()
        for file, content in zip(files, contents, strict=True):
            made = content["settings"]
            same = made["sampler"] == described and made["seed"] == self.seed and made["prior"] == prior
            drawn = made["samples"] == (self.samples if make_sampler(sampler).stochastic else 1)
            message = f"{file} was made with other settings. Choose another --out, or remove it."
            require(same and drawn, message, DataError)
        image = np.concatenate([content["reconstruction"] for content in contents])
        truth = read_reference(reference, list(volume.slices))
        require(
            image.shape == truth.shape,
            f"{reference}: references of shape {truth.shape} for images of shape {image.shape}. Do they belong to the "
            "same scan?",
            DataError,
        )
        made = [content["settings"] for content in contents]
        estimate = f"mean{made[0]['samples']}" if made[0]["samples"] > 1 else "point"
        shared: Row = {
            "case": volume.stem,
            "method": f"{_identifier(prior)}/{sampler}/{estimate}",
            "acceleration": round(volume.acceleration, 2),
            "nfe": made[0]["run"]["evaluations"],
            "seconds": float(np.mean([m["seconds"] for m in made])),
            "n": len(image),
            "ci95": None,
        }
        values = {name: getattr(metrics, name)(truth, image) for name in _SCORES}
        residual = float(np.mean([content["residual"] for content in contents]))
        values["chi2_residual"] = residual if np.isfinite(residual) else None
        return [{**shared, "metric": name, "value": value} for name, value in values.items()]

    def _settings(self) -> dict[str, Any]:
        slices = None if self.slices is None else str(self.slices)
        return {"samples": self.samples, "steps": self.steps, "seed": self.seed, "slices": slices}


def _sharing(processes: int, device: torch.device) -> tuple[_MakeAll, bool]:
    """How files are made, and whether this is the first process."""
    require(processes >= 1, f"processes must be at least 1; got {processes}.")
    if processes == 1:

        def make_all(files: Sequence[Path], make: _Make, _: Sequence[nn.Module]) -> None:
            for index, file in enumerate(files):
                if not file.is_file():
                    make(index, device)

        return make_all, True
    from ambient_mri.training.shared_work import SharedWork, is_first, processes_on, share

    trainer = processes_on(device, processes)
    return lambda *work: share(SharedWork("evaluation", *work), trainer), is_first()


def _identifier(name: str) -> str:
    """A prior's name as the first part of a method's name: lower case, words joined by underscores, a letter first."""
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in name.lower()).strip("_")
    return plain if plain[:1].isalpha() else f"prior_{plain}"


def _table(result: ResultFile) -> str:
    rows = [{k: v for k, v in row.items() if k != "nfe"} for row in result.rows]
    return markdown_table(rows, metric=("psnr", "ssim", "nrmse"), definitions=result.definitions)
