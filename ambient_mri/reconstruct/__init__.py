"""From a scan and a prior to images with their uncertainty."""

from __future__ import annotations

from ambient_mri.reconstruct.recalibration import measure_recalibration, prior_folder, store_recalibration
from ambient_mri.reconstruct.result import Reconstruction, ReconstructionWarning
from ambient_mri.reconstruct.run import reconstruct

__all__ = [
    "Reconstruction",
    "ReconstructionWarning",
    "measure_recalibration",
    "prior_folder",
    "reconstruct",
    "store_recalibration",
]
