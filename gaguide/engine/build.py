"""The DeepSpeed engine of a job: optimizer and initialisation, with DeepSpeed's traps disarmed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from gaguide.config import TrainSection
from gaguide.distributed import World
from gaguide.engine.config import precision
from gaguide.engine.config_offload import offload_device
from gaguide.engine.nonfinite import drop_bad_gradients
from gaguide.engine.offload_state import cpu_optimizer_ready
from gaguide.model import adapt_to, checkpoint_activations
from gaguide.model.freeze import freeze


def make_engine(
    model: PreTrainedModel,
    train: TrainSection,
    deepspeed_config: dict[str, Any],
    frozen: tuple[str, ...],
    world: World,
) -> Any:
    """DeepSpeed's engine around `model`; the process group must exist.

    `deepspeed_config` is resolved (see `gaguide.engine.config`); `frozen` names parameters that keep their
    values.
    """
    import deepspeed

    # DeepSpeed would compile its shared-memory op at the first start on a CPU. Only its tensor-parallel
    # inference uses it, and a compile that was killed leaves a lock on which every later start hangs.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if train.gradient_checkpointing:
        checkpoint_activations(model)
    adapt_to(model, world.device, precision(deepspeed_config))
    freeze(model, frozen)
    cpu_adam = cpu_optimizer_ready(deepspeed_config, world)
    settings = dict(deepspeed_config)
    if offload_device(settings, "optimizer") != "none" and not cpu_adam:
        settings["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW on the CPU
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=_optimizer(train, model, cpu_adam), config=settings
    )
    drop_bad_gradients(engine)
    if world.size == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False  # it would copy all gradients twice, to reduce nothing
    return engine


def _optimizer(train: TrainSection, model: PreTrainedModel, cpu_adam: bool) -> torch.optim.Optimizer:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {"lr": train.learning_rate, "betas": train.betas, "eps": train.epsilon}
    if cpu_adam:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, **settings, adamw_mode=True, fp32_optimizer_states=True)
    return torch.optim.AdamW(groups, **settings, fused=True)
