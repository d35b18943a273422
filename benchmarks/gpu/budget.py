"""What a budget of :mod:`run` stands for: machine, time, sizes and steps.

``gpu`` fills leases of minutes: every training stage is planned for a time. ``cpu`` trains what a laptop can: networks,
batches, steps, learning rates and augmentation are those of ``configs/experiment/brain_R4_cpu*.yaml``, however long
that takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BUDGETS", "Budget", "plan_of"]


@dataclass(frozen=True)
class Budget:
    """One budget.

    Attributes:
        defaults: Options of the command line that were not given.
        samples: Posterior samples a slice, of the evaluations.
        steps: Noise levels of their samplers.
        timed: Slices that the sampler is timed on.
        start_sd: First noise level of an E-step, in units of the prior's sd; the sampler's own when None.
        experiments: Stage to the experiment that its settings come from; none where a stage is planned by time.
    """

    defaults: Mapping[str, Any]
    samples: int
    steps: int
    timed: int
    start_sd: float | None = None
    experiments: Mapping[str, str] = field(default_factory=dict)

    def experiment(self, stage: str) -> str | None:
        """Of a stage; rounds of EM after the third take the third's, the supervised stage the second's."""
        return self.experiments.get(stage, self.experiments.get("em3" if stage.startswith("em") else "em2"))


def plan_of(steps: int, warmup_steps: int, batch_size: int) -> dict[str, int]:
    """``plan.json`` of a training stage whose length is not planned by time."""
    return {"max_steps": steps, "warmup_steps": max(1, min(warmup_steps, steps // 10)), "batch_size": batch_size}


BUDGETS = {
    "gpu": Budget(
        defaults={
            "device": "cuda",
            "minutes": 9.0,
            "network": "unet_mp",
            "batch_size": 128,
            "rows": 256,
            "lr": 1e-2,
            "em_steps": 25,
        },
        samples=8,
        steps=50,
        timed=64,
    ),
    "cpu": Budget(
        defaults={"device": "cpu", "minutes": 600.0, "network": "unet_mp", "rows": 16, "em_steps": 20},
        samples=4,
        steps=25,
        timed=4,
        start_sd=1.0,
        experiments={"ambient": "brain_R4_cpu"} | {f"em{i}": f"brain_R4_cpu_em{i}" for i in (1, 2, 3)},
    ),
}
