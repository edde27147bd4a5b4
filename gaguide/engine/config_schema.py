"""The schema of the DeepSpeed JSON: keys and types of values at every depth.

DeepSpeed silently accepts unknown keys at the top level, in `aio` and in `torch_autocast`; here they are
faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gaguide.engine.config_resolved import JsonObject
from gaguide.errors import Fault, suggestion
from gaguide.trackers import SECTIONS as TRACKERS


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AioSection(_Section):
    """DeepSpeed's `aio`: asynchronous file I/O for state that is offloaded to NVMe."""

    block_size: int = Field(1048576, ge=4096, multiple_of=512)
    """Bytes of one read or write."""
    queue_depth: int = Field(8, ge=1)
    """Requests in flight."""
    intra_op_parallelism: int = Field(1, ge=1)
    """Threads that share one tensor."""
    single_submit: bool = False
    """Submit requests one by one instead of in batches."""
    overlap_events: bool = True
    """Submit requests while earlier ones complete."""
    use_gds: bool = False
    """Read and write GPU memory directly (GPUDirect Storage)."""


class AutocastSection(_Section):
    """DeepSpeed's `torch_autocast`: fp32 weights, operations in bf16 or fp16."""

    enabled: bool = False
    """Whether forward passes run under torch.autocast."""
    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """The dtype that eligible operations compute in."""


_SWITCHES = ("wall_clock_breakdown", "memory_breakdown", "dump_state", "zero_force_ds_cpu_optimizer")
"""Top-level keys with a Boolean value."""

_ELSEWHERE = {
    "optimizer": ("the run's YAML owns it", "remove it and set train.learning_rate and its neighbours"),
    "scheduler": ("the run's YAML owns it", "remove it and set train.schedule"),
    "activation_checkpointing": ("the run's YAML owns it", "remove it and set train.gradient_checkpointing"),
    "amp": ("DeepSpeed has removed it", "use bf16, fp16 or torch_autocast"),
    "zero_allow_untested_optimizer": ("AdamW is tested with ZeRO", "remove it"),
    "flops_profiler": ("would miscount guided attention", "remove it, metrics.jsonl has mfu"),
}
"""Keys of DeepSpeed that are set elsewhere or not needed: the fault's problem and remedy."""

_UNSUPPORTED = {
    "autotuning", "checkpoint", "comet", "communication_data_type", "compile", "compression_training",
    "curriculum_learning", "data_efficiency", "dataloader_drop_last", "disable_allgather", "eigenvalue",
    "elasticity", "gradient_predivide_factor", "graph_harvesting", "hybrid_engine", "nebula", "pipeline",
    "prescale_gradients", "progressive_layer_drop", "seq_parallel_communication_data_type",
    "sparse_attention", "sparse_gradients", "tensor_parallel", "weight_quantization",
}  # fmt: skip
"""Keys of DeepSpeed that would change the training, or that gaguide does not use."""

TIMERS: JsonObject = {"throughput": {"enabled": False}}
"""`timers` of every run: DeepSpeed's throughput timer, on by default, waits for the device twice in each
micro batch, and metrics.jsonl has the throughput."""

# Keys inside sections that would change the training or lose saved state: the harmless value, and why any
# other is refused.
_CHANGES = "changes the training and is not tested here"
_LOSES_MASTERS = "would lose the fp32 weights that are exported"
_DEPRECATED = "deprecated: write"
_REFUSED: dict[str, tuple[Any, str]] = {
    "zero_optimization.zenflow": (None, "updates lag behind the gradients: runs would not resume exactly"),
    "zero_optimization.elastic_checkpoint": (False, "DeepSpeed has deprecated it"),
    "zero_optimization.legacy_stage1": (False, "DeepSpeed has removed it"),
    "zero_optimization.cpu_offload": (False, f"{_DEPRECATED} offload_optimizer: {{device: cpu}}"),
    "zero_optimization.cpu_offload_param": (False, f"{_DEPRECATED} offload_param: {{device: cpu}}"),
    "zero_optimization.cpu_offload_use_pin_memory": (
        False,
        f"{_DEPRECATED} pin_memory in the offload section",
    ),
    "zero_optimization.zero_quantized_weights": (False, _CHANGES),
    "zero_optimization.zero_quantized_nontrainable_weights": (False, _CHANGES),
    "zero_optimization.zero_quantized_gradients": (False, _CHANGES),
    "zero_optimization.load_from_fp32_weights": (True, "a resumed run would start from rounded weights"),
    "zero_optimization.compute_grad_norm": (
        True,
        "without the norm nothing is clipped, and gradients that are not finite reach the weights",
    ),
    "zero_optimization.round_robin_gradients": (
        False,
        "its order of parameters is lost when a checkpoint is resharded",
    ),
    "zero_optimization.pipeline_loading_checkpoint": (False, "DeepSpeed fails on it below stage 3"),
    "zero_optimization.stage3_module_granularity_threshold": (0, "is not tested here"),
    "zero_optimization.offload_optimizer.ratio": (1.0, "is not tested here"),
    "zero_optimization.offload_optimizer.super_offload": (
        False,
        "needs its own optimizer and is not supported",
    ),
    "bf16.check_grad_overflow": (True, "gradients that are not finite would reach the weights"),
    "bf16.bf16_master_weights_and_grads": (False, _LOSES_MASTERS),
    "bf16.bf16_optimizer_states": (False, _LOSES_MASTERS),
    "fp16.fp16_master_weights_and_grads": (False, _LOSES_MASTERS),
}


SECTIONS = (
    "zero_optimization", "bf16", "fp16", "torch_autocast", "aio", "comms_logger", "tensorboard", "wandb",
    "csv_monitor", *TRACKERS,
)  # fmt: skip
"""The keys of `section_models`, which imports DeepSpeed."""


def section_models() -> dict[str, type[BaseModel]]:
    """The pydantic model of every section, DeepSpeed's own where it has one."""
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
        **TRACKERS,
    }


def fault(field: str, problem: str, remedy: str, value: object = None) -> Fault:
    """A fault of the JSON; `field` is the dotted path of its key."""
    return Fault(f"{field} (DeepSpeed JSON)", problem, remedy, value)


def top_level_faults(config: JsonObject, owned: JsonObject) -> Iterator[Fault]:
    """Unknown keys, contradictions with the values that the run owns, and values of the wrong type."""
    sections = [*SECTIONS, "data_types", "timers"]
    for key, value in config.items():
        if key in _ELSEWHERE:
            yield fault(key, *_ELSEWHERE[key])
        elif key in _UNSUPPORTED:
            yield fault(key, "is a key of DeepSpeed that gaguide does not support", "remove it")
        elif key in owned:
            if value not in ("auto", owned[key]):
                remedy = 'remove it or write "auto"'
                yield fault(key, f"the run has {owned[key]}", remedy, value)
        elif key in sections:
            if not isinstance(value, dict):
                yield fault(key, "must be an object", "write {…}", value)
        elif key == "steps_per_print":
            if type(value) is not int or value < 1:
                yield fault(key, "must be a positive integer", "write 1 or more, or remove it", value)
        elif key in _SWITCHES:
            if type(value) is not bool:
                yield fault(key, "must be true or false", "choose one of them", value)
        else:
            known = [*sections, *_SWITCHES, "steps_per_print", *owned]
            yield fault(key, "unknown key", suggestion(key, known), value)


def read_sections(config: JsonObject) -> tuple[JsonObject, list[Fault]]:
    """The configuration with its sections as DeepSpeed parses them, and the faults in them at any depth.

    DeepSpeed reads `"false"` as false, 5e8 as an integer and `auto` as its default; whoever reads the
    configuration afterwards must see the same values.
    """
    faults: list[Fault] = []
    read: dict[str, Any] = dict(config)
    for name, model in section_models().items():
        if name in config:
            read[name], found = _read_section(name, model, _without_auto(config[name]))
            faults += found
    for path, (harmless, why) in _REFUSED.items():
        value = _at(config, path)
        if value not in (None, "auto", harmless):
            faults.append(fault(path, why, "remove it", value))
    if config.get("data_types", {}) not in ({}, {"grad_accum_dtype": "fp32"}):
        remedy = "remove it: gradients are accumulated in fp32"
        faults.append(
            fault("data_types", "only accumulation in fp32 is supported", remedy, config["data_types"])
        )
    if config.get("timers", TIMERS) not in ({}, TIMERS):
        problem = "DeepSpeed's timers wait for the device in every micro batch"
        remedy = "remove it: metrics.jsonl has tokens_per_second and seconds"
        faults.append(fault("timers", problem, remedy, config["timers"]))
    return read, faults


def _at(config: Any, path: str) -> Any:
    """The value at a dotted path; None if there is none."""
    for part in path.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _without_auto(section: Any) -> Any:
    if not isinstance(section, dict):
        return section
    return {key: _without_auto(value) for key, value in section.items() if value != "auto"}


def _read_section(
    section: str, model: type[BaseModel], value: dict[str, Any]
) -> tuple[dict[str, Any], list[Fault]]:
    try:
        return model(**value).model_dump(mode="json", by_alias=True, exclude_unset=True), []
    except ValidationError as error:
        return value, [_section_fault(section, model, detail) for detail in error.errors()]
    except AssertionError as error:
        return value, [fault(section, str(error), "see DeepSpeed's configuration page")]


def _section_fault(section: str, model: type[BaseModel], detail: Any) -> Fault:
    path = [str(part) for part in detail["loc"]]
    field = ".".join([section, *path])
    if detail["type"] != "extra_forbidden":
        return fault(field, detail["msg"], "see DeepSpeed's configuration page", detail["input"])
    holder = _nested_model(model, path[:-1])
    known = [info.alias or key for key, info in holder.model_fields.items()] if holder else []
    return fault(field, "unknown key", suggestion(path[-1], known), detail["input"])


def _nested_model(model: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """The model of the section at `path` below `model`; None where that is not a section."""
    for part in path:
        found = [info for key, info in model.model_fields.items() if part in (key, info.alias)]
        kinds = [found[0].annotation, *get_args(found[0].annotation)] if found else []
        below = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not below:
            return None
        model = below[0]
    return model
