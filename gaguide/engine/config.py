"""The DeepSpeed JSON: read, checked, and completed with the values that the run owns.

The file owns ZeRO, precision, offload and communication. The run owns batch sizes, clipping, optimizer and
schedule; where the file sets one of those too, it must agree or say "auto".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaguide.config.batch import BatchPlan
from gaguide.engine.config_offload import offload_faults, with_nvme_path
from gaguide.engine.config_resolved import DeepSpeedConfig, JsonObject
from gaguide.engine.config_schema import TIMERS, fault, read_sections, top_level_faults
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.shipped import DEEPSPEED_JSONS


@dataclass(frozen=True)
class DevicePrecisions:
    """The precisions that a device computes in."""

    auto_bf16: bool
    """Whether bf16 is fast enough there for `auto` to choose it."""
    bf16: bool
    """Whether bf16 works at all."""
    fp16: bool
    """Whether fp16 works."""


@dataclass(frozen=True)
class RunValues:
    """Values that a run contributes to its DeepSpeed JSON, apart from the batch."""

    gradient_clipping: float
    """Largest norm of the whole gradient; 0 does not clip."""
    output: Path
    """The run's output folder, for swap files and monitors."""
    name: str = "run"
    """The run's name, for monitors."""
    width: int | None = None
    """The model's hidden size, from which `auto` sizes are set; None where it is unknown."""


def device_precisions() -> DevicePrecisions:
    """The precisions of this process's accelerator, or of the CPU where there is none."""
    import torch
    from deepspeed.accelerator import get_accelerator

    device = get_accelerator()
    auto_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return DevicePrecisions(auto_bf16, bool(device.is_bf16_supported()), bool(device.is_fp16_supported()))


def load_deepspeed_json(path: Path) -> JsonObject:
    """The object in the file. Raises a `UserError` if it is missing, not a JSON object, or repeats a key.

    `path` may also be the name of a shipped file, such as `zero2`.
    """
    path = DEEPSPEED_JSONS.find(path, "--deepspeed")
    try:
        config = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        problem, remedy = f"is not valid JSON ({error})", "correct the file"
        raise UserError.of("--deepspeed", problem, remedy, str(path)) from None
    if not isinstance(config, dict):
        remedy = "see ds_configs/ for examples"
        raise UserError.of("--deepspeed", "must be a JSON object", remedy, str(path))
    return config


def check_top_level(config: JsonObject, batch: BatchPlan | None, gradient_clipping: float | None) -> None:
    """Raise a `UserError` with the faults that are found without importing DeepSpeed.

    Without a batch, the file's own batch sizes and clipping are not compared with the run's.
    """
    owned = _owned_values(batch, gradient_clipping) if batch is not None else {}
    with FaultCollector() as faults:
        faults.add(*top_level_faults(config, owned), *_stage_faults(config))


def _owned_values(batch: BatchPlan, gradient_clipping: float | None) -> JsonObject:
    """Values that the run owns, under DeepSpeed's names."""
    return {
        "train_batch_size": batch.global_batch,
        "train_micro_batch_size_per_gpu": batch.micro_batch,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": gradient_clipping,
    }


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; raises `ValueError` on duplicate keys (json would keep the last)."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicates = sorted(key for key in found if keys.count(key) > 1)
        raise ValueError(f"duplicate key {', '.join(duplicates)}")
    return found


def resolve_deepspeed(
    config: JsonObject, batch: BatchPlan, run: RunValues, device: DevicePrecisions
) -> DeepSpeedConfig:
    """The configuration as DeepSpeed receives it: `auto` resolved, batch and clipping filled in.

    `auto` enables bf16 or autocast where the device is fast in bf16, and fp16 where it has only that
    (otherwise the run is in fp32). For `nvme_path` it means a folder in the run's output; three of ZeRO's
    sizes follow the model's width; anything else gets DeepSpeed's default. Gradients of micro batches are
    accumulated in fp32. Raises one `UserError` with all faults of a stage of checks.
    """
    owned = _owned_values(batch, run.gradient_clipping)
    with FaultCollector() as faults:
        faults.add(*top_level_faults(config, owned), *_stage_faults(config))
    resolved: dict[str, Any] = {key: value for key, value in config.items() if key not in owned} | owned
    zero = resolved.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    resolved["zero_optimization"] = _with_sizes(zero, run.width)
    resolved["bf16"] = _resolve_enabled(resolved.get("bf16", {}), device.auto_bf16 and stage > 0)
    if "fp16" in config:
        auto_fp16 = device.fp16 and stage > 0 and not resolved["bf16"].get("enabled")
        resolved["fp16"] = _resolve_enabled(resolved["fp16"], auto_fp16)
    if "torch_autocast" in config:
        resolved["torch_autocast"] = _resolve_enabled(resolved["torch_autocast"], device.auto_bf16)
    resolved.setdefault("steps_per_print", 10**9)  # gaguide prints its own, more informative step line
    parsed, section_faults = read_sections(resolved)
    with FaultCollector() as faults:
        faults.add(*section_faults)
    resolved = {**parsed, "timers": TIMERS}
    resolved["zero_optimization"] = with_nvme_path(resolved["zero_optimization"], run.output / "nvme")
    read = DeepSpeedConfig(resolved)
    with FaultCollector() as faults:
        faults.add(*offload_faults(read, batch.world_size), *_precision_faults(read, batch, device))
    for monitor in ("tensorboard", "csv_monitor"):
        if read.is_enabled(monitor):
            place = {"output_path": str(run.output / "monitor"), "job_name": run.name}
            resolved[monitor] = place | {key: value for key, value in resolved[monitor].items() if value}
    if _accumulates_in_fp32(read, batch.accumulation):
        resolved["data_types"] = {"grad_accum_dtype": "fp32"}
    else:
        resolved.pop("data_types", None)  # where gradients are fp32 already, or must not be copied to fp32
    return read


def _resolve_enabled(section: dict[str, Any], auto: bool) -> dict[str, Any]:
    return section | {"enabled": auto} if section.get("enabled") == "auto" else section


def _with_sizes(zero: dict[str, Any], width: int | None) -> dict[str, Any]:
    """ZeRO's `auto` sizes, by transformers' rule; DeepSpeed's defaults where the width is unknown."""
    sizes = {
        "reduce_bucket_size": lambda width: width * width,
        "stage3_prefetch_bucket_size": lambda width: int(0.9 * width * width),
        "stage3_param_persistence_threshold": lambda width: 10 * width,
    }
    kept = {key: value for key, value in zero.items() if not (key in sizes and value == "auto")}
    if width is None:
        return kept
    return kept | {key: size(width) for key, size in sizes.items() if zero.get(key) == "auto"}


def _accumulates_in_fp32(config: DeepSpeedConfig, accumulation: int) -> bool:
    """Whether DeepSpeed must be asked for fp32 accumulation; by default it uses the weights' dtype.

    At stage 0 weights are fp32. Stage 1 in bf16 would switch to another optimizer, whose checkpoints cannot
    be exported; there `_precision_faults` allows no accumulation. Where the optimizer is on NVMe, memory is
    short: the gradients of a single micro batch stay in the weights' dtype.
    """
    stage, offload = config.zero_stage, config.offload_optimizer
    bf16_at_1 = stage == 1 and config.precision == "bf16" and offload == "none"
    return stage > 0 and not bf16_at_1 and not (offload == "nvme" and accumulation == 1)


def _stage_faults(config: JsonObject) -> list[Fault]:
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    if type(stage) is not int or stage not in range(4):
        remedy = "choose one of them"
        return [fault("zero_optimization.stage", "must be one of 0, 1, 2, 3", remedy, stage)]
    return []


def _precision_faults(config: DeepSpeedConfig, batch: BatchPlan, device: DevicePrecisions) -> Iterator[Fault]:
    stage, kind = config.zero_stage, config.precision
    autocast = config.is_enabled("torch_autocast")
    enabled = [half for half in ("bf16", "fp16") if config.is_enabled(half)]
    if len(enabled) + autocast > 1:
        named = ", ".join(enabled + ["torch_autocast"] * autocast)
        yield fault(named, "are enabled together", "enable one")
    if autocast and stage > 0:
        problem = "is for stage 0, where weights stay in fp32"
        yield fault("torch_autocast", problem, "use bf16 or fp16 at this stage", True)
    if stage == 0:
        for half in enabled:
            problem = "stage 0 keeps no fp32 weights that could be exported"
            remedy = "use torch_autocast as in ds_configs/zero0.json, or ds_configs/zero1.json"
            yield fault(f"{half}.enabled", problem, remedy, True)
    if "fp32" not in kind and not (device.bf16 if kind.startswith("bf16") else device.fp16):
        field = "torch_autocast.dtype" if autocast else f"{kind}.enabled"
        remedy = "use a configuration with bf16 auto, or none of them"
        yield fault(field, f"this device does not train in {kind}", remedy, True)
    if stage == 1 and kind == "bf16" and batch.accumulation > 1 and not _accumulates_in_fp32(config, 2):
        problem = f"at stage 1 DeepSpeed would accumulate {batch.accumulation} micro batches in bf16"
        remedy = "use stage 2, or a train.micro_batch that needs no accumulation"
        yield fault("bf16.enabled", problem, remedy, True)
