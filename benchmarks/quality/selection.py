"""Which prior ships: clean priors on validation subjects, chosen without the scans that they are shown on.

    AMBIENT_MRI_DATA=/path/to/data python benchmarks/quality/selection.py --clean old=OLD/prior --clean new=NEW/prior

Two slices of every validation volume of ``images/brain_flair_128`` and ``brain_t1pre_128`` (the same contrasts as the
training subjects, other people), measured with 4 to 8 simulated coils, and undersampled: R = 4 and 8, random lines and
Poisson discs, one mask each. Everything else is as in ``reconstruct.py``: maps, scale and noise level are estimated
from the undersampled scan. The noise of the scans is no prior's own: 0.003, 0.006 and 0.012 of the brightest pixels in
turn. A method that the result file holds for a case is not run again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # cases, methods and records are shared by the benchmarks

from ambient_mri.data.images import load_image_set  # noqa: E402
from ambient_mri.data.simulate import Simulation  # noqa: E402
from ambient_mri.prior import load_prior  # noqa: E402
from ambient_mri.report.records import ResultFile, read_records  # noqa: E402
from ambient_mri.report.tables import markdown_table  # noqa: E402
from ambient_mri.train import compose  # noqa: E402
from benchmarks.quality import methods  # noqa: E402
from benchmarks.quality.cases import FITTED, Case, drawn_masks, simulated  # noqa: E402
from benchmarks.quality.ledger import Ledger, provenance, recorded_command  # noqa: E402
from benchmarks.quality.reconstruct import RESULTS, all_rows_of, missing_units  # noqa: E402

NOISE = (0.003, 0.006, 0.012)
LAWS = {"random": (4, 8), "poisson": (8,)}
# Of split Gibbs: all priors of the record were compared by the Gibbs sampler.
ETA = 1.0
POSITIONS = (0.4, 0.6)  # of the slices of a volume


def slices(root: Path, noise: tuple[float, ...] = NOISE) -> Iterator[tuple[str, Case]]:
    """Contrast and fully sampled case of every chosen slice."""
    settings = compose(["data=brain_images", f"data.root={root}"]).data
    number = 0
    for file in settings.files:
        held_out = load_image_set(root / "images" / file).select("val")
        for subject in held_out.subjects():
            stem, volume = Path(file).stem, held_out.volume(subject)
            if f"{stem}_{subject:0>4}" in settings.exclude:
                continue
            for position in POSITIONS:
                image = volume[int(position * len(volume))][None]
                level, name = noise[number % len(noise)], f"{stem}_{subject}_{position:g}"
                scanner = Simulation(coils=(4, 8), noise_std=(level, level))
                _, kspace, reference = simulated(name, image, scanner, f"selection {name}")
                yield stem.split("_")[1], Case(name, 1, number, kspace, reference > 0, reference, masks="drawn")
                number += 1


def cases(root: Path) -> Iterator[tuple[str, Case]]:
    """Every slice under every law; the mask changes with the slice."""
    for contrast, full in slices(root):
        for law, accelerations in LAWS.items():
            for acceleration in accelerations:
                masks = drawn_masks(law, acceleration, 4, full.kspace.shape[-2:])
                mask = masks[full.mask_index % len(masks)]
                factors = (full.kspace, mask, full.reference, law, "drawn")
                yield contrast, Case(full.name, acceleration, full.mask_index, *factors)


def table(result: ResultFile) -> str:
    """PSNR and SSIM by contrast, law and R."""
    rows = [row for row in result.rows if "region" not in row and row["metric"] in ("psnr", "ssim")]
    return markdown_table(
        rows,
        index=("contrast", "law", "acceleration"),
        metric=("psnr", "ssim"),
        average_over=("case", "mask"),
        definitions=result.definitions,
    )


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the result file, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", action="append", required=True, metavar="NAME=PRIOR", help="may be given again")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--compile", action="store_true", help="compile the networks; the times are of them")
    parser.add_argument("--part", default="0/1", help="1/3: the second of three parts of the cases")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not os.environ.get("AMBIENT_MRI_DATA"):
        parser.error("set AMBIENT_MRI_DATA to the data folder: the validation subjects are there")
    named_priors = (item.split("=", 1) for item in options.clean)
    priors = {name: load_prior(prior, compile=options.compile) for name, prior in named_priors}
    settings = {"samples": options.samples, "steps": options.steps, "noise_std": list(NOISE)}
    settings |= {"networks": "compiled"} if options.compile else {}
    named = {"priors": {name: provenance(prior) for name, prior in priors.items()}}
    command = recorded_command("benchmarks/quality/selection.py", sys.argv[1:] if arguments is None else arguments)
    book = Ledger(options.out / "selection.json", command, settings, named, FITTED)
    units = [
        methods.samples_unit(name, prior, options.samples, options.steps, eta=ETA) for name, prior in priors.items()
    ]
    index, count = (int(n) for n in options.part.split("/"))
    for contrast, case in list(cases(Path(os.environ["AMBIENT_MRI_DATA"])))[index::count]:
        for unit in missing_units(case, units, book):
            book.add([{**row, "contrast": contrast} for found in unit.run(case) for row in all_rows_of(case, found)])
        sys.stderr.write(f"{case.name} R={case.acceleration} {case.law}\n")
    text = table(read_records(book.path))
    book.path.with_suffix(".md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
