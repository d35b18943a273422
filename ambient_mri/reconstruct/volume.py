"""A scan made ready for a sampler: read, and what was not given inferred from the scan alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import DataError, check_finite, check_positive, require
from ambient_mri.coil_maps import MapSource, absorb_phase, estimate_coil_maps, likely_noise_std
from ambient_mri.coil_maps.estimate import source_of_estimate
from ambient_mri.coil_maps.noise_likelihood import FEWEST_COILS
from ambient_mri.data.normalize import PERIPHERY, estimate_noise_std, measured_scale, noise_warnings
from ambient_mri.measurement import Measurement
from ambient_mri.prior import Prior
from ambient_mri.reconstruct.read import ArrayLike
from ambient_mri.sampling.calibration import FEW_LINES, EffectiveNoise, effective_noise_std
from ambient_mri.sampling.joint_maps import JointSettings, calibrationless_coil_maps, joint_coil_maps

if TYPE_CHECKING:
    from ambient_mri.data.readers import RawScan

__all__ = ["Chunk", "Volume"]

# Below this number of ACS lines, joint estimation gives better coil maps than ESPIRiT.
JOINT_BELOW = FEW_LINES
_BLIND = (
    "with no ACS lines to speak of, coil maps were estimated together with the image, from nothing: that serves where "
    "the centre of k-space is sampled densely and irregularly (Poisson disc), and fails on lines, most of all on "
    "equispaced ones and where the zero frequency is not sampled. There, wrong maps with a wrong image explain the "
    "data as well as the right ones, so that a chi^2 near 1 says nothing. Pass coil_maps if you have them."
)


_PLENTY = (
    f"coil_maps='joint' was asked for where there are {{lines}} ACS lines: from {JOINT_BELOW} lines on, ESPIRiT's maps "
    "are the better ones, and an image with joint maps can lose several dB. Leave coil_maps out, or pass 'espirit'."
)
# Slices whose noise is compared, and the factor from which it differs too much for one scan.
_SLICES_TO_COMPARE, _UNEVEN = 4, 2.5
# The method of maps that came with the scan.
_GIVEN = "given"


@dataclass(frozen=True)
class Chunk:
    """Some slices of a volume, ready for a sampler.

    Attributes:
        measurement: Scaled, in hybrid space where the mask allows it; its ``noise_std`` is the level to sample with.
        phase: (b, 1, H, W) radians, absorbed into the coil maps.
        support: (b, 1, H, W) bool: where the coil maps see anything.
        noise_std: (b,) noise of the scan, scaled units.
        effective: What the calibration lines say of the maps and of ``noise_std``.
        sources: Where the coil maps of every slice come from, with what a user should know of them.
    """

    measurement: Measurement
    phase: Tensor
    support: Tensor
    noise_std: Tensor
    effective: EffectiveNoise
    sources: tuple[MapSource, ...]

    @property
    def poor_rows(self) -> tuple[int, ...]:
        """The slices whose maps come from so few ACS lines that joint estimation does better."""
        return tuple(row for row, source in enumerate(self.sources) if _is_poor(source))

    def with_joint_maps(
        self,
        prior: Prior,
        seed: int,
        rows: Sequence[int],
        *,
        batch_size: int | str = "auto",
        bar: Any = None,
    ) -> Chunk:
        """The same slices, with coil maps that are estimated together with the image in ``rows``.

        Args:
            prior: A clean one.
            seed: Of the chains.
            rows: Of the chunk.
            batch_size: (slice, chain) pairs at a time, see
                :func:`~ambient_mri.sampling.joint_maps.joint_coil_maps`.
            bar: A progress bar, which is made as much longer as this takes.
        """
        m = self.measurement
        if m.coil_maps is None or m.num_coils == 1 or not rows:
            return self
        settings, sources = JointSettings(seed=seed), list(self.sources)
        maps, levels = m.coil_maps.clone(), m.noise_std.clone()
        if bar is not None:
            bar.total = (bar.total or 0) + len(rows) * settings.chains * settings.steps
            bar.set_description("coil maps")
        blind = [row for row in rows if self.sources[row].method == "low_resolution"]
        seen = [row for row in rows if row not in blind]
        for estimate, some in ((joint_coil_maps, seen), (calibrationless_coil_maps, blind)):
            if not some:
                continue
            part = Measurement.collate([m[row] for row in some])
            done = None if bar is None else bar.update
            floor = self.noise_std[some]
            found = estimate(prior.model, part, floor, settings, batch_size=batch_size, progress=done)
            maps[some], levels[some] = cast(Tensor, found.coil_maps), found.noise_std
        for row in rows:
            sources[row] = _joint_source(self.sources[row])
        # What the calibration lines leave is told under maps that are used no more.
        kept = torch.tensor([row not in rows for row in range(len(m))], device=levels.device)
        agreement, left = (
            torch.where(kept, x, math.nan) for x in (self.effective.agreement, self.effective.of_calibration)
        )
        effective = self.effective._replace(agreement=agreement, of_calibration=left)
        if bar is not None:
            bar.set_description("sampling")
        m = replace(m, coil_maps=maps, noise_std=levels)
        return replace(self, measurement=m, sources=tuple(sources), effective=effective)


@dataclass(frozen=True)
class Volume:
    """A raw scan with its scale and noise level, which slices without any signal leave as they are.

    Attributes:
        raw: The scan.
        scale: Raw units per scaled unit.
        noise_std: (slices,) per real part, scaled units.
        noise_source: Where it comes from. From the periphery of k-space alone it is an upper bound, which a slice's
            coil maps may lower (:mod:`ambient_mri.coil_maps.noise_likelihood`).
        held: Positions of the slices that hold signal: there is nothing to reconstruct in the others.
        notes: What a user should know of coils without signal, which are left out, and of slices that are no volume.
    """

    raw: RawScan
    scale: float
    noise_std: Tensor
    noise_source: str
    held: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of slices that hold signal."""
        return len(self.held)

    @classmethod
    def measure(cls, raw: RawScan, noise_std: float | ArrayLike | None = None, scale: float | None = None) -> Volume:
        """Scale and noise level of ``raw``.

        Args:
            raw: The scan.
            noise_std: Per real part, raw units, one number or one a slice; from the file, or estimated, when None.
            scale: Raw units per scaled unit; measured when None.

        Raises:
            DataError: If no slice holds any signal.
            AmbientMRIError: If scale, noise level or the scan's coil maps cannot be.
        """
        raw, silent = _without_silent_coils(raw)
        held = tuple(i for i, part in enumerate(raw.kspace) if part.any())
        nothing = f"slices {list(raw.slice_indices)} hold nothing but zeros: there is nothing to reconstruct."
        require(bool(held), nothing, DataError)
        require(raw.coil_maps is None or bool(raw.coil_maps.any()), "coil_maps are zero everywhere.")
        if scale is None:
            scale = measured_scale(raw.kspace, raw.mask)
        check_positive("scale", scale)
        if noise_std is not None:
            require(not isinstance(noise_std, str), f"noise_std must be a number; got {noise_std!r}.")
            array = noise_std.detach().cpu().numpy() if isinstance(noise_std, Tensor) else np.asarray(noise_std)
            values, source = torch.from_numpy(array.astype(np.float32).reshape(-1)), "given"
            require(
                len(values) in (1, len(raw)),
                f"noise_std must be one number, or one for each of the {len(raw)} slices; got {len(values)}.",
            )
            check_positive("noise_std", float(values.min()), allow_zero=True)
            check_finite("noise_std", values)
        elif raw.noise_std is not None:
            values, source = torch.as_tensor(raw.noise_std, dtype=torch.float32), "from the file"
        else:
            estimate, source = estimate_noise_std(raw.kspace, raw.mask, raw.acquired_extent)
            if source.startswith(PERIPHERY) and raw.num_coils >= FEWEST_COILS:
                source += "; at most, as the coils agree"
            values = torch.tensor([estimate])
        notes = _uneven(raw, held) if source not in ("given", "from the file") else []
        if silent:
            notes = [f"coils {silent} are zero everywhere: they tell nothing, and are left out.", *notes]
        return cls(raw, scale, (values / scale).expand(len(raw)), source, held, tuple(notes))

    def chunk(self, rows: slice, device: torch.device, *, transpose: bool = False) -> Chunk:
        """Slices ``rows`` of those with signal, on ``device``; maps are estimated where the scan brings none.

        No number of a slice depends on which other slices are in the chunk.

        Args:
            rows: Range of positions in ``held``.
            device: Device of the result.
            transpose: Swap rows and columns, so that the lines of the mask vary along the last axis.
        """
        picked = list(self.held[rows])
        raw, per_slice = self.raw, lambda a: a[picked] if len(a) > 1 else a
        y = torch.from_numpy(raw.kspace[picked]).to(device) / self.scale
        mask = torch.from_numpy(np.ascontiguousarray(per_slice(raw.mask))).to(device)
        noise = self.noise_std[picked].to(device)
        if raw.coil_maps is None:
            found = estimate_coil_maps(y, mask, noise_std=noise)
            maps, phase, sources = found.maps, found.phase, found.sources
            support = torch.ones_like(phase, dtype=torch.bool)
        else:
            given = torch.from_numpy(np.ascontiguousarray(per_slice(raw.coil_maps))).to(device).expand_as(y)
            maps, support, notes = _normalised(given)
            sources = self._sources(mask, len(y)) or (MapSource(None, _GIVEN, notes),) * len(y)
            absorbed, phase = absorb_phase(maps, y, mask)
            # Low-resolution maps hold the phase of the images they are made of.
            low = torch.tensor([s.method == "low_resolution" for s in sources], device=device)[:, None, None, None]
            maps, phase = torch.where(low, maps, absorbed), torch.where(low, 0, phase)
        m = Measurement(
            y=y,
            mask=mask,
            coil_maps=maps,
            noise_std=noise,
            scale=torch.full((len(y),), self.scale, device=device),
            key=tuple(str(raw.volume_slices[i]) for i in picked),
        ).check()
        if self.noise_source.startswith(PERIPHERY):
            noise = likely_noise_std(m, noise)
            m = replace(m, noise_std=noise)
        effective = effective_noise_std(m)
        m = replace(m, noise_std=effective.level)
        if transpose:
            m = replace(m, y=m.y.mT, mask=m.mask.mT, coil_maps=maps.mT)
        return Chunk(m.cancel_readout(), phase, support, noise, effective, sources)

    def _sources(self, mask: Tensor, count: int) -> tuple[MapSource, ...]:
        """The sources of maps that a preparation estimated from this scan; none of other maps.

        They are worth what the calibration lines are worth, in a prepared file as in the raw one.
        """
        if not self.raw.estimated_maps:
            return ()
        methods = str(self.raw.attrs["maps"]).split(", ")
        method = next((name for name in methods if name.startswith("espirit/")), methods[0])
        rows = [mask[i : i + 1] if len(mask) > 1 else mask for i in range(count)]
        return tuple(source_of_estimate(row, self.raw.shape, method) for row in rows)

    def restored(self, name: str, values: np.ndarray) -> np.ndarray:
        """``values`` (slices with signal, ...) as those of all slices: zero in the others, NaN where it is a residual,
        and the level of the scan where it is one of noise.
        """
        if len(self) == len(self.raw):
            return values
        result = np.zeros((len(self.raw), *values.shape[1:]), values.dtype)
        if name == "residual":
            result[:] = np.nan
        if "noise_std" in name:
            result[:] = self.noise_std.numpy() * (1.0 if name.endswith("scaled") else self.scale)
        result[list(self.held)] = values
        return result

    def warnings(self) -> list[str]:
        """What a user should know of slices and coils without signal, and of a noise level that is none."""
        empty = [index for i, index in enumerate(self.raw.slice_indices) if i not in self.held]
        noted = [f"slices {empty} hold nothing but zeros: so do their reconstruction and its std."] if empty else []
        return noted + list(self.notes) + noise_warnings(self.noise_source, self.raw.num_coils)

    def settings(self) -> dict[str, Any]:
        """What was measured of the volume, as plain data."""
        raw = self.raw
        return {
            "source": str(raw.source or raw.name),
            "slices": list(raw.volume_slices),
            **({"whitened": True} if raw.attrs.get("whitened") else {}),
            "acceleration": raw.acceleration,
            "phase_encode_axis": raw.phase_encode_axis,
            "acquired_extent": [list(interval) for interval in raw.acquired_extent],
            "scale": self.scale,
            "noise_source": self.noise_source,
            "notes": list(raw.notes),
        }


def _without_silent_coils(raw: RawScan) -> tuple[RawScan, list[int]]:
    """The scan without coils that are zero everywhere, and their numbers: they would count as coils of no noise."""
    heard = raw.kspace.any(axis=(0, 2, 3))
    if heard.all() or not heard.any():
        return raw, []
    maps = None if raw.coil_maps is None else raw.coil_maps[:, heard]
    return replace(raw, kspace=raw.kspace[:, heard], coil_maps=maps), np.flatnonzero(~heard).tolist()


def _uneven(raw: RawScan, held: Sequence[int]) -> list[str]:
    """A note where slices were scaled one by one: noise that differs, and as the signal does, is not a scanner's."""
    if len(held) < 2:
        return []
    count = min(len(held), _SLICES_TO_COMPARE)
    rows = [held[i * len(held) // count] for i in range(count)]
    of = lambda i: (raw.kspace[i : i + 1], raw.mask[i : i + 1] if len(raw.mask) > 1 else raw.mask)  # noqa: E731
    levels = np.array([estimate_noise_std(*of(i), raw.acquired_extent)[0] for i in rows])
    shares = levels / np.array([measured_scale(*of(i)) for i in rows])
    spread = lambda values: float(values.max() / max(values.min(), 1e-30))  # noqa: E731
    if spread(levels) < _UNEVEN or spread(shares) > spread(levels) ** 0.5:
        return []
    return [
        f"noise and signal of the slices differ by a factor of {spread(levels):.0f}, as if each had its own scale; "
        "they are taken for one volume, of one scale and one noise level. Reconstruct such slices (contrasts, echoes, "
        "slices that were normalised) one by one: slices=0, slices=1, ..."
    ]


def _is_poor(source: MapSource) -> bool:
    few = source.acs is None or source.acs.num_lines < JOINT_BELOW
    return few and source.method not in (_GIVEN, "single_coil")


def _joint_source(source: MapSource) -> MapSource:
    """The source of maps that joint estimation made from those of ``source``."""
    if source.method == "low_resolution":
        return replace(source, method="joint without calibration lines", warnings=(_BLIND,))
    notes = source.warnings
    if not _is_poor(source) and source.acs is not None:
        notes += (_PLENTY.format(lines=source.acs.num_lines),)
    return replace(source, method=f"joint from {source.method}", warnings=notes)


def _normalised(maps: Tensor) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Maps with sum |S|^2 = 1, where they see anything, and a note if they had to be changed for it."""
    norm = maps.norm(dim=1, keepdim=True)
    support = norm > 1e-3 * norm.amax(dim=(1, 2, 3), keepdim=True)
    off = float(torch.where(support, (norm - 1).abs(), 0).max())
    notes: tuple[str, ...] = ()
    if off > 0.02:
        notes = (
            "coil_maps did not have sum |S|^2 = 1 where they see the object; they were normalised, so the image is the "
            "combination of all coils.",
        )
    flat = torch.full_like(maps, maps.shape[1] ** -0.5)
    return torch.where(support, maps / norm.clamp_min(1e-30), flat), support, notes
