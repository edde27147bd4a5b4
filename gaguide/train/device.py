"""A rank's device: peak compute rate, peak memory, available memory."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from gaguide.cost.hardware import find_gpu


def device_peak_flops(device: torch.device, precision: str, set_tflops: float | None) -> float | None:
    """Peak FLOP/s: `train.peak_tflops` where it is set, else that of the data sheet; None on a CPU."""
    if set_tflops is not None:
        return set_tflops * 1e12
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if gpu is None else gpu.peak(precision)


def held_memory(device: torch.device) -> int:
    """Most bytes that this rank has used so far: allocated on its GPU, or else resident."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()


def peak_resident() -> int:
    """Largest resident set of this process, in bytes (getrusage would include its parent's)."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else int(psutil.Process().memory_info().rss)


def available_memory(device: torch.device) -> int:
    """Bytes that this rank may still take: free on its GPU, or its share of the host's free memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return int(psutil.virtual_memory().available) // ranks
