"""A DeepSpeed JSON after it was checked and completed, read through properties.

Every default here is DeepSpeed's own, so that no other module needs to know one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

JsonObject = dict[str, object]
"""An object of a JSON file."""

Device = Literal["none", "cpu", "nvme"]
"""Where a part of the training state is kept; `none`: on the rank's accelerator."""

SUB_GROUP_SIZE = 1_000_000_000
"""DeepSpeed's default of `zero_optimization.sub_group_size`."""


@dataclass(frozen=True)
class DeepSpeedConfig:
    """The configuration that DeepSpeed receives; see `gaguide.engine.config.resolve_deepspeed`."""

    settings: JsonObject
    """The JSON itself."""

    @property
    def zero_stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        return int(self._zero.get("stage", 0))

    @property
    def precision(self) -> str:
        """`bf16`, `fp16`, `bf16 autocast`, `fp16 autocast` or `fp32`."""
        for kind in ("bf16", "fp16"):
            if self._section(kind).get("enabled"):
                return kind
        autocast = self._section("torch_autocast")
        if autocast.get("enabled"):
            return f"{'fp16' if autocast.get('dtype') == 'float16' else 'bf16'} autocast"
        return "fp32"

    @property
    def micro_batch(self) -> int:
        """Sequences per rank in one forward pass."""
        return cast(int, self.settings["train_micro_batch_size_per_gpu"])

    @property
    def accumulation(self) -> int:
        """Micro batches of a rank in one optimizer step."""
        return cast(int, self.settings["gradient_accumulation_steps"])

    @property
    def offload_optimizer(self) -> Device:
        """Where the optimizer's state is kept."""
        return self._offload("optimizer")

    @property
    def offload_parameters(self) -> Device:
        """Where ZeRO-3 keeps the parameters between their uses."""
        return self._offload("param")

    @property
    def nvme_folders(self) -> list[Path]:
        """Folders that DeepSpeed swaps into, one for each part that is offloaded to NVMe."""
        return [
            Path(self._zero[f"offload_{part}"]["nvme_path"])
            for part in ("optimizer", "param")
            if self._offload(part) == "nvme"
        ]

    @property
    def needed_ops(self) -> tuple[str, ...]:
        """DeepSpeed's compiled ops that this configuration needs, as `gaguide.engine.ops` names them."""
        ops = []
        if self.offload_optimizer != "none" and self.settings.get("zero_force_ds_cpu_optimizer", True):
            ops.append("cpu_adam")
        if "nvme" in (self.offload_optimizer, self.offload_parameters):
            ops.append("async_io")
        return tuple(ops)

    @property
    def overlaps_communication(self) -> bool:
        """Whether gradients are reduced while backward runs."""
        return bool(self._zero.get("overlap_comm", self.zero_stage == 3))

    @property
    def reduce_bucket_size(self) -> int:
        """Gradient elements that are reduced at once."""
        return int(self._zero.get("reduce_bucket_size", 500_000_000))

    @property
    def prefetch_bucket_size(self) -> int:
        """Parameters that ZeRO-3 gathers ahead of their use."""
        return int(self._zero.get("stage3_prefetch_bucket_size", 50_000_000))

    @property
    def max_reuse_distance(self) -> int:
        """ZeRO-3 keeps a gathered parameter if it is used again within this number of parameters."""
        return int(self._zero.get("stage3_max_reuse_distance", 1_000_000_000))

    @property
    def max_live_parameters(self) -> int:
        """Most parameters that ZeRO-3's prefetcher keeps gathered on a rank."""
        return int(self._zero.get("stage3_max_live_parameters", 1_000_000_000))

    @property
    def sub_group_size(self) -> int:
        """Parameters that ZeRO-3's optimizer updates at once."""
        return int(self._zero.get("sub_group_size", SUB_GROUP_SIZE))

    @property
    def aligns_parameters(self) -> bool:
        """Whether ZeRO-1 and -2 pad each parameter inside its flat group."""
        return bool(self._zero.get("parameter_alignment", False))

    def is_enabled(self, section: str) -> bool:
        """Whether a section such as `wandb` exists and is enabled."""
        return bool(self._section(section).get("enabled"))

    @property
    def _zero(self) -> dict[str, Any]:
        return self._section("zero_optimization")

    def _section(self, name: str) -> dict[str, Any]:
        return cast(dict[str, Any], self.settings.get(name) or {})

    def _offload(self, part: str) -> Device:
        return cast(Device, str((self._zero.get(f"offload_{part}") or {}).get("device", "none")))
