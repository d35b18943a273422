"""Diffusion priors for MRI, trained on undersampled k-space alone, and posterior samplers that reconstruct with them.

    import ambient_mri

    rec = ambient_mri.reconstruct("scan.h5", prior="brain128", samples=8)
    rec.mean, rec.std, rec.samples, rec.residual
    rec.save("out.h5")

    x = ambient_mri.solve(y, operator, prior, noise_std=0.05, samples=4)

Public names are listed in ``__all__``; everything else is found in its module. Each is imported on first use, so that
``import ambient_mri`` and ``ambient-mri --help`` wait for nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ambient_mri._checks import AmbientMRIError
    from ambient_mri.data.check import KspaceCheck, check_kspace
    from ambient_mri.data.readers import read_scan as load
    from ambient_mri.measurement import Measurement
    from ambient_mri.prior import Prior, load_prior
    from ambient_mri.reconstruct import Reconstruction, reconstruct
    from ambient_mri.solve import solve

__all__ = [
    "reconstruct",
    "solve",
    "load",
    "load_prior",
    "check_kspace",
    "Prior",
    "Measurement",
    "Reconstruction",
    "KspaceCheck",
    "AmbientMRIError",
    "__version__",
]

#: Public name -> module, and the name there.
_PLACES = {
    "reconstruct": ("ambient_mri.reconstruct", "reconstruct"),
    "solve": ("ambient_mri.solve", "solve"),
    "Reconstruction": ("ambient_mri.reconstruct", "Reconstruction"),
    "load": ("ambient_mri.data.readers", "read_scan"),
    "check_kspace": ("ambient_mri.data.check", "check_kspace"),
    "KspaceCheck": ("ambient_mri.data.check", "KspaceCheck"),
    "load_prior": ("ambient_mri.prior", "load_prior"),
    "Prior": ("ambient_mri.prior", "Prior"),
    "Measurement": ("ambient_mri.measurement", "Measurement"),
    "AmbientMRIError": ("ambient_mri._checks", "AmbientMRIError"),
}


def __getattr__(name: str) -> Any:
    """Public names and the version, looked up on first use."""
    if name in _PLACES:
        module, attribute = _PLACES[name]
        return getattr(import_module(module), attribute)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("ambient-mri")
        except PackageNotFoundError:
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Surface(ModuleType):
    """The package, whose public names win over subpackages of the same name.

    Python sets an imported subpackage as an attribute of its package; ``ambient_mri.reconstruct`` stays the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PLACES and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Surface


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
