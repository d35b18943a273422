"""The E-step under Lightning: volumes shared among the processes of ``Trainer.predict``, one image file a volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ambient_mri.prior import Prior
from ambient_mri.sampling.base import Sampler
from ambient_mri.training.em import METHODS, Reconstruct, maker, reconstruct_rows, reconstruct_volume
from ambient_mri.training.shared_work import SharedWork

__all__ = ["by_method", "by_prior"]


def by_prior(
    prior: Prior,
    sampler: Sampler,
    seed: int,
    scans: Sequence[Path],
    folder: Path,
    *,
    batch_size: int,
    average: int = 1,
) -> SharedWork:
    """The E-step under a prior: its posterior samples, or the one-step reconstructions of an ambient network; or means
    of ``average`` of them.
    """
    return _volumes(
        lambda m: reconstruct_rows(prior, m, sampler, seed, average),
        scans,
        folder,
        made_by=maker(prior, sampler, average),
        batch_size=batch_size,
        models=[prior.model],
    )


def by_method(method: str, scans: Sequence[Path], folder: Path, *, batch_size: int) -> SharedWork:
    """The E-step by a baseline that needs no prior, one of :data:`~ambient_mri.training.em.METHODS`."""
    return _volumes(METHODS[method], scans, folder, made_by=f"E-step, {method}", batch_size=batch_size)


def _volumes(
    reconstruct: Reconstruct,
    scans: Sequence[Path],
    folder: Path,
    *,
    made_by: str,
    batch_size: int,
    models: Sequence[torch.nn.Module] = (),
) -> SharedWork:
    files = [folder / path.name for path in scans]

    def make(index: int, device: torch.device) -> None:
        rows: Reconstruct = lambda m: reconstruct(m.to(device))  # noqa: E731
        reconstruct_volume(rows, scans[index], files[index], made_by=made_by, batch_size=batch_size)

    return SharedWork("E-step", files, make, models)
