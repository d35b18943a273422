"""``ambient-mri doctor``: what is installed and set up here, one line each, with the fix where something is wrong."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ambient_mri._checks import AmbientMRIError

__all__ = ["Finding", "examine", "run"]

_DISTRIBUTION = "ambient-mri"
_PYTHON = ((3, 11), (3, 13))
#: Distribution -> what it is for, and the extra that brings it.
_EXTRAS = {
    "nibabel": ("NIfTI files", "nifti"),
    "ismrmrd": ("ISMRMRD raw data", "ismrmrd"),
    "pydicom": ("DICOM files", "dicom"),
    "hydra-submitit-launcher": ("Slurm jobs", "slurm"),
}
_DATA = {
    "FASTMRI_KNEE_ROOT": "data=fastmri_knee",
    "FASTMRI_BRAIN_ROOT": "data=fastmri_brain",
    "AMBIENT_MRI_DATA": "data=brain_images",
}


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        status: ``"ok"``; ``"note"``: something optional is not there; ``"problem"``: it will fail.
        name: What was looked at.
        text: What was found, and the fix.
    """

    status: str
    name: str
    text: str


def run(options: argparse.Namespace) -> int:
    """Print the findings; status 1 where there is a problem."""
    found = list(examine())
    width = max(len(finding.name) for finding in found)
    for finding in found:
        sys.stdout.write(f"{finding.status:8} {finding.name:{width}}  {finding.text}\n")
    problems = sum(finding.status == "problem" for finding in found)
    sys.stdout.write(f"{problems} problem{'s' * (problems != 1)} found\n" if problems else "nothing is wrong\n")
    return 1 if problems else 0


def examine() -> Iterator[Finding]:
    """Everything that is looked at, in order."""
    yield _python()
    yield from _packages()
    yield _torchvision()
    yield _gpu()
    yield _precision()
    yield _compiler()
    yield _bart()
    yield from _extras()
    yield _configuration()
    yield from _folders()
    yield _cache()


def _python() -> Finding:
    here = sys.version_info[:2]
    text = ".".join(map(str, sys.version_info[:3]))
    if _PYTHON[0] <= here < _PYTHON[1]:
        return Finding("ok", "python", text)
    return Finding("problem", "python", f"{text}; 3.11 or 3.12 is needed: make an environment with one of them")


def _packages() -> Iterator[Finding]:
    """The package and what it requires, in the versions that it asks for."""
    own = _version(_DISTRIBUTION)
    checkout = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if own is not None:
        yield Finding("ok", _DISTRIBUTION, own)
        wanted = [r for r in metadata.requires(_DISTRIBUTION) or [] if "extra ==" not in r]
    elif checkout.is_file():
        yield Finding("note", _DISTRIBUTION, f"run from the checkout {checkout.parent}: pip install -e . installs it")
        wanted = tomllib.loads(checkout.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        yield Finding("problem", _DISTRIBUTION, "not installed: pip install ambient-mri")
        return
    for requirement in wanted:
        yield _requirement(requirement)


def _requirement(text: str) -> Finding:
    from packaging.requirements import Requirement

    wanted = Requirement(text)
    found = _version(wanted.name)
    if found is None:
        return Finding("problem", wanted.name, f"not installed: pip install '{wanted}'")
    if not wanted.specifier.contains(found, prereleases=True):
        return Finding("problem", wanted.name, f"{found}; {wanted.specifier} is needed: pip install '{wanted}'")
    return Finding("ok", wanted.name, found)


def _torchvision() -> Finding:
    """Libraries import torchvision where it is installed; one that was built for another torch breaks them."""
    found = _version("torchvision")
    if found is None:
        return Finding("ok", "torchvision", "not installed, and not needed")
    torch = _version("torch") or "none"
    pins = [re.search(r"^torch\s*\(?==\s*([\w.]+)", r) for r in metadata.requires("torchvision") or []]
    pinned = next((match.group(1) for match in pins if match), None)
    if pinned is None or pinned == torch.partition("+")[0]:
        return Finding("ok", "torchvision", f"{found}, not needed")
    fix = "pip uninstall torchvision (not needed here), or install the one for this torch"
    return Finding("problem", "torchvision", f"{found} was built for torch {pinned}, here is {torch}: {fix}")


def _gpu() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("problem", "gpu", f"torch cannot be imported ({error}): install it again")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name(0)
        return Finding(
            "ok", "gpu", f"{torch.cuda.device_count()} x {name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        )
    if shutil.which("nvidia-smi"):
        fix = "install a CUDA build of torch (https://pytorch.org), or update the driver"
        return Finding("problem", "gpu", f"there is a driver, but torch {torch.__version__} sees no GPU: {fix}")
    return Finding("note", "gpu", "none: everything runs on the CPU, training slowly")


def _precision() -> Finding:
    try:
        import torch

        from ambient_mri.denoiser import computes_in_bf16
    except ImportError as error:
        return Finding("problem", "bfloat16", f"torch cannot be imported ({error}): install it again")
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    what = "GPU" if kind == "cuda" else "processor"
    if computes_in_bf16(kind):
        return Finding("ok", "bfloat16", f"the {what} computes in it: networks run in it")
    return Finding("note", "bfloat16", f"this {what} only imitates it: networks run in float32, more slowly")


def _compiler() -> Finding:
    """What compiles networks for a CPU."""
    try:
        from ambient_mri.networks.compiled import cpp_compiler
    except ImportError:
        return Finding("note", "compiler", "not looked for without torch")
    found = cpp_compiler()
    if found:
        return Finding("ok", "compiler", f"{found}: compiled networks on the CPU (training.compile=true, --compile)")
    return Finding("note", "compiler", "no C++ compiler; networks run uncompiled on the CPU (apt-get install g++)")


def _bart() -> Finding:
    path = shutil.which("bart")
    if path is None:
        return Finding(
            "note", "bart", "not on the PATH; only maps_backend=bart and its baselines need it: apt-get install bart"
        )
    return Finding("ok", "bart", path)


def _extras() -> Iterator[Finding]:
    for name, (purpose, extra) in _EXTRAS.items():
        found = _version(name)
        if found is None:
            yield Finding("note", name, f"not installed; {purpose} need it: pip install 'ambient-mri[{extra}]'")
        else:
            yield Finding("ok", name, f"{found} ({purpose})")


def _configuration() -> Finding:
    try:
        from ambient_mri.train import config_dir

        return Finding("ok", "configuration", str(config_dir()))
    except (AmbientMRIError, ImportError) as error:
        return Finding("problem", "configuration", f"{error}: install the package again")


def _folders() -> Iterator[Finding]:
    for variable, purpose in _DATA.items():
        value = os.environ.get(variable)
        if not value:
            yield Finding("note", variable, f"not set; where it is, {purpose} needs no data.root=FOLDER")
            continue
        folder = Path(value).expanduser()
        if not folder.is_dir():
            yield Finding("problem", variable, f"{value} is not a folder: correct it, mount its drive, or unset it")
            continue
        inside = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir())[:8]) or "no folders"
        yield Finding("ok", variable, f"{value} ({inside})")


def _cache() -> Finding:
    from ambient_mri.training.sources import cache_folder

    folder = cache_folder(None)
    there = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(there, os.W_OK):
        fix = "set AMBIENT_MRI_CACHE to a folder of yours"
        return Finding("problem", "cache", f"{folder} cannot be written: {fix}")
    free = shutil.disk_usage(there).free / 2**30
    return Finding("ok", "cache", f"{folder}, {free:.0f} GiB free (AMBIENT_MRI_CACHE chooses another)")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
