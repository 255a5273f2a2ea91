"""Training: on this machine, as a rank of torchrun, or as one more process of a run.

From Python: `run = train(TrainingConfig(mode="sync"))`, then `run.result()`.
"""

from psys.training.local import train
from psys.training.settings import TrainingConfig, read_settings

__all__ = ["TrainingConfig", "read_settings", "train"]
