"""Sizes and lengths of the demo."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ambient_mri._checks import check_positive

__all__ = ["DEFAULT_MINUTES", "DemoSettings"]

# What the training takes on two quiet cores, where it is asked for.
DEFAULT_MINUTES = 3.0


@dataclass(frozen=True)
class DemoSettings:
    """Sizes and lengths of the demo.

    Attributes:
        size: Rows and columns of the head slice.
        coils: Of the head's scan.
        acceleration: R of the head's scan.
        acs_lines: Calibration lines of the head's scan.
        noise_std: Per real part, where the brightest pixels of the head are 1.
        samples: Posterior samples.
        sampler_steps: Noise levels of the sampler.
        phantom_size: Rows and columns of the training phantoms.
        phantom_acceleration: R of the training scans.
        phantom_acs_lines: Calibration lines of the training scans.
        volumes: Training phantoms, each a head of its own.
        slices: Of every phantom.
        ambient_steps: Optimiser steps of the ambient training.
        batch_size: Slices a step.
        channels: Width of the network.
        multipliers: Of the width, one a level of the network.
        lr: Highest learning rate.
        beta2: Decay of the optimiser's second moment: short in a run of a few thousand steps.
    """

    size: int = 128
    coils: int = 8
    acceleration: float = 8.0
    acs_lines: int = 8
    noise_std: float = 0.01
    samples: int = 8
    sampler_steps: int = 50
    phantom_size: int = 64
    phantom_acceleration: float = 4.0
    phantom_acs_lines: int = 8
    volumes: int = 100
    slices: int = 4
    ambient_steps: int = 3000
    batch_size: int = 4
    channels: int = 16
    multipliers: tuple[int, ...] = (1, 2)
    lr: float = 6e-3
    beta2: float = 0.95

    def for_minutes(self, minutes: float) -> DemoSettings:
        """The same demo with the training steps that ``minutes`` allow, in proportion to the default.

        Raises:
            AmbientMRIError: If ``minutes`` is not positive.
        """
        check_positive("minutes", minutes)
        effort = minutes / DEFAULT_MINUTES
        return replace(self, ambient_steps=max(1, round(self.ambient_steps * effort)))
