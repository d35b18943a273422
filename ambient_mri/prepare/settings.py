"""Settings of a preparation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ambient_mri._checks import check_option, check_positive, require
from ambient_mri.data.coil_compression import METHODS
from ambient_mri.data.files import sha256_of_file

__all__ = ["Preparation"]

_BACKENDS = ("torch", "sigpy", "bart")


@dataclass(frozen=True)
class Preparation:
    """Settings of a preparation; recorded in every file.

    Attributes:
        seed: Data seed: with the volume's name it decides the mask of a fully sampled volume.
        maps_backend: Of :func:`~ambient_mri.coil_maps.estimate_coil_maps`.
        calib: Calibration lines used for the maps, at most.
        absorb_phase: Move the image's smooth phase into the maps.
        noise_std: Noise level per real part in raw units, where it is known; estimated when None.
        slices: First and one past the last slice to use; all when None.
        whiten: ``"periphery"``, or the path of a noise scan: make the coils' noise uncorrelated and equally strong (see
            :mod:`ambient_mri.data.whitening`). None: leave the coils as they are.
        crop_readout: Remove readout oversampling. A prior trained on such scans expects scans without it.
        coils: Number of virtual coils, or the share of the energy that they must hold, such as 0.98; all when None.
        compression: ``"svd"`` or ``"geometric"`` (see :mod:`ambient_mri.data.coil_compression`).
    """

    seed: int = 0
    maps_backend: str = "torch"
    calib: int = 24
    absorb_phase: bool = True
    noise_std: float | None = None
    slices: tuple[int, int] | None = None
    whiten: str | None = None
    crop_readout: bool = False
    coils: float | None = None
    compression: str = "svd"

    def __post_init__(self) -> None:
        """Check every setting, so that a typing error is found before the first volume is read."""
        check_option("maps_backend", self.maps_backend, _BACKENDS)
        check_option("compression", self.compression, METHODS)
        check_positive("calib", self.calib)
        if self.noise_std is not None:
            check_positive("noise_std", self.noise_std, allow_zero=True)
        if self.slices is not None:
            require(len(self.slices) == 2, f"slices must be (first, one past the last); got {self.slices}.")
            object.__setattr__(self, "slices", tuple(int(i) for i in self.slices))
        if self.coils is not None:
            good = 0 < self.coils < 1 or (self.coils >= 1 and float(self.coils).is_integer())
            require(good, f"coils must be a number of coils, or a share of the energy below 1; got {self.coils}.")

    def describe(self) -> dict[str, Any]:
        """The settings as plain data; two preparations that agree in it give the same files.

        A noise scan is named by its content.
        """
        found = asdict(self)
        found["slices"] = None if self.slices is None else list(self.slices)
        if self.whiten not in (None, "periphery"):
            found["whiten"] = f"sha256:{sha256_of_file(str(self.whiten))}"
        return found
