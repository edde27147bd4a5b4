"""The DeepSpeed engine of a job: optimizer and initialisation, with DeepSpeed's traps disarmed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from gaguide.train.job import Job
from gaguide.train.skips import drop_bad_gradients


def make_engine(job: Job, model: PreTrainedModel) -> Any:
    """DeepSpeed's engine around `model`; the process group must exist."""
    import deepspeed

    # DeepSpeed would compile its shared-memory op at the first start on a CPU. Only its tensor-parallel
    # inference uses it, and a compile that was killed leaves a lock on which every later start hangs.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if job.run.train.gradient_checkpointing:
        # Reentrant checkpointing would drop the guidance gradient.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    engine, *_ = deepspeed.initialize(model=model, optimizer=_optimizer(job, model), config=job.deepspeed)
    drop_bad_gradients(engine)
    return engine


def _optimizer(job: Job, model: PreTrainedModel) -> torch.optim.Optimizer:
    train = job.run.train
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas, eps=train.epsilon, fused=True)
