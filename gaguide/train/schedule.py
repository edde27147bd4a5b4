"""Learning rate as a pure function of the step, so that checkpoints need not store it."""

from __future__ import annotations

import math

from gaguide.config import TrainSection


def learning_rate(train: TrainSection, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (counted from 1) out of `total_steps`; never 0.

    Linear warmup that ends at the peak, then constant, or linear or cosine decay. The decay starts at the
    peak in the first step after warmup, and would reach 0 in the step after the last one, so that every
    step changes the weights.
    """
    if step <= train.warmup_steps:
        return train.learning_rate * step / train.warmup_steps
    if train.schedule == "constant":
        return train.learning_rate
    progress = min(1.0, (step - 1 - train.warmup_steps) / max(1, total_steps - train.warmup_steps))
    if train.schedule == "linear":
        return train.learning_rate * (1 - progress)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
