"""What an objective is: a loss on a batch, given a model and one random stream a row. It has no state and no
optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from ambient_mri.tensors import RowGenerators

__all__ = ["Loss", "Objective"]


@dataclass(frozen=True)
class Loss:
    """A loss and what is worth logging beside it.

    Attributes:
        value: Scalar, to be minimised.
        logs: Plain scalars.
    """

    value: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss on a batch.

    Attributes:
        kind: ``"ambient"`` if the model is a ConditionalDenoiser and batches are Measurements, ``"clean"`` if the
            model is a Denoiser and batches are images, ``"feedforward"`` if the model reconstructs at the noise level
            of the data alone. An objective may have an ``architecture``: settings of the model that belong to it.
    """

    kind: str

    def __call__(self, model: nn.Module, batch: Any, generators: RowGenerators) -> Loss:
        """The loss of ``model`` on ``batch``, row ``i`` drawing its noise from ``generators[i]``."""
        ...
