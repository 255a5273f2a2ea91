"""Training on this machine, as a rank of torchrun, or as a part of a run elsewhere. From Python: train(TrainingConfig())."""

from psys.training.local import train
from psys.training.settings import TrainingConfig, read_settings

__all__ = ["TrainingConfig", "read_settings", "train"]
