"""Train, evaluate and time on a GPU machine that is lent for minutes at a time.

    python benchmarks/gpu/run.py all --minutes 9          # again and again, until it says that everything is done

Every phase goes on where it was. State lives in ``--state``, outside the output folder; what is worth having is written
to ``--out`` (default: $OUT, else gpu_out) after every phase, so that a machine that vanishes takes little with it.
``--budget cpu`` does the same without a GPU, at the sizes of ``configs/experiment/brain_R4_cpu*.yaml``; ``--tiny``
rehearses everything on a CPU in half a minute. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [p for p in (str(ROOT), str(Path(__file__).resolve().parent)) if p not in sys.path]

log = logging.getLogger("gpu")

#: What `all` does, in order; a prior that comes late is evaluated at the end.
CHAIN = ("setup", "simulate", "ambient", "em1", "em2", "em3", "evaluate", "heads", "time", "sheets")
LATE = ("supervised", "evaluate", "sheets")
PHASES = ("all", "setup", "simulate", "ambient", "estep", "mstep", "supervised", "evaluate", "heads", "time", "sheets")
#: Phases that nothing else waits for: when one of them fails, `all` says so and goes on.
OPTIONAL = ("evaluate", "heads", "time", "sheets")
#: Modules that a bare machine may lack, and that the wheels bring; without the first three nothing runs.
CARRIED = ("hydra", "omegaconf", "antlr4", "sigpy", "pywt")


def main(arguments: list[str] | None = None) -> int:
    """Run the phases asked for; the status is 0 when all are finished, 3 when time ran out, 1 when one failed."""
    begin, options = time.monotonic(), parse(arguments)
    options.state.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.StreamHandler(sys.stdout),
        logging.FileHandler(options.state / "run.log"),
    ]
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers, force=True
    )
    install_wheels(options.wheels, options.site)
    from job import Job  # what it imports may have come with the wheels

    job = Job(options)
    status, said = 0, "everything is done"
    try:
        for phase in (*CHAIN, *LATE) if options.phase == "all" else (options.phase,):
            try:
                finished = job.run(phase)
            except Exception:
                if options.phase != "all" or phase not in OPTIONAL:
                    raise
                log.exception("%s failed", phase)
                status, said = 1, f"finished, but {phase} failed"
                continue
            if not finished:
                status, said = 3, f"time is up in {phase!r}: run the same command again"
                break
    finally:
        job.deliver()
    print(job.summary())
    print(f"{options.phase}: {said}; {time.monotonic() - begin:.0f} s")
    return status


def install_wheels(wheels: Path, site: Path) -> None:
    """Unpack the carried wheels that this interpreter lacks: a wheel is a zip archive, no installer is needed.

    Raises:
        SystemExit: If the wheels do not bring what nothing runs without.
    """
    missing = {m for m in CARRIED if find_spec(m) is None}
    if missing and wheels.is_dir():
        site.mkdir(parents=True, exist_ok=True)
        for path in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(path) as wheel:
                if missing & {name.split("/")[0] for name in wheel.namelist()}:
                    wheel.extractall(site)
    if site.is_dir() and str(site) not in sys.path:
        sys.path.append(str(site))
    importlib.invalidate_caches()
    still = [m for m in CARRIED[:3] if find_spec(m) is None]
    if still:
        raise SystemExit(f"{', '.join(still)} cannot be imported, and {wheels} does not bring them: run pack.py first")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("phase", choices=PHASES, help="mstep makes the images of its E-step first")
    add("--budget", choices=["gpu", "cpu"], help="sizes, steps and time (default: gpu); cpu: hours on a CPU")
    add("--minutes", type=float, help="time of this command (default: 9; cpu: 600)")
    add("--stage-minutes", type=float, default=0.0, help="plan a training stage for this long")
    add("--device", choices=["cuda", "cpu"], help="default: the budget's")
    add("--tiny", action="store_true", help="rehearsal: phantoms of 32 x 32, a few steps")
    add("--state", type=Path, default=Path("/tmp/ambient_state"))
    add("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_out")))
    add("--data", type=Path, default=ROOT / ".gpu_data", help="what pack.py made")
    add("--wheels", type=Path, default=ROOT / ".whl")
    add("--site", type=Path, default=Path("/tmp/site"), help="where wheels are unpacked")
    add("--restore", type=Path, default=ROOT / ".gpu_back", help="what an earlier lease brought back")
    add("--init", type=Path, help="prior folder that the ambient stage starts from")
    add("--round", type=int, default=1, help="of EM, for estep and mstep")
    add("--em-steps", type=int, help="noise levels of split Gibbs in an E-step (default: 25; cpu: 20)")
    add("--average", type=int, default=2, help="samples of a slice whose mean the third round of EM learns from")
    add("--network", help="a file of configs/network (default: unet_mp)")
    add("--batch-size", type=int, help="default: 128; cpu: that of the experiment")
    add("--rows", type=int, help="slices at a time in an E-step (default: 256; cpu: 16)")
    add("--lr", type=float, help="default: 1e-2, half of it in EM; cpu: that of the experiment")
    add("--compile", choices=["auto", "on", "off"], default="auto", help="auto: where it is faster")
    add("--max-steps", type=int, default=0, help="bound on the steps of a training stage; 0 for none")
    add("--processes", type=int, default=0, help="for the simulation; 0 for one a core")
    add("--seed", type=int, default=0)
    add("overrides", nargs="*", help="further keys of the configuration, such as network.channels=56")
    options = parser.parse_intermixed_args(arguments)
    if options.tiny:
        options.max_steps, options.batch_size, options.rows = options.max_steps or 12, 8, 16
        options.processes = options.processes or 1
    return options


if __name__ == "__main__":
    sys.exit(main())
