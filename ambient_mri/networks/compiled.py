"""Networks through ``torch.compile``: fused activations, which are what convolutions on a CPU leave to be saved."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from ambient_mri._checks import AmbientMRIError, require

__all__ = ["compile_network", "cpp_compiler"]


def cpp_compiler() -> str | None:
    """The C++ compiler that ``torch.compile`` uses for CPUs, or None where there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((found for found in map(shutil.which, names) if found), None)


def compile_network(network: nn.Module) -> None:
    """Compile a network, in place: its parameters, their names and what it computes stay the same.

    The first call at a size, with and without gradients, compiles it: minutes on a CPU, seconds where the machine has
    compiled it before (torch keeps the result, in TORCHINDUCTOR_CACHE_DIR).

    Raises:
        AmbientMRIError: On a machine without a GPU that has no C++ compiler either.
    """
    require(
        torch.cuda.is_available() or cpp_compiler() is not None,
        "compiling a network for a CPU takes a C++ compiler, and there is none: install one (apt-get install g++), "
        "name it in CXX, or leave out compiling (training.compile=false, no --compile).",
        AmbientMRIError,
    )
    network.compile()
