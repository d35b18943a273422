"""ESPIRiT by other programs, for comparison and for those who trust them: sigpy's EspiritCalib and BART's ecalib."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.coil_maps.acs import AcsRegion
from ambient_mri.coil_maps.calibration import kernel_size, noise_aware_thresholds

__all__ = ["bart_espirit", "sigpy_espirit"]


def sigpy_espirit(
    kspace: Tensor, acs: AcsRegion, *, kernel: int, threshold: float, noise_std: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Maps and eigenvalues by ``sigpy.mri.app.EspiritCalib``, from the largest centred square of the region.

    Arguments and results are those of :func:`~ambient_mri.coil_maps.espirit`. A square of few lines is all that sigpy
    takes from long calibration lines: its maps are worse then.
    """
    from ambient_mri.operators.sigpy_adapter import espirit_calib

    square = acs.limited(min(_centred_width(*axis) for axis in zip((acs.rows, acs.cols), acs.image_shape, strict=True)))
    size = kernel_size(square.shape, kernel)
    levels = noise_aware_thresholds(square.crop(kspace), noise_std, size, threshold)
    return espirit_calib(kspace, calib_width=square.shape[0], kernel_width=size[0], thresholds=levels)


def bart_espirit(
    kspace: Tensor, acs: AcsRegion, *, kernel: int, threshold: float, noise_std: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Maps and eigenvalues by ``bart ecalib``, slice by slice; see :func:`~ambient_mri.coil_maps.espirit`.

    ecalib looks for the calibration region itself, and may find a smaller one where the number of lines is odd.

    Raises:
        AmbientMRIError: If the program is not installed, or fails.
    """
    binary = shutil.which("bart")
    hint = "apt-get install bart, or use backend='torch'"
    require(binary is not None, f"backend='bart' needs the program `bart` on the PATH: {hint}.")
    size = kernel_size(acs.shape, kernel)
    command = [str(binary), "ecalib", "-m", "1", "-c", "0", "-k", f"{size[0]}:{size[1]}:1"]
    command += ["-r", f"{acs.shape[0]}:{acs.shape[1]}:1"]
    calibration = torch.zeros_like(kspace)
    acs.crop(calibration).copy_(acs.crop(kspace))
    levels = noise_aware_thresholds(acs.crop(kspace), noise_std, size, threshold)
    maps, values = [], []
    for coils, level in zip(calibration.detach().cpu(), levels, strict=True):
        with tempfile.TemporaryDirectory(prefix="ambient_mri_bart_") as folder:
            _write_cfl(Path(folder) / "kspace", coils.numpy().transpose(1, 2, 0)[:, :, None, :])
            # The threshold of ecalib is on squared singular values.
            files = ["-t", repr(level**2), "kspace", "maps", "values"]
            done = subprocess.run([*command, *files], cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                said = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr or done.stdout).strip()[-400:]
                raise AmbientMRIError(f"bart ecalib failed on {acs.shape} calibration lines: {said}")
            maps.append(_read_cfl(Path(folder) / "maps")[:, :, 0].transpose(2, 0, 1))
            values.append(_read_cfl(Path(folder) / "values")[None, :, :, 0, 0].real)
    return torch.from_numpy(np.stack(maps)).to(kspace), torch.from_numpy(np.stack(values)).to(kspace.real)


def _centred_width(extent: tuple[int, int], length: int) -> int:
    """The largest width of a region centred on the zero frequency, as sigpy crops it, inside ``extent``."""
    before, after = length // 2 - extent[0], extent[1] - length // 2
    return max(2 * min(before, after), 2 * min(before, after - 1) + 1)


def _write_cfl(path: Path, array: np.ndarray) -> None:
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n", encoding="ascii")
    array.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def _read_cfl(path: Path) -> np.ndarray:
    """A .cfl file as (x, y, z, coils)."""
    dimensions = [int(n) for n in path.with_suffix(".hdr").read_text(encoding="ascii").splitlines()[1].split()]
    shape = [*dimensions, 1, 1, 1, 1][:4]
    return np.fromfile(path.with_suffix(".cfl"), dtype=np.complex64).reshape(shape, order="F")
