"""Scores in the evaluator's results.json: task, metric, value, interval, number of examples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaguide.errors import Fault, UserError
from gaguide.evaluate.results.metric_names import ACCURACIES, BETTER, Better


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task."""

    task: str
    """Name of the task."""
    metric: str
    """Name of the metric."""
    value: float
    """Its value, a finite number."""
    low: float | None
    """Lower end of the 95% interval over examples."""
    high: float | None
    """Upper end of the 95% interval over examples."""
    count: int | None
    """Number of examples."""
    better: Better | None
    """Which direction is good; None where neither is."""
    chance: float | None = None
    """Accuracy of blind guessing; None for metrics other than accuracies."""

    @property
    def key(self) -> tuple[str, str]:
        """(task, metric): scores of different runs with equal keys belong in one row."""
        return self.task, self.metric


def read_evaluation(path: Path) -> tuple[TaskScore, ...] | None:
    """Scores in the results.json at `path`, by task; None where the file does not exist.

    Fields read: {"tasks": {NAME: {"count", "chance", "metrics": {METRIC: {"value", "low", "high"}}}}}.
    A metric without a finite value is left out. Raises `UserError` for a file of another kind.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(
            Fault(str(path), f"is not valid JSON ({error})", "evaluate the model again")
        ) from None
    tasks = content.get("tasks") if isinstance(content, Mapping) else None
    if not isinstance(tasks, Mapping):
        problem = "is not a results.json of the evaluator (it has no tasks)"
        raise UserError(Fault(str(path), problem, "evaluate the model again"))
    return tuple(
        score
        for name, task in tasks.items()
        if isinstance(task, Mapping) and isinstance(task.get("metrics"), Mapping)
        for metric, value in task["metrics"].items()
        if (score := _score(str(name), str(metric), value, task)) is not None
    )


def _score(task: str, metric: str, value: Any, record: Mapping[str, Any]) -> TaskScore | None:
    fields = value if isinstance(value, Mapping) else {}
    number, count = _finite(fields.get("value")), _finite(record.get("count"))
    if number is None:
        return None
    return TaskScore(
        task,
        metric,
        number,
        _finite(fields.get("low")),
        _finite(fields.get("high")),
        None if count is None else int(count),
        BETTER.get(metric),
        _finite(record.get("chance")) if metric in ACCURACIES else None,
    )


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
