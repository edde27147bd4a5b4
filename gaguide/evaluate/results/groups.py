"""Numbers of groups of lm-evaluation-harness's tasks, equal to the harness's (0.4.13). Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gaguide.evaluate.results.intervals import Metric
from gaguide.evaluate.results.task_results import TaskResult
from gaguide.evaluate.tasks.harness.groups import Aggregate, HarnessGroup
from gaguide.grouping import grouped
from gaguide.stats.groups import Z


@dataclass(frozen=True)
class GroupResult:
    """The outcome of a group."""

    group: HarnessGroup
    """The group and its members."""
    tasks: tuple[str, ...]
    """Its tasks, those of its groups included."""
    count: int
    """Examples of all its tasks."""
    metrics: Mapping[tuple[str, str], Metric]
    """(metric, filter) → mean over its tasks; no interval where a task has none."""


def group_results(tasks: Mapping[str, TaskResult]) -> dict[str, GroupResult]:
    """The groups through which tasks were named, members before those that contain them."""
    groups: dict[str, HarnessGroup] = {}
    for result in tasks.values():
        harness = result.data.harness
        for group in reversed(harness.groups if harness is not None else ()):
            groups.setdefault(group.name, group)
    return {name: _result(group, tasks) for name, group in groups.items()}


def _result(group: HarnessGroup, tasks: Mapping[str, TaskResult]) -> GroupResult:
    own = {
        name: result
        for name, result in tasks.items()
        if result.data.harness is not None and group in result.data.harness.groups
    }
    metrics: dict[tuple[str, str], Metric] = {}
    for aggregate in group.aggregates:
        by_filter = grouped(
            (result.data.harness.filter_name, result)
            for result in own.values()
            if result.data.harness is not None and aggregate.metric in result.metrics
        )
        for name in aggregate.filters or sorted(by_filter):
            if chosen := by_filter.get(name):
                metrics[aggregate.metric, name] = _mean(aggregate, chosen)
    count = sum(len(result.scored) for result in own.values())
    return GroupResult(group, tuple(own), count, metrics)


def _mean(aggregate: Aggregate, chosen: Sequence[TaskResult]) -> Metric:
    values = [result.metrics[aggregate.metric].value for result in chosen]
    errors = [result.metrics[aggregate.metric].stderr for result in chosen]
    sizes = [len(result.scored) for result in chosen]
    weights = sizes if aggregate.by_size else [1] * len(sizes)
    value = sum(one * weight for one, weight in zip(values, weights, strict=True)) / sum(weights)
    error = math.sqrt(sum(error**2 for error in errors)) / len(errors)
    if aggregate.by_size:
        error = _pooled(errors, sizes)
    return Metric(value, error, value - Z * error, value + Z * error)


def _pooled(errors: Sequence[float], sizes: Sequence[int]) -> float:
    """Standard error of the mean over all examples, from those of the tasks."""
    if sum(sizes) == len(sizes):
        return math.nan
    squares = sum((size - 1) * error**2 * size for error, size in zip(errors, sizes, strict=True))
    return math.sqrt(squares / (sum(sizes) - len(sizes)) / sum(sizes))
