"""Checks of the machine: accelerator, memory, shared memory, disks."""

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
    """The devices that torch finds, and whether NCCL works on them. `answer` is that of the probe `torch`."""
    if answer.get("late"):
        yield _late()
        return
    if "error" in answer:
        remedy = "pip install --force-reinstall torch"
        yield fail("accelerator", f"torch cannot be imported ({answer['error']})", remedy)
        return
    devices = answer["devices"]
    if answer.get("count"):
        yield ok("accelerator", f"{answer['count']}, only counted: a run may be using them")
        return
    if not devices:
        yield _no_device(answer)
        return
    names = ", ".join(f"{device['name']} ({device['gib']:.0f} GiB)" for device in devices)
    if answer["bf16"]:
        yield ok("accelerator", f"{len(devices)}: {names}; bf16; {_stage_0(devices)}")
    else:
        yield warn("accelerator", f"{len(devices)}: {names}; no bf16", "use a DeepSpeed JSON named …_fp16")
    nccl = answer["nccl"]
    if "error" in nccl:
        yield fail("nccl", nccl["error"], "export NCCL_DEBUG=INFO and read its messages")
    else:
        yield ok("nccl", f"{nccl['version']}, a sum on the first device succeeded")


def _stage_0(devices: list[dict[str, Any]]) -> str:
    """Advice on the DeepSpeed JSON: stage 0 costs the host least, and needs 16 bytes per parameter."""
    parameters = 0.6 * min(device["gib"] for device in devices) * _GIB / 16  # the rest is for activations
    return f"zero0, which costs the host least, holds models up to about {parameters / 1e9:.1f} B parameters"


def _late() -> Check:
    if has_nvidia_driver():
        return fail(
            "accelerator",
            "torch does not finish looking for devices (a driver problem, or a very busy machine)",
            "run nvidia-smi; to run without GPUs: export CUDA_VISIBLE_DEVICES=",
        )
    return warn("accelerator", "no NVIDIA driver; torch did not answer in time", "run doctor again when idle")


def _no_device(answer: dict[str, Any]) -> Check:
    if has_nvidia_driver():
        if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            return warn("accelerator", "hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES")
        if not (answer["cuda_build"] or answer["hip_build"]):
            return fail(
                "accelerator",
                "this machine has an NVIDIA GPU, but this torch is built without CUDA",
                "install a CUDA build of torch (https://pytorch.org/get-started)",
            )
        return fail(
            "accelerator",
            f"there is an NVIDIA driver, but torch (CUDA {answer['cuda_build']}) finds no device",
            "compare nvidia-smi's CUDA version with torch's, and check CUDA_VISIBLE_DEVICES",
        )
    return warn(
        "accelerator",
        "none: ranks run on the CPU over gloo",
        "enough for the demo and tests; GPT-2 needs a GPU",
    )


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver is loaded, which says nothing about whether it works."""
    return shutil.which("nvidia-smi") is not None and Path("/dev/nvidiactl").exists()


def memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> Check:
    """Free memory, within the limit of a container or job."""
    if not meminfo.exists():
        return ok("memory", "unknown on this system")
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    total = int(fields["MemTotal"].split()[0]) * 1024
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _limit(cgroup)
    if limit is not None and limit[0] < total:
        total, free = limit[0], min(free, limit[0] - limit[1])
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if free < 2 * _GIB:
        return warn("memory", found, "end other programs or request more: two ranks of the demo need 2 GiB")
    return ok("memory", found)


def _limit(cgroup: Path) -> tuple[int, int] | None:
    """(limit, usage) in bytes of this container (cgroup 2 or 1); None without a limit."""
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
    """Free space for runs, caches and temporary files."""
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for name, folder in (
        ("disk, this folder", Path.cwd()),
        ("disk, model cache", cache),
        ("disk, temporary", Path(tempfile.gettempdir())),
    ):
        yield disk(name, folder)


def disk(name: str, folder: Path, needed_gib: float = 5.0) -> Check:
    """Free space in `folder`, or in the folder where it would be created, and whether it is writable."""
    at = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(at).free / _GIB
    found = f"{folder}: {free:.1f} GiB free"
    if not os.access(at, os.W_OK):
        return fail(name, f"{folder}: not writable", "choose another folder, or set HF_HOME or TMPDIR")
    if free < 0.5:
        return fail(name, found, "free up space")
    if free < needed_gib:
        return warn(name, found, "free up space: a gpt2 checkpoint takes 1.5 GiB, OpenWebText's shards 18 GB")
    return ok(name, found)


def shared_memory(folder: Path = Path("/dev/shm"), needed_mib: float = 256) -> Check:
    """Space through which the ranks of a host communicate; containers get 64 MiB by default."""
    if not folder.is_dir():
        return warn("shared memory", f"no {folder}", "in a container: --shm-size=1g or --ipc=host")
    free = shutil.disk_usage(folder).free / 2**20
    if free < needed_mib or not os.access(folder, os.W_OK):
        return warn(
            "shared memory", f"{folder}: {free:.0f} MiB free", "in a container: --shm-size=1g or --ipc=host"
        )
    return ok("shared memory", f"{folder}: {free / 1024:.1f} GiB free")
