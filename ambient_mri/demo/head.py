"""The demo's input: a real MR slice that is on every machine with matplotlib, and its simulated scan.

``s1045.ima.gz``, sagittal, 256 x 256, magnitude in 8 bits, background set to zero by whoever made it. A magnitude image
has no k-space of its own: coils, phase, noise and undersampling are simulated, and every number says so.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch

from ambient_mri._checks import AmbientMRIError, require
from ambient_mri.data.files import atomic_path
from ambient_mri.data.simulate import Simulation, simulate_scan
from ambient_mri.demo.settings import DemoSettings
from ambient_mri.masks import RandomLines
from ambient_mri.operators.fourier import fft, ifft

__all__ = ["embedded_slice", "reduced", "write_scan"]

_SAMPLE = "mpl-data/sample_data/s1045.ima.gz"
_SIDE = 256


def embedded_slice() -> np.ndarray:
    """Matplotlib's MR slice, (256, 256) float32 magnitude, 0 to 215; found without importing matplotlib.

    Raises:
        AmbientMRIError: If matplotlib, or its sample data, are not installed.
    """
    package = importlib.util.find_spec("matplotlib")
    folders = [] if package is None else list(package.submodule_search_locations or ())
    found = [Path(folder) / _SAMPLE for folder in folders if (Path(folder) / _SAMPLE).is_file()]
    if not found:
        raise AmbientMRIError(
            f"the demo's head slice comes with matplotlib ({_SAMPLE}), and is not installed here: some distributions "
            "split it off. `pip install --force-reinstall matplotlib` brings it."
        )
    # Sixteen bits a pixel, the high byte first.
    pixels = np.frombuffer(gzip.decompress(found[0].read_bytes()), dtype=">u2")
    good = pixels.size == _SIDE**2
    require(good, f"{found[0]} holds {pixels.size} pixels, not {_SIDE} x {_SIDE}. Install matplotlib again.")
    return pixels.reshape(_SIDE, _SIDE).astype(np.float32)


def reduced(image: np.ndarray, size: int) -> np.ndarray:
    """A magnitude image brought to (size, size) by cropping its k-space; float32, in the units of ``image``.

    Args:
        image: (H, W) real.
        size: Rows and columns.

    Raises:
        AmbientMRIError: If ``size`` is larger than the image, or below 16.
    """
    largest = min(image.shape)
    require(16 <= size <= largest, f"size must lie between 16 and {largest}; got {size}.")
    kspace = fft(torch.from_numpy(image).to(torch.complex64))
    top, left = (n // 2 - size // 2 for n in image.shape)
    # Orthonormal transforms of two sizes: without the factor the smaller image would be brighter.
    smaller = ifft(kspace[top : top + size, left : left + size]) * (size / (image.shape[0] * image.shape[1]) ** 0.5)
    return smaller.abs().numpy()


def write_scan(settings: DemoSettings, seed: int, path: Path) -> np.ndarray:
    """Simulate the scan of the embedded slice and write what a scanner gives: k-space and mask.

    Args:
        settings: Of the demo.
        seed: Decides mask, coils, phase and noise.
        path: Ending .npz.

    Returns:
        The reference, (size, size) float32 magnitude in the units of the scan. It is in no file.
    """
    scanner = Simulation(
        coils=(settings.coils, settings.coils),
        noise_std=(settings.noise_std, settings.noise_std),
        zoom=(1.0, 1.0),
        shift=0.0,
        turn=False,
    )
    law = RandomLines(settings.acceleration, settings.acs_lines)
    image = reduced(embedded_slice(), settings.size)
    found = simulate_scan(image[None], law=law, seed=seed, scan_id="s1045", settings=scanner)
    with atomic_path(path) as temporary:
        np.savez(temporary, kspace=found.scan.kspace, mask=found.scan.mask)
    return np.abs(found.images[0, 0])
