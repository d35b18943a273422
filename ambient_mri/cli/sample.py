"""``ambient-mri sample``: images of a prior alone, as a sheet.

A clean prior is sampled by Heun's method. An ambient network has to be given some data: the published samplers give it
noise under the masks of the scans (or pictures) that it was trained on, which its run folder knows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ambient_mri._checks import AmbientMRIError, PriorError, require
from ambient_mri.cli.commands import check_device
from ambient_mri.cli.files import check_writable
from ambient_mri.cli.options import refuse
from ambient_mri.cli.terminal import show_facts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ambient_mri.prior import Prior

__all__ = ["METHODS", "run"]

METHODS = ("heun", "fixed_mask", "guidance")


def run(options: argparse.Namespace) -> int:
    """``ambient-mri sample``."""
    check_writable(options.out, (".png",))
    check_device(options.device)
    from ambient_mri.sampling.draw import as_prior, progress_bar
    from ambient_mri.tensors import choose_device

    require(options.count >= 1, f"--count must be at least 1; got {options.count}.")
    device = choose_device(options.device)
    prior = as_prior(options.prior, device)
    draw = _heun if options.sampler == "heun" else _published
    with progress_bar(True, options.count * options.steps) as bar:
        images, sampler = draw(options, prior, device, bar.update)
    facts = {
        "prior": f"{prior.name} ({prior.kind})",
        "images": f"{options.count} of {images.shape[-2]} x {images.shape[-1]}",
        "sampler": sampler,
        "written": _sheet(images, prior, options.out),
    }
    show_facts("Samples of the prior, without any data", facts)
    return 0


def _heun(
    options: argparse.Namespace, prior: Prior, device: torch.device, progress: Callable[[int], None]
) -> tuple[Tensor, str]:
    """Images (n, c, H, W) of a clean prior, and how they were drawn."""
    import torch

    from ambient_mri.denoiser import Denoiser
    from ambient_mri.sampling import Heun
    from ambient_mri.sampling.full_view import whole_image_model

    refuse(options, "guides", "guidance", because="of --sampler guidance, for ambient networks.")
    sampler = Heun(options.steps, churn=options.churn or 0.0)
    known = options.shape or prior.metadata.get("image_shape")
    if not known:
        raise AmbientMRIError(f"the prior {prior.name} does not say what size its images have. Give --shape H W.")
    shape = (int(known[0]), int(known[1]))
    require(min(shape) >= 1, f"--shape must be two numbers of pixels, such as 128 128; got {shape[0]} {shape[1]}.")
    # A prior of real images says how many channels the network puts out; two of them are one complex image.
    channels = prior.architecture.get("image_channels", 2)
    image, dtype = ((1, *shape), torch.complex64) if channels == 2 else ((channels, *shape), torch.float32)
    model: Any = whole_image_model(prior.model, prior.metadata)
    if not isinstance(model, Denoiser):
        raise PriorError(
            f"unconditional samples need a clean prior; {prior.name} is of kind {prior.kind!r}. Make it one by "
            "objective=em init=RUN, or give its run folder and --sampler fixed_mask or guidance."
        )
    parts = []
    for _, streams in _batches(options, shape, device):
        result = sampler.draw(model, image, streams, dtype=dtype, callback=lambda level, x: progress(len(x)))
        parts.append(result.x.cpu())
    text = f"heun, {options.steps} noise levels, {result.status['evaluations']} evaluations an image"
    return torch.cat(parts), text


def _published(
    options: argparse.Namespace, prior: Prior, device: torch.device, progress: Callable[[int], None]
) -> tuple[Tensor, str]:
    """The same of an ambient network, by the samplers of Daras et al. 2023."""
    import torch

    from ambient_mri.denoiser import ConditionalDenoiser
    from ambient_mri.sampling import AmbientGeneration
    from ambient_mri.training.measured import measurements_of_run

    model = prior.model
    if not isinstance(model, ConditionalDenoiser):
        raise PriorError(
            f"--sampler {options.sampler} is for ambient networks; {prior.name} is a {prior.kind} prior. Leave out "
            "--sampler."
        )
    refuse(options, "shape", "churn", because="of --sampler heun; these samplers take the size from the training data.")
    if options.sampler != "guidance":
        refuse(options, "guides", "guidance", because="of --sampler guidance.")
    guides = (4 if options.guides is None else options.guides) if options.sampler == "guidance" else 0
    require(options.sampler != "guidance" or guides >= 1, f"--guides must be at least 1; got {guides}.")
    guidance = 5e-4 if options.guidance is None else options.guidance
    sampler = AmbientGeneration(options.steps, guides=guides, guidance=guidance)
    given = Path(options.prior).expanduser()
    inside = not (given / "config.yaml").is_file() and (given.parent / "config.yaml").is_file()
    corruption, measured = measurements_of_run(given.parent if inside else given, options.count)
    parts = []
    for picked, streams in _batches(options, measured.image_shape, device):
        parts.append(sampler.generate(model, corruption, measured[picked].to(device), streams).cpu())
        progress(len(streams) * options.steps)
    text = f"{options.sampler}, {options.steps} noise levels" + (f", {guides} guides" if guides else "")
    return torch.cat(parts), text


def _batches(
    options: argparse.Namespace, shape: tuple[int, int], device: torch.device
) -> Iterator[tuple[slice, list[torch.Generator]]]:
    """Rows that fit into memory together, and their random streams, which do not depend on it."""
    from ambient_mri.sampling.batching import rows_per_batch
    from ambient_mri.tensors import keyed_generator

    rows = rows_per_batch("auto", shape, 1, device)
    for first in range(0, options.count, rows):
        picked = range(first, min(first + rows, options.count))
        streams = [keyed_generator("sample", options.seed, i, device=device) for i in picked]
        yield slice(picked.start, picked.stop), streams


def _sheet(images: Tensor, prior: Prior, out: Path) -> Path:
    from ambient_mri.report.images import image_rows
    from ambient_mri.report.plots import sample_sheet

    title = f"{prior.name}: samples without data"
    if images.is_complex():
        return sample_sheet(images[:, :1], out, title=title)
    parts = {f"from {first + 1}": images[first : first + 8] for first in range(0, len(images), 8)}
    return image_rows({title: parts}, out)
