"""Differences that a study's tasks can show with their examples and the study's seeds, before it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from gaguide.errors import UserError
from gaguide.evaluate.results.intervals import clusters
from gaguide.evaluate.tasks.locate import split_names
from gaguide.evaluate.tasks.read import TaskData, read_tasks
from gaguide.evaluate.tasks.task import Kind
from gaguide.stats.power import Sensitivity, standard_errors
from gaguide.study.grid import Grid
from gaguide.study.record_files import STUDY, read_study
from gaguide.study.study_records import StudyRecords

CHANGED = (0.05, 0.2)
"""Shares of answers that differ between two models for which the power of accuracies is given: about those
of two trainings that differ little, and of two that differ much."""
_RIGHT_OR_WRONG: tuple[Kind, ...] = ("classification", "numeric")


@dataclass(frozen=True)
class TaskPower:
    """Power of one task; differences are the smallest true ones shown with probability 0.8."""

    task: str
    """Name of the task, or the name that could not be read."""
    examples: int | None = None
    """Number of examples; None where they cannot be read."""
    groups: int | None = None
    """Number of groups of examples; None where every example is its own group."""
    accuracy: tuple[float | None, ...] = ()
    """Differences of the accuracy of two models for each of `CHANGED`; None where no difference is shown;
    empty for tasks without an accuracy. Groups are taken to change as a whole."""
    loss: float | None = None
    """Difference of the mean loss of two models in standard deviations of the examples' differences."""
    observed: float | None = None
    """Median over the finished comparisons of single seeds, in the main metric's units."""
    observed_seeds: float | None = None
    """Median over the finished comparisons over seeds."""
    problem: str | None = None
    """Why it is not known."""


def task_powers(grid: Grid) -> Iterator[TaskPower]:
    """The power of each task of the study; finished cells add the observed differences."""
    study = grid.study
    folder = None if study.task_data is None else Path(study.task_data).expanduser()
    records = read_study(grid.folder) if (grid.folder / STUDY).is_file() else None
    for name in split_names(study.tasks):
        try:
            read = read_tasks([name], folder, study.evaluate.limit, shots=study.evaluate.shots)
        except UserError as error:
            problem = "; ".join(f"{fault.field} {fault.problem}" for fault in error.faults[:2])
            yield TaskPower(name, problem=problem)
            continue
        for data in read:
            yield _power(data, records)


def _power(data: TaskData, records: StudyRecords | None) -> TaskPower:
    count, name = len(data.examples), data.task.name
    ids, groups = [one.id for one in data.examples], [one.group for one in data.examples]
    units = clusters(ids, groups)
    number = count if units is None else len(set(units))
    if number < 2:
        return TaskPower(name, count, problem="fewer than two examples or groups")
    is_binary = data.kind in _RIGHT_OR_WRONG
    design = count / number
    found = (
        [Sensitivity(is_binary, count, share, design).detectable for share in CHANGED] if is_binary else ()
    )
    return TaskPower(
        name,
        count,
        None if number == count else number,
        tuple(found),
        None if is_binary else Sensitivity(False, count, 1.0, design, number).detectable,
        _observed(records, name, "seed"),
        _observed(records, name, "seeds"),
    )


def _observed(records: StudyRecords | None, task: str, level: str) -> float | None:
    if records is None:
        return None
    metric = records.index.main_metrics.get(task)
    rows = [row for row in records.comparisons if (row.task, row.metric, row.level) == (task, metric, level)]
    # Constant answers invalidate the power of the examples.
    known = [row.detectable for row in rows if row.detectable is not None and not row.constant]
    return median(known) if known else None


def print_powers(grid: Grid) -> None:
    """Print the smallest differences that each task, and the seeds, can show."""
    powers = list(task_powers(grid))
    has_seen = any(one.observed is not None or one.observed_seeds is not None for one in powers)
    table = Table(title="Smallest differences that the tasks can show (with probability 0.8)")
    table.add_column("task", overflow="fold")
    changed = [f"{share:.0%} of answers change" for share in CHANGED]
    for name in ("examples", *changed, "loss", *(("so far", "so far, over seeds") if has_seen else ())):
        table.add_column(name, justify="right", overflow="fold")
    for one in powers:
        seen = [_shown(one.observed), _shown(one.observed_seeds)] if has_seen else []
        table.add_row(one.task, *_row(one), *seen)
    console = Console()
    console.print(table)
    for line in _notes(len(grid.study.seeds), powers):
        console.print(line, highlight=False)


def _row(one: TaskPower) -> list[str]:
    if one.examples is None:
        return [f"? {one.problem}", *("" for _ in CHANGED), ""]
    count = f"{one.examples:,}" + ("" if one.groups is None else f" ({one.groups:,} groups)")
    shown = [_shown(value) if value is not None else "none" for value in one.accuracy]
    loss = "" if one.loss is None else f"{one.loss:.2f} sd"
    return [count, *(shown or ["" for _ in CHANGED]), loss or (one.problem or "")]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _notes(seeds: int, powers: Sequence[TaskPower]) -> Iterator[str]:
    yield (
        "Two models of one seed on the same examples, which says nothing about other seeds; sd: standard "
        "deviation of the examples' differences."
    )
    if seeds < 2:
        yield "One seed has no test over seeds: differences between experiments may be those between seeds."
    else:
        size = standard_errors(seeds - 1) / math.sqrt(seeds)
        yield (
            f"{seeds} seeds: a t-test shows mean differences of {size:.2g} standard deviations between seeds "
            "or more."
        )
    known = sum(one.examples is not None for one in powers)
    if known > 1:
        yield f"All are before Holm's correction over {known} tasks, after which differences must be larger."
