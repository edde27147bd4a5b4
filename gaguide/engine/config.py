"""The DeepSpeed JSON: read, checked, and completed with what the run owns.

The file owns ZeRO, precision, offload and communication. The run owns batch sizes, clipping, optimizer and
schedule; where the file states one of those too, it must say the same or "auto".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaguide.config.batch import BatchPlan
from gaguide.engine.config_offload import offload_device, offload_faults, with_nvme_path
from gaguide.engine.config_schema import fault, read_sections, top_level_faults
from gaguide.errors import Fault, UserError
from gaguide.shipped import DEEPSPEED_JSONS


@dataclass(frozen=True)
class Precisions:
    """What the device can do: bf16 fast enough to be chosen by `auto`, fp16 and bf16 at all."""

    auto_bf16: bool
    bf16: bool
    fp16: bool


@dataclass(frozen=True)
class RunSide:
    """What of a run the JSON is completed with: clipping, folder, name, and the model's width if known."""

    gradient_clipping: float
    output: Path
    name: str = "run"
    width: int | None = None


def load_deepspeed_json(path: Path) -> dict[str, Any]:
    """The file's object; a `UserError` where it is missing, not a JSON object, or says a key twice.

    path: of the file, or the name of a shipped one (`zero2`).
    """
    path = DEEPSPEED_JSONS.find(path, "--deepspeed")
    try:
        config = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise UserError(Fault("--deepspeed", f"is not JSON: {error}", "mend the file", str(path))) from None
    if not isinstance(config, dict):
        raise UserError(Fault("--deepspeed", "is no JSON object", "see ds_configs/ for examples", str(path)))
    return config


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file; of a key that stands there twice Python would take the second in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted(key for key in found if keys.count(key) > 1)
        raise ValueError(f"{', '.join(twice)} stands there twice")
    return found


def resolve_deepspeed(
    config: dict[str, Any], batch: BatchPlan, run: RunSide, device: Precisions
) -> dict[str, Any]:
    """The config as DeepSpeed gets it: `auto` resolved, batch and clipping filled in, all faults at once.

    `auto` for bf16 or autocast is on where the accelerator computes in bf16, for fp16 where it has that and
    not bf16 (else the run is in fp32); for `nvme_path` it is a folder in the run's output; for three of
    ZeRO's sizes it follows the model's width; elsewhere it is DeepSpeed's default. Micro batches are added
    up in fp32.
    """
    owned = {
        "train_batch_size": batch.global_batch,
        "train_micro_batch_size_per_gpu": batch.micro_batch,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": run.gradient_clipping,
    }
    faults = top_level_faults(config, owned) + _stage_faults(config)
    if faults:
        raise UserError(faults)
    resolved = {key: value for key, value in config.items() if key not in owned} | owned
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    resolved["zero_optimization"] = _sized(zero, run.width)
    resolved["bf16"] = _switched(config.get("bf16", {}), device.auto_bf16 and stage > 0)
    if "fp16" in config:
        auto_fp16 = device.fp16 and stage > 0 and not resolved["bf16"].get("enabled")
        resolved["fp16"] = _switched(config["fp16"], auto_fp16)
    if "torch_autocast" in config:
        resolved["torch_autocast"] = _switched(config["torch_autocast"], device.auto_bf16)
    resolved.setdefault("steps_per_print", 10**9)  # our own step line says more
    resolved, faults = read_sections(resolved)
    if faults:
        raise UserError(faults)
    resolved["zero_optimization"] = with_nvme_path(resolved["zero_optimization"], run.output / "nvme")
    faults = offload_faults(resolved, stage, batch.world_size)
    faults += _precision_faults(resolved, stage, batch, device)
    if faults:
        raise UserError(faults)
    for monitor in ("tensorboard", "csv_monitor"):
        if resolved.get(monitor, {}).get("enabled"):
            place = {"output_path": str(run.output / "monitor"), "job_name": run.name}
            resolved[monitor] = place | {key: value for key, value in resolved[monitor].items() if value}
    if _accumulates_in_fp32(resolved, stage, batch.accumulation):
        resolved["data_types"] = {"grad_accum_dtype": "fp32"}
    else:
        resolved.pop("data_types", None)  # a JSON may have asked for what is so anyway
    return resolved


def precision(deepspeed: dict[str, Any]) -> str:
    """bf16, fp16, `bf16 autocast`, `fp16 autocast` or fp32, of a resolved config."""
    for kind in ("bf16", "fp16"):
        if deepspeed.get(kind, {}).get("enabled"):
            return kind
    autocast = deepspeed.get("torch_autocast", {})
    if autocast.get("enabled"):
        return f"{'fp16' if autocast.get('dtype') == 'float16' else 'bf16'} autocast"
    return "fp32"


def _switched(section: dict[str, Any], auto: bool) -> dict[str, Any]:
    return section | {"enabled": auto} if section.get("enabled") == "auto" else section


def _sized(zero: dict[str, Any], width: int | None) -> dict[str, Any]:
    """ZeRO's sizes that say auto, by the rule of transformers; DeepSpeed's own where the width is unknown."""
    sizes = {
        "reduce_bucket_size": lambda width: width * width,
        "stage3_prefetch_bucket_size": lambda width: int(0.9 * width * width),
        "stage3_param_persistence_threshold": lambda width: 10 * width,
    }
    kept = {key: value for key, value in zero.items() if not (key in sizes and value == "auto")}
    if width is None:
        return kept
    return kept | {key: size(width) for key, size in sizes.items() if zero.get(key) == "auto"}


def _accumulates_in_fp32(config: dict[str, Any], stage: int, accumulation: int) -> bool:
    """Whether DeepSpeed is to be told; by itself it adds up in the weights' type.

    At stage 0 weights are fp32. At stage 1 bf16 would go to another optimizer, whose checkpoints cannot be
    exported; there `_precision_faults` allows no accumulation. Where the optimizer lies on disk memory is
    short: a single micro batch, which is not added to anything, is kept in the weights' type.
    """
    bf16_at_1 = stage == 1 and precision(config) == "bf16" and offload_device(config, "optimizer") == "none"
    single_beside_disk = offload_device(config, "optimizer") == "nvme" and accumulation == 1
    return stage > 0 and not bf16_at_1 and not single_beside_disk


def _stage_faults(config: dict[str, Any]) -> list[Fault]:
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    if type(stage) is not int or stage not in range(4):
        return [fault("zero_optimization.stage", "is no ZeRO stage", "write 0, 1, 2 or 3", stage)]
    return []


def _precision_faults(
    config: dict[str, Any], stage: int, batch: BatchPlan, device: Precisions
) -> list[Fault]:
    autocast = config.get("torch_autocast", {}).get("enabled", False)
    enabled = [kind for kind in ("bf16", "fp16") if config.get(kind, {}).get("enabled")]
    faults = []
    if len(enabled) + autocast > 1:
        named = ", ".join(enabled + ["torch_autocast"] * autocast)
        faults.append(fault(named, "are enabled together", "enable one"))
    if autocast and stage > 0:
        problem = "is for stage 0, where weights stay fp32"
        faults.append(fault("torch_autocast", problem, "use bf16 or fp16 at this stage", True))
    for kind in enabled:
        field = f"{kind}.enabled"
        if stage == 0:
            problem = "stage 0 keeps no fp32 weights that could be exported"
            remedy = "use torch_autocast as in ds_configs/zero0.json, or ds_configs/zero1.json"
            faults.append(fault(field, problem, remedy, True))
    kind = precision(config)
    if "fp32" not in kind and not (device.bf16 if kind.startswith("bf16") else device.fp16):
        field = "torch_autocast.dtype" if autocast else f"{kind}.enabled"
        remedy = "use a configuration with bf16 auto, or none of them"
        faults.append(fault(field, f"this device does not train in {kind}", remedy, True))
    if stage == 1 and kind == "bf16" and batch.accumulation > 1 and not _accumulates_in_fp32(config, 1, 2):
        problem = f"at stage 1 DeepSpeed would add up {batch.accumulation} micro batches in bf16"
        remedy = "use stage 2, or a train.micro_batch that needs no accumulation"
        faults.append(fault("bf16.enabled", problem, remedy, True))
    return faults
