"""Real and complex U-Nets, with group norm and magnitude-preserving: the same arithmetic, data and objective.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/networks.py --budget cpu --out runs/networks

Each network trains the supervised denoising objective in a process of its own (``python -m ambient_mri.train``), at the
sizes of ``priors.py``; complex ones have half the channels, each of them complex. Learning rates are those that
``learning_rate.py`` found. On held-out subjects: the rms
denoising error at every noise level, and PSNR of reconstructions (DDS) at R = 4 and 8. A finished part is never done
again.

    --budget gpu | cpu | rehearsal      as in priors.py; a rehearsal tells whether it runs, not how well
    --steps N                           of every training, in place of the budget's

Results: OUT/networks.json (records), OUT/networks.md (tables). Also measured: the seconds of a forward and backward
pass, all networks in turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ledger import recorded_command
from prior_evaluation import held_out, methods_of, rows_of
from priors_plan import BUDGETS, Budget, acs_lines, data_overrides, data_root
from training_runs import arguments_of, train_once

from ambient_mri.data.datasets import ImageDataset
from ambient_mri.denoiser import runs_in_bf16
from ambient_mri.prior import Prior, load_prior
from ambient_mri.report.records import append_records, read_records
from ambient_mri.report.tables import markdown_table
from ambient_mri.tensors import keyed_generator
from ambient_mri.train import compose
from ambient_mri.training.error_curve import error_curve
from ambient_mri.training.setup import build
from ambient_mri.training.sources import ScanSet

# Learning rate and Adam's beta_2.
OPTIMISERS = {
    "unet": (4e-3, 0.95),
    "unet_complex": (4e-3, 0.95),
    "unet_mp": (4e-2, 0.95),
    "unet_complex_mp": (4e-2, 0.95),
}
NETWORKS = tuple(OPTIMISERS)
ACCELERATIONS = (4, 8)
NOISE_STD = 0.01


def train(network: str, budget: Budget, out: Path) -> Path:
    """Train where it is not finished; the prior folder.

    Raises:
        SystemExit: If training failed.
    """
    folder = out / "runs" / network
    overrides = [
        *("objective=supervised", "loader.val_items=32"),
        *(f"training.lr={OPTIMISERS[network][0]}", f"training.betas=[0.9,{OPTIMISERS[network][1]}]"),
        *data_overrides(budget, 4, NOISE_STD, out),
        *budget.network_overrides(network),
        *arguments_of(batch_size=budget.batch_size, trainer=budget.trainer, steps=budget.steps),
    ]
    if not train_once(folder, overrides):
        raise SystemExit(f"{network} failed, see {folder / 'log.txt'}")
    return folder / "prior"


def scans(budget: Budget, acceleration: int, out: Path) -> ScanSet:
    """The simulated scans at one acceleration."""
    cfg = compose(data_overrides(budget, acceleration, NOISE_STD, out))
    if "limit" in cfg.data:
        cfg.data.limit = 0  # no training volume
    found: ScanSet = build({k: v for k, v in cfg.data.items() if k != "references"}).prepare(build(cfg.corruption.law))
    return found


def quality(network: str, prior: Prior, budget: Budget, out: Path) -> list[dict[str, Any]]:
    """Denoising error of held-out images at every noise level, and reconstructions."""
    model: Any = prior.model
    images = ImageDataset(scans(budget, 4, out).val_references())
    sigmas, errors = error_curve(model, images, levels=9, count=budget.slices)
    base = {"network": network, "noise_std": NOISE_STD}
    rows = []
    for sigma, error in zip((sigmas / model.sd).tolist(), (errors / model.sd).tolist(), strict=True):
        row = {**base, "case": "denoising", "method": "supervised/denoiser/point", "metric": "denoising_error"}
        rows.append({**row, "sigma": float(f"{sigma:.2g}"), "value": error, "n": min(budget.slices, len(images))})
    for acceleration in ACCELERATIONS:
        files = scans(budget, acceleration, out)
        lines = acs_lines(budget.size, acceleration)
        cases = held_out(files.val, files.val_references(), slices=budget.slices, tuning=budget.tuning, acs_lines=lines)
        methods = methods_of("supervised", prior, samples=budget.samples, steps=budget.sampler_steps, adps=None)
        name = "supervised/dds/point"
        rows += rows_of(name, methods[name], cases, {**base, "case": "held_out", "acceleration": acceleration})
    return [{"ci95": None, **row} for row in rows]


def cost(priors: dict[str, Prior], budget: Budget, device: str, turns: int = 5) -> list[dict[str, Any]]:
    """Median seconds of a forward and backward pass of each network, taken in turns."""
    inputs = torch.randn(budget.batch_size, 4, budget.size, budget.size, generator=keyed_generator("inputs")).to(device)
    if device == "cuda":
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    seconds: dict[str, list[float]] = {name: [] for name in priors}
    for turn in range(turns + 2):
        for name, prior in priors.items():
            began = time.perf_counter()
            _pass(prior, inputs)
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:  # the first turns choose kernels and allocate
                seconds[name].append(time.perf_counter() - began)
    base = {"case": "step", "metric": "seconds", "n": turns, "ci95": None, "device": device}
    return [{**base, "method": n, "network": n, "value": statistics.median(v)} for n, v in seconds.items()]


def _pass(prior: Prior, inputs: torch.Tensor) -> None:
    model: Any = prior.model
    model.requires_grad_(True)
    noise = torch.zeros(len(inputs), device=inputs.device)
    condition = torch.ones(len(inputs), model.profile.dim, device=inputs.device)
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=runs_in_bf16(model.precision, inputs.device)):
        out = model.network(inputs, noise, condition).float()
    out.square().mean().backward()


def size_of(prior: Prior, budget: Budget) -> dict[str, float]:
    """Parameters, and floating-point operations of a forward pass of one image, by counting."""
    model: Any = prior.model
    device = next(model.parameters()).device
    inputs = torch.zeros(1, 4, budget.size, budget.size, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.network(inputs, torch.zeros(1, device=device), torch.zeros(1, model.profile.dim, device=device))
    return {"parameters": sum(p.numel() for p in model.parameters()), "gflop": counter.get_total_flops() / 1e9}


def tables(path: Path) -> str:
    """The records as Markdown."""
    result = read_records(path)
    pick = lambda case: [r for r in result.rows if r["case"] == case]  # noqa: E731
    said = {"seconds": f"Wall-clock time: {result.settings['seconds']}, the networks in turns."}
    sizes = [
        f"| {name} | {size['parameters'] / 1e6:.2f} M | {size['gflop']:.3f} |"
        for name, size in result.settings["networks"].items()
    ]
    parts = [
        "\n".join(["| network | parameters | GFLOP a forward |", "| --- | ---: | ---: |", *sizes]) + "\n",
        markdown_table(pick("denoising"), index=("network",), columns="sigma", metric="denoising_error"),
        markdown_table(pick("held_out"), index=("network",), columns="acceleration", metric=("psnr", "ssim")),
        markdown_table(pick("step"), index=("network",), columns="device", metric="seconds", definitions=said),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="cpu")
    parser.add_argument("--out", type=Path, default=None, help="default: runs/networks_<budget>")
    parser.add_argument("--steps", type=int, default=None, help="training steps in place of the budget's")
    options = parser.parse_args(arguments)
    budget = BUDGETS[options.budget]
    budget = replace(budget, steps=options.steps or budget.steps)
    out = (options.out or Path(f"runs/networks_{options.budget}")).resolve()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    priors = {name: load_prior(train(name, budget, out), device=device) for name in NETWORKS}
    settings = {
        "budget": options.budget,
        "images_seen": budget.steps * budget.batch_size,
        "data": "simulated k-space of " + ("images/brain_*" if data_root(budget) else "procedural phantoms"),
        "networks": {name: size_of(prior, budget) for name, prior in priors.items()},
        "learning rate and beta_2": OPTIMISERS,
        "seconds": f"forward and backward pass of {budget.batch_size} images of {budget.size} x {budget.size}",
    }
    path = out / "networks.json"
    command = recorded_command("benchmarks/quality/networks.py", sys.argv[1:] if arguments is None else arguments)
    known = read_records(path) if path.is_file() else None
    for name, prior in priors.items():
        if known is None or not known.has(case="held_out", network=name, acceleration=ACCELERATIONS[-1]):
            append_records(path, "networks", command, settings, rows=quality(name, prior, budget, out))
    if known is None or not known.has(case="step"):
        append_records(path, "networks", command, settings, rows=cost(priors, budget, device))
    (out / "networks.md").write_text(tables(path))
    sys.stdout.write(tables(path))


if __name__ == "__main__":
    main()
