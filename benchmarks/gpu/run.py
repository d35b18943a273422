"""Train, evaluate and time on a GPU machine that is lent for minutes at a time.

    python benchmarks/gpu/run.py all --minutes 9          # again and again, until it says that everything is done

Every phase goes on where it was: state lives in ``--state``, outside the output folder; what is worth having is written to
``--out`` (default: $OUT, else gpu_out) at the end of every phase, so that a machine that vanishes takes little with it. ``--tiny``
rehearses everything on a CPU in about a minute. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [p for p in (str(ROOT), str(Path(__file__).resolve().parent)) if p not in sys.path]

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("gpu")

#: Minutes that each training stage is planned for; a lease of 30 minutes holds three commands of 9.
MINUTES = {"ambient": 8.5, "em1": 2.5, "em2": 4.5, "supervised": 5.0}
#: What `all` does, in order.
CHAIN = (
    "setup", "simulate", "ambient", "em1", "em2", "evaluate", "heads", "time", "sheets", "supervised", "evaluate", "sheets",
)  # fmt: skip
ACCELERATIONS = (2, 4, 6, 8)
#: Calibration lines of a mask by acceleration, as in the scans that the project evaluates on.
ACS_LINES = {8: 8}
#: Modules that a bare machine may lack, and that the wheels bring.
CARRIED = ("hydra", "omegaconf", "antlr4", "sigpy", "pywt")
# Seconds kept free at the end of a command for exports and for what goes to the output folder.
RESERVE = 15.0


def main(arguments: list[str] | None = None) -> int:
    """Run the phases asked for; the status is 0 when all of them are finished, 3 when time ran out."""
    options = parse(arguments)
    options.state.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout), logging.FileHandler(options.state / "run.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers, force=True)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    install_wheels(options.wheels, options.site)
    job = Job(options)
    phases = CHAIN if options.phase == "all" else (options.phase,)
    finished = True
    try:
        for phase in phases:
            if not job.run(phase):
                finished = False
                break
    finally:
        job.deliver()
    print(job.summary())
    done = "everything is done" if finished else f"time is up: run the same command again (stopped in {phase!r})"
    print(f"{options.phase}: {done}; {time.monotonic() - job.begin:.0f} s")
    return 0 if finished else 3


class Job:
    """One command: its settings, its deadline, and the phases."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        self.options, self.state, self.begin = options, options.state, time.monotonic()
        self.deadline = self.begin + 60 * options.minutes - min(RESERVE, 6 * options.minutes)
        self.device = torch.device(options.device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self.state / "inductor"))
        self._same_settings()

    @property
    def left(self) -> float:
        """Minutes until the deadline."""
        return max(self.deadline - time.monotonic(), 0.0) / 60

    def run(self, phase: str) -> bool:
        """One phase; False where time ran out before its end."""
        start = time.monotonic()
        if phase != "setup" and self.left <= 0:
            return False
        finished = self._phase(phase)()
        log.info("%s: %s in %.0f s", phase, "finished" if finished else "unfinished", time.monotonic() - start)
        self.deliver()
        return finished

    def _phase(self, phase: str) -> Callable[[], bool]:
        if phase == "estep":
            return lambda: self.expectation(f"em{self.options.round}") is not None
        if phase in ("em", "mstep"):
            return lambda: self.train(f"em{self.options.round}")
        if phase in MINUTES or (phase.startswith("em") and phase[2:].isdigit()):
            return lambda: self.train(phase)
        return {
            "setup": self.setup, "simulate": self.simulate, "evaluate": self.evaluate, "heads": self.heads,
            "time": self.time, "sheets": self.sheets,
        }[phase]  # fmt: skip

    def setup(self) -> bool:
        """Say what the machine is; unpack what an earlier lease brought back."""
        import torch

        from ambient_mri.report.records import machine, versions

        log.info("%s", json.dumps({**versions(), **machine()}))
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            log.info("GPU memory: %.1f of %.1f GiB free; disk: %s", free / 2**30, total / 2**30, _disk(self.state))
        if self.options.restore and self.options.restore.is_dir():
            from outbox import restore

            log.info("restored: %s", ", ".join(restore(self.options.restore, self.state)) or "nothing")
        return True

    def simulate(self) -> bool:
        """Scans for training (R = 4), the same for held-out subjects, and a few held-out slices at other accelerations."""
        from resident import Task, simulate
        from ambient_mri.training.provenance import write_json
        from ambient_mri.training.setup import build

        cfg = self.config("ambient")
        if (self.state / "data" / "done.json").is_file():
            return True
        source = build({k: v for k, v in cfg.data.items() if k != "references"})
        train, val = source.volumes()
        sets = [("train", train, build(cfg.corruption.law), 0), ("val", val, build(cfg.corruption.law), 0)]
        sets += [(f"val_R{r}", val, self.law(cfg, r), 2 if self.options.tiny else 4) for r in ACCELERATIONS]
        shared = {"seed": source.seed, "scanner": source.scanner, "mask_per": source.mask_per}
        tasks = [
            Task(name, source.images(name), law, slices=slices, folder=self.state / "data" / part, **shared)
            for part, names, law, slices in sets
            for name in names
        ]
        if not simulate(tasks, processes=self.options.processes, deadline=self.deadline):
            return False
        manifest = {
            "set": source.name, "simulated": True, "volumes": len(train), "held_out_volumes": len(val),
            "sampling_law": build(cfg.corruption.law).describe(), "noise_std": list(source.scanner.noise_std),
            "licence": source.licence, "settings": source.settings(), "seed": source.seed,
        }  # fmt: skip
        write_json(self.state / "data" / "done.json", manifest)
        return True

    def train(self, name: str) -> bool:
        """A training stage; an EM round makes its images first."""
        from stages import Stage, card_of, faster_compiled, train_stage

        folder = self.state / "stages" / name
        minutes = self.options.stage_minutes or MINUTES.get(name, 4.0) * (0.01 if self.options.tiny else 1.0)
        ready = (folder / "plan.json").is_file()
        cap = {"max_steps": self.options.max_steps} if self.options.max_steps else {}
        if (folder / "done.json").is_file():
            return True
        built = self.data_for(name)
        if built is None or self.left <= 0 or (not ready and not self.options.stage_minutes and self.left < 0.5 * minutes):
            return False
        data, objective, references = built
        cfg = self.config("ambient" if name == "ambient" else "supervised")
        architecture = self.architecture("ambient" if name == "ambient" else "clean", data.train)
        compiled = self.options.compile == "on" or (
            self.options.compile == "auto"
            and self.device.type == "cuda"
            and faster_compiled(
                architecture, objective, data.train.batch(range(data.batch_size)), self.state / "compile.json"
            )
        )
        lr = self.options.lr * (0.5 if name.startswith("em") else 1.0)
        stage = Stage(name, folder, min(minutes, self.left), self.deadline, init=self.init_for(name), lr=lr, **cap)
        manifest = json.loads((self.state / "data" / "done.json").read_text())
        metadata = card_of(cfg, cfg.seed, manifest, manifest["sampling_law"]) | {"stage": name}
        done = train_stage(
            stage, cfg, objective, data, architecture=architecture, metadata=metadata, references=references, compiled=compiled
        )
        _free()
        return done

    def data_for(self, name: str) -> Any:
        """Loaders, objective and references of a stage; None where time ran out during an E-step."""
        from ambient_mri.training.setup import build
        from resident import ResidentData, load_images, load_scans
        from stages import UNPLANNED

        cfg = self.config("ambient" if name == "ambient" else "supervised")
        folder = self.state / "data"
        sets: list[Any] = []
        references: dict[str, Any] = {}
        if name.startswith("em"):
            sets = self.expectation(name) or []
        else:
            for part in ("train", "val"):
                scans = load_scans(folder / part, self.device)
                sets.append(scans if name == "ambient" else load_images(folder / part, scans.key, self.device))
            if name == "ambient":
                references = load_images(folder / "val", sets[1].key, "cpu").by_key()
        if len(sets) < 2:
            return None
        extra = {"corruption": build(cfg.corruption)} if name == "ambient" else {}
        batch_size = min(self.options.batch_size, len(sets[0]))
        log.info("%s: %d training and %d held-out slices, batches of %d", name, len(sets[0]), len(sets[1]), batch_size)
        data = ResidentData(
            sets[0], sets[1], batch_size=batch_size, seed=cfg.seed, steps=UNPLANNED, val_items=cfg.loader.val_items
        )
        return data, build(cfg.objective, **extra), references

    def expectation(self, name: str) -> Any:
        """E-step of an EM round over training and held-out scans; None where time ran out."""
        from ambient_mri.prior import load_prior
        from resident import load_scans
        from stages import expectation

        number = int(name.removeprefix("em"))
        before = self.state / "stages" / ("ambient" if number == 1 else f"em{number - 1}") / "prior"
        prior = load_prior(before, device=self.device)
        steps = 3 if self.options.tiny else self.options.em_steps
        found = []
        for part in ("train", "val"):
            scans = load_scans(self.state / "data" / part, self.device)
            images = expectation(
                prior,
                scans,
                self.state / "stages" / name / "images" / part,
                steps=steps,
                batch_size=self.options.rows,
                seed=number,
                deadline=self.deadline,
            )
            if images is None:
                return None
            found.append(images)
        return found

    def evaluate(self) -> bool:
        """Held-out subjects at every acceleration; the table."""
        from evaluation import evaluate, table

        samples, steps = (2, 3) if self.options.tiny else (8, 50)
        settings = {"samples": samples, "steps": steps, "data": "simulated k-space of held-out subjects, true coil maps"}
        done = evaluate(
            self.state, ACCELERATIONS, self.device, samples=samples, steps=steps, settings=settings, deadline=self.deadline
        )
        table(self.state)
        return done

    def heads(self) -> bool:
        """The real heads, with the script that makes the project's own table."""
        from evaluation import real_heads

        return real_heads(self.state, self.options.data.resolve(), samples=2 if self.options.tiny else 8, seconds=60 * self.left)

    def time(self) -> bool:
        """Seconds and ratios on this device."""
        import speed
        from resident import load_scans

        if (self.state / "records" / "gpu_speed.json").is_file():
            return True
        scans = load_scans(self.state / "data" / "val_R4", self.device)
        m = scans.batch(range(min(len(scans), 4 if self.options.tiny else 64)))
        compiled = self.options.compile == "on" or (self.options.compile == "auto" and self.device.type == "cuda")
        architecture = self.architecture("clean", scans)
        rows = speed.measure(self.state, architecture, m, self.device, tiny=self.options.tiny, compiled=compiled)
        log.info("\n%s", speed.summary(rows))
        return True

    def sheets(self) -> bool:
        """One picture of held-out reconstructions."""
        from evaluation import sheet

        sheet(self.state, (4, 8), self.device, steps=3 if self.options.tiny else 50)
        return True

    def config(self, objective: str) -> DictConfig:
        """The package's configuration for this machine."""
        from ambient_mri.train import compose

        o = self.options
        trainer = "gpu" if self.device.type == "cuda" else "cpu"
        chosen = [f"objective={objective}", f"trainer={trainer}", f"network={o.network}", f"seed={o.seed}"]
        chosen += ["data=brain_images", f"data.root={o.data.resolve()}", "corruption.law.acceleration=4", "corruption.law.acs_lines=12"]
        chosen += ["checkpoint_every=500", "trainer.val_check_interval=1000", "trainer.log_every_n_steps=50"]
        if o.tiny:
            chosen += ["data=phantom", "data.size=32", "data.train_volumes=6", "data.val_volumes=2", "data.slices=4"]
            chosen = [c for c in chosen if not c.startswith(("data=brain", "data.root", "network="))]
            chosen += ["network=unet_small", "network.channels=8", "network.multipliers=[1,2]", "corruption.law.acs_lines=4"]
            chosen += ["corruption.core=2", "checkpoint_every=4", "trainer.val_check_interval=6", "trainer.log_every_n_steps=2"]
            chosen += ["loader.val_items=4", "model.precision=fp32"]
        return compose([*_last(chosen), *o.overrides])

    def law(self, cfg: DictConfig, acceleration: int) -> Any:
        """The law of the evaluation at an acceleration."""
        from ambient_mri.training.setup import build

        lines = min(ACS_LINES.get(acceleration, 12), int(cfg.corruption.law.acs_lines))
        lines = min(lines, 2) if self.options.tiny else lines
        return build({**cfg.corruption.law, "acceleration": acceleration, "acs_lines": lines})

    def architecture(self, kind: str, data: Any) -> dict[str, Any]:
        """Plain data that builds the models of every stage: one sd, measured once, from the measurements alone."""
        from ambient_mri.corruption import check_learnable
        from ambient_mri.training.estimates import evenly_spaced, image_energy
        from ambient_mri.training.provenance import write_json
        from ambient_mri.training.setup import build
        from omegaconf import OmegaConf
        from resident import load_scans

        stored = self.state / "architecture.json"
        cfg = self.config("ambient")
        if not stored.is_file():
            scans = data if hasattr(data, "lines") else load_scans(self.state / "data" / "train", self.device)
            corruption = build(cfg.corruption)
            learnable = check_learnable(corruption, scans[0].to("cpu"))
            log.info("learnable: smallest eigenvalue of E[A^H A | A~] %.2g", learnable.smallest_eigenvalue)
            m = scans.batch(evenly_spaced(len(scans), 256))
            sd = float(image_energy(m, corruption.law.inclusion_probability(m.image_shape)).double().mean().sqrt())
            model: Any = OmegaConf.to_container(cfg.model, resolve=True)
            noise = build(cfg.objective, corruption=corruption).noise
            model |= {"sd": sd, "sigma_min": noise.sigma_min * sd, "sigma_max": noise.sigma_max * sd}
            write_json(stored, {"network": OmegaConf.to_container(cfg.network, resolve=True), **model})
        found = {"kind": kind, **json.loads(stored.read_text())}
        return found if kind == "ambient" else {k: v for k, v in found.items() if k not in ("e0", "cg_iterations")}

    def init_for(self, name: str) -> Path | None:
        """The prior that a stage starts from: a restored one of its own, else the one before it in EM, else --init."""
        own = self.state / "stages" / name / "prior"
        if (own / "prior.json").is_file():
            return own
        if name.startswith("em"):
            number = int(name.removeprefix("em"))
            return self.state / "stages" / ("ambient" if number == 1 else f"em{number - 1}") / "prior"
        return self.options.init if name == "ambient" else None

    def deliver(self) -> None:
        """Everything worth having, to the output folder."""
        from outbox import deliver

        left_out = deliver(self.state, self.options.out)
        if left_out:
            log.info("left out of %s, which holds 8 files: %s", self.options.out, ", ".join(left_out))

    def summary(self) -> str:
        """What the end of the output should show."""
        lines = []
        for plan in sorted(self.state.glob("stages/*/plan.json")):
            values = json.loads(plan.read_text())
            done = "done" if (plan.parent / "done.json").is_file() else "unfinished"
            lines.append(
                f"{plan.parent.name:12}{done:12}{values['max_steps']:>8} steps x {values['batch_size']}"
                f"{values['images_per_second']:>9.0f} images/s"
            )
        lines += [p.read_text() for p in sorted(self.state.glob("records/*.md"))]
        return "\n".join(lines)

    def _same_settings(self) -> None:
        """A state folder belongs to one set of settings: later commands need not repeat them, and cannot change them."""
        o = self.options
        path = self.state / "settings.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        for name, default in (("tiny", False), ("network", "unet"), ("seed", 0), ("overrides", [])):
            given = getattr(o, name)
            if name in known and given not in (default, known[name]):
                raise SystemExit(f"{self.state} was made with {name} = {known[name]}, not {given}: choose another --state")
            setattr(o, name, known.get(name, given))
            known[name] = getattr(o, name)
        path.write_text(json.dumps(known))


def install_wheels(wheels: Path, site: Path) -> None:
    """Unpack the carried wheels that this interpreter lacks into ``site``: a wheel is a zip archive, and no installer is needed."""
    missing = [m for m in CARRIED if find_spec(m) is None]
    if missing and wheels.is_dir():
        site.mkdir(parents=True, exist_ok=True)
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                tops = {n.split("/")[0] for n in archive.namelist() if ".dist-info" not in n}
                if tops & set(missing):
                    archive.extractall(site)
    if site.is_dir() and str(site) not in sys.path:
        sys.path.append(str(site))
    still = [m for m in CARRIED[:3] if find_spec(m) is None]
    if still:
        raise SystemExit(f"{', '.join(still)} cannot be imported, and {wheels} does not bring them: run pack.py first")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    phases = ["all", "setup", "simulate", "ambient", "estep", "mstep", "em", "supervised", "evaluate", "heads", "time", "sheets"]
    parser.add_argument("phase", choices=phases, help="em and mstep are one: an M-step makes the images of its E-step first")
    parser.add_argument("--minutes", type=float, default=9.0, help="time of this command; the limit of a call is 10")
    parser.add_argument("--stage-minutes", type=float, default=0.0, help="plan a training stage for this long")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="rehearsal: phantoms of 32 x 32, a few steps")
    parser.add_argument("--state", type=Path, default=Path("/tmp/ambient_state"))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_out")))
    parser.add_argument("--data", type=Path, default=ROOT / ".gpu_data", help="what pack.py made")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl")
    parser.add_argument("--site", type=Path, default=Path("/tmp/site"))
    parser.add_argument("--restore", type=Path, default=ROOT / ".gpu_back", help="what an earlier lease brought back")
    parser.add_argument("--init", type=Path, help="prior folder that the ambient stage starts from")
    parser.add_argument("--round", type=int, default=1, help="of EM, for estep and mstep")
    parser.add_argument("--em-steps", type=int, default=25, help="noise levels of split Gibbs in an E-step")
    parser.add_argument("--network", default="unet", help="a file of configs/network")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rows", type=int, default=256, help="slices at a time in an E-step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="auto: where it is faster")
    parser.add_argument("--max-steps", type=int, default=0, help="bound on the steps of a training stage; 0 for none")
    parser.add_argument("--processes", type=int, default=0, help="for the simulation; 0 for one a core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="further keys of the configuration, such as network.channels=56")
    options = parser.parse_intermixed_args(arguments)
    if options.tiny:
        options.max_steps, options.batch_size, options.rows = options.max_steps or 12, 8, 16
        options.processes = options.processes or 1
    return options


def _last(overrides: list[str]) -> list[str]:
    """Every key once, with its last value."""
    return list({o.split("=", 1)[0]: o for o in overrides}.values())


def _free() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _disk(folder: Path) -> str:
    return subprocess.run(["df", "-h", str(folder)], capture_output=True, text=True, check=False).stdout.splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
