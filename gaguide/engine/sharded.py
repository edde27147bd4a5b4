"""A model cut up among all ranks by ZeRO-3, for models that no device holds: loaded so, and computed with so.

Every rank's forward pass gathers each layer from all ranks, so all ranks must call the model equally often.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from gaguide.config.batch import BatchPlan
from gaguide.distributed import World
from gaguide.engine.config import Precisions, RunSide, load_deepspeed_json, resolve_deepspeed
from gaguide.errors import Fault, UserError

_PRECISIONS = {"bf16": "bf16", "fp16": "fp16"}


def sharding_config(path: Path, dtype: str, world: World) -> dict[str, Any]:
    """DeepSpeed's configuration from a JSON of ZeRO stage 3; `dtype` decides the precision."""
    config = load_deepspeed_json(path)
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict) or zero.get("stage") != 3:
        problem = "only ZeRO stage 3 cuts up a model's weights"
        remedy = "give ds_configs/zero3.json, or leave --deepspeed out: each rank then holds the model"
        raise UserError(Fault("--deepspeed", problem, remedy, str(path)))
    kept = {key: value for key, value in config.items() if key not in (*_PRECISIONS, "torch_autocast")}
    # There is no optimizer whose state could be offloaded.
    kept["zero_optimization"] = {key: value for key, value in zero.items() if key != "offload_optimizer"}
    plan = BatchPlan(world.size, 1, 1, world.size)
    resolved = resolve_deepspeed(kept, plan, RunSide(0.0, Path.cwd()), Precisions(False, True, True))
    return resolved | {name: {"enabled": dtype == name} for name in _PRECISIONS}


class ShardedModel:
    """`module` computes like the model that it is; keep this object as long as it is used.

    load: loads the model; called while transformers partitions whatever it loads.
    """

    def __init__(self, load: Callable[[], PreTrainedModel], config: dict[str, Any]) -> None:
        import deepspeed

        # See gaguide.engine.build: it would be compiled at the first start on a CPU.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # DeepSpeed takes the process group that is there; without this it counts one rank.
        deepspeed.init_distributed(auto_mpi_discovery=False)
        told = _TransformersTold(config)
        set_hf_deepspeed_config(told)  # holds it weakly
        try:
            model = load()
        finally:
            unset_hf_deepspeed_config()
        self._engine, *_ = deepspeed.initialize(model=model, config=config)
        self.module = self._engine.module.eval()

    @property
    def held_share(self) -> float:
        """Share of the model's weights that this rank holds between forward passes."""
        parameters = list(self.module.parameters())
        return sum(one.ds_tensor.numel() for one in parameters) / sum(one.ds_numel for one in parameters)

    def close(self) -> None:
        """Give the memory back."""
        self._engine.destroy()


class _TransformersTold:
    """What transformers asks of its own DeepSpeed configuration when it loads a model in parts."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        return True
