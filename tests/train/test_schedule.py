"""The learning rate over a run: every step moves the weights."""

from __future__ import annotations

from typing import Any

import pytest

from gaguide.config import TrainSection
from gaguide.guidance import weight_factor
from gaguide.train.schedule import learning_rate


def rates(steps: int, **settings: Any) -> list[float]:
    section = TrainSection(global_batch=1, steps=steps, learning_rate=1.0, **settings)
    return [learning_rate(section, step, steps) for step in range(1, steps + 1)]


def test_values_by_hand() -> None:
    assert rates(4, schedule="linear") == [1, 0.75, 0.5, 0.25]
    assert rates(4, schedule="cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert rates(6, schedule="linear", warmup_steps=2) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert rates(3, schedule="constant", warmup_steps=2) == [0.5, 1, 1]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 1000])
def test_every_step_moves_and_the_first_after_warmup_is_at_the_peak(schedule: Any, steps: int) -> None:
    for warmup in {0, 1, steps // 2, steps - 1, steps, steps + 3}:
        values = rates(steps, schedule=schedule, warmup_steps=warmup)
        assert min(values) > 0 and max(values) <= 1
        assert warmup >= steps or values[warmup] == 1
        assert values[warmup:] == sorted(values[warmup:], reverse=True)
        if schedule != "cosine":
            factors = [weight_factor(schedule, warmup, step, steps) for step in range(1, steps + 1)]
            assert factors == pytest.approx(values)
