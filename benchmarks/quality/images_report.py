"""The records of ``images.py`` as tables."""

from __future__ import annotations

from pathlib import Path

from ambient_mri.report.records import read_records
from ambient_mri.report.tables import markdown_table

__all__ = ["DEFINITIONS", "tables"]

DEFINITIONS = {
    "psnr": "PSNR in dB of an image in [-1, 1]: 10 log10(4 / mean squared error), mean over images.",
    "frechet": "Frechet distance of samples to held-out images, features of benchmarks/quality/image_features.py.",
    "kernel": "Kernel distance (unbiased MMD^2, cubic kernel) of samples to held-out images, same features.",
}


def tables(path: Path) -> str:
    """The records as Markdown: restorations, and samples."""
    rows = read_records(path).rows
    plain = [{k: v for k, v in r.items() if k != "setting"} for r in rows]
    parts = []
    for title, masked in (("Restoration, pixels missing", True), ("Restoration, noise", False)):
        found = [r for r in plain if r["metric"] == "psnr" and bool(r["missing"]) == masked]
        if found:
            table = markdown_table(found, index=("method",), columns="case", metric="psnr", definitions=DEFINITIONS)
            parts.append(f"### {title}\n\n{table}")
    for metric in ("frechet", "kernel", "noise_level", "quieter"):
        found = [r for r in plain if r["metric"] == metric]
        if found:
            table = markdown_table(found, index=("method",), columns="case", metric=metric, definitions=DEFINITIONS)
            parts.append(f"### Samples: {metric}\n\n{table}")
    return "\n".join(parts)
