"""What a user's scan may have that the prior, or the estimates it rests on, never met: one condition at a time.

| shift | settings |
|---|---|
| noise | the scan with white noise added in every coil, until its estimated level is x 1, 2, 4 |
| told noise level | the same scan, the sampler told x 0.5, 2 of the level that was estimated |
| object | an ACR-like phantom; single-channel knees and a sagittal head; complex T2 slices, simulated with 8 coils |
| coils, compressed | a head of 8 coils compressed to 4 and 2, its reference made from those |
| coils, simulated | a T1 slice of a held-out subject measured with 8, 16 and 32 coils |
| mask | Poisson discs |
| calibration lines | 4, 8, 12, 16, 24 at R = 4 |

Real scans are retrospectively undersampled; those of other sizes are cropped to a square field of view and, in k-space,
to 128 x 128. What is simulated is named so in the record (``simulated``). Without the data folder phantoms take the
place of the heads, and the shifts that need other files are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ambient_mri.data.coil_compression import coil_compression
from ambient_mri.data.readers import read_scan
from ambient_mri.data.simulate import Simulation
from ambient_mri.masks import RandomLines
from ambient_mri.operators.fourier import fft, ifft
from ambient_mri.tensors import complex_randn, keyed_generator
from benchmarks.quality.cases import (
    Case,
    coil_combined,
    drawn_masks,
    held_out_slices,
    noise_of,
    phantom_scans,
    published_masks,
    real_scans,
    simulated,
)

Scan = tuple[str, np.ndarray, np.ndarray]
SIZE = 128
KNEES = ("knee_cor_fatsat", "knee_sag", "knee_combined_01", "knee_combined_02")
# Slices of images/brain_t2_complex_128.npz, by orientation and subject.
T2_SLICES = (("axial", 0), ("coronal", 2), ("sagittal", 4))
NOISE, TOLD, LINES, COMPRESSED, SIMULATED = (1, 2, 4), (0.5, 2.0), (4, 8, 12, 16, 24), (4, 2), (8, 16, 32)


@dataclass(frozen=True)
class Condition:
    """One case under one shift.

    Attributes:
        shift: Of the module's table.
        setting: What it is set to.
        case: The scan and its mask.
        told: Factor on the noise level that the sampler is told; estimated by itself when None.
        simulated: Whether the k-space is simulated.
    """

    shift: str
    setting: str
    case: Case
    told: float | None = None
    simulated: bool = False

    @property
    def factors(self) -> dict[str, object]:
        """What identifies the condition in a record."""
        plain = {"case": self.case.name, "acceleration": self.case.acceleration, "simulated": self.simulated}
        return {**plain, "shift": self.shift, "setting": self.setting}


@dataclass(frozen=True)
class Scene:
    """Where conditions are made from.

    Attributes:
        root: Data folder; None for phantoms.
        scans: Name, k-space and reference of fully sampled multi-coil scans.
        accelerations: R.
    """

    root: Path | None
    scans: Sequence[Scan]
    accelerations: Sequence[int]

    @property
    def heads(self) -> list[Scan]:
        """The scans that show a head."""
        return [scan for scan in self.scans if scan[0] != "phantom_4ch"]

    @property
    def cases(self) -> list[Case]:
        """Every head at every R, as it is."""
        return [case_of(scan, rate, self.root) for scan in self.heads for rate in self.accelerations]


def conditions(
    root: Path | None, accelerations: Sequence[int], shifts: Sequence[str] | None = None, limit: int | None = None
) -> Iterator[Condition]:
    """Every condition, in the order of the table.

    Args:
        root: Data folder; phantoms when None.
        accelerations: R.
        shifts: Of :data:`SHIFTS`; all when None.
        limit: At most so many conditions of each.
    """
    scene = Scene(root, list(real_scans(root) if root else phantom_scans()), accelerations)
    for name, shift in SHIFTS.items():
        if shifts is None or name in shifts:
            yield from islice(shift(scene), limit)


def _noise(scene: Scene) -> Iterator[Condition]:
    for case in scene.cases:
        sigma = noise_of(case.kspace, np.ones(case.kspace.shape[-1], dtype=bool))
        for times in NOISE:
            yield Condition("noise", f"x {times}", noisier(case, sigma, times), simulated=scene.root is None)


def _told(scene: Scene) -> Iterator[Condition]:
    for case in scene.cases:
        for factor in TOLD:
            yield Condition("told noise level", f"x {factor:g}", case, told=factor, simulated=scene.root is None)


def _poisson(scene: Scene) -> Iterator[Condition]:
    for case in scene.cases:
        mask = drawn_masks("poisson", case.acceleration, 1, case.kspace.shape[-2:])[0]
        drawn = replace(case, mask=mask, law="poisson", masks="drawn")
        yield Condition("mask", "Poisson disc", drawn, simulated=scene.root is None)


def _calibration(scene: Scene) -> Iterator[Condition]:
    for case in (c for c in scene.cases if c.acceleration == 4):
        for lines in LINES:
            generator = keyed_generator("robustness ACS", lines)
            mask = RandomLines(4, lines).draw((SIZE, SIZE), generator)[0, 0, 0].numpy()
            drawn = replace(case, mask=mask, masks="drawn")
            yield Condition("calibration lines", str(lines), drawn, simulated=scene.root is None)


def case_of(scan: Scan, acceleration: int, root: Path | None) -> Case:
    """A scan with the first mask of ``masks_128.npz`` at R, or the first that is drawn."""
    name, kspace, reference = scan
    published = published_masks(root, acceleration) if root else []
    if published:
        return Case(name, acceleration, 0, kspace, published[0], reference)
    mask = drawn_masks("random", acceleration, 1, kspace.shape[-2:])[0]
    return Case(name, acceleration, 0, kspace, mask, reference, masks="drawn")


def noisier(case: Case, noise_std: float, times: float) -> Case:
    """The case with white noise added until its level is ``times`` as high; the reference stays as it is."""
    if times == 1:
        return case
    level = noise_std * float(np.sqrt(times**2 - 1))
    noise = complex_randn(case.kspace.shape, generator=keyed_generator("robustness noise", case.name, f"{times:g}"))
    noisy = case.kspace + level * noise.numpy().astype(np.complex64)
    return replace(case, kspace=noisy, reference_noise_std=noise_std)


def compressed(case: Case, coils: int) -> Case:
    """The case with virtual coils, found in its own calibration lines; the reference is made from them."""
    mask = np.broadcast_to(case.mask, case.kspace.shape[-2:])[None, None]
    kspace = coil_compression(case.undersampled, mask, coils).apply(case.kspace)
    return replace(case, kspace=kspace, reference=coil_combined(kspace))


def resized(kspace: np.ndarray, size: int = SIZE) -> np.ndarray:
    """K-space (..., H, W) of the central square of the field of view, as wide as the shorter side, cropped to size."""
    side = min(kspace.shape[-2:])
    image = _centre(ifft(torch.from_numpy(kspace)), side)
    return _centre(fft(image), size).contiguous().numpy()


def _centre(x: torch.Tensor, side: int) -> torch.Tensor:
    """The central ``side`` x ``side`` values, index n//2 on side//2."""
    rows, columns = (slice(n // 2 - side // 2, n // 2 - side // 2 + side) for n in x.shape[-2:])
    return x[..., rows, columns]


def _objects(scene: Scene) -> Iterator[Condition]:
    """Anatomy and contrast that the prior does not know."""
    root = scene.root
    if root is None:
        return
    for scan in (s for s in scene.scans if s[0] == "phantom_4ch"):
        yield from (Condition("object", "phantom", case_of(scan, rate, root)) for rate in scene.accelerations)
    for name in (*KNEES, "brain_sag_t1"):
        path = root / "singlecoil_val" / f"{name}.h5"
        if path.is_file():
            kspace = resized(read_scan(path).kspace[:1])
            setting = "knee, one channel" if name in KNEES else "sagittal head, one channel"
            yield Condition("object", setting, case_of((name, kspace, coil_combined(kspace)), 4, root))
    yield from _complex_t2(root, scene.accelerations)


def _complex_t2(root: Path, accelerations: Sequence[int]) -> Iterator[Condition]:
    path = root / "images" / "brain_t2_complex_128.npz"
    if not path.is_file():
        return
    with np.load(path) as stored:
        parts, scale, orientation, subject = (stored[k] for k in ("real_imag", "scale", "orientation", "subject"))
    settings = Simulation(coils=(8, 8), noise_std=(0.01, 0.01), turn=False, zoom=(1, 1), shift=0)
    for wanted, person in T2_SLICES:
        rows = np.flatnonzero((orientation == wanted) & (subject == person))
        index = rows[len(rows) // 2]
        image = ((parts[index, ..., 0] + 1j * parts[index, ..., 1]) / scale[index]).astype(np.complex64)[None]
        scan = simulated(f"t2_{wanted}_{person}", image, settings, f"t2 {wanted} {person}")
        for rate in accelerations:
            yield Condition("object", f"complex T2, {wanted}", case_of(scan, rate, root), simulated=True)


def _coils(scene: Scene) -> Iterator[Condition]:
    """Numbers of coils that the prior's training did not simulate."""
    most = max(scene.heads, key=lambda scan: scan[1].shape[1])
    for coils in COMPRESSED:
        for rate in scene.accelerations:
            case = compressed(case_of(most, rate, scene.root), coils)
            setting = f"{most[1].shape[1]} to {coils}"
            yield Condition("coils, compressed", setting, case, simulated=scene.root is None)
    ((name, image),) = held_out_slices(scene.root, 1)
    for coils in SIMULATED:
        settings = Simulation(coils=(coils, coils), noise_std=(0.01, 0.01), turn=False)
        scan = simulated(name, image, settings, f"coils {name}")
        for rate in scene.accelerations:
            yield Condition("coils, simulated", str(coils), case_of(scan, rate, scene.root), simulated=True)


SHIFTS: dict[str, Callable[[Scene], Iterator[Condition]]] = {
    "noise": _noise,
    "told": _told,
    "object": _objects,
    "coils": _coils,
    "mask": _poisson,
    "calibration": _calibration,
}
