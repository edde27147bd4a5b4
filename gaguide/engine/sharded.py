"""A model partitioned among all ranks by ZeRO-3, loaded and run that way because it exceeds any device.

Every forward pass gathers each layer from all ranks, so all ranks must call the model equally often.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from gaguide.config.batch import BatchPlan
from gaguide.distributed import World
from gaguide.engine.build import disable_shared_memory_op
from gaguide.engine.config import DevicePrecisions, RunValues, load_deepspeed_json, resolve_deepspeed
from gaguide.engine.config_resolved import JsonObject
from gaguide.errors import UserError

_HALVES = ("bf16", "fp16")


def sharding_config(path: Path, dtype: str, world: World) -> JsonObject:
    """DeepSpeed's configuration from the ZeRO-3 JSON at `path`; `dtype` is fp32, bf16 or fp16.

    Raises a `UserError` for a JSON of another stage.
    """
    config = load_deepspeed_json(path)
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict) or zero.get("stage") != 3:
        problem = "only ZeRO stage 3 partitions a model's weights"
        remedy = "give ds_configs/zero3.json, or leave --deepspeed out: each rank then holds the model"
        raise UserError.of("--deepspeed", problem, remedy, str(path))
    kept = {key: value for key, value in config.items() if key not in (*_HALVES, "torch_autocast")}
    # Without training there is no optimizer whose state could be offloaded.
    kept["zero_optimization"] = {key: value for key, value in zero.items() if key != "offload_optimizer"}
    batch = BatchPlan(world.size, 1, 1, world.size)
    resolved = resolve_deepspeed(kept, batch, RunValues(0.0, Path.cwd()), DevicePrecisions(False, True, True))
    return resolved.settings | {half: {"enabled": dtype == half} for half in _HALVES}


class ShardedModel:
    """A partitioned model in eval mode; its object must live as long as `module` is used."""

    def __init__(self, load: Callable[[], PreTrainedModel], config: JsonObject) -> None:
        """Call `load` while transformers partitions everything it loads, and run its model under ZeRO-3."""
        import deepspeed

        disable_shared_memory_op()
        # DeepSpeed adopts the process group that exists; without this call it assumes a single rank.
        deepspeed.init_distributed(auto_mpi_discovery=False)
        zero3 = _Zero3Config(config)
        set_hf_deepspeed_config(zero3)  # holds it weakly
        try:
            model = load()
        finally:
            unset_hf_deepspeed_config()
        self._engine, *_ = deepspeed.initialize(model=model, config=config)
        self.module = cast(PreTrainedModel, self._engine.module.eval())

    @property
    def held_share(self) -> float:
        """Share of the model's weights that this rank holds between forward passes, in (0, 1]."""
        parameters = list(self._engine.module.parameters())
        return sum(one.ds_tensor.numel() for one in parameters) / sum(one.ds_numel for one in parameters)

    def close(self) -> None:
        """Free the memory; `module` cannot be used afterwards."""
        self._engine.destroy()


class _Zero3Config:
    """The part of transformers' own DeepSpeed configuration that `from_pretrained` reads."""

    def __init__(self, config: JsonObject) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        return True
