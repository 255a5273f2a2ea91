import subprocess
import sys

import pytest
import torch

from psys.compute.device import choose_precision


def test_precision_as_asked() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) is torch.float32
    assert choose_precision("bf16", cpu) is torch.bfloat16
    assert choose_precision("auto", cpu) in (torch.float32, torch.bfloat16)


@pytest.mark.skipif(sys.platform != "linux", reason="the other systems' allocators are left as they are")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """Page faults of twelve gradient steps, in processes of their own that do and do not keep it.

    A step frees all that it allocated: the images between layers, of 4 MB each, are new to the kernel each time, unless
    they are kept. The heap takes some steps to settle.
    """
    script = """
import resource, sys, torch
from psys.compute.device import keep_freed_memory
from psys.compute.flat import FlatModel
from psys.compute.step import GradientStep
from psys.models.registry import build
if sys.argv[1] == "keep":
    keep_freed_memory()
step = GradientStep(FlatModel(build("resnet8", 10)), torch.float32)
images, labels = torch.zeros(64, 3, 32, 32), torch.zeros(64, dtype=torch.int64)
for number in range(24):
    if number == 12:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(images, labels)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {}
    for kind in ("keep", "give back"):
        done = subprocess.run([sys.executable, "-c", script, kind], capture_output=True, text=True, check=True)
        faults[kind] = int(done.stdout)
    assert faults["keep"] < faults["give back"] / 20


@pytest.mark.skipif(sys.platform != "linux", reason="the other systems' allocators are left as they are")
def test_freed_memory_goes_back_when_it_is_asked_to() -> None:
    """Even if it lies below what is still held."""
    script = """
import psutil, torch
from psys.compute.device import return_freed_memory
vectors = [torch.ones(25_000) for _ in range(1000)]  # too small for memory of their own from the kernel
del vectors[:-1]
before = psutil.Process().memory_info().rss
return_freed_memory()
print(before - psutil.Process().memory_info().rss)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 90e6
