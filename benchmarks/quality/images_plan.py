"""Sizes and corruptions of ``images.py``, and the images where no data set is at hand."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ambient_mri.corruption import AdditiveNoise, ImageCorruption, PixelMasking

__all__ = ["BUDGETS", "CASES", "Budget", "Case", "source"]


@dataclass(frozen=True)
class Budget:
    """How large everything is.

    Attributes:
        channels: Width of the network.
        multipliers: Of its levels.
        steps: Training steps of the ambient and the supervised runs.
        em_rounds: Rounds of EM.
        em_steps: Steps of each M-step.
        e_steps: Noise levels of an E-step.
        batch_size: Images a step.
        restored: Held-out images that are restored.
        samples: Posterior samples of each.
        sampler_steps: Noise levels of the samplers.
        mmps_steps: Of MMPS, which takes several times a network call at each.
        generated: Unconditional samples.
        feature_steps: Training steps of the feature space.
        trainer: Hydra's name.
        precision: Of the networks.
    """

    channels: int
    multipliers: list[int]
    steps: int
    em_rounds: int
    em_steps: int
    e_steps: int
    batch_size: int
    restored: int
    samples: int
    sampler_steps: int
    mmps_steps: int
    generated: int
    feature_steps: int
    trainer: str
    precision: str


BUDGETS = {
    "rehearsal": Budget(8, [1, 2], 8, 1, 4, 3, 4, 4, 2, 3, 2, 12, 8, "cpu", "fp32"),
    "cpu": Budget(32, [1, 2, 2], 3000, 2, 1500, 30, 32, 64, 8, 60, 16, 512, 1500, "cpu", "fp32"),
    "gpu": Budget(96, [1, 2, 2], 40000, 3, 20000, 30, 128, 256, 16, 60, 16, 5000, 6000, "gpu", "bf16"),
}


@dataclass(frozen=True)
class Case:
    """A corruption.

    Attributes:
        missing: Share of the pixels.
        noise_std: Of the others.
    """

    missing: float
    noise_std: float

    @property
    def name(self) -> str:
        return f"missing_{round(100 * self.missing)}" if self.missing else f"noise_{self.noise_std:g}"

    @property
    def corruption(self) -> ImageCorruption:
        return PixelMasking(1 - self.missing) if self.missing else AdditiveNoise()

    @property
    def overrides(self) -> list[str]:
        if self.missing:
            return ["experiment=cifar10_inpainting", f"corruption.probability={round(1 - self.missing, 2)}"]
        return ["experiment=cifar10_denoising", f"data.noise_std={self.noise_std}"]


# Of split Gibbs: the record was made with the Gibbs sampler.
ETA = 1.0
CASES = [Case(m, 0.0) for m in (0.2, 0.4, 0.6, 0.8)] + [Case(0.0, s) for s in (0.1, 0.2)]


def source(budget: str, out: Path) -> Path:
    """The file of images; patches of scikit-image's pictures where there is no data folder."""
    root = os.environ.get("AMBIENT_MRI_DATA")
    if root and budget != "rehearsal":
        return Path(root) / "images" / "cifar10_10k.npz"
    from skimage import data

    path = out / "cifar10_10k.npz"
    if not path.is_file():
        images, labels = [], []
        for label, name in enumerate(("astronaut", "coffee", "chelsea", "rocket")):
            picture = getattr(data, name)()[::2, ::2]
            for top in range(0, picture.shape[0] - 31, 32):
                for left in range(0, picture.shape[1] - 31, 32):
                    images.append(picture[top : top + 32, left : left + 32])
                    labels.append(label)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=np.stack(images), labels=np.array(labels))
    return path
