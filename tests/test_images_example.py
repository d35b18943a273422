"""The README's example on pictures runs as written, with a small network and few steps, and what it leaves restores."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ambient_mri
from ambient_mri.data.natural_images import load_natural_images
from ambient_mri.operators import Identity, Mask, gaussian_blur
from ambient_mri.operators.base import LinearOperator
from ambient_mri.prior import load_prior
from ambient_mri.tensors import keyed_generator
from tests.test_tutorials import ROOT, blocks, commands, run_command

# In place of what the README trains with.
SMALL = (
    "network.channels=8", "network.multipliers=[1,2]", "model.precision=fp32", "trainer.max_steps=12",
    "loader.batch_size=8", "loader.val_items=8", "trainer.val_check_interval=12",
)  # fmt: skip
ROUNDS = ("em.rounds=1", "em.assess.slices=4", "em.assess.samples=2", "em.batch_size=32")
HELD_OUT = [1, 7, 12]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run every block of the section; the names that its Python has defined in the end, and the folder."""
    folder, found = tmp_path_factory.mktemp("example"), dict[str, Any]()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, content, place in blocks(ROOT / "README.md", "## Not MRI? Same three lines"):
            if kind == "python":
                exec(compile(content, place, "exec"), found)
                continue
            for words in commands(content):
                kept = [w for w in words if not w.startswith("trainer.max_steps=")]
                assert len(kept) == len(words) - 1, f"{place}: {shlex.join(words)} does not say how long it trains"
                run_command([*kept, *SMALL, *(ROUNDS if "objective=em" in words else ())], place)
    return {**found, "folder": folder}


@pytest.fixture(scope="module")
def prior(names: dict[str, Any]) -> Path:
    return Path(names["folder"]) / "runs" / "pictures_em" / "prior"


def patches() -> np.ndarray:
    """Every other pixel of a picture, in patches of 32 x 32, (n, 32, 32, 3) uint8."""
    from skimage import data

    half = data.astronaut()[::2, ::2]
    rows, columns = half.shape[0] // 32, half.shape[1] // 32
    return half.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def test_what_is_restored_was_held_out(names: dict[str, Any]) -> None:
    """The README names the patches that it restores: no training saw them."""
    images = load_natural_images(names["folder"] / "patches.npz")
    assert images.val == (1, 7, 12, 20, 26, 36) and set(HELD_OUT) <= set(images.val)
    assert f"patches[{HELD_OUT}]" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert np.array_equal(names["patches"], patches())
    x = names["x"]
    assert x.mean.shape == (3, 3, 32, 32) and 0.5 < float(x.residual.mean()) < 2
    measured = load_prior(names["folder"] / "runs" / "measured" / "prior")
    assert measured.kind == "ambient" and measured.metadata["simulated"] is False


def quality(truth: Tensor, image: Tensor) -> float:
    """PSNR in dB, images in [-1, 1]."""
    return float(10 * torch.log10(4 / (truth - image).square().mean()))


@pytest.mark.parametrize("task", ["inpaint", "denoise", "deblur"])
def test_a_prior_of_patches_with_missing_pixels_restores(prior: Path, task: str) -> None:
    truth = torch.from_numpy(patches()[HELD_OUT]).permute(0, 3, 1, 2) / 127.5 - 1
    mask = torch.rand(3, 1, 32, 32, generator=keyed_generator("example")) < 0.4
    operators: dict[str, LinearOperator] = {"inpaint": Mask(mask), "denoise": Identity(), "deblur": gaussian_blur(1.0)}
    operator, noise_std = operators[task], {"inpaint": 0.02, "denoise": 0.2, "deblur": 0.05}[task]
    clean = operator(truth)
    y = clean + noise_std * torch.randn(clean.shape, generator=keyed_generator("noise"))
    y = operator(y) if task == "inpaint" else y
    x = ambient_mri.solve(y, operator, prior, noise_std=noise_std, samples=8, steps=15)
    assert x.mean.shape == truth.shape and x.std is not None and x.mean.dtype == torch.float32
    assert 0.5 < float(x.residual.mean()) < 2, "samples explain the data"
    gain = {"inpaint": 10.0, "denoise": 3.0, "deblur": 0.5}[task]
    assert quality(truth, x.mean) > quality(truth, y) + gain
