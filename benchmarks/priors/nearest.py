"""Does a prior repeat its training images? The nearest training image of every sample, beside a control.

    python benchmarks/priors/nearest.py --prior FOLDER --references FOLDER [--images FILE.npz ...]

Unconditional samples (EDM Heun) are compared by magnitude with every training image, at 64 x 64, over all cyclic
shifts, both reflections and four turns: the similarity is the largest Pearson correlation. The control is the same
number of *held-out* images: a prior that memorises has samples closer to the training set than new subjects are. The
training set is the reconstructions that the prior learned from, and, where given, the images that their k-space was
simulated from, which it never saw.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ambient_mri.data.datasets import read_images
from ambient_mri.data.images import load_image_set
from ambient_mri.prior import load_prior
from ambient_mri.report.plots import sample_sheet
from ambient_mri.sampling import unconditional
from ambient_mri.tensors import keyed_generator

SIZE = 64


def prepared(magnitude: Tensor) -> Tensor:
    """(n, H, W) magnitudes at SIZE x SIZE, zero mean, unit norm."""
    small = torch.nn.functional.interpolate(magnitude[:, None].float(), (SIZE, SIZE), mode="area")[:, 0]
    small = small - small.mean(dim=(1, 2), keepdim=True)
    return small / small.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-6)


def similarity(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Largest correlation of every query with any image of the bank, and which image it is."""
    transformed = torch.fft.rfft2(bank)
    best = torch.full((len(queries),), -1.0)
    which = torch.zeros(len(queries), dtype=torch.long)
    for flip in (False, True):
        for turn in range(4):
            moved = torch.rot90(queries.flip(-1) if flip else queries, turn, dims=(-2, -1))
            for i, spectrum in enumerate(torch.fft.rfft2(moved)):
                for start in range(0, len(bank), 512):
                    part = transformed[start : start + 512]
                    peaks = torch.fft.irfft2(part * spectrum.conj(), s=(SIZE, SIZE)).flatten(1).amax(dim=1)
                    value, index = peaks.max(dim=0)
                    if value > best[i]:
                        best[i], which[i] = value, start + index
    return best, which


def main(arguments: list[str] | None = None) -> None:
    """Draw, compare, write nearest.json and nearest.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", required=True)
    parser.add_argument("--references", required=True, type=Path, help="folder of an E-step")
    parser.add_argument("--images", nargs="*", type=Path, default=[], help="image files of the simulation")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("nearest"))
    options = parser.parse_args(arguments)
    prior = load_prior(options.prior)
    generators = [keyed_generator("nearest", i) for i in range(options.count)]
    samples = torch.cat(
        [
            unconditional(prior.model, (1, 128, 128), generators[i : i + 8], options.steps)  # type: ignore[arg-type]
            for i in range(0, options.count, 8)
        ]
    )[:, 0].abs()
    files = sorted(options.references.glob("*.h5"))
    reconstructions = torch.cat([torch.from_numpy(np.abs(read_images(f).images[:, 0])) for f in files])
    sets = [load_image_set(f) for f in options.images]
    split = lambda name: torch.cat([torch.from_numpy(s.images[s.split == name]).float() for s in sets])  # noqa: E731
    banks = {"reconstructions": reconstructions, **({"images": split("train")} if sets else {})}
    held_out = split("val") if sets else None
    result: dict[str, object] = {"prior": prior.name, "count": options.count, "steps": options.steps}
    for name, bank in banks.items():
        small = prepared(bank)
        value, which = similarity(prepared(samples), small)
        result[name] = {"size": len(bank), "samples_max": float(value.max()), "samples_median": float(value.median())}
        if held_out is not None:
            chosen = held_out[torch.linspace(0, len(held_out) - 1, options.count).long()]
            control, _ = similarity(prepared(chosen), small)
            result[name] |= {"held_out_max": float(control.max()), "held_out_median": float(control.median())}  # type: ignore[operator]
        order = value.argsort(descending=True)[:8]
        pairs = torch.stack(
            [
                samples[order] / samples[order].amax(dim=(1, 2), keepdim=True),
                bank[which[order]] / bank[which[order]].amax(dim=(1, 2), keepdim=True),
            ],
            dim=1,
        )
        sample_sheet(
            pairs.flatten(0, 1).numpy(), options.out.with_name(f"{options.out.name}_{name}.png"), num_columns=4
        )
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
