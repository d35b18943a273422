"""Scans and references, folder by folder: reconstructions, scores and a table, for every prior and sampler.

    OUT/<prior>/<sampler>/<scan>/slice_0003.h5      one reconstruction a slice, written whole or not at all
    OUT/evaluation.json, OUT/evaluation.md          result records and the table made from them

A slice whose file is there is not reconstructed again, so that an interrupted evaluation goes on where it stopped. Each
holds what it was made of (``settings["evaluation"]``); one that was made with another mask, scan, prior, sampler or
seed, or among other slices, is an error, not a result. Scale and noise level are those of the whole volume, as in
:func:`~ambient_mri.reconstruct.reconstruct`; coil maps are estimated once a slice. Reference files are opened for the
scores alone.

Several processes share the slices of every volume (:mod:`ambient_mri.training.shared_work`), one a GPU; their number
changes no result but for the order of sums. The first one scores.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ambient_mri import metrics
from ambient_mri._checks import DataError, require
from ambient_mri._files import write_atomically
from ambient_mri.data.files import SliceSelection
from ambient_mri.data.readers import read_reference
from ambient_mri.data.writers import read_reconstruction
from ambient_mri.prior import Prior
from ambient_mri.reconstruct import Reconstruction, reconstruct
from ambient_mri.reconstruct.read import read_raw
from ambient_mri.reconstruct.shared import SharedSlice
from ambient_mri.reconstruct.volume import Volume
from ambient_mri.report.records import ResultFile, Row, append_records, read_records
from ambient_mri.report.tables import markdown_table
from ambient_mri.sampling import make_sampler
from ambient_mri.sampling.automatic import given_steps, with_automatic_steps
from ambient_mri.sampling.draw import sample_count
from ambient_mri.tensors import choose_device

__all__ = ["Evaluation", "method_name", "pair_files", "reconstructed"]

_KSPACE = (".h5", ".hdf5", ".npz", ".npy")
_SCORES = ("psnr", "ssim", "nmse", "nrmse")
# What is compared by a hash, or is long: what is said of it where it differs.
_UNTOLD = {
    "scan": "another scan",
    "mask": "another mask",
    "weights": "other weights",
    "architecture": "another architecture",
    "error_curve": "another error curve",
}

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


def check_comparable(settings: Mapping[str, Any], where: object) -> None:
    """Check that images of a scan are in the units of its reference.

    Args:
        settings: Of a reconstruction, or the attributes of a scan.
        where: The file, for the message.

    Raises:
        DataError: If the scan was whitened.
    """
    require(
        not settings.get("whitened"),
        f"{where}: the scan was whitened when it was prepared, so that its images have other units and another shading "
        "than a reference of the coils as they are: scores would say nothing. Prepare it without --whiten to compare.",
        DataError,
    )


def reconstructed(
    pairs: Sequence[tuple[Path, Path]], *, mask: np.ndarray | None = None, slices: SliceSelection = None, **options: Any
) -> Iterator[tuple[Reconstruction, np.ndarray]]:
    """Reconstruction and reference of every pair, for :func:`~ambient_mri.reconstruct.measure_recalibration`.

    Args:
        pairs: See :func:`pair_files`.
        mask: Applied to every scan, where the files are fully sampled.
        slices: Of every scan.
        options: Of :func:`~ambient_mri.reconstruct.reconstruct`.

    Raises:
        DataError: If a scan was whitened: its reference is in other units.
    """
    for scan, _ in pairs:
        check_comparable(read_raw(scan, slices=0).attrs, scan)
    for scan, reference in pairs:
        found = reconstruct(scan, mask=mask, slices=slices, keep_samples=False, **options)
        yield found, read_reference(reference, found.settings["slices"])


@dataclass(frozen=True)
class _Method:
    """A prior, a sampler's name, and what of both changes a result, as plain data."""

    prior: Prior
    sampler: str
    identity: dict[str, Any]


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
        steps: Noise levels; each sampler's own number when None, ``"auto"`` as for
            :func:`~ambient_mri.reconstruct.reconstruct`.
        seed: Of the samples.
        device: As for :func:`~ambient_mri.reconstruct.reconstruct`.
        mask: Applied to every scan, where the files are fully sampled.
        slices: Of every scan; all when None.
        processes: That share the slices, on this machine; the same command line starts them all.
    """

    out: Path
    samples: int = 8
    steps: int | str | None = None
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
        require(
            len({_identifier(name) for name in names}) == len(names),
            f"priors must have different names, in lower case and apart from punctuation; got {', '.join(names)}.",
        )
        methods = [self._method(prior, name) for prior in priors for name in samplers]
        make_all, is_first = _sharing(self.processes, choose_device(self.device))
        with warnings.catch_warnings():
            if not is_first:  # the first process says it
                warnings.simplefilter("ignore")
            volumes = [self._reconstruct(scan, methods, make_all) for scan, _ in pairs]
        if not is_first:
            return None
        path, settings = self.out / "evaluation.json", self._settings()
        for volume, (_, reference) in zip(volumes, pairs, strict=True):
            for method in methods:
                append_records(path, "evaluation", command, settings, rows=self._rows(volume, reference, method))
        result = read_records(path)
        write_atomically(path.with_suffix(".md"), _table(result).encode())
        return result

    def _method(self, prior: Prior, sampler: str) -> _Method:
        """A prior with a sampler.

        Raises:
            PriorError: If the sampler is not valid for the prior.
        """
        made = make_sampler(sampler, given_steps(self.steps))
        made.check_kind(prior.kind)
        # Not the recalibration: it changes the standard deviation alone, which is not scored.
        identity = {
            **made.describe(),
            "steps": "auto" if self.steps == "auto" else made.steps,
            "samples": sample_count(made, self.samples),
            "seed": self.seed,
            "prior": prior.name,
            "prior_kind": prior.kind,
            "weights": prior.weights_hash(),
            "architecture": prior.architecture or {"sd": prior.model.sd},
            "error_curve": _hash(*(getattr(prior.model, f"error_{name}", None) for name in ("sigmas", "values"))),
        }
        return _Method(prior, sampler, json.loads(json.dumps(identity)))

    def _reconstruct(self, scan: Path, methods: Sequence[_Method], make_all: _MakeAll) -> _Volume:
        """Make the files of a scan's slices that are missing, after a look at what the others were made with."""
        raw = read_raw(scan, slices=self.slices)
        check_comparable(raw.attrs, scan)
        geometry = np.array(raw.recon_shape), np.array(raw.acquired_extent)
        of_scan = _hash(raw.kspace, raw.mask, raw.coil_maps, raw.noise_std, *geometry)
        origin: dict[str, Any] = {"scan": of_scan, "slices": list(raw.slice_indices)}
        raw = raw if self.mask is None else read_raw(raw, self.mask)
        origin["mask"] = _hash(raw.mask)
        found = _Volume(scan.stem, raw.volume_slices, raw.acceleration)
        # A process's share of the slices in turn, each with all methods: its coil maps are estimated once.
        blocks = range(0, len(raw), self.processes)
        order = [(i, m) for b in blocks for m in methods for i in range(b, min(b + self.processes, len(raw)))]
        files = [found.files(self._folder(m))[i] for i, m in order]
        for (_, method), file in zip(order, files, strict=True):
            if file.is_file():
                _check_origin(file, {**method.identity, **origin})
        measured = cache(lambda: Volume.measure(raw))
        shared = lru_cache(maxsize=1)(lambda i: SharedSlice.of(measured(), i))

        def make(index: int, device: torch.device) -> None:
            i, method = order[index]
            sampler, prior = make_sampler(method.sampler, given_steps(self.steps)), method.prior.to(device)
            if self.steps == "auto":
                level = measured().noise_std[list(measured().held)].median()
                sampler = with_automatic_steps(sampler, prior.model, float(level))
            made = shared(i).reconstruct(prior, sampler, samples=self.samples, seed=self.seed, device=device)
            made.settings["evaluation"] = {**method.identity, **origin}
            files[index].parent.mkdir(parents=True, exist_ok=True)
            made.save(files[index])

        make_all(files, make, [method.prior.model for method in methods])
        return found

    def _folder(self, method: _Method) -> Path:
        return self.out / method.prior.name / method.sampler

    def _rows(self, volume: _Volume, reference: Path, method: _Method) -> list[Row]:
        """Scores of one volume."""
        contents = [read_reconstruction(file) for file in volume.files(self._folder(method))]
        image = np.concatenate([content["reconstruction"] for content in contents])
        truth = read_reference(reference, list(volume.slices))
        require(
            image.shape == truth.shape,
            f"{reference}: references of shape {truth.shape} for images of shape {image.shape}. Do they belong to the "
            "same scan?",
            DataError,
        )
        made = [content["settings"] for content in contents]
        shared: Row = {
            "case": volume.stem,
            "method": method_name(method.prior.name, method.sampler, made[0]["samples"]),
            "acceleration": round(volume.acceleration, 2),
            "nfe": max(m["run"]["evaluations"] for m in made),
            "seconds": float(np.mean([m["seconds"] for m in made])),
            "n": len(image),
            "ci95": None,
        }
        values = {name: getattr(metrics, name)(truth, image) for name in _SCORES}
        residual = metrics.mean_of_known(np.concatenate([content["residual"] for content in contents]))
        values["chi2_residual"] = residual if np.isfinite(residual) else None
        return [{**shared, "metric": name, "value": value} for name, value in values.items()]

    def _settings(self) -> dict[str, Any]:
        slices = None if self.slices is None else str(self.slices)
        return {"samples": self.samples, "steps": self.steps, "seed": self.seed, "slices": slices}


def _hash(*arrays: np.ndarray | Tensor | None) -> str:
    """The first 16 digits of a SHA-256 of arrays, their shapes and types."""
    digest = sha256()
    for array in arrays:
        values = np.ascontiguousarray(array.detach().cpu().numpy() if isinstance(array, Tensor) else array)
        digest.update(f"{values.dtype} {values.shape}".encode())
        if array is not None:
            digest.update(values.data)
    return digest.hexdigest()[:16]


def _check_origin(file: Path, wanted: Mapping[str, Any]) -> None:
    """Raise unless the file was made of what is wanted now."""
    found = read_reconstruction(file)["settings"].get("evaluation")
    fix = "Choose another --out, or remove it."
    if found is None:
        raise DataError(f"{file} does not say what it was made of: an earlier version wrote it. {fix}")
    differ = []
    for key in wanted.keys() | found.keys():
        old, new = found.get(key), wanted.get(key)
        if old != new and not (key == "scan" and found.get("slices") != wanted.get("slices")):
            differ.append(_UNTOLD.get(key, f"{key} {old}, now {new}"))
    require(not differ, f"{file} was made with other settings ({'; '.join(sorted(differ))}). {fix}", DataError)


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


def method_name(prior: str, sampler: str, samples: int) -> str:
    """``prior/sampler/estimate``, as records name what made an image."""
    return f"{_identifier(prior)}/{_identifier(sampler)}/{f'mean{samples}' if samples > 1 else 'point'}"


def _identifier(name: str) -> str:
    """A prior's name as the first part of a method's name: lower case, words joined by underscores, a letter first."""
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in name.lower()).strip("_")
    return plain if plain[:1].isalpha() else f"prior_{plain}"


def _table(result: ResultFile) -> str:
    rows = [{k: v for k, v in row.items() if k != "nfe"} for row in result.rows]
    return markdown_table(rows, metric=("psnr", "ssim", "nrmse"), definitions=result.definitions)
