"""Offload in the DeepSpeed JSON: what lies on the CPU or on disk, and what contradicts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gaguide.engine.config_schema import fault
from gaguide.errors import Fault

# Parameter, gradient and the two moments pass through the swap buffers at once.
_ADAM_BUFFERS = 4
SUB_GROUP_SIZE = 1_000_000_000
"""DeepSpeed's default."""


def offload_device(deepspeed: dict[str, Any], what: str) -> str:
    """`none`, `cpu` or `nvme`; `what` is `optimizer` or `param`."""
    section = deepspeed.get("zero_optimization", {}).get(f"offload_{what}") or {}
    return str(section.get("device", "none"))


def nvme_folders(deepspeed: dict[str, Any]) -> list[Path]:
    """Folders that DeepSpeed will swap into."""
    zero = deepspeed.get("zero_optimization", {})
    return [
        Path(zero[f"offload_{what}"]["nvme_path"])
        for what in ("optimizer", "param")
        if offload_device(deepspeed, what) == "nvme"
    ]


def needed_ops(deepspeed: dict[str, Any]) -> tuple[str, ...]:
    """DeepSpeed's compiled ops that this JSON asks for."""
    devices = {offload_device(deepspeed, what) for what in ("optimizer", "param")}
    ops = []
    wanted = deepspeed.get("zero_force_ds_cpu_optimizer", True)
    if offload_device(deepspeed, "optimizer") != "none" and wanted:
        ops.append("cpu_adam")
    if "nvme" in devices:
        ops.append("async_io")
    return tuple(ops)


def with_nvme_path(zero: dict[str, Any], default: Path) -> dict[str, Any]:
    """The ZeRO section with `nvme_path` filled where something goes to disk and no path is given."""
    filled = dict(zero)
    for name in ("offload_optimizer", "offload_param"):
        section = zero.get(name) or {}
        if section.get("device") == "nvme" and section.get("nvme_path") is None:
            filled[name] = section | {"nvme_path": str(default)}
    return filled


def offload_faults(config: dict[str, Any], stage: int, world_size: int) -> list[Fault]:
    """Offload sections that DeepSpeed would ignore, or fail on after the first step."""
    faults = []
    zero = config.get("zero_optimization", {})
    for what, least in (("optimizer", 1), ("param", 3)):
        device, field = offload_device(config, what), f"zero_optimization.offload_{what}"
        section = zero.get(f"offload_{what}") or {}
        least = 3 if device == "nvme" else least
        if device != "none" and stage < least:
            problem = f"DeepSpeed ignores it below stage {least}; this is stage {stage}"
            faults.append(fault(f"{field}.device", problem, f"use stage {least}, or remove it", device))
        if device != "nvme" and section.get("nvme_path") is not None:
            remedy = "remove it, or write device: nvme"
            faults.append(fault(f"{field}.nvme_path", f"the device is {device}", remedy))
        if device == "nvme" and what == "optimizer" and section.get("buffer_count", 4) < _ADAM_BUFFERS:
            problem = "AdamW swaps four tensors of a parameter at once"
            faults.append(fault(f"{field}.buffer_count", problem, "use 4 or more", section["buffer_count"]))
        if device == "nvme" and what == "param" and world_size > 1:
            problem = f"DeepSpeed 0.19 fails on it with {world_size} ranks (swap buffers assigned twice)"
            faults.append(fault(f"{field}.device", problem, "use device: cpu, or one rank", device))
    if offload_device(config, "optimizer") == "nvme" and not config.get("zero_force_ds_cpu_optimizer", True):
        remedy = "remove it, or offload to the CPU"
        faults.append(fault("zero_force_ds_cpu_optimizer", "torch's AdamW cannot be swapped to disk", remedy))
    if "aio" in config and not any(offload_device(config, what) == "nvme" for what in ("optimizer", "param")):
        faults.append(fault("aio", "nothing is offloaded to disk", "remove it"))
    if "zero_force_ds_cpu_optimizer" in config and offload_device(config, "optimizer") == "none":
        faults.append(fault("zero_force_ds_cpu_optimizer", "no optimizer is offloaded", "remove it"))
    return faults


def sub_group_size(deepspeed: dict[str, Any]) -> int:
    """Parameters that ZeRO-3's optimizer updates at once: the JSON's, or DeepSpeed's default."""
    return int(deepspeed.get("zero_optimization", {}).get("sub_group_size", SUB_GROUP_SIZE))
