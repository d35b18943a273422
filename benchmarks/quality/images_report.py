"""The records of ``images.py`` as tables."""

from __future__ import annotations

from ambient_mri.report.records import ResultFile, Row
from ambient_mri.report.tables import markdown_table

__all__ = ["DEFINITIONS", "tables"]

SAMPLES = {
    "frechet": "Frechet distance",
    "kernel": "kernel distance",
    "noise_level": "noise left",
    "quieter": "less noisy than any training image",
}
DEFINITIONS = {
    "psnr": "PSNR in dB of an image in [-1, 1]: 10 log10(4 / mean squared error), mean over images.",
    "frechet": "Frechet distance of samples to held-out images, features of benchmarks/quality/image_features.py.",
    "kernel": "Kernel distance (unbiased MMD^2, cubic kernel) of samples to held-out images, same features.",
}


def tables(result: ResultFile) -> str:
    """The records as Markdown: restorations, and samples."""
    plain = [{k: v for k, v in r.items() if k != "setting"} for r in result.rows]
    parts = []
    for title, masked in (("Restoration, pixels missing", True), ("Restoration, noise", False)):
        found = [r for r in plain if r["metric"] == "psnr" and bool(r["missing"]) == masked]
        parts += [_table(title, found, "psnr")] if found else []
    for metric, title in SAMPLES.items():
        found = [r for r in plain if r["metric"] == metric]
        parts += [_table(f"Samples: {title}", found, metric)] if found else []
    return "\n".join(parts)


def _table(title: str, rows: list[Row], metric: str) -> str:
    methods = list(dict.fromkeys(r["method"] for r in rows))
    rows = sorted(rows, key=lambda r: (methods.index(r["method"]), r["missing"], r.get("noise_std") or 0.0))
    table = markdown_table(rows, index=("method",), columns="case", metric=metric, definitions=DEFINITIONS)
    return f"### {title}\n\n{table}"
