"""Bytes of resident memory that `return_freed_memory` gives back to the kernel."""

import psutil
import torch

from psys.compute.device import return_freed_memory

vectors = [torch.ones(25_000) for _ in range(1000)]  # each too small for a mapping of its own
del vectors[:-1]
before = psutil.Process().memory_info().rss
return_freed_memory()
print(before - psutil.Process().memory_info().rss)
