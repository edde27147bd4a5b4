"""lm-evaluation-harness's metrics of a task (0.4.13), equal to the harness's numbers. Pure.

Standard errors of means are the harness's; where it resamples (perplexity, f1, mcc, median), an interval of
the perplexity is that of its mean logarithm, and the others are resampled here, from a fixed seed.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from statistics import median_high
from typing import Any

from gaguide.errors import UserError, first_line
from gaguide.evaluate.results.agreement import matthews_of_counts
from gaguide.evaluate.results.harness_items import example_items
from gaguide.evaluate.results.intervals import (
    NO_METRIC,
    Groups,
    Metric,
    clusters,
    mean,
    perplexity,
    proportion,
    rate,
)
from gaguide.evaluate.results.metrics import ScoredExample
from gaguide.evaluate.tasks.harness.config import HarnessTask
from gaguide.evaluate.tasks.harness.source import FunctionReference
from gaguide.grouping import grouped
from gaguide.stats.groups import tail_share

_RESAMPLES = 1000
_NO_INTERVAL = math.nan


def harness_metrics(task: HarnessTask, scored: Sequence[ScoredExample]) -> dict[str, Metric]:
    """Every metric that the task's file asks for, by the harness's name.

    Without a value where the scores of an example are not finite. Raises `UserError` where a trusted function
    raises an error.
    """
    if not all(one.finite for one in scored):
        return {metric.name: NO_METRIC for metric in task.metrics}
    items = [example_items(task, one) for one in scored]
    how = {metric.name: metric.aggregation for metric in task.metrics}
    names = dict.fromkeys(name for found in items for name in found)
    metrics = {}
    for name in names:
        kept = [(found[name], one) for found, one in zip(items, scored, strict=True) if name in found]
        groups = clusters([one.example.id for _, one in kept], [one.example.group for _, one in kept])
        metrics[name] = _aggregate(task, how.get(name, "mean"), [item for item, _ in kept], groups)
    return metrics


def _aggregate(
    task: HarnessTask, how: str | FunctionReference, items: Sequence[Any], groups: Groups
) -> Metric:
    if isinstance(how, FunctionReference):
        return _without_interval(_trusted(task, how, items))
    if how in ("f1", "matthews_corrcoef", "median"):
        return _resampled(_STATISTICS[how], items, groups)
    if how == "perplexity":
        return perplexity([-item for item in items], [1] * len(items), groups)
    if how in ("weighted_perplexity", "bits_per_byte"):
        losses, weights = [-total for total, _ in items], [weight for _, weight in items]
        if how == "weighted_perplexity":
            return perplexity(losses, weights, groups)
        return rate([loss / math.log(2) for loss in losses], weights, groups)
    values = [_brier(*item) for item in items] if how == "brier_score" else [float(item) for item in items]
    if how == "nanmean":
        known = [at for at, value in enumerate(values) if not math.isnan(value)]
        values = [values[at] for at in known]
        groups = None if groups is None else [groups[at] for at in known]
        if not values:
            return NO_METRIC
    if all(value in (0.0, 1.0) for value in values):
        return proportion([value == 1.0 for value in values], groups)
    return mean(values, groups)


def _trusted(task: HarnessTask, function: FunctionReference, items: Sequence[Any]) -> float:
    try:
        return float(function.load()(list(items)))
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        problem = f"!function {function.name} raised {type(error).__name__}: {first_line(error)}"
        remedy = f"correct {function.file}; the scores are kept, and the same command uses them"
        raise UserError.of(f"task {task.name}: metric_list", problem, remedy) from None


def _brier(right: Any, probabilities: Sequence[float]) -> float:
    answers = right if isinstance(right, list) else [right]
    return math.fsum((p - (at in answers)) ** 2 for at, p in enumerate(probabilities))


def _f1(items: Sequence[Any]) -> float:
    """F1 of class 1 of two, 0 where it is undefined; NaN with more classes, where the harness fails."""
    if any(label not in (0, 1) for item in items for label in item):
        return math.nan
    hits = sum(right == 1 and predicted == 1 for right, predicted in items)
    named = sum((right == 1) + (predicted == 1) for right, predicted in items)
    return 2 * hits / named if named else 0.0


def _matthews(items: Sequence[Any]) -> float:
    """Matthews' correlation of any number of classes; NaN where an example has several right ones."""
    several = any(isinstance(right, list) for right, _ in items)
    return math.nan if several else matthews_of_counts(Counter(items))


_STATISTICS: dict[str, Callable[[Sequence[Any]], float]] = {
    "f1": _f1, "matthews_corrcoef": _matthews, "median": lambda items: float(median_high(items)),
}  # fmt: skip


def _resampled(statistic: Callable[[Sequence[Any]], float], items: Sequence[Any], groups: Groups) -> Metric:
    """The statistic with a percentile interval over resampled examples, or groups (`tail_share`)."""
    keys: Sequence[Hashable] = range(len(items)) if groups is None else groups
    value, units = statistic(items), list(grouped(zip(keys, items, strict=True)).values())
    if math.isnan(value) or len(units) < 2:
        return _without_interval(value)
    draw = random.Random(0)
    found = sorted(
        statistic([item for unit in draw.choices(units, k=len(units)) for item in unit])
        for _ in range(_RESAMPLES)
    )
    centre = math.fsum(found) / _RESAMPLES
    error = math.sqrt(math.fsum((one - centre) ** 2 for one in found) / (_RESAMPLES - 1))
    beyond = round(tail_share(len(units)) * _RESAMPLES)
    return Metric(value, error, found[beyond], found[_RESAMPLES - 1 - beyond])


def _without_interval(value: float) -> Metric:
    return Metric(value, _NO_INTERVAL, _NO_INTERVAL, _NO_INTERVAL)
