r"""Reconstructions without a learned prior, for comparison: what every table of this package stands beside.

    zero_filled       x = A^H y
    cg_sense          argmin 1/2 ||A x - y||^2 + lam/2 ||x||^2          (Pruessmann et al. 2001), sigpy SenseRecon
    l1_wavelet        argmin 1/2 ||A x - y||^2 + lam ||W x||_1          (Lustig et al. 2007), sigpy LinearLeastSquares
    total_variation   argmin 1/2 ||A x - y||^2 + lam ||G x||_1          (Block et al. 2007), sigpy TotalVariationRecon
    bart_pics         the same three problems solved by the ``bart`` program (Uecker et al. 2015), where it is installed

A = P F S with the maps of the measurement; W is an orthogonal wavelet transform shifted at random (cycle spinning), G
the periodic finite differences. y, x and lam are in scaled units, in which images have a maximum near 1; sigpy's
centred orthonormal FFT is ours, odd sizes included. Each slice is a problem of its own. Step sizes follow from the
bound ||A||^2 <= max sum |S|^2 in place of sigpy's power iteration, which draws from the global random state; every
result is therefore deterministic.

Without ``lam`` a rule chooses it from the measurement's noise_std and max |A^H y| (see :func:`default_lambda`). It was
fitted once, on simulated scans of 128 x 128 FLAIR and T1 heads, R = 4 and 8, noise_std 0.003 to 0.03: within 0.4 dB of
the best weight there. For a benchmark that grants a baseline its best weight, :func:`default_lambda_grid` spans
the useful range.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ambient_mri._checks import check_option, check_positive, require
from ambient_mri.measurement import Measurement
from ambient_mri.operators import fft, sense

__all__ = [
    "bart_pics",
    "cg_sense",
    "default_lambda",
    "default_lambda_grid",
    "l1_wavelet",
    "total_variation",
    "zero_filled",
]

_GRIDS: dict[str, tuple[float, ...]] = {
    "cg_sense": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "l1_wavelet": (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
    "total_variation": (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
    "bart_l2": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "bart_l1_wavelet": (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2),
    "bart_total_variation": (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2),
}
# Dual step of the primal-dual method: 0.1 reaches the minimum of the objective to 1e-3 in 300 iterations, 1 (sigpy's
# default) needs thousands, because the dual variable of the data term is of the size of the noise.
_DUAL_STEP = 0.1
# Flags of `bart pics` (bit mask 3: rows and columns) and the weight used where none is given. TV needs an ADMM penalty
# (-u) well below BART's default of 0.5, with which 100 iterations stay 4 dB short of the minimiser.
_BART_REGULARISERS: dict[str, tuple[tuple[str, ...], float]] = {
    "wavelet": (("-R", "W:3:0:{lam}"), 5e-3),
    "tv": (("-u", "0.02", "-R", "T:3:0:{lam}"), 1e-2),
    "l2": (("-R", "Q:{lam}"), 1e-2),
}

# One slice as numpy arrays: k-space (coils, H, W), coil maps (coils, H, W), sampling weights (H, W).
_Slice = tuple[np.ndarray, np.ndarray, np.ndarray]


def default_lambda(method: str, noise_std: float, peak: float = 1.0) -> float:
    """The regularisation weight used where none is given.

    ``cg_sense``: the Wiener weight (noise_std / (0.1 peak))^2, at least 1e-3; ``l1_wavelet``: 0.3 noise_std, at least
    1e-3 peak; ``total_variation``: 0.25 noise_std, at least 2e-3 peak. If y and noise_std are scaled together, the
    reconstruction is scaled, and not changed otherwise.

    Args:
        method: ``"cg_sense"``, ``"l1_wavelet"`` or ``"total_variation"``.
        noise_std: Noise per real and per imaginary part of y.
        peak: Maximum of |A^H y|, the same units.

    Raises:
        AmbientMRIError: If the method is not one of the three.
    """
    check_option("method", method, ("cg_sense", "l1_wavelet", "total_variation"))
    if method == "cg_sense":
        return max(1e-3, (noise_std / (0.1 * peak)) ** 2)
    slope, floor = (0.3, 1e-3) if method == "l1_wavelet" else (0.25, 2e-3)
    return max(floor * peak, slope * noise_std)


def default_lambda_grid(method: str) -> tuple[float, ...]:
    """Weights among which a benchmark chooses with the reference in hand, a generous opponent.

    Args:
        method: ``"cg_sense"``, ``"l1_wavelet"``, ``"total_variation"``, ``"bart_l2"``, ``"bart_l1_wavelet"`` or
            ``"bart_total_variation"``. BART's weights refer to its own scale of the data (see :func:`bart_pics`).

    Raises:
        AmbientMRIError: If the method has no weight or is unknown.
    """
    check_option("method", method, _GRIDS)
    return _GRIDS[method]


def zero_filled(measurement: Measurement) -> Tensor:
    """Coil-combined zero-filled image A^H y.

    Args:
        measurement: Scaled k-space, mask and coil maps; a single channel may come without maps.

    Returns:
        (batch, 1, H, W) complex64, scaled units.

    Raises:
        AmbientMRIError: If the measurement is inconsistent, or several coils come without maps.
    """
    maps = _coil_maps(measurement.check())
    return sense(maps, measurement.mask, axes=measurement.axes).adjoint(measurement.y).to(torch.complex64)


def cg_sense(measurement: Measurement, lam: float | None = None, *, iterations: int = 100) -> Tensor:
    """SENSE with Tikhonov regularisation, by conjugate gradients.

    Args:
        measurement: Scaled k-space, mask and coil maps.
        lam: Weight of 1/2 ||x||^2; :func:`default_lambda` where None.
        iterations: Conjugate gradient steps.

    Returns:
        (batch, 1, H, W) complex64, scaled units.

    Raises:
        AmbientMRIError: As :func:`zero_filled`, and if lam or iterations are out of range.

    Source: Pruessmann et al. 2001, eq. 20-24. Differs: 1. Tikhonov term in place of early stopping.
    """

    def solve(data: _Slice, weight: float) -> np.ndarray:
        from sigpy.mri.app import SenseRecon

        y, maps, weights = data
        # Rounding stalls single precision near 1e-7; going on from there drifts.
        tolerance = 1e-6 * float(np.linalg.norm(y))
        app = SenseRecon(y, maps, weight, weights=weights, max_iter=iterations, tol=tolerance, show_pbar=False)
        return app.run()

    return _each_slice("cg_sense", measurement, lam, iterations, solve)


def l1_wavelet(
    measurement: Measurement, lam: float | None = None, *, iterations: int = 100, wavelet: str = "db2"
) -> Tensor:
    """Compressed sensing with an l1 penalty on wavelet coefficients, by FISTA with cycle spinning.

    Args:
        measurement: Scaled k-space, mask and coil maps.
        lam: Weight of ||W x||_1 in scaled units; :func:`default_lambda` where None.
        iterations: FISTA steps; shifts that never repeat leave no fixed point, and more steps change the PSNR by up to
            0.5 dB, both ways.
        wavelet: Name of an orthogonal wavelet of PyWavelets.

    Returns:
        (batch, 1, H, W) complex64, scaled units.

    Raises:
        AmbientMRIError: As :func:`cg_sense`.

    Source: Lustig et al. 2007, eq. 3, without its TV term; cycle spinning: Figueiredo & Nowak 2003. Differs from
    sigpy.mri.app.L1WaveletRecon: 1. W is shifted by a fresh offset in every step, from a fixed seed, which removes the
    block artefacts of a decimated transform and gains 2 to 3 dB; 2. two vanishing moments in place of four, as BART has
    them.
    """

    def solve(data: _Slice, weight: float) -> np.ndarray:
        from sigpy.app import LinearLeastSquares
        from sigpy.mri.linop import Sense

        y, maps, weights = data
        return LinearLeastSquares(
            Sense(maps, weights=weights),
            y,
            proxg=_cycle_spun_threshold(weights.shape, wavelet, weight),
            alpha=1 / _squared_norm_bound(maps),
            max_iter=iterations,
            show_pbar=False,
        ).run()

    return _each_slice("l1_wavelet", measurement, lam, iterations, solve)


def _cycle_spun_threshold(
    shape: tuple[int, ...], wavelet: str, weight: float
) -> Callable[[float, np.ndarray], np.ndarray]:
    """Soft thresholding of the wavelet coefficients of the image, shifted by a new offset at every call."""
    from sigpy.linop import Wavelet
    from sigpy.prox import L1Reg, UnitaryTransform

    transform = Wavelet(shape, wave_name=wavelet)
    threshold = UnitaryTransform(L1Reg(transform.oshape, weight), transform)
    offsets = np.random.default_rng(0)

    def shrink(step: float, x: np.ndarray) -> np.ndarray:
        shift = tuple(int(offsets.integers(n)) for n in shape)
        shrunk = threshold(step, np.roll(x, shift, axis=(0, 1)))
        return np.roll(shrunk, tuple(-n for n in shift), axis=(0, 1))

    return shrink


def total_variation(measurement: Measurement, lam: float | None = None, *, iterations: int = 300) -> Tensor:
    """Compressed sensing with a total-variation penalty, by the primal-dual method of Chambolle and Pock.

    Args:
        measurement: Scaled k-space, mask and coil maps.
        lam: Weight of ||G x||_1, both directions added (anisotropic), in scaled units; :func:`default_lambda` where
            None.
        iterations: Primal-dual steps; 300 reach the minimum of the objective to 1e-3.

    Returns:
        (batch, 1, H, W) complex64, scaled units.

    Raises:
        AmbientMRIError: As :func:`cg_sense`.

    Source: Block et al. 2007, eq. 5; Chambolle & Pock 2011, algorithm 1.
    """

    def solve(data: _Slice, weight: float) -> np.ndarray:
        from sigpy.mri.app import TotalVariationRecon

        y, maps, weights = data
        # ||[A; G]||^2 <= ||A||^2 + 8 in two dimensions.
        tau = 1 / (_DUAL_STEP * (_squared_norm_bound(maps) + 8))
        options = {"weights": weights, "sigma": _DUAL_STEP, "tau": tau, "max_iter": iterations, "show_pbar": False}
        return TotalVariationRecon(y, maps, weight, **options).run()

    return _each_slice("total_variation", measurement, lam, iterations, solve)


def bart_pics(
    measurement: Measurement,
    regulariser: str = "wavelet",
    lam: float | None = None,
    *,
    iterations: int = 200,
    executable: str = "bart",
) -> Tensor:
    """Parallel imaging and compressed sensing by BART's ``pics -S``, run as a program on files in a temporary folder.

    BART divides the data by a scale that it estimates from the k-space centre, solves, and multiplies back (-S):
    ``lam`` refers to that scale, whatever the units of y. Its FFT is centred and orthonormal as ours. ``wavelet`` is
    FISTA with random cycle spinning (Daubechies 2), ``tv`` is isotropic and solved by ADMM, ``l2`` is :func:`cg_sense`.

    Args:
        measurement: Scaled k-space, mask and coil maps. BART before 1.0 takes even matrix sizes only.
        regulariser: ``"wavelet"``, ``"tv"`` or ``"l2"``.
        lam: Weight of the regulariser, relative to BART's scale; 0.005, 0.01 and 0.01 where None.
        iterations: BART's ``-i``; for ``tv`` it counts the conjugate gradient steps inside ADMM.
        executable: Name or path of the program.

    Returns:
        (batch, 1, H, W) complex64, scaled units.

    Raises:
        AmbientMRIError: If the program is missing, fails, or cannot do this matrix size; if arguments are out of range.

    Source: Uecker et al. 2015, Proc. ISMRM 2486; BART manual, ``bart pics -h``.
    """
    check_option("regulariser", regulariser, _BART_REGULARISERS)
    program = shutil.which(executable)
    require(
        program is not None,
        f"the program {executable!r} was not found on the PATH; bart_pics needs BART "
        "(Debian, Ubuntu: apt-get install bart).",
    )
    _check_bart_size(str(program), measurement.image_shape)
    flags, default_weight = _BART_REGULARISERS[regulariser]

    def solve(data: _Slice, weight: float) -> np.ndarray:
        options = [flag.format(lam=f"{weight:.8g}") for flag in flags]
        return _run_pics([str(program), "pics", "-S", *options, "-i", str(iterations)], data)

    return _each_slice("bart", measurement, default_weight if lam is None else lam, iterations, solve)


def _check_bart_size(program: str, shape: tuple[int, int]) -> None:
    """BART before 1.0 applies the forward phase in place of the inverse one to odd k-space (mrirecon/bart, request
    328).
    """
    if all(n % 2 == 0 for n in shape):
        return
    result = subprocess.run([program, "version"], capture_output=True, text=True, check=False)
    version = result.stdout.strip()
    require(
        version.startswith("v") and not version.startswith("v0."),
        f"this BART ({version or 'version unknown'}) shifts images of odd size such as {shape}: "
        "install BART 1.0 or later.",
    )


def _each_slice(
    method: str,
    measurement: Measurement,
    lam: float | None,
    iterations: int,
    solve: Callable[[_Slice, float], np.ndarray],
) -> Tensor:
    """Solve every slice of the measurement by itself and stack the images."""
    if lam is not None:
        check_positive("lam", lam, allow_zero=True)
    require(iterations >= 1, f"iterations must be at least 1; got {iterations!r}.")
    peaks = zero_filled(measurement).abs().amax(dim=(1, 2, 3)).tolist()
    maps = _coil_maps(measurement)
    # A readout that was transformed to image space goes back: the solvers' operators transform both axes.
    cancelled = tuple(axis for axis in (-2, -1) if axis not in measurement.axes)
    kspace = fft(measurement.y, cancelled) if cancelled else measurement.y
    mask = measurement.mask.expand(len(measurement), 1, *measurement.image_shape)
    images = []
    for row, (peak, noise_std) in enumerate(zip(peaks, measurement.noise_std.tolist(), strict=True)):
        require(peak > 0, f"slice {measurement.key[row]!r} holds no signal: its measured k-space is zero.")
        weight = default_lambda(method, noise_std, peak) if lam is None else lam
        # Copies: sigpy's solvers may work in place.
        y = kspace[row].detach().cpu().numpy().astype(np.complex64, copy=True)
        coil_maps = maps[row].detach().cpu().numpy().astype(np.complex64, copy=True)
        images.append(np.asarray(solve((y, coil_maps, mask[row, 0].cpu().numpy().astype(np.float32)), weight)))
    stacked = torch.from_numpy(np.stack(images).astype(np.complex64))
    return stacked.unsqueeze(1).to(measurement.y.device)


def _coil_maps(measurement: Measurement) -> Tensor:
    if measurement.coil_maps is not None:
        return measurement.coil_maps
    coils = measurement.y.shape[1]
    require(coils == 1, f"the measurement has {coils} coils and no coil_maps: estimate them first.")
    return torch.ones_like(measurement.y)


def _squared_norm_bound(maps: np.ndarray) -> float:
    """||P F S||^2 <= max over pixels of sum_c |S_c|^2, 1 for normalised maps."""
    return float(np.max(np.sum(np.abs(maps) ** 2, axis=0)))


def _run_pics(command: list[str], data: _Slice) -> np.ndarray:
    y, maps, weights = data
    with tempfile.TemporaryDirectory(prefix="ambient_mri_bart_") as folder:
        paths = {name: str(Path(folder, name)) for name in ("kspace", "maps", "pattern", "image")}
        _write_cfl(paths["kspace"], y)
        _write_cfl(paths["maps"], maps)
        _write_cfl(paths["pattern"], weights[None])
        files = ["-p", paths["pattern"], paths["kspace"], paths["maps"], paths["image"]]
        result = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
        message = (result.stderr or result.stdout).strip()[-500:]
        require(result.returncode == 0, f"bart pics failed with exit status {result.returncode}: {message}")
        return _read_cfl(paths["image"], weights.shape)


def _write_cfl(path: str, array: np.ndarray) -> None:
    """(coils, H, W) as BART's dimensions (H, W, 1, coils), column-major complex64."""
    coils, height, width = array.shape
    Path(path + ".hdr").write_text(f"# Dimensions\n{height} {width} 1 {coils}\n")
    array.transpose(1, 2, 0).astype(np.complex64).ravel(order="F").tofile(path + ".cfl")


def _read_cfl(path: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.fromfile(path + ".cfl", dtype=np.complex64).reshape(shape, order="F")
