"""Scans and references, folder by folder: reconstructions, scores and a table, for every prior and sampler.

    OUT/<prior>/<sampler>/<scan>/slice_0003.h5      one reconstruction a slice, written whole or not at all
    OUT/evaluation.json, OUT/evaluation.md          result records and the table made from them

A slice whose file is there is not reconstructed again, so that an interrupted evaluation goes on where it stopped; a
file that was made with other settings is an error, not a result. Scale and noise level are those of the whole volume,
as in :func:`~ambient_mri.reconstruct.reconstruct`. Reference files are opened for the scores alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ambient_mri import metrics
from ambient_mri._checks import DataError, require
from ambient_mri.data.files import SliceSelection
from ambient_mri.data.readers import RawScan, read_reference
from ambient_mri.data.writers import read_reconstruction
from ambient_mri.prior import Prior
from ambient_mri.reconstruct import Reconstruction, ReconstructionWarning, reconstruct
from ambient_mri.reconstruct.volume import Volume, read_raw
from ambient_mri.report.records import ResultFile, Row, append_records, read_records
from ambient_mri.report.tables import markdown_table
from ambient_mri.sampling import make_sampler

__all__ = ["Evaluation", "pair_files", "reconstructed"]

_KSPACE = (".h5", ".hdf5", ".npz", ".npy")
_SCORES = ("psnr", "ssim", "nmse", "nrmse")


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
    """

    out: Path
    samples: int = 8
    steps: int | None = None
    seed: int = 0
    device: str | torch.device = "auto"
    mask: np.ndarray | None = None
    slices: SliceSelection = None

    def run(
        self, pairs: Sequence[tuple[Path, Path]], priors: Sequence[Prior], samplers: Sequence[str], command: str = ""
    ) -> ResultFile:
        """Reconstruct what is missing, score every volume, and write records and table.

        Args:
            pairs: Scan and reference files.
            priors: Every one with every sampler; names must differ.
            samplers: Names.
            command: Recorded.

        Raises:
            DataError: If files cannot be read, or do not fit each other or these settings.
            PriorError: If a sampler is not valid for a prior.
        """
        names = [prior.name for prior in priors]
        require(len(set(names)) == len(names), f"priors must have different names; got {', '.join(names)}.")
        for prior in priors:
            for name in samplers:
                make_sampler(name, self.steps).check_kind(prior.kind)
        path, settings = self.out / "evaluation.json", self._settings()
        for scan, reference in pairs:
            raw = read_raw(scan, self.mask, None, self.slices)
            for prior in priors:
                for name in samplers:
                    files = self._slices(raw, scan.stem, prior, name)
                    rows = self._rows(files, scan.stem, reference, raw, prior.name, name)
                    append_records(path, "evaluation", command, settings, rows=rows)
        result = read_records(path)
        path.with_suffix(".md").write_text(_table(result))
        return result

    def _slices(self, raw: RawScan, stem: str, prior: Prior, sampler: str) -> list[Path]:
        """The files of all slices, those that are missing made first."""
        folder = self.out / prior.name / sampler / stem
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"slice_{index:04d}.h5" for index in raw.slice_indices]
        missing = [i for i, file in enumerate(files) if not file.is_file()]
        if not missing:
            return files
        volume = Volume.measure(raw)
        for i in missing:
            with warnings.catch_warnings():  # in the settings of every file
                warnings.simplefilter("ignore", ReconstructionWarning)
                found = reconstruct(
                    raw,
                    prior=prior,
                    slices=[i],
                    scale=volume.scale,
                    noise_std=float(volume.noise_std[i]) * volume.scale,
                    sampler=sampler,
                    samples=self.samples,
                    steps=self.steps,
                    seed=self.seed,
                    device=self.device,
                    progress=False,
                )
            found.save(files[i])
        return files

    def _rows(
        self, files: Sequence[Path], stem: str, reference: Path, raw: RawScan, prior: str, sampler: str
    ) -> list[Row]:
        """Scores of one volume."""
        contents = [read_reconstruction(file) for file in files]
        described = make_sampler(sampler, self.steps).describe()
        for file, content in zip(files, contents, strict=True):
            made = content["settings"]
            same = made["sampler"] == described and made["seed"] == self.seed and made["prior"] == prior
            drawn = made["samples"] == (self.samples if make_sampler(sampler).stochastic else 1)
            message = f"{file} was made with other settings. Choose another --out, or remove it."
            require(same and drawn, message, DataError)
        image = np.concatenate([content["reconstruction"] for content in contents])
        truth = read_reference(reference, list(raw.slice_indices))
        require(
            image.shape == truth.shape,
            f"{reference}: references of shape {truth.shape} for images of shape {image.shape}. Do they belong to the "
            "same scan?",
            DataError,
        )
        made = [content["settings"] for content in contents]
        estimate = f"mean{made[0]['samples']}" if made[0]["samples"] > 1 else "point"
        shared: Row = {
            "case": stem,
            "method": f"{_identifier(prior)}/{sampler}/{estimate}",
            "acceleration": round(raw.acceleration, 2),
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


def _identifier(name: str) -> str:
    """A prior's name as the first part of a method's name: lower case, words joined by underscores, a letter first."""
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in name.lower()).strip("_")
    return plain if plain[:1].isalpha() else f"prior_{plain}"


def _table(result: ResultFile) -> str:
    rows = [{k: v for k, v in row.items() if k != "nfe"} for row in result.rows]
    return markdown_table(rows, metric=("psnr", "ssim", "nrmse"), definitions=result.definitions)
