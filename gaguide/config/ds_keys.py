"""What a DeepSpeed JSON may say: keys and kinds of values at every depth.

DeepSpeed takes unknown keys at the top, in `aio` and in `torch_autocast` in silence; here they are faults.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gaguide.errors import Fault, suggestion


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AioSection(_Section):
    """DeepSpeed's `aio`: how files are read and written where something is offloaded to disk."""

    block_size: int = Field(1048576, ge=4096, multiple_of=512)
    queue_depth: int = Field(8, ge=1)
    intra_op_parallelism: int = Field(1, ge=1)
    single_submit: bool = False
    overlap_events: bool = True
    use_gds: bool = False


class AutocastSection(_Section):
    """DeepSpeed's `torch_autocast`: fp32 weights, operations in bf16 or fp16."""

    enabled: bool = False
    dtype: Literal["bfloat16", "float16"] = "bfloat16"


SWITCHES: dict[str, type] = {
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "steps_per_print": int,
    "zero_force_ds_cpu_optimizer": bool,
}
"""Top-level keys with a plain value."""

ELSEWHERE = {
    "optimizer": "the run's YAML owns it: remove it and set train.learning_rate and its neighbours",
    "scheduler": "the run's YAML owns it: remove it and set train.schedule",
    "activation_checkpointing": "the run's YAML owns it: remove it and set train.gradient_checkpointing",
    "amp": "DeepSpeed has removed it: use bf16, fp16 or torch_autocast",
}
"""Keys of DeepSpeed that have another place here."""

# Keys that DeepSpeed knows and that would change what is trained, or that it has deprecated.
_REFUSED = {
    "zero_optimization.zenflow": "updates lag behind the gradients: runs would not resume exactly",
    "zero_optimization.elastic_checkpoint": "DeepSpeed has deprecated it",
    "zero_optimization.legacy_stage1": "DeepSpeed has removed it",
    "zero_optimization.cpu_offload": "deprecated: write offload_optimizer: {device: cpu}",
    "zero_optimization.cpu_offload_param": "deprecated: write offload_param: {device: cpu}",
    "zero_optimization.cpu_offload_use_pin_memory": "deprecated: write pin_memory in the offload section",
    "zero_optimization.zero_quantized_weights": "changes what is trained and is not tested here",
    "zero_optimization.zero_quantized_gradients": "changes what is trained and is not tested here",
    "zero_optimization.offload_optimizer.super_offload": "needs its own optimizer and is not supported",
    "bf16.bf16_master_weights_and_grads": "would lose the fp32 weights that are exported",
    "bf16.bf16_optimizer_states": "would lose the fp32 weights that are exported",
    "fp16.fp16_master_weights_and_grads": "would lose the fp32 weights that are exported",
}


def section_models() -> dict[str, type[BaseModel]]:
    """The model of every section, DeepSpeed's own where it has one."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {
        "zero_optimization": DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "torch_autocast": AutocastSection,
        "aio": AioSection,
        "comms_logger": CommsLoggerConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "csv_monitor": CSVConfig,
    }


def fault(field: str, problem: str, remedy: str, value: Any = None) -> Fault:
    """A fault of the JSON, told by the path of its key."""
    return Fault(f"{field} (DeepSpeed JSON)", problem, remedy, value)


def top_level_faults(config: dict[str, Any], owned: dict[str, Any]) -> list[Fault]:
    """Unknown keys, contradictions with what the run owns, and values of the wrong kind."""
    faults = []
    sections = [*section_models(), "data_types"]
    for key, value in config.items():
        if key in ELSEWHERE:
            problem, _, remedy = ELSEWHERE[key].partition(": ")
            faults.append(fault(key, problem, remedy))
        elif key in owned:
            if value not in ("auto", owned[key]):
                remedy = 'remove it or write "auto"'
                faults.append(fault(key, f"the run says {owned[key]}", remedy, value))
        elif key in sections:
            if not isinstance(value, dict):
                faults.append(fault(key, "is no object", "write {…}", value))
        elif key in SWITCHES:
            if type(value) is not SWITCHES[key]:
                faults.append(fault(key, f"is no {SWITCHES[key].__name__}", "mend the value", value))
        else:
            known = [*sections, *SWITCHES, *owned]
            faults.append(fault(key, "no such key", suggestion(key, known), value))
    return faults


def section_faults(config: dict[str, Any]) -> list[Fault]:
    """Unknown or ill-typed keys inside sections, at any depth, and keys that are not supported here."""
    faults: list[Fault] = []
    for name, model in section_models().items():
        if name in config:
            faults += _model_faults(name, model, config[name])
    for path, why in _REFUSED.items():
        value: Any = config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value:
            faults.append(fault(path, why, "remove it", value))
    if config.get("data_types", {}) not in ({}, {"grad_accum_dtype": "fp32"}):
        remedy = "remove it: gradients are accumulated in fp32"
        faults.append(
            fault("data_types", "only fp32 accumulation is supported", remedy, config["data_types"])
        )
    return faults


def _model_faults(section: str, model: type[BaseModel], value: dict[str, Any]) -> list[Fault]:
    try:
        model(**value)
    except ValidationError as error:
        return [_told(section, model, detail) for detail in error.errors()]
    except AssertionError as error:
        return [fault(section, str(error), "see DeepSpeed's configuration page")]
    return []


def _told(section: str, model: type[BaseModel], detail: Any) -> Fault:
    path = [str(part) for part in detail["loc"]]
    field = ".".join([section, *path])
    if detail["type"] != "extra_forbidden":
        return fault(field, detail["msg"], "see DeepSpeed's configuration page", detail["input"])
    holder = _inside(model, path[:-1])
    known = [info.alias or key for key, info in holder.model_fields.items()] if holder else []
    return fault(field, "no such key", suggestion(path[-1], known), detail["input"])


def _inside(model: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """The model of the section below `model` that `path` leads to."""
    for part in path:
        found = [info for key, info in model.model_fields.items() if part in (key, info.alias)]
        kinds = [found[0].annotation, *get_args(found[0].annotation)] if found else []
        below = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not below:
            return None
        model = below[0]
    return model
