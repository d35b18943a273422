"""Training objectives: one file, one reference each."""

from ambient_mri.objectives.ambient import AmbientObjective
from ambient_mri.objectives.base import Loss, Objective
from ambient_mri.objectives.supervised import SupervisedObjective

__all__ = ["AmbientObjective", "Loss", "Objective", "SupervisedObjective"]
