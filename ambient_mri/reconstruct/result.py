"""What a reconstruction returns, and how it is shown and stored."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ambient_mri import metrics
from ambient_mri.uncertainty import Spread, kept_samples, recalibration_factor

__all__ = ["MISFIT", "Reconstruction", "ReconstructionWarning"]

# Chi^2 of the residual above which a user is told.
MISFIT = 4.0


class ReconstructionWarning(UserWarning):
    """A reconstruction that could be made, but that its user should look at with care."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A reconstructed volume, or some of its slices; raw units, before the crop to the scan's image size.

    Attributes:
        mean: (slices, H, W) complex64, mean of the samples.
        std: (slices, H, W) float32, standard deviation of the complex samples, times the prior's recalibration factor
            where it has one for the sampler (``settings["recalibration"]``); None for a single sample.
        samples: (slices, samples, H, W) complex64, or None where they were not kept.
        residual: (slices,) chi^2 = ||y - A x||^2 / (m level^2), mean over the samples; near 1 for honest samples, NaN
            where the level is 0 or the slice is empty. The level is the effective one,
            ``settings["effective_noise_std_scaled"]``: the noise, and what errors of the coil maps leave of the
            calibration lines.
        zero_filled: (slices, H, W) complex64, A^H y.
        mask: (slices or 1, 1, H or 1, W or 1) bool.
        phase: (slices, H, W) radians: the low-resolution phase that was moved into the coil maps, so that the prior did
            not have to explain it; ``mean`` and ``samples`` have it again.
        scale: Raw units per unit of the prior.
        noise_std: (slices,) of the scan, given or estimated, per real part, raw units.
        recon_shape: Rows and columns after the centre crop.
        affine: (4, 4), (row, column, slice) of the cropped image to mm, where the file knows it.
        name: Of the scan.
        settings: Everything that made it, as plain data.
        magnitude_spread: (slices, H, W) standard deviation of abs(sample), not recalibrated; found from the samples
            when None.
    """

    mean: np.ndarray
    std: np.ndarray | None
    samples: np.ndarray | None
    residual: np.ndarray
    zero_filled: np.ndarray
    mask: np.ndarray
    phase: np.ndarray
    scale: float
    noise_std: np.ndarray
    recon_shape: tuple[int, int]
    affine: np.ndarray | None = None
    name: str = "scan"
    settings: dict[str, Any] = field(default_factory=dict)
    magnitude_spread: np.ndarray | None = None

    def __repr__(self) -> str:
        (slices, height, width), count = self.mean.shape, self.num_samples
        made = f"{count} {'sample' if count == 1 else 'samples'} of {self._sampler}"
        return f"Reconstruction({self.name!r}, {slices} x {height} x {width}, {made})"

    @property
    def num_samples(self) -> int:
        """Samples a slice, whether they were kept or not."""
        return int(self.settings["samples"]) if self.samples is None else self.samples.shape[1]

    @property
    def magnitude(self) -> np.ndarray:
        """abs(mean), (slices, *recon_shape)."""
        return np.abs(self.crop(self.mean))

    @property
    def magnitude_std(self) -> np.ndarray | None:
        """Standard deviation of abs(sample), (slices, *recon_shape), recalibrated as ``std``; None for one sample."""
        if self.std is None:
            return None
        if self.magnitude_spread is not None:
            return self.recalibration_factor * self.crop(self.magnitude_spread)
        return self.recalibration_factor * np.abs(self._spread.samples).std(axis=1, ddof=1)

    @property
    def recalibration_factor(self) -> float:
        """Factor that ``std`` contains, so that its intervals cover what they say on scans whose truth was known."""
        return recalibration_factor(self.settings)

    def quantile(self, q: float) -> np.ndarray:
        """Pixel-wise quantile of abs(sample), recalibrated as ``std`` about its median, (slices, *recon_shape).

        Raises:
            AmbientMRIError: If the samples were not kept, or ``q`` is no quantile.
        """
        return self._spread.quantile(q)

    def principal_components(self, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
        """The k directions in which the samples differ most, images (slices, k, *recon_shape) complex64 of norm one.

        Returns:
            The images, and the standard deviation along each, (slices, k), raw units, recalibrated as ``std``:
            ``mean + 2 * std[i, j] * images[i, j]`` is still a likely image (see :mod:`ambient_mri.uncertainty`).

        Raises:
            AmbientMRIError: If the samples were not kept, or there are not more than k of them.
        """
        return self._spread.principal_components(k)

    def crop(self, image: np.ndarray) -> np.ndarray:
        """The centre of (..., H, W) that remains once readout oversampling is removed."""
        top, left = (n // 2 - crop // 2 for n, crop in zip(image.shape[-2:], self.recon_shape, strict=True))
        return image[..., top : top + self.recon_shape[0], left : left + self.recon_shape[1]]

    def save(self, path: str | os.PathLike[str], *, samples: bool = False) -> list[Path]:
        """Write it, cropped, as the ending says: .h5 (fastMRI's layout), .npz, .nii, .nii.gz, .png (the middle slice).

        Args:
            path: Destination.
            samples: Store the samples too (.h5 and .npz).

        Returns:
            The files written.

        Raises:
            AmbientMRIError: If the ending is unknown, the folder does not exist, .nii is asked for without nibabel, or
                samples that were not kept.
        """
        stored = kept_samples(self.samples, "reconstruct") if samples else None
        if Path(path).suffix.lower() == ".png":
            return [self.figure(path)]
        from ambient_mri.data.writers import save_reconstruction

        return save_reconstruction(
            path,
            self.mean,
            std=self.std,
            samples=stored,
            residual=self.residual,
            recon_shape=self.recon_shape,
            affine=self.affine,
            settings=self.settings,
        )

    def figure(self, path: str | os.PathLike[str], slice_index: int | None = None) -> Path:
        """Write a PNG of one slice (by default the middle one of those that are not zero): zero-filled, mean, standard
        deviation, mask.
        """
        from ambient_mri.report.plots import reconstruction_figure

        held = [i for i, image in enumerate(self.mean) if image.any()] or [0]
        index = held[len(held) // 2] if slice_index is None else slice_index
        count, deviation = self.num_samples, self.magnitude_std
        name = f"{self._sampler}, mean of {count}" if count > 1 else self._sampler
        number = self.settings.get("slices", range(len(self.mean)))[index]
        return reconstruction_figure(
            {"zero-filled": self.crop(self.zero_filled[index]), name: self.magnitude[index]},
            path,
            std=None if deviation is None else deviation[index],
            mask=self.mask[index if len(self.mask) > 1 else 0, 0],
            acceleration=self.settings.get("acceleration"),
            title=f"{self.name}, slice {number}, R = {self.settings.get('acceleration', float('nan')):.1f}",
        )

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write a self-contained HTML page: the middle slice, consistency with the data, warnings, settings."""
        from ambient_mri.report.html import reconstruction_sections, write_html

        with tempfile.TemporaryDirectory() as folder:
            figure = self.figure(Path(folder) / "figure.png").read_bytes()
        settings = {k: v for k, v in self.settings.items() if k != "warnings"}
        residual, noted = metrics.mean_of_known(self.residual), self.settings.get("warnings", ())
        return write_html(path, self.name, reconstruction_sections(figure, settings, residual=residual, warnings=noted))

    @property
    def _spread(self) -> Spread:
        """Of the samples after the crop."""
        return Spread(self.crop(kept_samples(self.samples, "reconstruct")), self.recalibration_factor)

    @property
    def _sampler(self) -> str:
        return str(self.settings.get("sampler", {}).get("sampler", "reconstruction"))
