"""The DeepSpeed engine of a job: optimizer and initialisation, with DeepSpeed's traps disarmed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from gaguide.distributed import World
from gaguide.engine.config_offload import offload_device
from gaguide.engine.nonfinite import drop_bad_gradients
from gaguide.engine.offload_state import cpu_optimizer_ready
from gaguide.model import adapt_to, checkpoint_activations
from gaguide.model.freeze import freeze
from gaguide.train.job import Job


def make_engine(job: Job, model: PreTrainedModel, world: World) -> Any:
    """DeepSpeed's engine around `model`; the process group must exist."""
    import deepspeed

    # DeepSpeed would compile its shared-memory op at the first start on a CPU. Only its tensor-parallel
    # inference uses it, and a compile that was killed leaves a lock on which every later start hangs.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if job.run.train.gradient_checkpointing:
        checkpoint_activations(model)
    adapt_to(model, world.device, job.precision)
    freeze(model, job.frozen)
    cpu_adam = cpu_optimizer_ready(job.deepspeed, world)
    settings = dict(job.deepspeed)
    if offload_device(settings, "optimizer") != "none" and not cpu_adam:
        settings["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW on the CPU
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=_optimizer(job, model, cpu_adam), config=settings
    )
    drop_bad_gradients(engine)
    if world.size == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False  # it would copy all gradients twice, to reduce nothing
    return engine


def _optimizer(job: Job, model: PreTrainedModel, cpu_adam: bool) -> torch.optim.Optimizer:
    train = job.run.train
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
