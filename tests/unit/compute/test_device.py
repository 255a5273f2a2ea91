import subprocess
import sys

import pytest
import torch

from psys.compute.device import choose_precision
from tests.support.processes import PROGRAMS


def test_precision_as_asked() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) is torch.float32
    assert choose_precision("bf16", cpu) is torch.bfloat16
    assert choose_precision("auto", cpu) in (torch.float32, torch.bfloat16)


LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="allocators of other systems are left as they are")


def output_of(program: str, *arguments: str) -> int:
    """The number that a program in a process of its own prints."""
    command = [sys.executable, str(PROGRAMS / program), *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@LINUX_ONLY
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """A step frees what it allocated: 4 MB for each layer, which the kernel clears anew unless it is kept."""
    kept, returned = (output_of("page_faults_of_steps.py", kind) for kind in ("keep", "return"))
    assert kept < returned / 20


@LINUX_ONLY
def test_freed_memory_is_returned_on_request() -> None:
    """Also memory that lies below memory in use."""
    assert output_of("bytes_returned.py") > 90e6
