"""Page faults of twelve gradient steps: page_faults_of_steps.py keep|return."""

import resource
import sys

import torch

from psys.compute.device import keep_freed_memory
from psys.compute.flat import FlatModel
from psys.compute.step import GradientStep
from psys.models.registry import build

if sys.argv[1] == "keep":
    keep_freed_memory()
step = GradientStep(FlatModel(build("resnet8", 10)), torch.float32)
images, labels = torch.zeros(64, 3, 32, 32), torch.zeros(64, dtype=torch.int64)
before = 0
for number in range(24):
    if number == 12:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(images, labels)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
