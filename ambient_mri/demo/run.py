"""The demo itself: take or train a prior, reconstruct, score, show."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ambient_mri import baselines, metrics
from ambient_mri.demo.head import write_scan
from ambient_mri.demo.prior import trained_prior
from ambient_mri.demo.settings import DEFAULT_MINUTES, DemoSettings
from ambient_mri.measurement import Measurement
from ambient_mri.prior import Prior, load_prior
from ambient_mri.reconstruct import Reconstruction, ReconstructionWarning, reconstruct
from ambient_mri.reconstruct.read import read_raw
from ambient_mri.reconstruct.volume import Volume
from ambient_mri.report.records import Row, write_records

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["DemoResult", "run_demo"]

_CASE = "simulated scan of a real head slice"
_BASELINES: dict[str, tuple[str, Callable[[Measurement], Tensor]]] = {
    "zero_filled": ("zero-filled", baselines.zero_filled),
    "cg_sense": ("CG-SENSE", baselines.cg_sense),
    "l1_wavelet": ("L1-wavelet", baselines.l1_wavelet),
}


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        rows: Result rows (:mod:`ambient_mri.report.records`).
        reconstruction: Of the head, with the trained prior.
        reference: Magnitude of the head slice, (H, W), in the units of the reconstruction.
        files: Name to path.
    """

    rows: list[Row]
    reconstruction: Reconstruction
    reference: np.ndarray
    files: dict[str, Path]

    @property
    def ours(self) -> str:
        """The method name of our reconstruction in ``rows``."""
        return _method_name(self.reconstruction)

    def value(self, method: str, metric: str) -> float:
        """One number of the table."""
        return float(next(r["value"] for r in self.rows if (r["method"], r["metric"]) == (method, metric)))


def run_demo(
    out: str | Path,
    *,
    prior: str | Path | None = "brain128",
    seed: int = 0,
    minutes: float = DEFAULT_MINUTES,
    fresh: bool = False,
    settings: DemoSettings | None = None,
    console: Console | None = None,
) -> DemoResult:
    """Reconstruct the embedded head slice with a prior, beside three baselines, and show what came of it.

    Args:
        out: Folder for everything that is made; a second run finds a trained prior in its ``cache``.
        prior: A shipped name or a prior folder. None: train a small one on simulated phantom scans first.
        seed: Of everything that is drawn.
        minutes: Effort of the training. It decides the number of steps, by what two quiet cores do in that time, so
            that the result is the same on every machine, and the time is not.
        fresh: Train again even where a trained prior is there.
        settings: Sizes and lengths at the default effort.
        console: Where to print; a new one on stdout when None.

    Raises:
        AmbientMRIError: If matplotlib's sample data are not installed, or ``minutes`` is not positive.
        PriorError: If there is no such prior.
    """
    started = time.perf_counter()
    chosen = (DemoSettings() if settings is None else settings).for_minutes(minutes)
    terminal, out = _Terminal(console), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    scan = out / "scan.npz"
    reference = write_scan(chosen, seed, scan)
    terminal.head("1. A prior, learned from undersampled scans alone")
    if prior is None:
        prior = trained_prior(out / "cache", chosen, seed, fresh=fresh, say=terminal.say)
    else:
        terminal.say(_what_it_is(load_prior(prior)))
    terminal.head("2. The scan: a real head slice that comes with matplotlib, its k-space simulated")
    terminal.say(
        f"cropped in k-space to {chosen.size} x {chosen.size}; {chosen.coils} coils, R = {chosen.acceleration:g} with "
        f"{chosen.acs_lines} ACS lines, noise {chosen.noise_std:g}"
    )
    terminal.head("3. Four reconstructions, with coil maps, noise level and scale from the scan itself")
    images, rows = _run_baselines(scan, reference, chosen)
    result, notes = _reconstruct(scan, prior, chosen, seed)
    ours = result.magnitude[0]
    images[f"ours, mean of {chosen.samples}"] = ours
    rows += _score(_method_name(result), reference, ours, result.settings["seconds"], chosen)
    files = {
        "figure": _draw(out / "figure.png", images, reference, result, chosen),
        "results": _write_results(out / "results.json", rows, result, chosen, seed),
        "reconstruction": result.save(out / "recon.h5")[0],
        "scan": scan,
    }
    demo = DemoResult(rows, result, reference, files)
    _show(demo, str(prior), notes, terminal, time.perf_counter() - started)
    return demo


def _run_baselines(
    scan: Path, reference: np.ndarray, settings: DemoSettings
) -> tuple[dict[str, np.ndarray], list[Row]]:
    """Baselines with their default weights, on the measurement that our sampler gets: same maps, noise and scale."""
    m = Volume.measure(read_raw(scan)).chunk(slice(0, 1), torch.device("cpu")).measurement
    images: dict[str, np.ndarray] = {}
    rows: list[Row] = []
    for name, (label, method) in _BASELINES.items():
        method(m)  # the first call imports and compiles
        started = time.perf_counter()
        x = method(m)
        seconds = time.perf_counter() - started
        images[label] = (x[0, 0].abs() * m.scale[0]).numpy()
        rows += _score(name, reference, images[label], seconds, settings)
    return images, rows


def _what_it_is(prior: Prior) -> str:
    """One line on a prior, from its card."""
    seen, law = prior.metadata.get("images_seen"), prior.metadata.get("sampling_law", {})
    said = prior.metadata.get("description") or f"{prior.name}, {prior.kind}, {seen} training images, {law}."
    return f"{prior.name}: {said} (--train trains a small one on phantoms first)"


def _reconstruct(scan: Path, prior: str | Path, settings: DemoSettings, seed: int) -> tuple[Reconstruction, list[str]]:
    """What a user gets from the scan's file and the prior's folder, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReconstructionWarning)
        result = reconstruct(
            scan, prior=prior, samples=settings.samples, steps=settings.sampler_steps, seed=seed, device="cpu"
        )
    return result, [str(w.message) for w in caught if issubclass(w.category, ReconstructionWarning)]


def _score(method: str, reference: np.ndarray, image: np.ndarray, seconds: float, settings: DemoSettings) -> list[Row]:
    values = {name: getattr(metrics, name)(reference, image) for name in ("psnr", "ssim", "nrmse")}
    factors = {"case": _CASE, "method": method, "acceleration": settings.acceleration, "noise_std": settings.noise_std}
    return [
        {**factors, "metric": metric, "value": value, "n": 1, "ci95": None}
        for metric, value in {**values, "seconds": seconds}.items()
    ]


def _draw(
    path: Path, images: Mapping[str, np.ndarray], reference: np.ndarray, result: Reconstruction, settings: DemoSettings
) -> Path:
    from ambient_mri.report.plots import reconstruction_figure

    deviation = result.magnitude_std
    return reconstruction_figure(
        images,
        path,
        reference=reference,
        std=None if deviation is None else deviation[0],
        mask=result.mask[0, 0],
        acceleration=result.settings["acceleration"],
        title=f"Simulated {settings.coils}-coil scan of a real head slice, R = {settings.acceleration:g}; prior "
        f"{result.settings['prior']}, learned from undersampled scans alone",
    )


def _write_results(path: Path, rows: list[Row], result: Reconstruction, settings: DemoSettings, seed: int) -> Path:
    # The scan lies in the folder of the results, which is no part of them.
    made = {**result.settings, "source": result.name}
    held_fixed = {**asdict(settings), "seed": seed, "reconstruction": made}
    write_records(path, "demo", f"ambient-mri demo --seed {seed}", _finite(held_fixed), rows=rows)
    return path


def _show(demo: DemoResult, prior: str, notes: list[str], terminal: _Terminal, seconds: float) -> None:
    """The table, what it means, where everything is, what to do next."""
    from ambient_mri.report.tables import rich_table

    terminal.show(rich_table(demo.rows, metric=("psnr", "ssim", "nrmse", "seconds"), title=_CASE))
    gain = demo.value(demo.ours, "psnr") - demo.value("l1_wavelet", "psnr")
    chi2 = float(demo.reconstruction.residual.mean())
    terminal.say(
        f"{demo.ours} is ours: {abs(gain):.2f} dB {'above' if gain > 0 else 'below'} L1-wavelet; chi² of the residual "
        f"{chi2:.2f}, 1 for an honest sample. One slice and one mask: an example, not a benchmark."
    )
    if gain <= 0:
        terminal.say(
            "What helps, in this order: scans of real anatomy, training for hours, and EM, which makes a proper prior "
            "of the ambient network (README)."
        )
    for note in notes:
        terminal.say(f"note: {note}")
    terminal.head(f"Done in {seconds / 60:.1f} minutes")
    for name, path in demo.files.items():
        terminal.say(f"{name:15}{path}")
    terminal.head("Next")
    scan = demo.files["scan"]
    terminal.say(f"ambient-mri info {scan}")
    terminal.say(f"ambient-mri reconstruct {scan} --prior {prior} --samples 4 --out again.h5 --report report.html")
    terminal.say("ambient-mri train data=prepared data.root=YOUR_SCANS objective=ambient")


class _Terminal:
    """Prints with rich."""

    def __init__(self, console: Console | None) -> None:
        from rich.console import Console

        self.console = Console() if console is None else console

    def head(self, text: str) -> None:
        """A heading."""
        self.console.print(f"\n{text}", style="bold", highlight=False, markup=False)

    def say(self, text: str) -> None:
        """A line, which the terminal wraps: paths and commands stay whole for copying."""
        self.console.print(f"   {text}", highlight=False, markup=False, soft_wrap=True)

    def show(self, content: object) -> None:
        """Anything that rich can draw."""
        self.console.print(content)


def _method_name(result: Reconstruction) -> str:
    prior = result.settings["prior"] if result.settings["prior_kind"] == "clean" else "ambient"
    return f"{prior}/split_gibbs/mean{result.num_samples}"


def _finite(value: Any) -> Any:
    """Plain data for a result file; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
