"""One command on a GPU machine: its settings, its deadline, its phases. :mod:`run` is what is typed."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluation
import outbox
import speed
import torch
from budget import BUDGETS, plan_of
from compiling import faster_compiled
from omegaconf import DictConfig, OmegaConf
from resident import ResidentData, ResidentImages, ResidentScans, load_images, load_scans
from simulation import Task, simulate
from stages import UNPLANNED, Stage, card_of, expectation, train_stage
from torch import Tensor

from ambient_mri.corruption import check_learnable
from ambient_mri.masks import SamplingLaw
from ambient_mri.prior import load_prior
from ambient_mri.report.records import machine, versions
from ambient_mri.train import compose
from ambient_mri.training.draws import Draw, draw_of
from ambient_mri.training.estimates import evenly_spaced, image_energy
from ambient_mri.training.provenance import write_json
from ambient_mri.training.setup import build, require_chain

__all__ = ["ACCELERATIONS", "Job"]

log = logging.getLogger("gpu")

#: Minutes that each training stage is planned for: two rounds of EM in a lease of 15, the rest in the next one.
MINUTES = {"ambient": 4.0, "em1": 1.5, "em2": 3.0, "em3": 3.0, "supervised": 4.0}
#: The first round of EM that learns from means of samples (benchmarks/README.md says what they are worth).
AVERAGED = 3
ACCELERATIONS = (2, 4, 6, 8)
#: Calibration lines of a mask by acceleration, as in the masks of the real heads; 12 elsewhere.
ACS_LINES = {8: 8}
# Seconds kept free at the end of a command for exports and for what goes to the output folder.
RESERVE = 15.0
# Settings that a state folder was made with, and their defaults.
_IDENTITY: dict[str, Any] = {"tiny": False, "budget": None, "network": None, "seed": 0, "overrides": []}


@dataclass(frozen=True)
class _Materials:
    """What a training stage needs beside its model."""

    data: ResidentData
    objective: Any
    references: dict[str, Tensor]


class Job:
    """One command.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.state, self.begin = options, options.state, time.monotonic()
        self._same_settings()
        self.budget = BUDGETS[options.budget]
        self.deadline = self.begin + 60 * options.minutes - min(RESERVE, 6 * options.minutes)
        self.device = torch.device(options.device)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self.state / "inductor"))

    @property
    def left(self) -> float:
        """Minutes until the deadline."""
        return max(self.deadline - time.monotonic(), 0.0) / 60

    def run(self, phase: str) -> bool:
        """One phase; False where time ran out before its end."""
        start = time.monotonic()
        if phase != "setup" and self.left <= 0:
            return False
        if phase not in ("setup", "simulate") and not self.simulate():
            return False
        finished = self._phase(phase)()
        log.info("%s: %s in %.0f s", phase, "finished" if finished else "unfinished", time.monotonic() - start)
        self.deliver()
        return finished

    def _phase(self, phase: str) -> Callable[[], bool]:
        number = self.options.round
        named: dict[str, Callable[[], bool]] = {
            "estep": lambda: self.expectation(f"em{number}") is not None,
            "mstep": lambda: self.train(f"em{number}"),
        }
        return named.get(phase) or getattr(self, phase, None) or (lambda: self.train(phase))

    def setup(self) -> bool:
        """Say what the machine is; unpack what an earlier lease brought back."""
        log.info("%s", json.dumps({**versions(), **machine()}))
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            disk = subprocess.run(["df", "-h", str(self.state)], capture_output=True, text=True, check=False).stdout
            log.info("GPU memory: %.1f of %.1f GiB free\n%s", free / 2**30, total / 2**30, disk)
        if self.options.restore.is_dir():
            restored = outbox.restore(self.options.restore, self.state)
            log.info("restored: %s", ", ".join(restored) or "nothing")
        return True

    def simulate(self) -> bool:
        """Scans for training, the same for held-out subjects, and a few held-out slices at every acceleration."""
        done = self.state / "data" / "done.json"
        if done.is_file():
            return True
        cfg = self.config("ambient")
        law = build(cfg.corruption.law)
        source = build({k: v for k, v in cfg.data.items() if k != "references"})
        train, val = source.volumes()
        sets = [("train", train, law, 0), ("val", val, law, 0)]
        sets += [(f"val_R{r}", val, self.law(cfg, r), 2 if self.options.tiny else 4) for r in ACCELERATIONS]
        shared = {"seed": source.seed, "scanner": source.scanner, "mask_per": source.mask_per}
        tasks = [
            Task(name, source.images(name), drawn, slices=slices, folder=self.state / "data" / part, **shared)
            for part, names, drawn, slices in sets
            for name in names
        ]
        if not simulate(tasks, processes=self.options.processes, deadline=self.deadline):
            return False
        manifest = {
            "set": source.name,
            "simulated": True,
            "volumes": len(train),
            "held_out_volumes": len(val),
            "sampling_law": law.describe(),
            "noise_std": list(source.scanner.noise_std),
            "licence": source.licence,
            "settings": source.settings(),
            "seed": source.seed,
            "mask_per": source.mask_per,
            "draw": source.draw(law).plain(),
        }
        write_json(done, manifest)
        return True

    def train(self, name: str) -> bool:
        """A training stage; a round of EM makes its images first."""
        folder = self.state / "stages" / name
        if (folder / "done.json").is_file():
            return True
        o, chain = self.options, self.chain(name)
        minutes = o.stage_minutes or MINUTES.get(name, 4.0) * (0.01 if o.tiny else 1.0)
        found, cfg = self._materials(name), self.config(name)
        fixed = self.budget.experiment(name) is not None
        # A stage that is cut short by the end of a command pays its start twice: better to begin it in the next one.
        planned = fixed or (folder / "plan.json").is_file() or o.stage_minutes > 0
        if found is None or self.left <= 0 or (not planned and self.left < 0.5 * minutes):
            return False
        steps = o.max_steps or (cfg.trainer.max_steps if fixed else UNPLANNED)
        if fixed and not (folder / "plan.json").is_file():
            write_json(folder / "plan.json", plan_of(steps, cfg.training.warmup_steps, found.data.batch_size))
        architecture = self.architecture("ambient" if name == "ambient" else "clean")
        stage = Stage(
            name,
            folder,
            minutes=minutes,
            deadline=self.deadline,
            max_steps=steps,
            init=self._start_of(name),
            lr=o.lr * (0.5 if name.startswith("em") else 1.0) if o.lr else cfg.training.lr,
            compiled=self._compiled(architecture, found),
        )
        metadata = card_of(cfg, self._manifest(), chain) | {"stage": name}
        revision = o.data / "revision.txt"
        if metadata["git"] == "unknown" and revision.is_file():
            metadata["git"] = revision.read_text()
        return train_stage(
            stage,
            cfg,
            found.objective,
            found.data,
            architecture=architecture,
            metadata=metadata,
            references=found.references,
        )

    def chain(self, name: str) -> list[Draw]:
        """The draws that a stage learns from, those of its start among them.

        Raises:
            AmbientMRIError: If its start has seen another draw of the same subjects.
        """
        cfg, start = self.config(name), self._start_of(name)
        cfg.init = None if start is None else str(start)
        return require_chain(cfg, draw_of(self._manifest()), self.state / "stages" / name)

    def expectation(self, name: str) -> list[ResidentImages] | None:
        """E-step of a round of EM over training and held-out scans; None where time ran out."""
        self.chain(name)
        number = int(name.removeprefix("em"))
        before = self.state / "stages" / ("ambient" if number == 1 else f"em{number - 1}") / "prior"
        prior = load_prior(before, device=self.device)
        found = []
        for part in ("train", "val"):
            images = expectation(
                prior,
                load_scans(self.state / "data" / part, self.device),
                self.state / "stages" / name / "images" / part,
                steps=3 if self.options.tiny else self.options.em_steps,
                start_sd=self.budget.start_sd,
                batch_size=self.options.rows,
                seed=number,
                average=self.options.average if number >= AVERAGED else 1,
                deadline=self.deadline,
            )
            if images is None:
                return None
            found.append(images)
        return found

    def evaluate(self) -> bool:
        """Held-out subjects at every acceleration; the table."""
        samples, steps = (2, 3) if self.options.tiny else (self.budget.samples, self.budget.steps)
        data = "simulated k-space of held-out subjects, true coil maps"
        done = evaluation.evaluate(
            self.state,
            ACCELERATIONS,
            self.device,
            samples=samples,
            steps=steps,
            settings={"samples": samples, "steps": steps, "data": data},
            deadline=self.deadline,
        )
        evaluation.table(self.state)
        return done

    def heads(self) -> bool:
        """The real heads, with the script that makes the project's own table."""
        samples = 2 if self.options.tiny else self.budget.samples
        return evaluation.real_heads(
            self.state, self.options.data.resolve(), samples=samples, seconds=max(60 * self.left, 1.0)
        )

    def time(self) -> bool:
        """Seconds and ratios on this device; measured once."""
        if (self.state / "records" / f"{speed.BENCHMARK}.json").is_file():
            return True
        tiny, compiled = self.options.tiny, self.options.compile
        scans = load_scans(self.state / "data" / "val_R4", self.device)
        m = scans.batch(range(min(len(scans), 4 if tiny else self.budget.timed)))
        wanted = compiled == "on" or (compiled == "auto" and self.device.type == "cuda")
        rows = speed.measure(self.state, self.architecture("clean"), m, self.device, tiny=tiny, compiled=wanted)
        log.info("\n%s", speed.summary(rows))
        return True

    def sheets(self) -> bool:
        """One picture of held-out reconstructions; drawn again where a prior is newer than it."""
        picture = self.state / "sheet.png"
        drawn = picture.stat().st_mtime if picture.is_file() else 0.0
        if any(p.stat().st_mtime >= drawn for p in self.state.glob("stages/*/prior/weights.safetensors")):
            evaluation.sheet(self.state, (4, 8), self.device, steps=3 if self.options.tiny else self.budget.steps)
        return True

    def config(self, stage: str) -> DictConfig:
        """The package's configuration of a stage for this machine."""
        o, experiment = self.options, self.budget.experiment(stage)
        chosen = {
            **({"experiment": experiment} if experiment else {}),
            "objective": "ambient" if stage == "ambient" else "supervised",
            "trainer": "gpu" if self.device.type == "cuda" else "cpu",
            "seed": o.seed,
            "corruption.law.acceleration": 4,
            "corruption.law.acs_lines": 4 if o.tiny else 12,
        }
        if o.tiny:
            chosen |= {"data": "phantom", "data.size": 32, "data.train_volumes": 6, "data.val_volumes": 2}
            chosen |= {"network": "unet_small", "network.channels": 8, "network.multipliers": "[1,2]"}
            chosen |= {"data.slices": 4, "corruption.core": 2, "loader.val_items": 4, "model.precision": "fp32"}
            chosen |= {"checkpoint_every": 4, "trainer.val_check_interval": 6, "trainer.log_every_n_steps": 2}
        else:
            chosen |= {"data": "brain_images", "data.root": o.data.resolve(), "network": o.network}
        if not o.tiny and experiment is None:
            chosen |= {"checkpoint_every": 500, "trainer.val_check_interval": 1000, "trainer.log_every_n_steps": 50}
        return compose([*(f"{k}={v}" for k, v in chosen.items()), *o.overrides])

    def law(self, cfg: DictConfig, acceleration: int) -> SamplingLaw:
        """The law of the evaluation at an acceleration."""
        lines = 2 if self.options.tiny else ACS_LINES.get(acceleration, 12)
        law: SamplingLaw = build({**cfg.corruption.law, "acceleration": acceleration, "acs_lines": lines})
        return law

    def architecture(self, kind: str) -> dict[str, Any]:
        """Plain data that builds the models of every stage: one sd, measured once, from measurements alone."""
        stored = self.state / "architecture.json"
        if not stored.is_file():
            self._measure(stored)
        found = {"kind": kind, **json.loads(stored.read_text())}
        return found if kind == "ambient" else {k: v for k, v in found.items() if k not in ("e0", "cg_iterations")}

    def deliver(self) -> None:
        """Everything worth having, to the output folder."""
        left_out = outbox.deliver(self.state, self.options.out)
        if left_out:
            log.info("left out of %s, which holds 8 files: %s", self.options.out, ", ".join(left_out))

    def summary(self) -> str:
        """What the end of the output should show."""
        lines = []
        for card in sorted(self.state.glob("stages/*/prior/prior.json")):
            stage, made = card.parents[1], json.loads(card.read_text())
            done = "done" if (stage / "done.json").is_file() else "unfinished"
            plan = json.loads((stage / "plan.json").read_text()) if (stage / "plan.json").is_file() else {}
            rate = f"{plan['images_per_second']:.0f} images/s" if "images_per_second" in plan else ""
            lines.append(f"{stage.name:12}{done:12}{made['steps']:>8} of {made['planned_steps']} steps   {rate}")
        lines += [p.read_text() for p in sorted(self.state.glob("records/*.md"))]
        return "\n".join(lines)

    def _manifest(self) -> dict[str, Any]:
        """What :meth:`simulate` made."""
        return dict(json.loads((self.state / "data" / "done.json").read_text()))

    def _materials(self, name: str) -> _Materials | None:
        """Data, objective and references of a stage; None where time ran out during an E-step."""
        cfg, folder = self.config(name), self.state / "data"
        sets: list[ResidentScans] | list[ResidentImages] | None
        references: dict[str, Tensor] = {}
        if name.startswith("em"):
            sets = self.expectation(name)
        elif name == "ambient":
            sets = [load_scans(folder / part, self.device) for part in ("train", "val")]
            references = load_images(folder / "val", "cpu").by_key()
        else:
            sets = [load_images(folder / part, self.device) for part in ("train", "val")]
        if sets is None:
            return None
        train, val = sets
        batch_size = min(self.options.batch_size or cfg.loader.batch_size, len(train))
        log.info(
            "%s: %d training and %d held-out slices, batches of %d; %.1f GiB",
            name, len(train), len(val), batch_size, train.gigabytes + val.gigabytes,
        )  # fmt: skip
        data = ResidentData(train, val, batch_size=batch_size, seed=cfg.seed, val_items=cfg.loader.val_items)
        extra = {"corruption": build(cfg.corruption)} if name == "ambient" else {}
        return _Materials(data, build(cfg.objective, **extra), references)

    def _compiled(self, architecture: dict[str, Any], found: _Materials) -> bool:
        """Whether to compile the network: as told, or as measured on this GPU once."""
        if self.options.compile != "auto" or self.device.type != "cuda":
            return bool(self.options.compile == "on")
        batch = found.data.train.batch(range(found.data.batch_size))
        return faster_compiled(architecture, found.objective, batch, self.state / "compile.json")

    def _measure(self, stored: Path) -> None:
        """sd of the training scans, and whether the law can be learned from."""
        cfg, scans = self.config("ambient"), load_scans(self.state / "data" / "train", "cpu")
        corruption = build(cfg.corruption)
        learnable = check_learnable(corruption, scans[0])
        log.info("learnable: smallest eigenvalue of E[A^H A | A~] %.2g", learnable.smallest_eigenvalue)
        m = scans.batch(evenly_spaced(len(scans), 256))
        sd = float(image_energy(m, corruption.law.inclusion_probability(m.image_shape)).double().mean().sqrt())
        noise = build(cfg.objective, corruption=corruption).noise
        model: Any = OmegaConf.to_container(cfg.model, resolve=True)
        model |= {"sd": sd, "sigma_min": noise.sigma_min * sd, "sigma_max": noise.sigma_max * sd}
        write_json(stored, {"network": OmegaConf.to_container(cfg.network, resolve=True), **model})

    def _start_of(self, name: str) -> Path | None:
        """The prior that a stage starts from: a restored one of its own, else the one before it in EM, else --init."""
        own = self.state / "stages" / name / "prior"
        if (own / "prior.json").is_file():
            return own
        if name.startswith("em"):
            number = int(name.removeprefix("em"))
            return self.state / "stages" / ("ambient" if number == 1 else f"em{number - 1}") / "prior"
        given: Path | None = self.options.init
        return given if name == "ambient" else None

    def _same_settings(self) -> None:
        """A state folder belongs to one set of settings: later commands need not repeat them and cannot change them."""
        path = self.state / "settings.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        for name, default in _IDENTITY.items():
            given = getattr(self.options, name)
            if name in known and given not in (default, known[name]):
                text = f"{self.state} was made with {name} = {known[name]}, not {given}: choose another --state"
                raise SystemExit(text)
            setattr(self.options, name, known.get(name, given))
        self.options.budget = self.options.budget or "gpu"
        for name, value in BUDGETS[self.options.budget].defaults.items():
            if getattr(self.options, name) is None:
                setattr(self.options, name, value)
        path.write_text(json.dumps({name: getattr(self.options, name) for name in _IDENTITY}))
