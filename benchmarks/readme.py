"""Write the measured tables into README.md and benchmarks/README.md: no number enters them by hand.

python benchmarks/readme.py            # after a benchmark
python benchmarks/readme.py --check    # exit status 1 where a table is not what the records say
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ambient_mri.report.records import ResultFile, read_records
from ambient_mri.report.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def reconstruct_table(result: ResultFile) -> str:
    """PSNR and SSIM of every method on every case."""
    return markdown_table(
        result.rows,
        index=("case", "acceleration"),
        metric=("psnr", "ssim"),
        average_over=("mask", "regularisation"),
        definitions=result.definitions,
    )


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
    return markdown_table(
        result.rows,
        index=("case", "acceleration", "acs_lines"),
        columns="coil_maps",
        metric=("psnr", "ssim"),
        average_over=("mask",),
        definitions=result.definitions,
    )


BLOCKS: dict[str, tuple[str, Callable[[ResultFile], str], tuple[str, ...]]] = {
    "results": ("reconstruct.json", reconstruct_table, ("README.md", "benchmarks/README.md")),
    "demo": ("demo.json", demo_table, ("README.md",)),
    "maps": ("maps.json", maps_table, ("benchmarks/README.md",)),
}


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
        content = table(read_records(RESULTS / record))
        for page in pages:
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
