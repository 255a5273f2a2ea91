"""Trains on the store of the first argument, into the folder of the second, without a guard of the main module."""

import sys
from pathlib import Path

from psys.training import TrainingConfig, train

print("the program starts")
config = TrainingConfig(store=Path(sys.argv[1]), runs=Path(sys.argv[2]), name="r", workers=2, epochs=1, batch_size=16)
run = train(config)
print(f"complete: {run.complete}")
