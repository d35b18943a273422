"""What things cost on this device, as seconds and as ratios to their floor, methods taking turns.

On a GPU times come from device events around each call, after warm-up, and the inputs are larger than its second-level
cache. Ratios: split Gibbs over its bare network evaluations; the SENSE normal operator over one FFT and one inverse FFT
of all coils; the compiled over the eager network.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ambient_mri.measurement import Measurement
from ambient_mri.operators import sense
from ambient_mri.prior import Prior, build_model
from ambient_mri.report.records import append_records
from ambient_mri.sampling import make_sampler
from ambient_mri.tensors import complex_randn, keyed_generator

__all__ = ["measure"]

BENCHMARK = "gpu_speed"


def measure(
    state: Path, architecture: dict[str, Any], m: Measurement, device: torch.device, *, tiny: bool, compiled: bool
) -> list[dict[str, Any]]:
    """Time network, sampler and operators; append the records and return their rows.

    Args:
        state: Receives ``records/gpu_speed.json``.
        architecture: Of a clean prior.
        m: Held-out scans on the device, for the sampler.
        device: Where to measure.
        tiny: Small sizes, for rehearsals.
        compiled: Also time the compiled network.
    """
    rows = _network(architecture, m.image_shape, device, batch=4 if tiny else 128, compiled=compiled)
    rows += _sampler(architecture, m, device, steps=3 if tiny else 50)
    shapes = [(2, 4, 32, 32)] if tiny else [(64, 8, 128, 128), (8, 16, 320, 320)]
    for shape in shapes:
        for along in ("lines", "points"):
            rows += _operator(shape, along, device)
    path = state / "records" / f"{BENCHMARK}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    definitions = {
        "seconds": "Seconds for one image (network, sampler) or for the whole batch (operators), median.",
        "ratio": "split_gibbs: its time over that of as many bare network evaluations. network/compiled: over eager. "
        "torch: A^H A over one FFT and one inverse FFT of all coils.",
    }
    command = "python benchmarks/gpu/run.py time"
    append_records(
        path, BENCHMARK, command, {"statistic": "median", "precision": "bf16"}, definitions=definitions, rows=rows
    )
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """One line a number."""
    lines = [f"{r['case']:34}{r['method']:22}{r['metric']:9}{r['value']:12.4g}" for r in rows]
    return "\n".join(lines)


def _network(
    architecture: dict[str, Any], shape: tuple[int, int], device: torch.device, *, batch: int, compiled: bool
) -> list[dict[str, Any]]:
    x_t = complex_randn((batch, 1, *shape), generator=keyed_generator("speed"), device="cpu").to(device)
    sigma = torch.full((batch,), 0.3, device=device)
    model = build_model(architecture).to(device).eval()
    variants = {"eager": model}
    if compiled:
        variants["compiled"] = build_model(architecture).to(device).eval()
        variants["compiled"].network.compile()  # type: ignore[union-attr]

    @torch.no_grad()
    def run(network: Any) -> None:
        network(x_t, sigma)

    times = _take_turns({n: (lambda v=v: run(v)) for n, v in variants.items()}, device)
    case = f"network_forward_{shape[0]}x{shape[1]}"
    rows = [_row(case, f"network/{n}", "seconds", [t / batch for t in found], device) for n, found in times.items()]
    if compiled:
        ratios = [a / b for a, b in zip(times["compiled"], times["eager"], strict=True)]
        rows.append(_row(case, "network/compiled", "ratio", ratios, device))
    return rows


def _sampler(architecture: dict[str, Any], m: Measurement, device: torch.device, *, steps: int) -> list[dict[str, Any]]:
    """Split Gibbs over as many bare evaluations of the same network at the same batch size."""
    model: Any = build_model(architecture).to(device).eval()
    prior = Prior(model, "clean", architecture)
    operator, sampler = sense(m.coil_maps, m.mask, axes=m.axes), make_sampler("split_gibbs", steps=steps)
    sigma = torch.full((len(m),), 0.3, device=device)
    x_t = operator.adjoint(m.y)

    def sample() -> None:
        streams = [keyed_generator("speed", key, device=device) for key in m.key]
        sampler.sample(prior.model, operator, m.y, m.noise_std, generators=streams)  # type: ignore[arg-type]

    @torch.no_grad()
    def bare() -> None:
        for _ in range(steps):
            model(x_t, sigma)

    times = _take_turns({"split_gibbs": sample, "bare": bare}, device, repeats=3, warm=1)
    ratios = [a / b for a, b in zip(times["split_gibbs"], times["bare"], strict=True)]
    case = f"split_gibbs_{steps}_steps"
    per_image = [t / len(m) for t in times["split_gibbs"]]
    return [
        _row(case, "split_gibbs", "seconds", per_image, device),
        _row(case, "split_gibbs", "ratio", ratios, device),
    ]


def _operator(shape: tuple[int, int, int, int], along: str, device: torch.device) -> list[dict[str, Any]]:
    maps = complex_randn(shape, generator=keyed_generator("maps")).to(device)
    maps = maps / maps.norm(dim=1, keepdim=True)
    image = complex_randn((shape[0], 1, *shape[2:]), generator=keyed_generator("image")).to(device)
    mask_shape = (1, 1, 1 if along == "lines" else shape[2], shape[3])
    mask = (torch.rand(mask_shape, generator=keyed_generator("mask")) < 0.25).to(device)
    operator, coil_images = sense(maps, mask), maps * image
    times = _take_turns(
        {
            "torch": lambda: operator.normal(image),
            "bare_fft": lambda: torch.fft.ifftn(torch.fft.fftn(coil_images, dim=(-2, -1)), dim=(-2, -1)),
        },
        device,
    )
    case = f"sense_normal_{along}_{shape[2]}x{shape[3]}x{shape[1]}"
    ratios = [a / b for a, b in zip(times["torch"], times["bare_fft"], strict=True)]
    rows = [_row(case, name, "seconds", found, device) for name, found in times.items()]
    return [*rows, _row(case, "torch", "ratio", ratios, device)]


def _take_turns(
    calls: dict[str, Callable[[], object]], device: torch.device, *, repeats: int = 15, warm: int = 3
) -> dict[str, list[float]]:
    """Seconds of every call in every turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm + repeats):
        for name, call in calls.items():
            seconds = _timed(call, device)
            if turn >= warm:
                times[name].append(seconds)
    return times


def _timed(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def _row(case: str, method: str, metric: str, values: list[float], device: torch.device) -> dict[str, Any]:
    middle = statistics.median(values)
    return {
        "case": case, "method": method, "metric": metric, "value": middle, "n": len(values), "ci95": None,
        "device": device.type,
    }  # fmt: skip
