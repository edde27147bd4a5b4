"""The evaluator's results.json, as rows of a report: task, metric, value, interval, number of examples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gaguide.errors import Fault, UserError


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task; `better` says which way is good, None where that is not known."""

    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    count: int | None
    better: Literal["low", "high"] | None

    @property
    def key(self) -> tuple[str, str]:
        """What makes rows of different runs the same row."""
        return self.task, self.metric


_BETTER: dict[str, Literal["low", "high"]] = {
    "acc": "high",
    "acc_norm": "high",
    "class_loss": "low",
    "loss": "low",
    "perplexity": "low",
}


def read_evaluation(path: Path) -> tuple[TaskScore, ...] | None:
    """The scores in a results.json, by task; None where the run was not evaluated.

    Shape: {"tasks": {NAME: {"examples": int, "metrics": {METRIC: {"value", "low", "high"} or number}}}};
    a metric without a finite value is left out. Raises `UserError` for a file that is something else.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(Fault(str(path), f"is not JSON ({error})", "evaluate again")) from None
    tasks = content.get("tasks") if isinstance(content, Mapping) else None
    if isinstance(tasks, list):
        tasks = {str(task.get("task", task.get("name"))): task for task in tasks if isinstance(task, Mapping)}
    if not isinstance(tasks, Mapping):
        problem = "is no results.json of launch/evaluate.py (it has no tasks)"
        raise UserError(Fault(str(path), problem, "evaluate again"))
    return tuple(
        score
        for name, task in tasks.items()
        if isinstance(task, Mapping) and isinstance(task.get("metrics"), Mapping)
        for metric, value in task["metrics"].items()
        if (score := _score(str(name), str(metric), value, task)) is not None
    )


def _score(task: str, metric: str, value: Any, record: Mapping[str, Any]) -> TaskScore | None:
    fields = value if isinstance(value, Mapping) else {"value": value}
    number = _finite(fields.get("value"))
    if number is None:
        return None
    count = next((_finite(record[key]) for key in ("examples", "count", "n") if key in record), None)
    low, high = _finite(fields.get("low")), _finite(fields.get("high"))
    return TaskScore(
        task, metric, number, low, high, None if count is None else int(count), _BETTER.get(metric)
    )


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
