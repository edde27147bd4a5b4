"""Checks of the machine: accelerator, memory, disks."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gaguide.doctor.check import Check, fail, ok, warn

_GIB = 2**30


def accelerator(answer: dict[str, Any]) -> Iterator[Check]:
    """What torch computes on, and whether NCCL works there."""
    if answer.get("late"):
        yield fail(
            "accelerator",
            "torch does not get past looking for one (driver trouble, or a very busy machine)",
            "try nvidia-smi; CUDA_VISIBLE_DEVICES='' runs without",
        )
        return
    if "error" in answer:
        yield fail("accelerator", f"torch can't be imported ({answer['error']})", "install torch again")
        return
    devices = answer["devices"]
    if answer.get("count"):
        yield ok("accelerator", f"{answer['count']}, not touched: a run may be using them")
        return
    if not devices:
        yield _no_device(answer)
        return
    names = ", ".join(f"{device['name']} ({device['gib']:.0f} GiB)" for device in devices)
    if answer["bf16"]:
        yield ok("accelerator", f"{len(devices)}: {names}; bf16")
    else:
        yield warn("accelerator", f"{len(devices)}: {names}; no bf16", "use the ds_configs with fp16")
    nccl = answer["nccl"]
    if nccl.startswith("error"):
        yield fail("nccl", nccl.removeprefix("error: "), "set NCCL_DEBUG=INFO and look at what it says")
    else:
        yield ok("nccl", f"{nccl}, a sum on the first device worked")


def _no_device(answer: dict[str, Any]) -> Check:
    driver = shutil.which("nvidia-smi") is not None and Path("/dev/nvidiactl").exists()
    if driver and not (answer["cuda_build"] or answer["hip_build"]):
        return fail(
            "accelerator",
            "this machine has an NVIDIA GPU, but this torch is built without CUDA",
            "install a CUDA build of torch (pytorch.org, 'Get started')",
        )
    if driver:
        return fail(
            "accelerator",
            f"an NVIDIA driver, but torch (CUDA {answer['cuda_build']}) sees no device",
            "compare nvidia-smi's CUDA version with torch's; look at CUDA_VISIBLE_DEVICES",
        )
    return warn(
        "accelerator",
        "none: ranks run on the CPU over gloo",
        "fine for the demo and tests; GPT-2 needs a GPU",
    )


def memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> Check:
    """Memory that is free now, within the limit of a container or job."""
    if not meminfo.exists():
        return ok("memory", "not known on this system")
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    total = int(fields["MemTotal"].split()[0]) * 1024
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _limit(cgroup)
    if limit is not None and limit[0] < total:
        total, free = limit[0], min(free, limit[0] - limit[1])
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if free < 2 * _GIB:
        return warn("memory", found, "end other programs or ask for more: two ranks of the demo take 2 GiB")
    return ok("memory", found)


def _limit(cgroup: Path) -> tuple[int, int] | None:
    """(limit, in use) in bytes of this container (cgroup 2 or 1), None without."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return int((cgroup / limit).read_text()), int((cgroup / usage).read_text())
        except (OSError, ValueError):  # absent, or "max"
            continue
    return None


def disks() -> Iterator[Check]:
    """Where runs, caches and temporary files go."""
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for name, folder in (
        ("disk, this folder", Path.cwd()),
        ("disk, model cache", cache),
        ("disk, temporary", Path(tempfile.gettempdir())),
    ):
        yield disk(name, folder)


def disk(name: str, folder: Path, needed_gib: float = 5.0) -> Check:
    """Free space at `folder` (or where it would be made), and whether it may be written."""
    at = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(at).free / _GIB
    found = f"{folder}: {free:.1f} GiB free"
    if not os.access(at, os.W_OK):
        return fail(name, f"{folder}: may not be written", "choose another folder, or HF_HOME / TMPDIR")
    if free < 0.5:
        return fail(name, found, "make room")
    if free < needed_gib:
        return warn(name, found, "make room: a gpt2 checkpoint takes 1.5 GiB, OpenWebText's shards 18 GB")
    return ok(name, found)


def shared_memory(folder: Path = Path("/dev/shm"), needed_mib: float = 256) -> Check:
    """Ranks of one host talk through it (NCCL, gloo, DeepSpeed); containers get 64 MiB by default."""
    if not folder.is_dir():
        return warn("shared memory", f"no {folder}", "containers: --shm-size=1g or --ipc=host")
    free = shutil.disk_usage(folder).free / 2**20
    if free < needed_mib or not os.access(folder, os.W_OK):
        return warn(
            "shared memory", f"{folder}: {free:.0f} MiB free", "containers: --shm-size=1g or --ipc=host"
        )
    return ok("shared memory", f"{folder}: {free / 1024:.1f} GiB free")
