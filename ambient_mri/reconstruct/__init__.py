"""From a scan and a prior to images with their uncertainty; from any linear measurement to a solution."""

from __future__ import annotations

from ambient_mri.reconstruct.result import Reconstruction, ReconstructionWarning, Solution
from ambient_mri.reconstruct.run import reconstruct, solve

__all__ = ["Reconstruction", "ReconstructionWarning", "Solution", "reconstruct", "solve"]
