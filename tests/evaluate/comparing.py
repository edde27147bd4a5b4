"""Comparisons in tests."""

from __future__ import annotations

from pathlib import Path

from gaguide.evaluate.compare.comparison import CompareOptions, compare_evaluations
from gaguide.evaluate.compare.records import Comparison, TaskComparison
from gaguide.evaluate.compare.sources import read_evaluations


def compare(*paths: Path, group: str | None = None, **options: object) -> Comparison:
    """The comparison of evaluations with the first."""
    return compare_evaluations(read_evaluations(paths, group), CompareOptions(**options))


def find_test(compared: Comparison, task: str, metric: str) -> TaskComparison:
    """The first test of a task's metric."""
    return next(one for one in compared.tests if (one.task, one.metric) == (task, metric))
