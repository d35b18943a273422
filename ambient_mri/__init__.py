"""Diffusion priors for MRI, trained on undersampled k-space alone, and posterior samplers that reconstruct with them.

    import ambient_mri

    rec = ambient_mri.reconstruct("scan.h5", prior="brain128", samples=8)
    rec.mean, rec.std, rec.samples, rec.residual
    rec.save("out.h5")

    x = ambient_mri.solve(y, operator, prior, noise_std=0.05, samples=4)

Public names are listed in ``__all__``; everything else is found in its module. Importing the package loads torch and
numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ambient_mri.measurement import Measurement
from ambient_mri.prior import Prior, load_prior

# The subpackage is imported first, so that the function of the same name is what the attribute holds ever after.
from ambient_mri.reconstruct import Reconstruction, reconstruct, solve

if TYPE_CHECKING:
    from ambient_mri.data.readers import read_scan as load

__all__ = ["reconstruct", "solve", "load", "load_prior", "Prior", "Measurement", "Reconstruction", "__version__"]


def __getattr__(name: str) -> Any:
    """``load`` (h5py) and the version are looked up on first use."""
    if name == "load":
        from ambient_mri.data.readers import read_scan

        return read_scan
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("ambient-mri")
        except PackageNotFoundError:
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
