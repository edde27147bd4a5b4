"""Construction of an engine: optimizer and initialisation, with DeepSpeed's pitfalls avoided."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from gaguide.config import TrainSection
from gaguide.distributed import World
from gaguide.engine.compiled import CompiledForward
from gaguide.engine.config_resolved import DeepSpeedConfig
from gaguide.engine.engine import Engine
from gaguide.engine.nonfinite import drop_nonfinite_gradients
from gaguide.engine.offload_state import cpu_optimizer_ready
from gaguide.model import adapt_to, checkpoint_activations
from gaguide.model.freeze import freeze
from gaguide.model.packed import use_packed_attention
from gaguide.trackers import SECTIONS as TRACKERS


def build_engine(
    model: PreTrainedModel,
    config: DeepSpeedConfig,
    train: TrainSection,
    world: World,
    frozen: tuple[str, ...] = (),
) -> Engine:
    """An engine around `model`, which is changed in place; a collective that needs the process group.

    `frozen` names the parameters that keep their values. With `train.lora` the model has its adapters
    already, and the saved state is theirs alone.
    """
    import deepspeed

    from gaguide.engine.checkpoint_writer import CheckpointWriter

    disable_shared_memory_op()
    if train.gradient_checkpointing:
        checkpoint_activations(model)
    adapt_to(model, world.device, config.precision)
    freeze(model, frozen)
    packed = use_packed_attention(model)
    cpu_adam = cpu_optimizer_ready(config, world)
    settings = {name: value for name, value in config.settings.items() if name not in TRACKERS}
    if config.offload_optimizer != "none" and not cpu_adam:
        settings["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW on the CPU
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=_optimizer(train, model, cpu_adam), config=settings
    )
    engine.checkpoint_engine = CheckpointWriter()
    drop_nonfinite_gradients(engine)
    if config.zero_stage == 0:
        engine.zero_grad = _clearing(model)
    if world.size == 1 and config.zero_stage == 0:
        engine.enable_backward_allreduce = (
            False  # it would copy all gradients twice without reducing anything
        )
    compiled = CompiledForward(engine.module, train.compile, packed) if train.compile else None
    return Engine(engine, config, world, packed, compiled, train.lora is not None)


def silence_deepspeed() -> None:
    """Suppress warnings of DeepSpeed that a user cannot act on; call it before DeepSpeed is imported."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # deprecations it relies on
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise it reports a search for accelerators


def disable_shared_memory_op() -> None:
    """Keep DeepSpeed from compiling its shared-memory op at the first start on a CPU.

    Only its tensor-parallel inference uses the op, and a compile that was killed leaves a lock on which every
    later start hangs (DeepSpeed 0.19).
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _clearing(model: PreTrainedModel) -> Callable[[], None]:
    """A `zero_grad` for DeepSpeed that does not walk through all modules in every step."""
    parameters = tuple(model.parameters())

    def zero_grad() -> None:
        for parameter in parameters:
            parameter.grad = None

    return zero_grad


def _optimizer(train: TrainSection, model: PreTrainedModel, cpu_adam: bool) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [
        group for group in groups if group["params"]
    ]  # adapters have no vectors; ZeRO does not accept an empty group
    settings: dict[str, Any] = {"lr": train.learning_rate, "betas": train.betas, "eps": train.epsilon}
    if cpu_adam:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, **settings, adamw_mode=True, fp32_optimizer_states=True)
    return torch.optim.AdamW(groups, **settings, fused=True)
