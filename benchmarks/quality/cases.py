"""Fully sampled scans and masks of the quality benchmarks, and the scores that they share.

A case is a fully sampled scan times one mask. The reference is the fully sampled coil-combined image (maps from 24
calibration lines of the full data); images are compared by magnitude after one least-squares factor.

Masks of 128 columns, by law and number:

| law | number | where from |
|---|---|---|
| random | 0, 1 | ``masks_128.npz``, R = 4 (12 central lines) and R = 8 (8): the masks that published numbers refer to |
| random | 2, 3 | drawn by :class:`~ambient_mri.masks.RandomLines`, every R |
| equispaced | 0, 1 | drawn by :class:`~ambient_mri.masks.EquispacedLines`, two different offsets, every R |

Scans at their native sizes get drawn masks alone, the calibration lines in proportion to the width.

The support of an image, inside and outside of which errors are counted, is its reference above 5 % of the maximum,
dilated by two pixels, holes filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ambient_mri import metrics
from ambient_mri.coil_maps import estimate_coil_maps
from ambient_mri.data.images import load_image_set
from ambient_mri.data.phantom import BrainPhantom
from ambient_mri.data.readers import read_scan
from ambient_mri.data.simulate import Simulation, simulate_scan
from ambient_mri.masks import EquispacedLines, PoissonDisc, RandomLines, SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.operators import sense
from ambient_mri.reconstruct.read import read_raw
from ambient_mri.reconstruct.volume import Volume
from ambient_mri.report.records import DEFINITIONS
from ambient_mri.tensors import keyed_generator

SCANS = ("brain_t1_4ch", "brain_t1_8ch", "phantom_4ch")
LAWS: dict[str, type[SamplingLaw]] = {"random": RandomLines, "equispaced": EquispacedLines, "poisson": PoissonDisc}
# Calibration lines at 128 columns.
ACS = {2: 20, 4: 12, 6: 10, 8: 8}
PUBLISHED = "masks_128"
# What the standard definitions do not say of `score`.
FITTED = {m: f"{DEFINITIONS[m]} After one least-squares factor." for m in ("psnr", "ssim", "nrmse")}
OBJECT = 0.05  # of the reference's maximum
DILATION = 2  # pixels
SUPPORT = f"reference above {OBJECT:.0%} of its maximum, dilated by {DILATION} pixels, holes filled"


@dataclass(frozen=True)
class Case:
    """A fully sampled scan and one mask.

    Attributes:
        name: Of the scan.
        acceleration: R of the mask.
        mask_index: Number of the mask, see the module's text.
        kspace: (1, coils, H, W), fully sampled.
        mask: (W,) or (H, W) bool.
        reference: (H, W) magnitude.
        law: What the mask was drawn from, one of :data:`LAWS`.
        masks: ``"masks_128"`` for the masks of that file, ``"drawn"`` for others.
        reference_noise_std: Noise of the reference, per real part, where it is not that of ``kspace``.
    """

    name: str
    acceleration: int
    mask_index: int
    kspace: np.ndarray
    mask: np.ndarray
    reference: np.ndarray
    law: str = "random"
    masks: str = PUBLISHED
    reference_noise_std: float | None = None

    @property
    def undersampled(self) -> np.ndarray:
        """K-space (1, coils, H, W) with zeros where the mask is False."""
        return self.kspace * self.mask

    @property
    def factors(self) -> dict[str, object]:
        """What identifies the case in a record."""
        return {"case": self.name, "acceleration": self.acceleration, "mask": self.mask_index}

    @property
    def support(self) -> np.ndarray:
        """(H, W) bool, see the module's text."""
        return support(self.reference)


def real_cases(root: Path, accelerations: Sequence[int]) -> Iterator[Case]:
    """The real scans of ``multicoil_val_128`` with the masks of ``masks_128.npz``."""
    for name, kspace, reference in real_scans(root):
        for acceleration in accelerations:
            for index, mask in enumerate(published_masks(root, acceleration)):
                yield Case(name, acceleration, index, kspace, mask, reference)


def simulated_cases(accelerations: Sequence[int]) -> Iterator[Case]:
    """Phantoms, where there is no data folder."""
    for index, (name, kspace, reference) in enumerate(phantom_scans()):
        for acceleration in accelerations:
            law = RandomLines(acceleration, {4: 12, 8: 8}.get(acceleration, 8))
            mask = law.draw((128, 128), keyed_generator("mask", index, acceleration))[0, 0, 0].numpy()
            yield Case(name, acceleration, 0, kspace, mask, reference, masks="drawn")


def all_cases(root: Path | None, accelerations: Sequence[int], laws: Sequence[str], draws: int = 2) -> Iterator[Case]:
    """Every scan with every mask of the module's table.

    Args:
        root: Data folder; phantoms when None, whose masks are all drawn.
        accelerations: R.
        laws: Of :data:`LAWS`.
        draws: Masks drawn for each law and R.
    """
    for name, kspace, reference in real_scans(root) if root else phantom_scans():
        for law in laws:
            for acceleration in accelerations:
                published = published_masks(root, acceleration) if root and law == "random" else []
                for index, mask in enumerate(published):
                    yield Case(name, acceleration, index, kspace, mask, reference)
                first = 2 if law == "random" else 0
                for index, mask in enumerate(drawn_masks(law, acceleration, draws, kspace.shape[-2:]), start=first):
                    yield Case(name, acceleration, index, kspace, mask, reference, law, "drawn")


def native_cases(root: Path, accelerations: Sequence[int], laws: Sequence[str], draws: int = 1) -> Iterator[Case]:
    """The scans of ``multicoil_val`` at their native sizes with masks drawn for their width; arguments as above."""
    scans = list(native_scans(root))
    for law in laws:
        for name, kspace, reference in scans:
            for acceleration in accelerations:
                for index, mask in enumerate(drawn_masks(law, acceleration, draws, kspace.shape[-2:])):
                    yield Case(name, acceleration, index, kspace, mask, reference, law, "drawn")


def real_scans(root: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, k-space (1, coils, 128, 128) and reference (128, 128) of the real multi-coil scans."""
    for name in SCANS:
        kspace = read_scan(root / "multicoil_val_128" / f"{name}.h5").kspace
        yield name, kspace, coil_combined(kspace)


def native_scans(root: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name with the size, k-space (1, coils, H, W) and reference (H, W) of the middle slice of every full scan."""
    for path in sorted((root / "multicoil_val").glob("*.h5")):
        scan = read_scan(path)
        height, width = scan.kspace.shape[-2:]
        kspace = scan.kspace[len(scan) // 2][None]
        yield f"{path.stem}_{height}x{width}", kspace, coil_combined(kspace)


def phantom_scans() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Two simulated phantoms of 8 coils, as :func:`real_scans`."""
    phantom = BrainPhantom(128, seed=99)
    settings = Simulation(coils=(8, 8), noise_std=(0.01, 0.01), turn=False)
    for index in range(2):
        yield simulated(f"simulated_phantom_{index}", phantom.volume(index, 3)[1:2], settings, f"phantom {index}")


def simulated(name: str, image: np.ndarray, settings: Simulation, scan_id: str) -> tuple[str, np.ndarray, np.ndarray]:
    """A fully sampled simulated scan of an image (1, H, W), real or complex, as :func:`real_scans`."""
    kspace = simulate_scan(image, law=RandomLines(1, 0), seed=99, scan_id=scan_id, settings=settings).scan.kspace
    return name, kspace, coil_combined(kspace)


def tuning_cases(root: Path | None, accelerations: Sequence[int], count: int) -> Iterator[Case]:
    """Simulated scans to tune on: held-out subjects of the T1-weighted image set, other phantoms where there is none.

    Args:
        root: Data folder.
        accelerations: R, a random mask for each.
        count: Scans.
    """
    settings = Simulation(coils=(8, 8), noise_std=(0.01, 0.01), turn=False)
    for name, image in held_out_slices(root, count):
        _, kspace, reference = simulated(name, image, settings, f"tuning {name}")
        for acceleration in accelerations:
            mask = drawn_masks("random", acceleration, 1, kspace.shape[-2:])[0]
            yield Case(name, acceleration, 0, kspace, mask, reference, masks="drawn")


def held_out_slices(root: Path | None, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and magnitude (1, H, W) of the middle slices of subjects that no prior was trained on."""
    path = None if root is None else root / "images" / "brain_t1pre_128.npz"
    if path is None or not path.is_file():
        phantom = BrainPhantom(128, seed=7)
        yield from ((f"held_out_phantom_{i}", phantom.volume(i, 3)[1:2]) for i in range(count))
        return
    held_out = load_image_set(path).select("val")
    for subject in held_out.subjects()[:count]:
        volume = held_out.volume(subject)
        yield f"held_out_t1pre_{subject}", volume[len(volume) // 2][None]


def published_masks(root: Path, acceleration: int) -> list[np.ndarray]:
    """The masks (128,) of ``masks_128.npz`` at R; none where the file has none."""
    masks = np.load(root / f"{PUBLISHED}.npz")
    return list(masks[f"R{acceleration}"]) if f"R{acceleration}" in masks else []


def drawn_masks(law: str, acceleration: int, count: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    """``count`` different masks of a law, (W,) or (H, W) bool, the same in every run."""
    height, width = shape
    chosen = LAWS[law](acceleration, max(2, ACS.get(acceleration, 8) * width // 128))  # type: ignore[call-arg]
    found: list[np.ndarray] = []
    attempt = 0
    while len(found) < count and attempt < 100:
        drawn = chosen.draw((height, width), keyed_generator("quality masks", law, acceleration, attempt))[0, 0]
        mask = drawn[0].numpy() if drawn.shape[0] == 1 else drawn.numpy()
        found += [] if any(np.array_equal(mask, other) for other in found) else [mask]
        attempt += 1
    return found


def coil_combined(kspace: np.ndarray, lines: int = 24) -> np.ndarray:
    """|S^H F^H y| of fully sampled data, S from its central ``lines`` x ``lines`` samples."""
    y = torch.from_numpy(kspace)
    height, width = y.shape[-2:]
    calibration = torch.zeros(1, 1, height, width, dtype=torch.bool)
    calibration[
        ..., height // 2 - lines // 2 : height // 2 + lines // 2, width // 2 - lines // 2 : width // 2 + lines // 2
    ] = True
    maps = estimate_coil_maps(y * calibration, calibration, absorb=False).maps
    return sense(maps, torch.ones(1, 1, 1, 1, dtype=torch.bool)).adjoint(y)[0, 0].abs().numpy()


def measure(case: Case) -> Measurement:
    """What every baseline gets: the measurement that ours estimates from the undersampled scan, with its own noise
    level.
    """
    volume = Volume.measure(read_raw(case.undersampled, case.mask))
    chunk = volume.chunk(slice(0, 1), torch.device("cpu"))
    return replace(chunk.measurement, noise_std=chunk.noise_std)


def noise_of(kspace: np.ndarray, mask: np.ndarray) -> float:
    """The noise level per real part that is estimated from a scan (1, coils, H, W), raw units."""
    volume = Volume.measure(read_raw(kspace * mask, mask))
    return float(volume.noise_std[0] * volume.scale)


def support(reference: np.ndarray) -> np.ndarray:
    """(H, W) bool: where there is an object (module docstring)."""
    from scipy.ndimage import binary_dilation, binary_fill_holes

    return binary_fill_holes(binary_dilation(reference > OBJECT * reference.max(), iterations=DILATION))


def score(case: Case, image: np.ndarray) -> dict[str, float]:
    """PSNR, SSIM and NRMSE of a magnitude image after one least-squares factor."""
    scaled = image * metrics.fit_scale(image, case.reference)
    return {name: getattr(metrics, name)(case.reference, scaled) for name in ("psnr", "ssim", "nrmse")}


def regional_scores(case: Case, image: np.ndarray) -> dict[tuple[str, str], float]:
    """(region, metric) to PSNR and NRMSE inside and outside the support, the factor and the peak of the whole image."""
    scaled, inside = image * metrics.fit_scale(image, case.reference), case.support
    regions = {"inside": inside, "outside": ~inside}
    return {
        (region, name): getattr(metrics, name)(case.reference, scaled, support=pixels)
        for region, pixels in regions.items()
        if pixels.any()
        for name in ("psnr", "nrmse")
    }
