"""Tables: golden Markdown, digits, emphasis, and the refusal to average in silence."""

from __future__ import annotations

from typing import Any

import pytest

from ambient_mri._checks import AmbientMRIError
from ambient_mri.report.tables import format_value, markdown_table, rich_table

PSNR = {"zero_filled": 25.154, "l1_wavelet": 33.256, "em/split_gibbs/mean8": 34.0}
SSIM = {"zero_filled": 0.6612, "l1_wavelet": 0.9109, "em/split_gibbs/mean8": 0.9305}
SECONDS = {"zero_filled": 0.00234, "l1_wavelet": 1.234, "em/split_gibbs/mean8": 87.0}


def rows() -> list[dict[str, Any]]:
    out = []
    for acceleration in (4, 8):
        for mask in (0, 1):
            for method in PSNR:
                base = {
                    "case": "head",
                    "method": method,
                    "n": 1,
                    "ci95": None,
                    "acceleration": acceleration,
                    "mask": mask,
                }
                loss = 0.5 * (acceleration - 4)
                out.append({**base, "metric": "psnr", "value": PSNR[method] - loss + mask})
                out.append({**base, "metric": "ssim", "value": SSIM[method]})
                out.append({**base, "metric": "seconds", "value": SECONDS[method]})
    return out


def test_markdown_golden() -> None:
    table = markdown_table(rows(), metric=("psnr", "ssim"), average_over=("mask",))
    assert table == (
        "| case | R | zero-filled | L1-wavelet | em/split_gibbs/mean8 |\n"
        "| --- | --- | ---: | ---: | ---: |\n"
        "| head | 4 | 25.65 (0.661) | 33.76 (0.911) | **34.50 (0.930)** |\n"
        "| head | 8 | 23.65 (0.661) | 31.76 (0.911) | **32.50 (0.930)** |\n"
        "\n"
        "- Cells: PSNR (dB) (SSIM).\n"
        "- PSNR in dB: 10 log10(max^2 / mean squared error), max of the whole reference volume (fastMRI).\n"
        "- SSIM: 7x7 uniform window, K1 .01, K2 .03, data range = maximum of the reference volume (fastMRI).\n"
        "- Mean over mask.\n"
    )


def test_methods_down_the_page_compete_within_their_group() -> None:
    only = [r for r in rows() if r["mask"] == 0]
    table = markdown_table(only, index=("case", "method"), columns="acceleration")
    assert table.splitlines()[0] == "| case | method | R = 4 | R = 8 |"
    assert table.splitlines()[4] == "| head | em/split_gibbs/mean8 | **34.00** | **32.00** |" or (
        "| head | em/split_gibbs/mean8 | **34.00** | **32.00** |" in table
    )
    assert table.count("**") == 4


def test_one_column_a_metric() -> None:
    only = [r for r in rows() if r["mask"] == 0 and r["acceleration"] == 4]
    table = markdown_table(only, index=("method",), columns="metric", metric=("psnr", "ssim", "nrmse", "seconds"))
    assert table.splitlines()[:5] == [
        "| method | PSNR (dB) | SSIM | time |",
        "| --- | ---: | ---: | ---: |",
        "| zero-filled | 25.15 | 0.661 | **2.34 ms** |",
        "| L1-wavelet | 33.26 | 0.911 | 1.23 s |",
        "| em/split_gibbs/mean8 | **34.00** | **0.930** | 87 s |",
    ]
    assert "Cells:" not in table and "NRMSE" not in table


def test_definitions_of_the_file_are_the_ones_printed() -> None:
    table = markdown_table(rows(), average_over=("mask",), definitions={"psnr": "PSNR inside |x| > 0."})
    assert "- PSNR inside \\|x\\| > 0.\n" in table and "fastMRI" not in table


def test_undefined_values_ties_and_calibration() -> None:
    base = {"case": "head", "acceleration": 4, "n": 1, "ci95": None}
    values = {"zero_filled": None, "cg_sense": 0.899, "l1_wavelet": 0.901, "total_variation": 0.99}
    given = [{**base, "method": m, "metric": "coverage90", "value": v} for m, v in values.items()]
    line = markdown_table(given, metric="coverage90").splitlines()[2]
    assert line.startswith("| head | 4 | – |") and line.endswith("| 0.990 |") and line.count("**") == 2
    equal = [{**base, "method": m, "metric": "psnr", "value": v} for m, v in (("cg_sense", 30.001), ("adps", 30.004))]
    assert markdown_table(equal).splitlines()[2] == "| head | 4 | **30.00** | **30.00** |"


def test_nothing_is_averaged_in_silence() -> None:
    with pytest.raises(AmbientMRIError, match=r"2 rows share one cell of the table and differ in mask: .*average_over"):
        markdown_table(rows())
    with pytest.raises(AmbientMRIError, match="no result row holds the metric nmse"):
        markdown_table(rows(), metric="nmse")
    with pytest.raises(AmbientMRIError, match="no factor scanner"):
        markdown_table(rows(), index=("scanner",))


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("psnr", 33.256, "33.26"),
        ("ssim", 0.91149, "0.911"),
        ("nmse", 0.01234, "0.0123"),
        ("psnr", float("inf"), "∞"),
        ("psnr", None, "–"),
        ("psnr", float("nan"), "–"),
        ("seconds", 0.000123, "0.123 ms"),
        ("seconds", 12.34, "12.3 s"),
        ("seconds", 456.0, "456 s"),
        ("seconds", 1234.0, "20.6 min"),
        ("peak_memory_mb", 512.3, "512 MiB"),
        ("peak_memory_mb", 2048, "2.00 GiB"),
        ("ratio", 3.14159, "3.14"),
    ],
)
def test_digits(metric: str, value: float | None, text: str) -> None:
    assert format_value(metric, value) == text


def test_terminal_table() -> None:
    from rich.console import Console

    only = [r for r in rows() if r["mask"] == 0 and r["acceleration"] == 4]
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rich_table(only, title="One slice"))
    text = console.export_text()
    console.file.close()
    assert "One slice" in text and "PSNR (dB)" in text and "34.00" in text and "2.34 ms" in text
    assert "fastMRI" in text and "NRMSE" not in text
