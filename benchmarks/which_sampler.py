"""Write docs/samplers.md: which sampler when, from the registry of samplers and the record of the exact posterior.

    python benchmarks/which_sampler.py             # write it
    python benchmarks/which_sampler.py --check     # status 1 where it is not what this would write

The first sentence on each sampler is that of its module; numbers are means over the cases of
benchmarks/results/oracle.json; the verdict follows from them by the rules that the page states.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from statistics import fmean

from ambient_mri.report.records import ResultFile, read_records
from ambient_mri.sampling import SAMPLERS, Sampler

ROOT = Path(__file__).resolve().parents[1]
PAGE, RECORD = ROOT / "docs" / "samplers.md", ROOT / "benchmarks" / "results" / "oracle.json"
# A mean this close to the exact posterior's is a good one; a variance ratio in this range is calibrated.
GOOD_MEAN, CALIBRATED = 1.03, (0.9, 1.1)

HEAD = """# Which sampler when

Written by `python benchmarks/which_sampler.py`; not edited by hand.

Start with `split_gibbs`: no gradient through the network, calibrated samples, clean and ambient priors.

| sampler | steps | evaluations | gradients | error of mean | variance | error, object | variance, object | good for |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
"""
# Cases of an object in an empty field.
OBJECT = "object, "
NOTES = f"""
- Complex Gaussian images whose posterior has a closed form, 4 coils, R = 4 and 8, noise_std 0.01 and 0.05, with the
  best denoiser there is: what is left is the sampler's own error. `benchmarks/results/oracle.json` holds every case.
- Error of the mean: NRMSE over that of the exact posterior mean, mean over the cases; 1.00 is as good as can be.
- Variance: of the samples over that of the exact posterior; 1 is calibrated, below it the samples are too alike.
- Object: the same for an object in an empty field, R = 4: as in scans, background and object are not equally uncertain.
  *White* (`error="white"`) takes them for it; by default `split_gibbs` and `dds` learn the error of every pixel.
- Good for: *samples* where the error is at most {GOOD_MEAN} and the variance between {CALIBRATED[0]} and
  {CALIBRATED[1]} in the mean over the cases without object; *means* where the error alone is; *comparison* otherwise.
- A gradient is a vector-Jacobian product through the network, about two evaluations and the memory of a training step.
- Trained networks add their own error: `benchmarks/results/samplers.json`, where it has been measured.

## Each in a sentence

"""


def summary(cls: type[Sampler]) -> str:
    """The first sentence of the sampler's module, or of the class where several share a module."""
    module = inspect.getmodule(cls)
    alone = sum(inspect.getmodule(other) is module for other in SAMPLERS.values()) == 1
    return " ".join((inspect.getdoc(module if alone else cls) or "").split("\n\n")[0].split())


def verdict(error: float, variance: float) -> str:
    """What the numbers allow."""
    if error > GOOD_MEAN:
        return "comparison"
    return "samples" if CALIBRATED[0] <= variance <= CALIBRATED[1] else "means"


def measured(record: ResultFile, name: str) -> list[str]:
    """Table lines of one sampler, one for each number of steps and kind of error that was measured."""
    rows = [row for row in record.select(domain="image") if row["method"].split("/")[1] == name]
    exact = {
        row["case"]: row["value"]
        for row in record.select(domain="image", method="gaussian/exact/point", metric="nrmse")
    }
    lines = []
    for steps, kind in dict.fromkeys((row["steps"], row["error"]) for row in rows):
        found = [row for row in rows if (row["steps"], row["error"]) == (steps, kind)]
        cells, numbers = [f"`{name}`{', white' if kind == 'white' else ''}", str(steps)], list[float]()
        cells += [str(found[0]["nfe"]), str(found[0]["gradients"])]
        for chosen in ([r for r in found if r["case"].startswith(OBJECT) is empty] for empty in (False, True)):
            error = fmean(row["value"] / exact[row["case"]] for row in chosen if row["metric"] == "nrmse")
            variance = fmean(row["value"] for row in chosen if row["metric"] == "variance_ratio")
            cells, numbers = [*cells, f"{error:.3f}", f"{variance:.2f}"], [*numbers, error, variance]
        lines.append(f"| {' | '.join(cells)} | {verdict(*numbers[:2])} |")
    return lines


def page() -> str:
    """The whole text."""
    record, lines, sentences = read_records(RECORD), list[str](), list[str]()
    for name, cls in SAMPLERS.items():
        lines += measured(record, name)
        priors = f"{' and '.join(cls.accepts)} priors" if cls.accepts else "no data"
        other = f" Refused elsewhere: {cls.refusal}" if cls.refusal else ""
        sentences.append(f"- **`{name}`** ({priors}). {summary(cls)}{other}")
    return HEAD + "\n".join(lines) + "\n" + NOTES + "\n".join(sentences) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where the page is out of date")
    options = parser.parse_args(arguments)
    text = page()
    if options.check:
        current = PAGE.is_file() and PAGE.read_text() == text
        if not current:
            sys.stderr.write(f"{PAGE.relative_to(ROOT)} is out of date: run python benchmarks/which_sampler.py\n")
        return 0 if current else 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
