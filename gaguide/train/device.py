"""What a device can do and what of it a run uses: peak rate, peak memory, utilisation."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from gaguide.cost.hardware import find_gpu
from gaguide.distributed import all_reduce_max

# malloc.h of glibc; by itself it moves the threshold up to 32 MiB as large blocks are freed.
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def device_peak_flops(device: torch.device, precision: str, set_tflops: float | None) -> float | None:
    """FLOP/s for utilisation: `train.peak_tflops` where it is set, else the data sheet's; None on a CPU."""
    if set_tflops is not None:
        return set_tflops * 1e12
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if gpu is None else gpu.peak(precision)


def peak_memory(device: torch.device) -> int:
    """Most bytes that any rank has held: allocated on a GPU, else resident; a collective."""
    mine = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()
    return int(all_reduce_max(torch.tensor(mine, dtype=torch.int64, device=device)).item())


def peak_resident() -> int:
    """Largest resident set of this process, in bytes (getrusage would count its parent's too)."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else int(psutil.Process().memory_info().rss)


@contextmanager
def large_tensors_apart() -> Iterator[None]:
    """Inside, each large tensor of the CPU gets memory of its own, which goes back when it is freed (glibc).

    Otherwise only tensors above 32 MiB do, and a model that is converted and cut up anew leaves gigabytes of
    holes between what stays. Outside, in training, holes are used again, and faster than fresh pages; only
    before an offloaded optimizer's step they are given back.
    """
    mallopt = _glibc("mallopt")
    mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


def give_back_free_memory() -> None:
    """Return the heap's free pages to the system."""
    _glibc("malloc_trim")(0)


def _glibc(name: str) -> Callable[..., Any]:
    """A function of glibc's own; where there is another C library, one that does nothing."""
    return getattr(ctypes.CDLL(None), name, lambda *_: None)


def available_memory(device: torch.device) -> int:
    """Bytes that this rank may still take: free on its GPU, or its share of what the host has left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return int(psutil.virtual_memory().available) // ranks
