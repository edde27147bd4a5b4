"""Learning rate as a pure function of the step, so that a checkpoint need not hold it."""

from __future__ import annotations

import math

from gaguide.config import TrainSection


def learning_rate(train: TrainSection, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (counted from 1) out of `total_steps`.

    Linear warmup to the peak, then constant, or linear or cosine decay to 0.
    """
    if step <= train.warmup_steps:
        return train.learning_rate * step / train.warmup_steps
    progress = (step - train.warmup_steps) / max(1, total_steps - train.warmup_steps)
    if train.schedule == "constant":
        return train.learning_rate
    if train.schedule == "linear":
        return train.learning_rate * max(0.0, 1 - progress)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
