"""Numbers left out of a study's statistics: those that are not finite, and those of other examples.

A cell that diverged (its held-out loss, or every example of a task, has no finite number) is left out as a
whole. A task with any example without a finite number is left out for that cell: a mean over the rest would
be of other examples than the other cells'. So is a task that a cell answered on other examples than most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gaguide.numbers import finite
from gaguide.study.evaluated import HELD_OUT_METRIC, Evaluated
from gaguide.study.grid import Grid
from gaguide.study.records import LeftOut
from gaguide.study.state import read_summary


def leave_out(grid: Grid, cells: Sequence[Evaluated]) -> tuple[list[Evaluated], list[LeftOut]]:
    """The cells with their comparable numbers, and a record of everything that is left out."""
    kept, left = [], []
    for one in cells:
        reason = _diverged(grid, one)
        if reason is not None:
            left.append(_row(one, None, reason))
            continue
        rows = _not_finite(one)
        left += rows
        kept.append(_without(one, {row.task for row in rows if row.metric is None and row.task is not None}))
    others = _other_examples(kept)
    named = [(one, {row.task for row in others if row.cell == one.cell.id and row.task}) for one in kept]
    return [_without(one, tasks) for one, tasks in named], left + others


def _diverged(grid: Grid, one: Evaluated) -> str | None:
    if one.cell.run is not None:
        after = read_summary(grid.path(one.cell)).get("validation", {}).get("after") or {}
        if HELD_OUT_METRIC in after and finite(after[HELD_OUT_METRIC]) is None:
            return "its training diverged: the held-out loss is not finite"
    for task, examples in one.examples.items():
        bad = _without_number(one, task)
        if bad == len(examples.ids) and examples.outcomes:
            return f"its model diverged: none of the {bad} examples of {task} has a finite score"
    return None


def _not_finite(one: Evaluated) -> list[LeftOut]:
    rows = []
    for task, record in one.tasks.items():
        total = record["count"]
        if bad := _without_number(one, task):
            reason = f"{bad} of {total} examples have no finite score"
            rows.append(_row(one, task, reason, bad, total))
            continue
        rows += [
            replace(_row(one, task, "is not finite"), metric=metric)
            for metric, found in record["metrics"].items()
            if finite(found["value"]) is None
        ]
    return rows


def _without_number(one: Evaluated, task: str) -> int:
    """Examples of a task that have no finite number in some metric."""
    examples = one.examples.get(task)
    if examples is None or not examples.outcomes:
        return 0
    bad = [~np.isfinite(values) for values in examples.outcomes.values()]
    return int(np.any(bad, axis=0).sum())


def _other_examples(cells: Sequence[Evaluated]) -> list[LeftOut]:
    """Tasks that a cell answered on other examples, by content, than most of the cells."""
    rows = []
    for task in dict.fromkeys(name for one in cells for name in one.examples):
        answered = [(one, one.examples[task].keys) for one in cells if task in one.examples]
        usual, count = Counter(keys for _, keys in answered).most_common(1)[0]
        reason = f"its examples are not those of {count} other cell{'' if count == 1 else 's'}"
        rows += [_row(one, task, reason) for one, keys in answered if keys != usual]
    return rows


def _without(one: Evaluated, tasks: set[str]) -> Evaluated:
    if not tasks:
        return one
    return replace(one, tasks={name: task for name, task in one.tasks.items() if name not in tasks})


def _row(
    one: Evaluated, task: str | None, reason: str, count: int | None = None, of: int | None = None
) -> LeftOut:
    cell = one.cell
    return LeftOut(cell.id, cell.size, cell.experiment, cell.seed, task, None, count, of, reason)


def count_left_out(left: Sequence[LeftOut], size: str | None, experiment: str, task: str, metric: str) -> int:
    """Number of cells of an experiment, of one size or all, whose value of a task and metric is left out."""
    return len(
        {
            row.cell
            for row in left
            if row.experiment == experiment
            and size in (None, row.size)
            and row.task in (None, task)
            and row.metric in (None, metric)
        }
    )
