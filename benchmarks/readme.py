"""Write the measured tables into README.md and benchmarks/README.md: no number enters them by hand.

python benchmarks/readme.py            # after a benchmark
python benchmarks/readme.py --check    # exit status 1 where a table is not what the records say
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tables are those that the benchmarks write

from ambient_mri.report.records import ResultFile, read_records  # noqa: E402
from ambient_mri.report.tables import markdown_table  # noqa: E402
from benchmarks.quality.tables import heads_table, native_table, standard_table, summary_table  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


def demo_table(result: ResultFile) -> str:
    """The table that the demo prints."""
    return markdown_table(
        result.rows,
        index=("method",),
        columns="metric",
        metric=("psnr", "ssim", "nrmse", "seconds"),
        definitions=result.definitions,
    )


def maps_table(result: ResultFile) -> str:
    """PSNR and SSIM for every number of calibration lines and every kind of coil maps."""
    from benchmarks.quality.maps import table

    return table(result)


def robustness_tables(result: ResultFile) -> str:
    """Every condition with every prior."""
    from benchmarks.quality.robustness import tables

    return "\n".join(tables(result).values())


def selection_table(result: ResultFile) -> str:
    """Priors on validation subjects."""
    from benchmarks.quality.selection import table

    return table(result)


def cost_tables(result: ResultFile) -> str:
    """Quality against cost, and the growth of cost."""
    from benchmarks.quality.cost import tables

    return tables(result)


def images_tables(result: ResultFile) -> str:
    """Restorations and samples of natural images."""
    from benchmarks.quality.images_report import tables

    return tables(result)


def priors_tables(_: ResultFile) -> str:
    """Objectives under one network, trained at R = 4 and noise 0.01."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))
    from priors_report import tables

    found = tables(RESULTS / "priors.json").partition("### Trained at R = 4, noise_std 0.01\n")[2]
    return found.partition("\n### ")[0]


def matrix_tables(_: ResultFile) -> str:
    """Training R x inference R."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))
    from priors_report import tables

    found = tables(RESULTS / "priors.json").partition("### Training R x inference R, noise_std 0.01\n")[2]
    return found.partition("\n### ")[0]


def networks_tables(_: ResultFile) -> str:
    """Networks at equal arithmetic."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))
    from networks import tables

    return tables(RESULTS / "networks.json")


BLOCKS: dict[str, tuple[str, Callable[[ResultFile], str], tuple[str, ...]]] = {
    "results": ("reconstruct.json", standard_table, ("benchmarks/README.md",)),
    "summary": ("reconstruct.json", summary_table, ("README.md",)),
    "demo": ("demo.json", demo_table, ("README.md",)),
    "maps": ("maps.json", maps_table, ("benchmarks/README.md",)),
    "full": ("reconstruct_full.json", heads_table, ("benchmarks/README.md",)),
    "native": ("reconstruct_native.json", native_table, ("benchmarks/README.md",)),
    "selection": ("selection.json", selection_table, ("benchmarks/README.md",)),
    "robustness": ("robustness.json", robustness_tables, ("benchmarks/README.md",)),
    "cost": ("cost.json", cost_tables, ("benchmarks/README.md",)),
    "images": ("images.json", images_tables, ("benchmarks/README.md",)),
    "priors": ("priors.json", priors_tables, ("benchmarks/README.md",)),
    "matrix": ("priors.json", matrix_tables, ("benchmarks/README.md",)),
    "networks": ("networks.json", networks_tables, ("benchmarks/README.md",)),
}
# Written where a page has room for them.
OPTIONAL = ("full", "native", "selection", "robustness", "cost", "images", "priors", "matrix", "networks")


def rendered(text: str, name: str, content: str) -> str:
    """``text`` with the block ``name`` replaced by ``content``."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}"


def main() -> int:
    """Write, or check, every block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, (record, table, pages) in BLOCKS.items():
        marked = [
            page for page in pages if name not in OPTIONAL or f"<!-- {name}:begin -->" in (ROOT / page).read_text()
        ]
        content = table(read_records(RESULTS / record)) if marked else ""
        for page in marked:
            path = ROOT / page
            text = path.read_text()
            wanted = rendered(text, name, content)
            if wanted != text:
                stale.append(page)
                if not check:
                    path.write_text(wanted)
    if check and stale:
        sys.stderr.write(f"stale: {', '.join(sorted(set(stale)))}; run `python benchmarks/readme.py`\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
