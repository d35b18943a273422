"""The demo at toy size: every stage runs, the table and the files are there, the second run is quick."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.readers import read_scan
from ambient_mri.data.writers import read_reconstruction
from ambient_mri.demo import DemoResult, DemoSettings, embedded_slice, reduced, run_demo
from ambient_mri.demo.head import write_scan
from ambient_mri.metrics import nrmse, psnr
from ambient_mri.prior import load_prior
from ambient_mri.report.records import read_records

TINY = DemoSettings(
    size=32,
    coils=4,
    acceleration=2.0,
    acs_lines=8,
    samples=3,
    sampler_steps=4,
    phantom_size=32,
    phantom_acceleration=2.0,
    volumes=2,
    slices=2,
    ambient_steps=3,
    batch_size=2,
    channels=8,
    multipliers=(1,),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, Path, str]:
    """A toy demo, its folder, and what it printed."""
    out, text = tmp_path_factory.mktemp("demo"), io.StringIO()
    return run_demo(out, prior=None, settings=TINY, console=Console(file=text, width=200)), out, text.getvalue()


def test_the_embedded_slice_is_always_the_same() -> None:
    image = embedded_slice()
    assert image.shape == (256, 256) and image.dtype == np.float32
    assert image.min() == 0 and image.max() == 215
    assert image.sum(dtype=np.float64) == embedded_slice().sum(dtype=np.float64) > 1e6
    # A head: its middle is bright, the corners of the image are background.
    assert image[64:160, 64:160].mean() > 50 and image[:16, :16].max() == 0


def test_a_missing_slice_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AmbientMRIError, match=r"comes with matplotlib \(.*s1045\.ima\.gz\), and is not installed here"):
        embedded_slice()


def test_reducing_keeps_low_frequencies_and_units() -> None:
    """A cosine below the new Nyquist frequency is sampled at every second pixel; above it, it is gone."""
    rows, columns = np.arange(64)[:, None], np.arange(64)[None]
    low = 3 + np.cos(2 * np.pi * 5 * rows / 64) + np.cos(2 * np.pi * 9 * columns / 64)
    high = np.cos(2 * np.pi * 25 * columns / 64)
    found = reduced((low + high).astype(np.float32), 32)
    np.testing.assert_allclose(found, low[::2, ::2], atol=1e-5)
    with pytest.raises(AmbientMRIError, match="size must lie between 16 and 64; got 65"):
        reduced(low.astype(np.float32), 65)


def test_the_scan_file_holds_what_a_scanner_gives(tmp_path: Path) -> None:
    reference = write_scan(TINY, 0, tmp_path / "a.npz")
    again, other = write_scan(TINY, 0, tmp_path / "b.npz"), write_scan(TINY, 1, tmp_path / "c.npz")
    np.testing.assert_array_equal(reference, again)
    with np.load(tmp_path / "a.npz") as first, np.load(tmp_path / "b.npz") as second:
        assert sorted(first.files) == ["kspace", "mask"]
        np.testing.assert_array_equal(first["kspace"], second["kspace"])
    scan = read_scan(tmp_path / "a.npz")
    assert scan.kspace.shape == (1, 4, 32, 32) and scan.acceleration == pytest.approx(2.0)
    assert (scan.mask != read_scan(tmp_path / "c.npz").mask).any()
    np.testing.assert_allclose(reference, other, rtol=1e-5)
    # Up to the simulation's own scale the reference is the embedded slice.
    image = reduced(embedded_slice(), 32)
    np.testing.assert_allclose(reference / reference.max(), image / image.max(), atol=1e-5)


def test_table_and_files(finished: tuple[DemoResult, Path, str]) -> None:
    result, out, _ = finished
    stored = read_records(out / "results.json")
    assert stored.rows == result.rows and stored.benchmark == "demo"
    methods = ["zero_filled", "cg_sense", "l1_wavelet", "ambient/split_gibbs/mean3"]
    assert list(dict.fromkeys(row["method"] for row in stored.rows)) == methods and result.ours == methods[-1]
    for method in methods:
        assert {r["metric"] for r in stored.select(method=method)} == {"psnr", "ssim", "nrmse", "seconds"}
    assert stored.settings["ambient_steps"] == 3 and "simulated" in stored.rows[0]["case"]
    assert {"psnr", "ssim", "nrmse", "seconds"} <= stored.definitions.keys()
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert all(path.exists() for path in result.files.values())
    assert load_prior(next((out / "cache").glob("*/prior"))).kind == "ambient"


def test_scores_are_those_of_the_stored_reconstruction(finished: tuple[DemoResult, Path, str]) -> None:
    result, out, _ = finished
    image = read_reconstruction(out / "recon.h5")["reconstruction"][0]
    assert result.value(result.ours, "psnr") == pytest.approx(psnr(result.reference, image))
    assert result.value(result.ours, "nrmse") == pytest.approx(nrmse(result.reference, image))
    assert result.value("l1_wavelet", "psnr") > result.value("zero_filled", "psnr")


def test_what_it_says(finished: tuple[DemoResult, Path, str]) -> None:
    result, out, text = finished
    for phrase in (
        "no head, no fully sampled scan",
        "k-space simulated",
        "PSNR in dB",
        "L1-wavelet",
        "not a benchmark",
    ):
        assert phrase in text
    gain = result.value(result.ours, "psnr") - result.value("l1_wavelet", "psnr")
    assert f"{abs(gain):.2f} dB {'above' if gain > 0 else 'below'} L1-wavelet" in text
    assert (gain > 0) or "What helps" in text
    prior = next((out / "cache").glob("*/prior"))
    assert f"ambient-mri reconstruct {out / 'scan.npz'} --prior {prior}" in text


def test_a_second_run_trains_nothing_and_gives_the_same(
    finished: tuple[DemoResult, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, out, _ = finished

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("ambient_mri.training.run.train", never)
    text = io.StringIO()
    second = run_demo(out, prior=None, settings=TINY, console=Console(file=text, width=200))
    assert "--fresh trains again" in text.getvalue()
    np.testing.assert_array_equal(second.reconstruction.mean, first.reconstruction.mean)
    with pytest.raises(AssertionError, match="trained again"):
        run_demo(out, prior=None, settings=TINY, minutes=6.0, console=Console(file=text))


def test_effort_is_a_number_of_steps() -> None:
    longer = DemoSettings(ambient_steps=100).for_minutes(6.0)
    assert longer.ambient_steps == 200
    with pytest.raises(AmbientMRIError, match="minutes must be a positive finite number"):
        DemoSettings().for_minutes(-1)


def test_by_default_the_shipped_prior_is_used(tmp_path: Path) -> None:
    text = io.StringIO()
    result = run_demo(tmp_path, settings=TINY, console=Console(file=text, width=200))
    assert result.ours == "brain128/split_gibbs/mean3" and result.reconstruction.settings["prior"] == "brain128"
    assert not (tmp_path / "cache").exists()
    for phrase in ("brain128", "No fully sampled scan was used", "--prior brain128"):
        assert phrase in text.getvalue()
