"""A step's numbers to TensorBoard, W&B and CSV, through DeepSpeed's monitor."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from gaguide.errors import Fault, UserError

_SHOWN = (
    "loss", "lm_loss", "guidance_loss", "guided_attention", "grad_norm", "lr", "tokens_per_second", "mfu",
    "peak_memory", "guidance_weight",
)  # fmt: skip
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


def check_monitors(deepspeed: Mapping[str, Any]) -> None:
    """Raise a `UserError` for every monitor that is enabled and not installed."""
    faults = [
        Fault(
            f"{section} (DeepSpeed JSON)",
            f"the package {package} is not installed",
            f"pip install '{package}' (or 'gaguide[monitor]'), or remove the section",
        )
        for section, package in _PACKAGES.items()
        if deepspeed.get(section, {}).get("enabled") and find_spec(package) is None
    ]
    if faults:
        raise UserError(faults)


def write_to_monitors(engine: Any, record: Mapping[str, Any], samples: int) -> None:
    """Write one step's record; `samples` is the axis that DeepSpeed itself uses for its learning rate."""
    if not engine.monitor.enabled:
        return
    events = [(f"Train/{name}", record[name], samples) for name in _SHOWN if record.get(name) is not None]
    engine.monitor.write_events(events)
