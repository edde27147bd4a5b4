"""Gradients that are not finite: dropped on all ranks and counted, at every ZeRO stage.

DeepSpeed drops such a step from ZeRO stage 1 on, but not at stage 0; here it does at each stage, so that one
bad batch never reaches the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def drop_nonfinite_gradients(engine: DeepSpeedEngine) -> None:
    """Prepare the engine so that every step whose gradient is not finite can be dropped.

    From ZeRO stage 1 on DeepSpeed does it itself, in any precision. At stage 0 `clip_at_stage_0` clears the
    gradients, and clips in place of DeepSpeed, which would compute the norm again.
    """
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None and hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False  # training decides when too many steps were dropped
    if not engine.zero_optimization():
        engine.clip_fp32_gradients = lambda: None


def clip_at_stage_0(engine: DeepSpeedEngine, parameters: Sequence[torch.nn.Parameter]) -> float | None:
    """Clip the gradients of the model's `parameters` before a step and return their norm.

    None above ZeRO stage 0, where DeepSpeed clips. A gradient that is not finite is cleared, since the
    optimizer skips parameters without one; with loss scaling it is left for the scaler to find. Such a step
    is added to the engine's count of skipped steps.
    """
    if engine.zero_optimization():
        return None
    graded = [parameter for parameter in parameters if parameter.grad is not None]
    if not graded:
        return None
    scaler = getattr(engine, "torch_autocast_z0_gradscaler", None)
    # Backward has averaged the gradients over the ranks, so every rank computes the same norm.
    norm = torch.nn.utils.get_total_norm([p.grad for p in graded if p.grad is not None])
    norm = norm / scaler.get_scale() if scaler else norm
    value, limit = float(norm), engine.gradient_clipping()
    if not math.isfinite(value):
        engine.skipped_steps += 1
        if not scaler:
            for parameter in graded:
                parameter.grad = None
    elif 0 < limit < value:
        torch.nn.utils.clip_grads_with_norm_(graded, limit, norm)
    return value
