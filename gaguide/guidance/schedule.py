"""The guidance weight over a run, as a function of the optimizer step."""

from __future__ import annotations

from typing import Literal

WeightSchedule = Literal["constant", "linear"]


def weight_factor(schedule: WeightSchedule, warmup_steps: int, step: int, total_steps: int) -> float:
    """Factor in (0, 1] of the plan's weight at optimizer step `step`, counted from 1.

    Linear warmup that ends at 1, then constant or a linear decay, as in the original attention-guidance work.
    The decay starts at 1 in the first step after warmup and would reach 0 in the step after the last one, so
    that every step is guided.
    """
    if step <= warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    return 1 - min(1.0, (step - 1 - warmup_steps) / max(1, total_steps - warmup_steps))
