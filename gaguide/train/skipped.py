"""Dropped steps in a row; too many of them end the run."""

from __future__ import annotations

from pathlib import Path

from gaguide.errors import UserError

# Dynamic loss scaling starts at 2^16 and finds its scale by overflowing, which is not a fault.
_FP16_STEPS = 40


class SkippedSteps:
    """The latest consecutive steps that were dropped because their gradient was not finite."""

    def __init__(self, limit: int, precision: str) -> None:
        self.limit = max(limit, _FP16_STEPS) if precision == "fp16" else limit
        self.in_a_row: list[int] = []

    def record(self, step: int, dropped: bool) -> None:
        """Note whether `step`, the one just done, was dropped."""
        self.in_a_row = [*self.in_a_row, step] if dropped else []

    def describe(self, total: int) -> str:
        """The latest dropped step in words; `total` counts those of the whole run."""
        return (
            f"step {self.in_a_row[-1]} dropped: its gradient is not finite ({len(self.in_a_row)} in a row, "
            f"{total} in all; {self.limit} in a row end the run)"
        )

    def raise_if_too_many(self, rate: float, last_checkpoint: int | None, record: Path) -> None:
        """Raise a `UserError` after `limit` dropped steps in a row; `record` is the file that lists them."""
        if len(self.in_a_row) < self.limit:
            return
        last = "none was saved" if last_checkpoint is None else f"that of step {last_checkpoint}"
        raise UserError.of(
            "train.learning_rate",
            f"the gradient was not finite in {len(self.in_a_row)} steps in a row, {self.in_a_row[0]} to "
            f"{self.in_a_row[-1]}; their blocks are listed in {record}; newest checkpoint before them: "
            f"{last}",
            "lower the learning rate or guidance.weight, lengthen the warmup, or inspect the blocks",
            rate,
        )
