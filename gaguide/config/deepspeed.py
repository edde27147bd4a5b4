"""The DeepSpeed JSON: read, checked, and completed with what the run owns.

The file owns ZeRO, precision, offload and communication. The run owns batch sizes, clipping, optimizer and
schedule; where the file states one of those too, it must say the same or "auto".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gaguide.config.batch import BatchPlan
from gaguide.errors import Fault, UserError, suggestion

# What a file may say; each is validated below. DeepSpeed itself accepts any other key in silence, and
# activation_checkpointing or compile do nothing without further calls.
_SECTIONS = (
    "zero_optimization", "bf16", "fp16", "data_types", "comms_logger", "tensorboard", "wandb", "csv_monitor",
)  # fmt: skip
_SWITCHES = {
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "steps_per_print": int,
}
_OWNED_BY_RUN = {"optimizer": "train.learning_rate and its neighbours", "scheduler": "train.schedule"}


@dataclass(frozen=True)
class Precisions:
    """What the device can do: bf16 fast enough to be chosen by `auto`, fp16 and bf16 at all."""

    auto_bf16: bool
    bf16: bool
    fp16: bool


def load_deepspeed_json(path: Path) -> dict[str, Any]:
    """The file's object; a `UserError` where it is missing or not a JSON object."""
    if not path.is_file():
        raise UserError(Fault("--deepspeed", "no such file", "choose one of ds_configs/", str(path)))
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(Fault("--deepspeed", f"is not JSON: {error}", "mend the file", str(path))) from None
    if not isinstance(config, dict):
        raise UserError(Fault("--deepspeed", "is no JSON object", "see ds_configs/ for examples", str(path)))
    return config


def resolve_deepspeed(
    config: dict[str, Any], batch: BatchPlan, gradient_clipping: float, device: Precisions
) -> dict[str, Any]:
    """The config as DeepSpeed gets it: `auto` resolved, batch and clipping filled in, all faults at once.

    `bf16.enabled: auto` is on where the accelerator computes in bf16 and the stage is 1 or higher, else the
    run is in fp32. Micro batches are added up in fp32 at stages 2 and 3; DeepSpeed cannot at stage 1.
    """
    owned = {
        "train_batch_size": batch.global_batch,
        "train_micro_batch_size_per_gpu": batch.micro_batch,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": gradient_clipping,
    }
    faults = _shape_faults(config, owned)
    if faults:
        raise UserError(faults)
    resolved = {key: value for key, value in config.items() if key not in owned} | owned
    stage = config.get("zero_optimization", {}).get("stage", 0)
    resolved["bf16"] = _bf16(config.get("bf16", {}), device.auto_bf16 and stage > 0)
    resolved.setdefault("steps_per_print", 10**9)  # our own step line says more
    faults = _section_faults(resolved) or _precision_faults(resolved, stage, batch, device)
    if faults:
        raise UserError(faults)
    if stage > 1:
        resolved["data_types"] = {"grad_accum_dtype": "fp32"}
    return resolved


def _fault(field: str, problem: str, remedy: str, value: Any = None) -> Fault:
    return Fault(f"{field} (DeepSpeed JSON)", problem, remedy, value)


def _shape_faults(config: dict[str, Any], owned: dict[str, Any]) -> list[Fault]:
    """Unknown keys, contradictions with the run, values of the wrong kind."""
    faults = []
    for key, value in config.items():
        if key in _OWNED_BY_RUN:
            remedy = f"remove it and set {_OWNED_BY_RUN[key]}"
            faults.append(_fault(key, "the run's YAML owns it", remedy))
        elif key in owned:
            if value not in ("auto", owned[key]):
                remedy = 'remove it or write "auto"'
                faults.append(_fault(key, f"the run says {owned[key]}", remedy, value))
        elif key in _SECTIONS:
            if not isinstance(value, dict):
                faults.append(_fault(key, "is no object", "write {…}", value))
        elif key in _SWITCHES:
            if not isinstance(value, _SWITCHES[key]):
                faults.append(_fault(key, f"is no {_SWITCHES[key].__name__}", "mend the value", value))
        else:
            faults.append(_fault(key, "no such key", suggestion(key, [*_SECTIONS, *_SWITCHES]), value))
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    if type(stage) is not int or stage not in range(4):
        faults.append(_fault("zero_optimization.stage", "is no ZeRO stage", "write 0, 1, 2 or 3", stage))
    return faults


def _precision_faults(
    config: dict[str, Any], stage: int, batch: BatchPlan, device: Precisions
) -> list[Fault]:
    enabled = [kind for kind in ("bf16", "fp16") if config.get(kind, {}).get("enabled")]
    faults = []
    if len(enabled) > 1:
        faults.append(_fault("fp16, bf16", "both are enabled", "enable one"))
    for kind in enabled:
        field = f"{kind}.enabled"
        if not (device.bf16 if kind == "bf16" else device.fp16):
            faults.append(
                _fault(field, f"this device does not train in {kind}", "use bf16 auto, or neither", True)
            )
        if stage == 0:
            problem = "stage 0 keeps no fp32 weights that could be exported"
            faults.append(_fault(field, problem, "use ds_configs/zero1.json", True))
        if stage == 1 and batch.accumulation > 1:
            problem = f"at stage 1 DeepSpeed would add up {batch.accumulation} micro batches in {kind}"
            remedy = "use stage 2, or a train.micro_batch that needs no accumulation"
            faults.append(_fault(field, problem, remedy, True))
    return faults


def _bf16(section: dict[str, Any], auto: bool) -> dict[str, Any]:
    return section | {"enabled": auto} if section.get("enabled") == "auto" else section


def _section_faults(config: dict[str, Any]) -> list[Fault]:
    """Unknown or ill-typed keys inside sections, found by DeepSpeed's own models of them."""
    from deepspeed.comm.config import DeepSpeedCommsConfig
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.runtime.precision_config import get_bfloat16_config, get_float16_config
    from deepspeed.runtime.zero.config import get_zero_config

    readers: dict[str, Callable[[dict[str, Any]], Any]] = {
        "zero_optimization": get_zero_config,
        "bf16": get_bfloat16_config,
        "fp16": get_float16_config,
        "comms_logger": DeepSpeedCommsConfig,
        "": get_monitor_config,  # names its section itself
    }
    faults: list[Fault] = []
    for section, read in readers.items():
        try:
            read(config)
        except ValidationError as error:
            for detail in error.errors():
                field = ".".join(filter(None, [section, *map(str, detail["loc"])]))
                faults.append(
                    _fault(field, detail["msg"], "see DeepSpeed's configuration page", detail["input"])
                )
    if config.get("data_types", {}) not in ({}, {"grad_accum_dtype": "fp32"}):
        remedy = "remove it: gradients are accumulated in fp32"
        faults.append(
            _fault("data_types", "only fp32 accumulation is supported", remedy, config["data_types"])
        )
    zero = config.get("zero_optimization", {})
    for kind in ("offload_optimizer", "offload_param"):
        if (zero.get(kind) or {}).get("device", "none") != "none":
            field = f"zero_optimization.{kind}"
            faults.append(_fault(field, "offload is not supported yet", "remove it", zero[kind]))
    return faults
