"""The console's output at the end: tables, and examples that the model got confidently wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gaguide.evaluate.results.groups import group_results
from gaguide.evaluate.results.intervals import Metric
from gaguide.evaluate.results.metric_names import ACCURACIES, DETAILS, MARK_NOTES, MARKS
from gaguide.evaluate.results.metrics import ScoredExample, not_finite, worst
from gaguide.evaluate.results.near_ties import near_ties
from gaguide.evaluate.results.parts import part_results
from gaguide.evaluate.results.results import Results
from gaguide.evaluate.results.task_results import TaskResult
from gaguide.log import escape_control_characters, table_console
from gaguide.numbers import fixed

_PIPE_WIDTH = 110
_SHOWN_WORST = 3
_MAX_PROMPT = 300
"""Characters from the end of a prompt."""
_MAX_CLASS = 80
"""Characters of a class."""


def print_table(results: Results, console: Console | None = None) -> None:
    """Print the metrics of every task, without `DETAILS`, with their 95% intervals, counts, chance level and
    the paper's accuracy; then the doubts about them."""
    reported = {name: results.paper_accuracy(name) for name in results.tasks}
    ranks = "1 rank" if results.world_size == 1 else f"{results.world_size} ranks"
    table = Table(title=Text(f"{results.model} ({results.seconds['total']:.1f} s on {ranks})"))
    table.add_column("task", no_wrap=True)
    table.add_column("examples", justify="right")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right", no_wrap=True)
    table.add_column("chance", justify="right")
    column = results.paper_column
    if any(value is not None for value in reported.values()) and column is not None:
        table.add_column(f"paper: {column[0]} {column[1]}", justify="right")
    for name, result in results.tasks.items():
        first = True
        shown = {one: metric for one, metric in result.metrics.items() if _is_shown(result, one)}
        for metric_name, metric in shown.items():
            chance = result.chance if metric_name in ACCURACIES else None
            cells: list[Text | str] = [
                Text(name if first else ""),
                _examples(result) if first else "",
                metric_name,
                _value(metric) + _mark(result, metric_name),
                _interval(metric),
                "" if chance is None else f"{chance:.4f}",
            ]
            if len(table.columns) > len(cells):
                value = reported[name] if metric_name == "acc" else None
                cells.append("" if value is None else f"{value:.4f}")
            table.add_row(*cells, end_section=metric_name == list(shown)[-1])
            first = False
    for name, group in group_results(results.tasks).items():
        for (metric_name, _), metric in group.metrics.items():
            values = _value(metric), _interval(metric)
            table.add_row(Text(name), str(group.count), metric_name, *values, end_section=True)
    console = console or table_console(_PIPE_WIDTH)
    console.print(table)
    _print_notes(list(results.tasks.values()), console)
    dtype = str(results.settings["dtype"])
    for name, result in results.tasks.items():
        if ties := near_ties(result.scored, dtype):
            console.print(Text(f"{name}: {len(ties)} near ties, where rounding in {dtype} decides"))
        for warning in (*result.warnings(), *result.doubts()):
            console.print(Text(f"warning: {warning}"), soft_wrap=True)


def print_parts(results: Results, console: Console | None = None) -> None:
    """Print the main metric of each part of the tasks that have parts, and the score of a constant answer."""
    table, reasons = Table(title="parts"), set[str]()
    for name in ("task", "part"):
        table.add_column(name, no_wrap=True)
    for name in ("examples", "value", "95% interval", "constant answer", "as original"):
        table.add_column(name, justify="right", no_wrap=name == "95% interval")
    for name, result in results.tasks.items():
        for at, (part, found) in enumerate(part_results(result.data.kind, result.scored).items()):
            (metric_name, metric), *_ = found.metrics.items()
            constant = "" if found.constant is None else f"{found.constant[1]:.4f} ({found.constant[0]})"
            doubt = found.uninformative.get(metric_name)
            table.add_row(
                Text(name if at == 0 else ""), Text(part), str(found.count),
                _value(metric) + ("" if doubt is None else MARKS[doubt.reason]), _interval(metric),
                Text(constant),
                "" if found.same_as_original is None else _value(found.same_as_original),
            )  # fmt: skip
            reasons |= set() if doubt is None else {doubt.reason}
    if table.rows:
        console = console or table_console(_PIPE_WIDTH)
        console.print(table)
        shown = {one.reason for task in results.tasks.values() for one in task.uninformative.values()}
        for reason, note in MARK_NOTES.items():
            if reason in reasons - shown:  # below the table of tasks already
                console.print(Text(note), soft_wrap=True)


def print_comparison(
    names: Sequence[str], several: Sequence[Results], console: Console | None = None
) -> None:
    """Print every metric of each task, one column per model under its short name in `names`."""
    table = Table(title="comparison")
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for name in names:
        table.add_column(Text(name), justify="right")
    for name, result in several[0].tasks.items():
        for metric in result.metrics:
            if not _is_shown(several[0].tasks[name], metric):
                continue
            values = [_value_of(results.tasks[name], metric) for results in several]
            table.add_row(Text(name), metric, *values)
    console = console or table_console(_PIPE_WIDTH)
    console.print(table)
    _print_notes([task for results in several for task in results.tasks.values()], console)


def _is_shown(result: TaskResult, metric: str) -> bool:
    """Whether the table has a metric: not the details, unless a task file of the harness asks for them."""
    asked = result.data.harness.metrics if result.data.harness is not None else ()
    return metric not in DETAILS or any(one.name == metric for one in asked)


def print_worst(results: Results, console: Console | None = None) -> None:
    """Print the examples of all tasks that the model got most confidently wrong, with their text."""
    console = console or table_console(_PIPE_WIDTH)
    named = [(name, one) for name, task in results.tasks.items() for one in worst(task.scored, _SHOWN_WORST)]
    for name, one in sorted(named, key=lambda pair: pair[1].margin or 0.0)[:_SHOWN_WORST]:
        console.print(Text(_worst_text(name, results.tasks[name], one)), soft_wrap=True)


def _examples(result: TaskResult) -> str:
    count, failed = len(result.scored), len(not_finite(result.scored))
    fewshot = result.data.task.fewshot
    parts = [str(count) if count == result.data.available else f"{count} of {result.data.available}"]
    parts += [f"{fewshot.count} shots"] if fewshot is not None else []
    parts += [f"{failed} not finite"] if failed else []
    return ", ".join(parts)


def _worst_text(name: str, result: TaskResult, one: ScoredExample) -> str:
    example, answer = one.example, one.example.answer_index
    classes = example.counted_texts if example.is_zipped else example.continuations
    assert answer is not None and one.predicted is not None and one.margin is not None
    prompt = example.prompts[0]
    shown = prompt if len(prompt) <= _MAX_PROMPT else "…" + prompt[-_MAX_PROMPT:]
    return (
        f"confidently wrong: {name} {escape_control_characters(example.id)} (e^{-one.margin:.1f} to 1)\n"
        f"  {escape_control_characters(shown)}\n"
        f"  answer   {escape_control_characters(classes[answer][:_MAX_CLASS])}\n"
        f"  model    {escape_control_characters(classes[one.predicted][:_MAX_CLASS])}"
    )


def _value_of(result: TaskResult, name: str) -> str:
    metric = result.metrics.get(name)
    return "" if metric is None else _value(metric) + _mark(result, name)


def _mark(result: TaskResult, metric: str) -> str:
    doubt = result.uninformative.get(metric)
    return "" if doubt is None else MARKS[doubt.reason]


def _print_notes(tasks: Sequence[TaskResult], console: Console) -> None:
    """The footnote of each mark that a table of these tasks has, and which metrics it leaves out."""
    reasons = {one.reason for task in tasks for one in task.uninformative.values()}
    for reason, note in MARK_NOTES.items():
        if reason in reasons:
            console.print(Text(note), soft_wrap=True)
    left = [name for name in DETAILS if any(name in task.metrics for task in tasks)]
    if left:
        console.print(
            Text(f"in results.md and results.json: {', '.join(left)}, answers by class"), soft_wrap=True
        )


def _value(metric: Metric) -> str:
    return "none" if math.isnan(metric.value) else fixed(metric.value, 4)


def _interval(metric: Metric) -> str:
    known = not (math.isnan(metric.low) or math.isnan(metric.high))
    return f"{fixed(metric.low, 4)} – {fixed(metric.high, 4)}" if known else ""
