"""Offload in the DeepSpeed JSON: default folders, and the combinations that do not work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from gaguide.engine.config_resolved import DeepSpeedConfig, JsonObject
from gaguide.engine.config_schema import fault
from gaguide.errors import Fault

# Parameter, gradient and the two moments pass through the swap buffers at once.
_ADAM_BUFFERS = 4


def with_nvme_path(zero: JsonObject, default: Path) -> JsonObject:
    """The ZeRO section with `nvme_path` set to `default` where something is offloaded to NVMe without one."""
    filled = dict(zero)
    for name in ("offload_optimizer", "offload_param"):
        section = cast(dict[str, Any], zero.get(name) or {})
        if section.get("device") == "nvme" and section.get("nvme_path") is None:
            filled[name] = section | {"nvme_path": str(default)}
    return filled


def offload_faults(config: DeepSpeedConfig, world_size: int) -> Iterator[Fault]:
    """Faults of offload sections that DeepSpeed would ignore, or fail on after the first step."""
    zero = cast(dict[str, Any], config.settings.get("zero_optimization", {}))
    places = {"optimizer": config.offload_optimizer, "param": config.offload_parameters}
    for part, device in places.items():
        field = f"zero_optimization.offload_{part}"
        section = zero.get(f"offload_{part}") or {}
        least = 3 if device == "nvme" or part == "param" else 1
        if device != "none" and config.zero_stage < least:
            problem = f"DeepSpeed ignores it below stage {least}, and this is stage {config.zero_stage}"
            yield fault(f"{field}.device", problem, f"use stage {least}, or remove it", device)
        if device != "nvme" and section.get("nvme_path") is not None:
            remedy = "remove it, or write device: nvme"
            yield fault(f"{field}.nvme_path", f"the device is {device}", remedy)
        if device == "nvme" and part == "optimizer" and section.get("buffer_count", 4) < _ADAM_BUFFERS:
            problem = "must be at least 4: AdamW swaps four tensors of a parameter at once"
            yield fault(f"{field}.buffer_count", problem, "use 4 or more", section["buffer_count"])
        if device == "nvme" and part == "param" and world_size > 1:
            problem = f"DeepSpeed 0.19 fails on it with {world_size} ranks (swap buffers assigned twice)"
            yield fault(f"{field}.device", problem, "use device: cpu, or one rank", device)
    forced = config.settings.get("zero_force_ds_cpu_optimizer")
    if config.offload_optimizer == "nvme" and forced is False:
        remedy = "remove it, or offload to the CPU"
        yield fault("zero_force_ds_cpu_optimizer", "torch's AdamW cannot be swapped to disk", remedy)
    if "aio" in config.settings and "nvme" not in places.values():
        yield fault("aio", "nothing is offloaded to disk", "remove it")
    if forced is not None and config.offload_optimizer == "none":
        yield fault("zero_force_ds_cpu_optimizer", "no optimizer is offloaded", "remove it")
