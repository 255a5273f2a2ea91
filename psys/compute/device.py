"""What this machine computes with: device, precision, cores."""

import os
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


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
