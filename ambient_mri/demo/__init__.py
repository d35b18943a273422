"""``ambient-mri demo``: the main job from start to finish, with nothing downloaded.

    a prior (the one that ships, or a small one trained here) -> a head slice's simulated scan, reconstructed,
    beside three baselines

The head is a real MR slice that comes with matplotlib, and its multi-coil k-space is *simulated*. It is sagittal, where
the shipped prior knows axial heads. A prior trained here sees phantoms, never a head, and of these the undersampled
scans alone. The head's reference serves the scores and the figure; what reconstructs reads the scan's file.
"""

from __future__ import annotations

from ambient_mri.demo.head import embedded_slice, reduced, write_scan
from ambient_mri.demo.run import DemoResult, run_demo
from ambient_mri.demo.settings import DemoSettings

__all__ = ["DemoResult", "DemoSettings", "embedded_slice", "reduced", "run_demo", "write_scan"]
