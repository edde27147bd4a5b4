"""Steps without effect: a gradient that is not finite is dropped on all ranks, counted, and not for ever.

DeepSpeed drops such a step by itself from ZeRO stage 1 on, and not at all at stage 0; here it does at each,
so that one bad batch never reaches the weights.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from gaguide.errors import Fault, UserError
from gaguide.log import say

# Dynamic loss scaling starts at 2^16 and finds its scale by overflowing; that is not a fault.
_FP16_STEPS = 40


def drop_bad_gradients(engine: Any) -> None:
    """Make the engine drop every step whose gradient is not finite, where it would not by itself.

    From ZeRO stage 1 on it drops a step whose gradient norm is not finite, in any precision. At stage 0
    `clip_plain` takes the gradients away, and clips in place of DeepSpeed, which would take the norm again.
    """
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    if hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False  # `SkippedSteps` ends the run, in words
    if not engine.zero_optimization():
        engine.clip_fp32_gradients = lambda: None


def clip_plain(engine: Any) -> float | None:
    """At ZeRO stage 0, where DeepSpeed keeps no norm: clip the gradients before a step; their norm, or None.

    A gradient that is not finite is cleared: the optimizer passes over parameters without one. With loss
    scaling it is left, for the scaler to find.
    """
    if engine.zero_optimization() or not engine.is_gradient_accumulation_boundary():
        return None
    parameters = [p for p in engine.module.parameters() if p.grad is not None]
    if not parameters:
        return None
    scaler = getattr(engine, "torch_autocast_z0_gradscaler", None)
    # DeepSpeed has averaged them over ranks in backward, so every rank finds the same.
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = norm / scaler.get_scale() if scaler else norm
    value, limit = float(norm), engine.gradient_clipping()
    if not math.isfinite(value):
        engine.skipped_steps += 1
        if not scaler:
            for parameter in parameters:
                parameter.grad = None
    elif 0 < limit < value:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return value


class SkippedSteps:
    """Counts the steps that were dropped; too many in a row end the run.

    `total` counts on after a resume: the engine's own counter is part of its checkpoints.
    """

    def __init__(self, engine: Any, limit: int, precision: str) -> None:
        self.engine = engine
        self.limit = max(limit, _FP16_STEPS) if precision == "fp16" else limit
        self.in_a_row: list[int] = []
        self._known = int(engine.skipped_steps)

    @property
    def total(self) -> int:
        """Steps dropped since the run began."""
        return int(self.engine.skipped_steps)

    def dropped(self, step: int) -> bool:
        """Whether `step`, the one just done, was dropped: the same on every rank."""
        dropped, self._known = self.total > self._known, self.total
        self.in_a_row = [*self.in_a_row, step] if dropped else []
        return dropped

    def forget(self) -> None:
        """Take the engine's count as known, after a checkpoint was loaded."""
        self._known = self.total

    def raise_if_too_many(self, rate: float, last_checkpoint: int | None, record: Path) -> None:
        """`UserError` after `limit` dropped steps in a row."""
        if len(self.in_a_row) < self.limit:
            return
        kept = "none was saved" if last_checkpoint is None else f"that of step {last_checkpoint}"
        raise UserError(
            Fault(
                "train.learning_rate",
                f"the gradient was not finite in {len(self.in_a_row)} steps in a row, {self.in_a_row[0]} to "
                f"{self.in_a_row[-1]}; their blocks are listed in {record}; last good checkpoint: {kept}",
                "lower the learning rate or guidance.weight, lengthen the warmup, or look at the blocks",
                rate,
            )
        )

    def tell(self, step: int) -> None:
        """A line for the person at the keyboard."""
        say(
            f"step {step} dropped: its gradient is not finite ({len(self.in_a_row)} in a row, "
            f"{self.total} in all, {self.limit} in a row end the run)"
        )
