"""What this machine computes with: device, precision, memory."""

import ctypes
import sys
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


def choose_device(local_rank: int) -> torch.device:
    """The GPU of this machine's worker number `local_rank` (round robin) where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def choose_precision(wanted: Precision, device: torch.device) -> torch.dtype:
    """The dtype of forward and backward: `auto` takes bfloat16 where the hardware multiplies in it, else float32."""
    bf16 = _multiplies_in_bf16(device) if wanted == "auto" else wanted == "bf16"
    return torch.bfloat16 if bf16 else torch.float32


def _multiplies_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def keep_freed_memory() -> None:
    """Let this process keep what it frees and use it again: a step allocates the same tensors every time.

    By default glibc gives memory of this size back to the kernel, which then clears it page by page at the next step:
    some 5,000 page faults with a ResNet-8 and 64 images.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        # Older versions of glibc refuse more than 32 MB.
        if not libc.mallopt(_M_MMAP_THRESHOLD, 2**30):
            libc.mallopt(_M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def share_freed_memory() -> None:
    """Let the threads of this process use again what any of them freed: by default glibc keeps it apart by thread.

    A server's snapshots are made by one thread and freed by another; over a long run that would add up.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Give back to the kernel what this process has freed: vectors that were copied to be saved, say."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
