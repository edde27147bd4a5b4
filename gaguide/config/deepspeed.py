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

# What a file may say. DeepSpeed itself accepts any other key in silence.
_FREE = {
    "zero_optimization", "bf16", "fp16", "zero_force_ds_cpu_optimizer", "zero_allow_untested_optimizer",
    "communication_data_type", "aio", "activation_checkpointing", "comms_logger", "flops_profiler",
    "tensorboard", "wandb", "csv_monitor", "comet", "wall_clock_breakdown", "memory_breakdown",
    "prescale_gradients", "gradient_predivide_factor", "data_types", "steps_per_print", "dump_state",
    "checkpoint", "log_level", "compile",
}  # fmt: skip
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
    except ValueError as error:
        raise UserError(Fault("--deepspeed", f"is not JSON: {error}", "mend the file", str(path))) from None
    if not isinstance(config, dict):
        raise UserError(Fault("--deepspeed", "is no JSON object", "see ds_configs/ for examples", str(path)))
    return config


def resolve_deepspeed(
    config: dict[str, Any], batch: BatchPlan, gradient_clipping: float, device: Precisions
) -> dict[str, Any]:
    """The config as DeepSpeed gets it: `auto` resolved, batch and clipping filled in, all faults at once.

    `bf16.enabled: auto` is on where the accelerator computes in bf16, else the run is in fp32.
    """
    owned = {
        "train_batch_size": batch.global_batch,
        "train_micro_batch_size_per_gpu": batch.micro_batch,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": gradient_clipping,
    }
    faults = [_unknown(key, value) for key, value in config.items() if key not in _FREE | owned.keys()]
    for key, ours in owned.items():
        theirs = config.get(key, "auto")
        if theirs not in ("auto", ours):
            faults.append(
                Fault(f"{key} (DeepSpeed JSON)", f"the run says {ours}", 'remove it or write "auto"', theirs)
            )
    resolved = {key: value for key, value in config.items() if key not in owned} | owned
    resolved["bf16"] = _bf16(config.get("bf16", {}), device.auto_bf16)
    if resolved["bf16"].get("enabled") and config.get("fp16", {}).get("enabled"):
        faults.append(Fault("fp16, bf16 (DeepSpeed JSON)", "both are enabled", "enable one"))
    for kind, able in (("bf16", device.bf16), ("fp16", device.fp16)):
        if resolved.get(kind, {}).get("enabled") and not able:
            field = f"{kind}.enabled (DeepSpeed JSON)"
            faults.append(
                Fault(field, f"this device does not train in {kind}", "use bf16 auto, or neither", True)
            )
    # DeepSpeed would add up micro batches in the model's half precision.
    resolved.setdefault("data_types", {"grad_accum_dtype": "fp32"})
    resolved.setdefault("steps_per_print", 10**9)  # our own step line says more
    faults += _section_faults(resolved)
    if faults:
        raise UserError(faults)
    return resolved


def _unknown(key: str, value: Any) -> Fault:
    if key in _OWNED_BY_RUN:
        return Fault(
            f"{key} (DeepSpeed JSON)", "the run's YAML owns it", f"remove it and set {_OWNED_BY_RUN[key]}"
        )
    return Fault(f"{key} (DeepSpeed JSON)", "no such key", suggestion(key, _FREE), value)


def _bf16(section: dict[str, Any], capable: bool) -> dict[str, Any]:
    return section | {"enabled": capable} if section.get("enabled") == "auto" else section


def _section_faults(config: dict[str, Any]) -> list[Fault]:
    """Unknown or ill-typed keys inside sections, found by DeepSpeed's own models of them."""
    from deepspeed.runtime.precision_config import get_bfloat16_config, get_float16_config
    from deepspeed.runtime.zero.config import get_zero_config

    readers: dict[str, Callable[[dict[str, Any]], Any]] = {
        "zero_optimization": get_zero_config,
        "bf16": get_bfloat16_config,
        "fp16": get_float16_config,
    }
    faults: list[Fault] = []
    for section, read in readers.items():
        try:
            read(config)
        except ValidationError as error:
            for detail in error.errors():
                field = ".".join([section, *map(str, detail["loc"])])
                faults.append(
                    Fault(
                        f"{field} (DeepSpeed JSON)",
                        detail["msg"],
                        "see DeepSpeed's configuration page",
                        detail["input"],
                    )
                )
    return faults
