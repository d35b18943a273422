"""Raw k-space files to prepared scans, one a volume, resumable: what is done stays, what fails is named and skipped.

    read -> (crop the readout) -> (undersample by a law, where fully sampled) -> (whiten) -> (compress the coils)
         -> coil maps from the ACS -> noise level -> scale -> schema version 1

Everything comes from the undersampled scan: maps, noise level and scale are what a user of such a scan would have.
The mask of a fully sampled volume is drawn once, keyed by (data seed, volume), and serves all of its slices.

    Preparation     the settings
    prepare_scan    one volume in memory
    prepare_file    one file
    prepare_files   many files, in several processes
    prepare_dataset the folders of a data set in fastMRI's layout, with a manifest and split lists
"""

from __future__ import annotations

from ambient_mri.prepare.dataset import Manifest, find_sources, prepare_dataset, read_manifest
from ambient_mri.prepare.files import PreparationSummary, is_prepared, prepare_file, prepare_files
from ambient_mri.prepare.scan import prepare_scan
from ambient_mri.prepare.settings import Preparation

__all__ = [
    "Manifest",
    "find_sources",
    "Preparation",
    "PreparationSummary",
    "is_prepared",
    "prepare_dataset",
    "prepare_file",
    "prepare_files",
    "prepare_scan",
    "read_manifest",
]
