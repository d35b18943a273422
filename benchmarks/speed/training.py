"""What training costs beyond its arithmetic: the whole step over bare forward + backward, and the data's speed.

    python benchmarks/speed/training.py [--device cpu|cuda] [--size 64] [--batch 8] [--steps 20] [--network NAME ...]

Each objective's step (further masks, operators, loss, gradient, clipping, optimiser, averaged weights) takes turns in
one process with a bare forward and backward pass of the same network on inputs of the same shape and precision. The
data pipeline is timed alone: batches from volumes in memory, collated and augmented, as training reads them. Its ratio
is its batches a second over the step's: above one, the step never waits. Scans are simulated phantoms.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ambient_mri.data.augment import Augmentation
from ambient_mri.data.datasets import ImageDataset, ScanDataset, StepSampler
from ambient_mri.denoiser import runs_in_bf16
from ambient_mri.objectives import Objective
from ambient_mri.prior import build_model
from ambient_mri.report.records import write_records
from ambient_mri.report.tables import markdown_table
from ambient_mri.tensors import RowGenerators, RowStreams, keyed_generator
from ambient_mri.train import compose
from ambient_mri.training.setup import build
from ambient_mri.training.simulated import Phantoms

RESULTS = Path(__file__).resolve().parents[1] / "results" / "training_speed.json"
OBJECTIVES = ("ambient", "supervised")


class Step:
    """One training step of an objective, and its parts.

    Args:
        objective: The loss.
        data: Training set.
        settings: Of the model, for :func:`~ambient_mri.prior.build_model`.
        batch_size: Items a step.
        device: Where it runs.
    """

    def __init__(self, objective: Objective, data: Any, settings: dict[str, Any], batch_size: int, device: str) -> None:
        self.objective, self.data, self.batch_size, self.device = objective, data, batch_size, device
        self.model: Any = build_model(settings).to(device)
        self.parameters = list(self.model.parameters())
        self.averaged = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.augmentation = Augmentation()
        self.sampler = StepSampler(data.sizes, batch_size, 10**6, seed=0)
        self.count = 0

    def batch(self) -> Any:
        """The next batch, on the device."""
        self.count += 1
        items = [self.data[i] for i in self.sampler.batch(self.count)]
        return type(items[0]).collate(items).to(self.device) if hasattr(items[0], "mask") else self._images(items)

    def _images(self, items: list[Any]) -> Any:
        return ImageDataset.collate(items).to(self.device)

    def augmented(self) -> tuple[Any, RowGenerators]:
        """The next batch as the objective gets it, and the random streams of its rows."""
        batch = self.batch()
        streams: RowGenerators = [keyed_generator(0, "train", self.count, i) for i in range(len(batch))]
        if self.device != "cpu":  # as in training: one kernel a draw
            streams = RowStreams(0, "train", self.count, rows=range(len(batch)), device=self.device)
        if hasattr(batch, "images"):
            return self.augmentation.images(batch.images, streams), streams
        return self.augmentation.measurements(batch, streams), streams

    def train(self, batch: Any, streams: RowGenerators) -> None:
        """Normal form of the weights, where the network has one; loss, gradient, update, average."""
        getattr(self.model.network, "normalize_", _nothing)()
        loss = self.objective(self.model, batch, streams)
        self.optimiser.zero_grad()
        loss.value.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        torch._foreach_lerp_(self.averaged, [p.detach() for p in self.parameters], 0.01)

    def bare(self, inputs: torch.Tensor, noise: torch.Tensor, condition: torch.Tensor) -> None:
        """Forward and backward pass of the network alone."""
        half = runs_in_bf16(self.model.precision, inputs.device)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=half):
            out = self.model.network(inputs, noise, condition).float()
        out.square().mean().backward()


def _nothing() -> None:
    """What networks without a normal form do."""


def timed(function: Callable[[], object], device: str) -> float:
    """Seconds of one call, the device waited for."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(step: Step, size: int, turns: int) -> dict[str, float]:
    """Median seconds of the step, of bare forward + backward, and of one batch from the data pipeline."""
    inputs = torch.randn(step.batch_size, 4, size, size, generator=keyed_generator("inputs")).to(step.device)
    if step.device == "cuda":
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    noise = torch.zeros(step.batch_size, device=step.device)
    condition = torch.ones(step.batch_size, step.model.profile.dim, device=step.device)
    seconds: dict[str, list[float]] = {"step": [], "bare": [], "data": []}
    for turn in range(turns + 2):
        found = {"data": timed(step.augmented, step.device)}
        batch, streams = step.augmented()
        found["step"] = timed(lambda b=batch, s=streams: step.train(b, s), step.device)  # type: ignore[misc]
        found["bare"] = timed(lambda: step.bare(inputs, noise, condition), step.device)
        if turn >= 2:  # the first turns choose kernels and allocate
            for name, value in found.items():
                seconds[name].append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    medians["step_ratio"] = statistics.median(a / b for a, b in zip(seconds["step"], seconds["bare"], strict=True))
    medians["data_ratio"] = medians["step"] / medians["data"]
    return medians


def prepare(name: str, network: str, options: argparse.Namespace, cache: str) -> Step:
    """The step of an objective on simulated phantoms."""
    cfg = compose([f"objective={name}", f"network={network}", "corruption.law.acs_lines=8"])
    corruption = build(cfg.corruption)
    phantoms = Phantoms("speed", cache=cache, size=options.size, train_volumes=8, val_volumes=1, slices=4)
    scans = phantoms.prepare(corruption.law)
    data = ScanDataset(scans.train) if name == "ambient" else ImageDataset(scans.train_references())
    extra = {"corruption": corruption} if "corruption" in cfg.objective else {}
    objective: Objective = build(cfg.objective, **extra)
    settings = {"kind": objective.kind, "network": dict(cfg.network), "sd": 0.3, "precision": cfg.model.precision}
    return Step(objective, data, settings, options.batch, options.device)


def main(arguments: list[str] | None = None) -> None:
    """Time every objective, write the records, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--network", nargs="+", default=["unet_light", "unet_mp"])
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache:
        for network in options.network:
            for name in OBJECTIVES:
                found = measure(prepare(name, network, options, cache), options.size, options.steps)
                base = {"n": options.steps, "ci95": None, "size": options.size, "batch": options.batch}
                base |= {"device": options.device, "network": network, "case": name}
                for part in ("step", "bare", "data"):
                    rows.append({**base, "method": part, "metric": "seconds", "value": found[part]})
                for part in ("step", "data"):
                    rows.append({**base, "method": part, "metric": "ratio", "value": found[f"{part}_ratio"]})
    definitions = {
        "seconds": "Wall-clock seconds of one batch, median over the turns.",
        "ratio": "step: whole step over bare forward + backward. data: step over data, above 1 the step never waits.",
    }
    write_records(
        options.out,
        benchmark="training_speed",
        command="python benchmarks/speed/training.py",
        settings={"networks": options.network, "turns": options.steps, "threads": torch.get_num_threads()},
        definitions=definitions,
        rows=rows,
    )
    table = markdown_table(
        rows, index=("case", "network"), columns="method", metric=("seconds", "ratio"), definitions=definitions
    )
    options.out.with_suffix(".md").write_text(table + "\n")
    sys.stdout.write(table + "\n")


if __name__ == "__main__":
    main()
