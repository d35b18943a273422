"""Real multi-coil scans, retrospectively undersampled: every baseline and every prior on the same data, in one run.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/reconstruct.py --clean RUNS/em/prior --ambient
    RUNS/ambient/prior

Each case is a fully sampled scan, cropped to 128 x 128, multiplied by a 1-D mask. Coil maps, scale and noise level are
estimated from the undersampled scan alone and are the same for every method; the regularisation of each baseline is the
best of a grid, chosen with the reference in hand, a generous opponent; ours has no setting that differs between cases.
The reference is the fully sampled coil-combined image (maps from 24 calibration lines of the full data); images are
compared by magnitude after one least-squares factor.

Without the data folder the cases are simulated phantoms, and the table says so. A case that is already in the result
file is not computed again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ambient_mri import baselines, metrics
from ambient_mri.coil_maps import estimate_coil_maps
from ambient_mri.data.phantom import BrainPhantom
from ambient_mri.data.readers import read_scan
from ambient_mri.data.simulate import Simulation, simulate_scan
from ambient_mri.masks import RandomLines
from ambient_mri.measurement import Measurement
from ambient_mri.operators import sense
from ambient_mri.prior import Prior, load_prior
from ambient_mri.reconstruct import Reconstruction, ReconstructionWarning, reconstruct
from ambient_mri.reconstruct.volume import Volume, read_raw
from ambient_mri.report.plots import reconstruction_figure
from ambient_mri.report.records import append_records, read_records
from ambient_mri.report.tables import markdown_table
from ambient_mri.tensors import keyed_generator

RESULTS = Path(__file__).resolve().parent.parent / "results"
SCANS = ("brain_t1_4ch", "brain_t1_8ch", "phantom_4ch")


@dataclass(frozen=True)
class Case:
    """A fully sampled scan and one mask."""

    name: str
    acceleration: int
    mask_index: int
    kspace: np.ndarray  # (1, coils, H, W), fully sampled
    mask: np.ndarray  # (W,) bool
    reference: np.ndarray  # (H, W) magnitude

    @property
    def undersampled(self) -> np.ndarray:
        return self.kspace * self.mask

    @property
    def factors(self) -> dict[str, object]:
        return {"case": self.name, "acceleration": self.acceleration, "mask": self.mask_index}


def real_cases(root: Path, accelerations: list[int]) -> Iterator[Case]:
    """The real scans of ``multicoil_val_128`` with the masks of ``masks_128.npz``."""
    masks = np.load(root / "masks_128.npz")
    for name in SCANS:
        kspace = read_scan(root / "multicoil_val_128" / f"{name}.h5").kspace
        reference = coil_combined(kspace)
        for acceleration in accelerations:
            for index, mask in enumerate(masks[f"R{acceleration}"]):
                yield Case(name, acceleration, index, kspace, mask, reference)


def simulated_cases(accelerations: list[int]) -> Iterator[Case]:
    """Phantoms, where there is no data folder."""
    phantom = BrainPhantom(128, seed=99)
    for index in range(2):
        image = phantom.volume(index, 3)[1:2]
        full = RandomLines(1, 0)
        settings = Simulation(coils=(8, 8), noise_std=(0.01, 0.01), turn=False)
        kspace = simulate_scan(image, law=full, seed=99, scan_id=f"phantom {index}", settings=settings).scan.kspace
        for acceleration in accelerations:
            law = RandomLines(acceleration, {4: 12, 8: 8}.get(acceleration, 8))
            mask = law.draw((128, 128), keyed_generator("mask", index, acceleration))[0, 0, 0].numpy()
            yield Case(f"simulated_phantom_{index}", acceleration, 0, kspace, mask, coil_combined(kspace))


def coil_combined(kspace: np.ndarray, lines: int = 24) -> np.ndarray:
    """|S^H F^H y| of fully sampled data, S from its central ``lines`` x ``lines`` samples."""
    y = torch.from_numpy(kspace)
    height, width = y.shape[-2:]
    calibration = torch.zeros(1, 1, height, width, dtype=torch.bool)
    calibration[
        ..., height // 2 - lines // 2 : height // 2 + lines // 2, width // 2 - lines // 2 : width // 2 + lines // 2
    ] = True
    maps = estimate_coil_maps(y * calibration, calibration, absorb=False).maps
    return sense(maps, torch.ones(1, 1, 1, 1, dtype=torch.bool)).adjoint(y)[0, 0].abs().numpy()


def measure(case: Case) -> Measurement:
    """What every baseline gets: the measurement that ours estimates from the undersampled scan, with its own noise
    level.
    """
    volume = Volume.measure(read_raw(case.undersampled, case.mask))
    chunk = volume.chunk(slice(0, 1), torch.device("cpu"))
    return replace(chunk.measurement, noise_std=chunk.noise_std)


def score(case: Case, image: np.ndarray) -> dict[str, float]:
    """PSNR, SSIM and NRMSE of a magnitude image after one least-squares factor."""
    scaled = image * metrics.fit_scale(image, case.reference)
    return {name: getattr(metrics, name)(case.reference, scaled) for name in ("psnr", "ssim", "nrmse")}


def best_of_grid(case: Case, m: Measurement, method: str) -> tuple[np.ndarray, float, float]:
    """The baseline at its best regularisation, judged by PSNR against the reference; seconds are those of one run."""
    solvers: dict[str, Callable[..., torch.Tensor]] = {
        "cg_sense": baselines.cg_sense,
        "l1_wavelet": baselines.l1_wavelet,
        "total_variation": baselines.total_variation,
        "bart_l1_wavelet": lambda m, lam: baselines.bart_pics(m, "wavelet", lam),
        "bart_total_variation": lambda m, lam: baselines.bart_pics(m, "tv", lam),
    }
    peak = float(baselines.zero_filled(m).abs().max())
    relative = 1.0 if method.startswith("bart") or method == "cg_sense" else peak
    best: tuple[float, np.ndarray, float, float] | None = None
    for weight in baselines.default_lambda_grid(method):
        start = time.perf_counter()
        image = solvers[method](m, weight * relative)[0, 0].abs().numpy()
        seconds = time.perf_counter() - start
        quality = score(case, image)["psnr"]
        if best is None or quality > best[0]:
            best = (quality, image, weight, seconds)
    if best is None:
        raise SystemExit(f"{method} has no grid of weights")
    return best[1], best[2], best[3]


def ours(case: Case, prior: Prior, sampler: str, samples: int, steps: int | None) -> tuple[Reconstruction, float]:
    """The reconstruction as a user makes it, and its seconds."""
    start = time.perf_counter()
    with warnings.catch_warnings():  # few ACS lines are what is measured here
        warnings.simplefilter("ignore", ReconstructionWarning)
        rec = reconstruct(
            case.undersampled,
            mask=case.mask,
            prior=prior,
            sampler=sampler,
            samples=samples,
            steps=steps,
            progress=False,
        )
    return rec, time.perf_counter() - start


def rows_of(case: Case, method: str, image: np.ndarray, seconds: float, **factors: object) -> list[dict[str, object]]:
    """Result rows of one image."""
    base = {**case.factors, "method": method, "n": 1, "ci95": None, **factors}
    return [
        {**base, "metric": metric, "value": value, "seconds": seconds} for metric, value in score(case, image).items()
    ]


def run_case(case: Case, options: argparse.Namespace) -> tuple[list[dict[str, object]], dict[str, np.ndarray]]:
    """Every method on one case; images for the figure."""
    rows: list[dict[str, object]] = []
    images: dict[str, np.ndarray] = {}
    m = measure(case)
    start = time.perf_counter()
    images["zero_filled"] = baselines.zero_filled(m)[0, 0].abs().numpy()
    rows += rows_of(case, "zero_filled", images["zero_filled"], time.perf_counter() - start)
    for method in options.baselines:
        images[method], weight, seconds = best_of_grid(case, m, method)
        rows += rows_of(case, method, images[method], seconds, regularisation=weight)
    if options.ambient:
        rec, seconds = ours(case, options.ambient, "one_step", 1, None)
        images["ambient/one_step/point"] = np.abs(rec.mean[0])
        rows += rows_of(case, "ambient/one_step/point", images["ambient/one_step/point"], seconds)
    for name, prior in options.clean.items():
        rec, seconds = ours(case, prior, "split_gibbs", options.samples, options.steps)
        mean = f"{name}/split_gibbs/mean{options.samples}"
        images[mean] = np.abs(rec.mean[0])
        images["std"] = np.abs(rec.samples[0]).std(axis=0, ddof=1)
        rows += rows_of(case, mean, images[mean], seconds, nfe=options.steps)
        rows.append({**rows[-1], "metric": "chi2_residual", "value": float(rec.residual[0])})
        rows += rows_of(
            case, f"{name}/split_gibbs/sample", np.abs(rec.samples[0, 0]), seconds / options.samples, nfe=options.steps
        )
        rec, seconds = ours(case, prior, "dds", 1, options.steps)
        rows += rows_of(case, f"{name}/dds/point", np.abs(rec.mean[0]), seconds, nfe=options.steps)
    return rows, images


def figure(case: Case, images: dict[str, np.ndarray], folder: Path) -> Path:
    """Reference, baselines, ours, errors, standard deviation and mask."""
    names = {
        "zero_filled": "Zero-filled",
        "cg_sense": "SENSE",
        "l1_wavelet": "L1-wavelet",
        "bart_l1_wavelet": "L1-wavelet (BART)",
    }
    ours_name = [k for k in images if "mean" in k][-1:] or [k for k in images if k.startswith("ambient/")]
    wanted = [k for k in ("zero_filled", "cg_sense", "bart_l1_wavelet", "l1_wavelet") if k in images]
    wanted = [k for k in wanted if k != "l1_wavelet" or "bart_l1_wavelet" not in images] + ours_name
    fitted = {k: images[k] * metrics.fit_scale(images[k], case.reference) for k in wanted}
    factor = metrics.fit_scale(images[wanted[-1]], case.reference)
    std = images["std"] * factor if "std" in images else None
    panels = {names.get(k, f"Ours: {k}"): v for k, v in fitted.items()}
    title = f"{case.name}, R = {case.acceleration}, mask {case.mask_index}"
    path = folder / f"{case.name}_R{case.acceleration}_mask{case.mask_index}.png"
    return reconstruction_figure(
        panels,
        path,
        reference=case.reference,
        std=std,
        mask=np.broadcast_to(case.mask, case.reference.shape),
        title=title,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command-line options, with the priors loaded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ambient", type=Path, help="ambient prior folder, for one-step reconstruction")
    parser.add_argument(
        "--clean", action="append", default=[], metavar="NAME=FOLDER", help="clean prior, e.g. em1=RUN/prior"
    )
    parser.add_argument("--accelerations", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--baselines", nargs="*", default=None, help="default: all that can run here")
    parser.add_argument("--name", default="reconstruct", help="of the result file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--figures", type=Path, default=None, help="folder for figures of every case")
    options = parser.parse_args(arguments)
    if options.baselines is None:
        from shutil import which

        bart = ["bart_l1_wavelet", "bart_total_variation"] if which("bart") else []
        options.baselines = ["cg_sense", "l1_wavelet", "total_variation", *bart]
    named = dict(item.split("=", 1) if "=" in item else ("em", item) for item in options.clean)
    options.clean = {name: load_prior(folder) for name, folder in named.items()}
    options.ambient = load_prior(options.ambient) if options.ambient else None
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the result file, then print the table."""
    options = parse(arguments)
    root = os.environ.get("AMBIENT_MRI_DATA")
    cases = list(real_cases(Path(root), options.accelerations) if root else simulated_cases(options.accelerations))
    settings = {
        "data": "multicoil_val_128, masks_128 (real scans)" if root else "simulated phantoms",
        "samples": options.samples,
        "steps": options.steps,
        "priors": {
            n: {k: p.metadata.get(k) for k in ("name", "steps", "images_seen", "data", "git")}
            for n, p in {**options.clean, **({"ambient": options.ambient} if options.ambient else {})}.items()
        },
        "regularisation": "best of a grid, chosen with the reference in hand",
        "coil_maps": "torch ESPIRiT from the ACS of each mask, the same for every method",
    }
    path = options.out / f"{options.name}.json"
    command = "python benchmarks/quality/reconstruct.py " + " ".join(sys.argv[1:] if arguments is None else arguments)
    present = list(read_records(path).rows) if path.is_file() else []
    for case in cases:
        if any(all(row.get(k) == v for k, v in case.factors.items()) for row in present):
            continue
        began = time.perf_counter()
        rows, images = run_case(case, options)
        append_records(path, options.name, command, settings, rows=rows)
        if options.figures:
            options.figures.mkdir(parents=True, exist_ok=True)
            figure(case, images, options.figures)
        sys.stderr.write(
            f"{case.name} R={case.acceleration} mask {case.mask_index}: {time.perf_counter() - began:.0f} s\n"
        )
    result = read_records(path)
    table = markdown_table(
        result.rows,
        index=("case", "acceleration"),
        metric=("psnr", "ssim"),
        average_over=("mask", "regularisation"),
        definitions=result.definitions,
    )
    path.with_suffix(".md").write_text(table + "\n")
    sys.stdout.write(table + "\n")


if __name__ == "__main__":
    main()
