"""Training objectives: one file, one reference each."""

from ambient_mri.objectives.ambient import AmbientObjective
from ambient_mri.objectives.base import Loss, Objective
from ambient_mri.objectives.consistency import ConsistencyObjective, ConsistentAmbientObjective
from ambient_mri.objectives.published import PublishedAmbientObjective
from ambient_mri.objectives.ssdu import SSDUObjective, WeightedSSDUObjective
from ambient_mri.objectives.supervised import SupervisedObjective
from ambient_mri.objectives.uncertainty import UncertaintyObjective

__all__ = [
    "AmbientObjective",
    "ConsistencyObjective",
    "ConsistentAmbientObjective",
    "Loss",
    "Objective",
    "PublishedAmbientObjective",
    "SSDUObjective",
    "SupervisedObjective",
    "UncertaintyObjective",
    "WeightedSSDUObjective",
]
