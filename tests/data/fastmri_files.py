"""Miniature files in fastMRI's exact HDF5 layout, real XML header included, for tests.

Every default is what the official files have; a test names only what it changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from ambient_mri.operators.fourier import fft, ifft

NAMESPACE = 'xmlns="http://www.ismrm.org/ISMRMRD" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'


def header_xml(
    *,
    encoded: tuple[int, int],
    recon: tuple[int, int],
    limits: tuple[int, int, int] | None = None,
    coils: int = 4,
    oversampling: float = 1.0,
    namespace: str = NAMESPACE,
    trajectory: str = "cartesian",
    acceleration: int = 1,
) -> str:
    """An ISMRMRD header with the elements that fastMRI's files hold.

    Args:
        encoded: Encoded matrix (x, y): readout, phase encoding.
        recon: Reconstructed matrix (x, y).
        limits: minimum, maximum and center of the phase-encode counter; by default all y lines.
        coils: receiverChannels.
        oversampling: Encoded over reconstructed field of view along x.
        namespace: Attributes of the root element.
        trajectory: Name of the trajectory.
        acceleration: accelerationFactor along the phase-encode axis.
    """
    minimum, maximum, center = limits or (0, encoded[1] - 1, encoded[1] // 2)

    def space(tag: str, matrix: tuple[int, int], field: tuple[float, float]) -> str:
        return (
            f"<{tag}><matrixSize><x>{matrix[0]}</x><y>{matrix[1]}</y><z>1</z></matrixSize>"
            f"<fieldOfView_mm><x>{field[0]}</x><y>{field[1]}</y><z>4.5</z></fieldOfView_mm></{tag}>"
        )

    def limit(step: str, low: int, high: int, middle: int) -> str:
        numbers = f"<minimum>{low}</minimum><maximum>{high}</maximum><center>{middle}</center>"
        return f"<{step}>{numbers}</{step}>"

    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<ismrmrdHeader {namespace}>'
        "<studyInformation><studyTime>00:00:00</studyTime></studyInformation>"
        "<acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor><systemModel>Prisma</systemModel>"
        f"<systemFieldStrength_T>2.89362</systemFieldStrength_T><receiverChannels>{coils}</receiverChannels>"
        "</acquisitionSystemInformation>"
        "<experimentalConditions><H1resonanceFrequency_Hz>123252163</H1resonanceFrequency_Hz></experimentalConditions>"
        "<encoding>"
        + space("encodedSpace", encoded, (160.0 * oversampling, 160.0))
        + space("reconSpace", recon, (160.0, 160.0))
        + "<encodingLimits>"
        + limit("kspace_encoding_step_1", minimum, maximum, center)
        + limit("kspace_encoding_step_2", 0, 0, 0)
        + limit("slice", 0, 31, 0)
        + f"</encodingLimits><trajectory>{trajectory}</trajectory>"
        f"<parallelImaging><accelerationFactor><kspace_encoding_step_1>{acceleration}</kspace_encoding_step_1>"
        "<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>"
        "<calibrationMode>other</calibrationMode></parallelImaging>"
        "</encoding><sequenceParameters><TR>2750</TR><TE>27</TE></sequenceParameters></ismrmrdHeader>"
    )


def simulated_kspace(
    slices: int, coils: int, height: int, width: int, *, noise_std: float = 0.01, seed: int = 0
) -> np.ndarray:
    """Multi-coil k-space of a few smooth blobs within the middle of the field of view, noise included.

    Returns:
        (slices, coils, height, width) complex64; the image's maximum is of order one.
    """
    rng = np.random.default_rng(seed)
    y = ((np.arange(height) - height // 2) / height)[:, None]
    x = ((np.arange(width) - width // 2) / width)[None, :]
    image = np.zeros((slices, height, width))
    for part in image:
        for _ in range(12):
            centre, radius = rng.uniform(-0.18, 0.18, 2), rng.uniform(0.05, 0.16)
            distance = np.hypot(y - centre[0], x - centre[1]) / radius
            part += rng.uniform(-0.2, 0.4) / (1 + np.exp(20 * (distance - 1)))
        part += 0.7 / (1 + np.exp(40 * (np.hypot(y / 0.33, x / 0.31) - 1)))
    angles = 2 * np.pi * np.arange(coils) / coils
    maps = np.stack([np.exp(1j * a - ((y - 0.4 * np.sin(a)) ** 2 + (x - 0.4 * np.cos(a)) ** 2) / 0.4) for a in angles])
    maps /= np.sqrt((np.abs(maps) ** 2).sum(axis=0))
    kspace = fft(torch.from_numpy(image[:, None] * maps)).numpy()
    noise = rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape)
    return (kspace + noise_std * noise).astype(np.complex64)


def rss(kspace: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Root sum of squares over coils of (slices, coils, H, W), centre-cropped: fastMRI's reference."""
    image = ifft(torch.from_numpy(kspace)).abs().square().sum(dim=1).sqrt().numpy()
    top, left = (n // 2 - m // 2 for n, m in zip(image.shape[-2:], shape, strict=True))
    return image[:, top : top + shape[0], left : left + shape[1]].astype(np.float32)


@dataclass(frozen=True)
class FastMRIFile:
    """What one miniature file holds; None leaves the dataset out."""

    kspace: np.ndarray
    header: str | bytes | None
    mask: np.ndarray | None = None
    reference: np.ndarray | None = None
    acquisition: str = "CORPD_FBK"

    def write(self, path: Path) -> Path:
        """Write the file, reference under the name that goes with the number of axes; returns the path."""
        with h5py.File(path, "w") as handle:
            handle["kspace"] = self.kspace
            if self.header is not None:
                text = self.header if isinstance(self.header, bytes) else self.header.encode()
                handle["ismrmrd_header"] = text
            if self.mask is not None:
                handle["mask"] = self.mask
            if self.reference is not None:
                handle["reconstruction_rss" if self.kspace.ndim == 4 else "reconstruction_esc"] = self.reference
                handle.attrs["max"], handle.attrs["norm"] = self.reference.max(), np.linalg.norm(self.reference)
            handle.attrs["acquisition"] = self.acquisition
            handle.attrs["patient_id"] = "0" * 8
            if self.mask is not None:
                handle.attrs["acceleration"], handle.attrs["num_low_frequency"] = 4, 6
        return path


def knee(slices: int = 2, coils: int = 4, *, oversampled: int = 64, width: int = 37, side: int = 32) -> FastMRIFile:
    """Fully sampled knee: readout sampled twice as densely, odd number of phase-encode lines, square image."""
    kspace = simulated_kspace(slices, coils, oversampled, width)
    header = header_xml(encoded=(oversampled, width), recon=(side, side), coils=coils, oversampling=2.0)
    return FastMRIFile(kspace, header, reference=rss(kspace, (side, side)))


def brain(
    slices: int = 2, coils: int = 5, *, rows: int = 48, width: int = 40, lines: int = 31, center: int = 15
) -> FastMRIFile:
    """Fully sampled brain whose scanner acquired ``lines`` of ``width`` phase-encode lines and zero-padded the rest."""
    kspace = simulated_kspace(slices, coils, rows, width, seed=1)
    first = width // 2 - center
    kspace[..., :first] = 0
    kspace[..., first + lines :] = 0
    header = header_xml(encoded=(rows, width), recon=(rows // 2, rows // 2), limits=(0, lines - 1, center), coils=coils)
    return FastMRIFile(kspace, header, reference=rss(kspace, (rows // 2, rows // 2)), acquisition="AXT2")


def undersampled(file: FastMRIFile, mask: np.ndarray, *, store: bool = True) -> FastMRIFile:
    """The same scan as a test file: zero outside the mask, no reference."""
    kspace = np.where(mask, file.kspace, np.complex64(0))
    return FastMRIFile(kspace, file.header, mask if store else None, acquisition=file.acquisition)


def random_lines(width: int, *, acceleration: int = 4, acs_lines: int = 6, seed: int = 0) -> np.ndarray:
    """(width,) bool: the central lines and randomly chosen others, width // acceleration of them in all."""
    mask = np.zeros(width, dtype=bool)
    first = width // 2 - acs_lines // 2
    mask[first : first + acs_lines] = True
    outer = np.flatnonzero(~mask)
    mask[np.random.default_rng(seed).choice(outer, max(0, width // acceleration - acs_lines), replace=False)] = True
    return mask


def with_size(
    rows: int, width: int, coils: int, *, slices: int = 1, acquisition: str = "CORPD_FBK", lines: int | None = None
) -> FastMRIFile:
    """A fully sampled file of one matrix size, readout oversampled twice, its outer lines zero-padded by the scanner.

    Args:
        rows: Readout samples.
        width: Phase-encode lines of the matrix.
        coils: Coils.
        slices: Slices.
        acquisition: Contrast.
        lines: Acquired lines; all when None.
    """
    kspace = simulated_kspace(slices, coils, rows, width, seed=rows + width)
    lines = lines or width
    center = lines // 2
    first = width // 2 - center
    kspace[..., :first] = 0
    kspace[..., first + lines :] = 0
    side = rows // 2
    header = header_xml(
        encoded=(rows, width), recon=(side, side), limits=(0, lines - 1, center), coils=coils, oversampling=2.0
    )
    return FastMRIFile(kspace, header, reference=rss(kspace, (side, min(side, width))), acquisition=acquisition)


def single_coil(file: FastMRIFile) -> FastMRIFile:
    """The first coil of a file, in the layout of the single-coil track: (slices, H, W)."""
    kspace = file.kspace[:, 0]
    side = (32, 32) if file.reference is None else file.reference.shape[-2:]
    reference = rss(file.kspace[:, :1], (side[0], side[1]))
    return FastMRIFile(kspace, file.header, file.mask, reference, file.acquisition)


def write_knees(root: Path, *, train: int = 4, val: int = 1, test: int = 1, kind: str = "multicoil") -> Path:
    """A knee data set in the original layout and with its file names: odd widths, mixed sizes, PD and PDFS in turn."""
    number = 1000000
    for part, count in (("train", train), ("val", val), ("test", test)):
        folder = root / f"{kind}_{part}"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            width = 36 if part == "train" and i % 4 == 3 else 37
            name = "CORPD_FBK" if i % 2 == 0 else "CORPDFS_FBK"
            file = with_size(64, width, 4, slices=2, acquisition=name, lines=width - 4)
            if part == "test":
                file = undersampled(file, random_lines(width, acceleration=3, acs_lines=6))
            (single_coil(file) if kind == "singlecoil" else file).write(folder / f"file{number + 7 * i}.h5")
        number += 1000
    return root


def write_brains(root: Path, *, train: int = 4, val: int = 1, test: int = 1) -> Path:
    """A brain data set in the original layout: coil numbers and contrasts vary, edges are zero-padded."""
    contrasts = ("AXT2", "AXT1PRE", "AXFLAIR", "AXT1POST")
    number = 2000000
    for part, count in (("train", train), ("val", val), ("test", test)):
        folder = root / f"multicoil_{part}"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            name = contrasts[i % len(contrasts)]
            file = with_size(48, 40, 3 + i % 3, slices=2, acquisition=name, lines=33)
            if part == "test":
                file = undersampled(file, random_lines(40, acceleration=3, acs_lines=6))
            file.write(folder / f"file_brain_{name}_20{i}_{number + i}.h5")
        number += 1000
    return root
