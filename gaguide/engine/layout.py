"""The layout of a saved state: everything that shapes DeepSpeed's files, other than the number of ranks.

DeepSpeed loads a state of the same layout. It silently misreads a state of another layout, or fails on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gaguide.engine.config_resolved import DeepSpeedConfig

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

StateLayout = dict[str, str | int | bool]
"""As plain JSON, for a checkpoint's manifest."""


def state_layout(engine: DeepSpeedEngine, config: DeepSpeedConfig, trained_only: bool) -> StateLayout:
    """The layout of the state that `engine` saves; `trained_only`: without frozen parameters."""
    layout: StateLayout = {
        "zero_stage": config.zero_stage,
        "offload_optimizer": config.offload_optimizer,
        "offload_param": config.offload_parameters,
        # DeepSpeed's AdamW on the CPU and torch's count their steps differently.
        "cpu_adam": uses_cpu_adam(engine.optimizer),
    }
    if config.zero_stage in (1, 2):
        layout["parameter_alignment"] = config.aligns_parameters
    if trained_only:
        layout["trained_only"] = True
    if config.zero_stage == 3:
        layout["sub_group_size"] = config.sub_group_size
    return layout


def uses_cpu_adam(optimizer: object) -> bool:
    """Whether a ZeRO optimizer steps with DeepSpeedCPUAdam."""
    return hasattr(getattr(optimizer, "optimizer", None), "ds_opt_adam")


def is_swapped(optimizer: object) -> bool:
    """Whether a ZeRO optimizer keeps its state on NVMe."""
    return bool(getattr(optimizer, "swap_optimizer", False))


def describe_layout(layout: StateLayout) -> str:
    """The layout in words, such as `ZeRO stage 2, optimizer on cpu`."""
    places = {part: layout[f"offload_{part}"] for part in ("optimizer", "param")}
    offload = [f"{part} on {place}" for part, place in places.items() if place != "none"]
    return ", ".join([f"ZeRO stage {layout['zero_stage']}", *offload])
