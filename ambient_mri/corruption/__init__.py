r"""Corruption: the seam through which every use enters - what A a measurement has, and how it is corrupted further.

    A = corruption.forward_operator(m);   B = corruption.further(m, ...);   A_tilde = B A

What belongs to a scan or an image (its mask P, bandwidth, projection, noise) is fixed for ever. B, the further
corruption, is fresh at every training step and of random strength, so that the network accepts any density.

Inverse-probability weights W make E[A^H W A | A_tilde] = I, so that the ambient loss estimates the supervised one
without bias:

    | corruption       | A                                  | B                        | W                         |
    |------------------|------------------------------------|--------------------------|---------------------------|
    | Undersampling    | P F S, k-space of MRI              | thins P, spares a core   | by the law (masks.py)     |
    | PixelMasking     | P, pixels or colours               | thins P                  | (1 - p q) / (p (1 - q))   |
    | RandomBoxes      | P, all but a box                   | a second, disjoint box   | 1 + N(a) / N(b)           |
    | RandomPatches    | P, one patch                       | a smaller patch inside   | 1 / Pr(covered), in reach |
    | BlockAveraging   | P T, blocks intact or averaged     | averages more            | (1 - p q) / (p (1 - q))   |
    | RandomProjections| orthonormalised Gaussian rows      | drops rows               | (n - k) / d               |
    | RandomBlur       | Gaussian blur of random bandwidth  | masks frequencies        | 1 / gain^2, capped        |
    | AdditiveNoise    | I                                  | nothing                  | 1                         |

Compositions with noise need no class: ``noise_std`` belongs to each measurement, and the objectives know it. Masking
with noise is PixelMasking (RandomBoxes, ...) of noisy images, undersampling with noise is Undersampling.

Reference: Daras et al. 2023, arXiv:2305.19256.
"""

from ambient_mri.corruption.averaging import BlockAveraging
from ambient_mri.corruption.base import Corruption, Further, ImageCorruption, Learnability
from ambient_mri.corruption.blur import RandomBlur
from ambient_mri.corruption.masking import PixelMasking
from ambient_mri.corruption.noise import AdditiveNoise
from ambient_mri.corruption.projections import RandomProjections
from ambient_mri.corruption.rectangles import RandomBoxes, RandomPatches
from ambient_mri.corruption.undersampling import Undersampling, check_learnable

__all__ = [
    "AdditiveNoise",
    "BlockAveraging",
    "Corruption",
    "Further",
    "ImageCorruption",
    "Learnability",
    "PixelMasking",
    "RandomBlur",
    "RandomBoxes",
    "RandomPatches",
    "RandomProjections",
    "Undersampling",
    "check_learnable",
]
