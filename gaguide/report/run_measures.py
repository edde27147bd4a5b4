"""Numbers that runs are compared by: one `Measure` per row, one `Value` per run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gaguide.evaluate.results.metric_names import Better
from gaguide.log import format_duration
from gaguide.report.run_records import RunRecord
from gaguide.report.run_scores import TaskScore
from gaguide.report.text import ABSENT, fixed

TASKS, FURTHER = "Tasks", "Tasks, further metrics"


@dataclass(frozen=True)
class Value:
    """One run's value of a measure."""

    text: str
    """The value as it is shown."""
    number: float | None = None
    """The number behind `text`; None where it is missing or the value is a word."""
    low: float | None = None
    """Lower end of the number's 95% interval."""
    high: float | None = None
    """Upper end of the number's 95% interval."""
    count: int | None = None
    """Examples behind the number."""
    change: str | None = None
    """Difference to the first run as it is shown; None in the first run and where a number is missing."""
    difference: float | None = None
    """Difference to the first run."""
    best: bool = False
    """Whether no run has a better number, and some run a worse one."""


@dataclass(frozen=True)
class Measure:
    """A row of the comparison."""

    section: str
    """Heading of the group that the row belongs to."""
    name: str
    """What is measured, with its unit."""
    values: tuple[Value, ...]
    """One value per run."""


def measures(runs: Sequence[RunRecord]) -> list[Measure]:
    """Every row for which some run has a value; the first run is the baseline."""
    rows = _about_runs(runs) + _language_model(runs) + _attention(runs) + _tasks(runs)
    return [
        row for row in rows if any(value.number is not None or value.text != ABSENT for value in row.values)
    ]


def _about_runs(runs: Sequence[RunRecord]) -> list[Measure]:
    def row(name: str, show: Callable[[float], str], number: Callable[[RunRecord], float | None]) -> Measure:
        numbers = [number(run) for run in runs]
        return Measure(
            "Run", name, tuple(Value(ABSENT) if n is None else Value(show(n), float(n)) for n in numbers)
        )

    experiments = (run.experiment or ABSENT if run.finished else "not finished" for run in runs)
    return [
        Measure("Run", "experiment", tuple(Value(text) for text in experiments)),
        row("guidance weight", "{:g}".format, lambda run: run.guidance_weight),
        row("optimizer steps", "{:,.0f}".format, lambda run: run.steps),
        row("training tokens", "{:,.0f}".format, lambda run: run.tokens),
        row("ranks", "{:,.0f}".format, lambda run: run.world_size),
        row("time", format_duration, lambda run: run.seconds),
        row("tokens per second", "{:,.0f}".format, lambda run: run.tokens_per_second),
    ]


def _language_model(runs: Sequence[RunRecord]) -> list[Measure]:
    section = "Language model on held-out text"
    before = [run.before.lm_loss if run.before else None for run in runs]
    after = [run.after.lm_loss if run.after else None for run in runs]
    return [
        _numbers(section, "loss before", before, 4),
        _numbers(section, "loss after (nats per token)", after, 4, "low", relative=True),
    ]


def _attention(runs: Sequence[RunRecord]) -> list[Measure]:
    section = "Attention on the guided words, held-out text"
    before = [run.before.guided_attention if run.before else None for run in runs]
    after = [run.after.guided_attention if run.after else None for run in runs]
    rise = [None if a is None or b is None else a - b for a, b in zip(after, before, strict=True)]
    return [
        _numbers(section, "before", before, 3),
        _numbers(section, "after", after, 3, "high", compare=True),
        _numbers(section, "rise", rise, 3, signed=True),
    ]


def _tasks(runs: Sequence[RunRecord]) -> list[Measure]:
    """Each task's main metric, which the evaluator lists first, then the others in a separate section."""
    keys = dict.fromkeys(score.key for run in runs for score in run.scores or ())
    main = {task: metric for task, metric in reversed(keys)}
    first = [_task(runs, TASKS, *key) for key in keys if main[key[0]] == key[1]]
    return first + [_task(runs, FURTHER, *key) for key in keys if main[key[0]] != key[1]]


def _task(runs: Sequence[RunRecord], section: str, task: str, metric: str) -> Measure:
    found = [next((score for score in run.scores or () if score.key == (task, metric)), None) for run in runs]
    known = next(score for score in found if score is not None)
    name = f"{task} · {metric}" + ("" if known.chance is None else f" (chance {known.chance:.3f})")
    numbers = [score.value if score else None for score in found]
    row = _numbers(section, name, numbers, 3, known.better, compare=True)
    values = [
        _with_interval(value, score, evaluated=run.scores is not None)
        for value, score, run in zip(row.values, found, runs, strict=True)
    ]
    return replace(row, values=tuple(values))


def _with_interval(value: Value, score: TaskScore | None, evaluated: bool) -> Value:
    if score is None:
        return replace(value, text=ABSENT if evaluated else "not evaluated")
    return replace(value, low=score.low, high=score.high, count=score.count)


def _numbers(
    section: str,
    name: str,
    numbers: Sequence[float | None],
    digits: int,
    better: Better | None = None,
    *,
    compare: bool = False,
    relative: bool = False,
    signed: bool = False,
) -> Measure:
    """A row of numbers.

    compare: add the difference to the first run. relative: add it in percent too. signed: show a plus sign.
    """
    present = [round(number, digits) for number in numbers if number is not None]
    target = None
    # The best needs another to be better than; numbers that are equal as printed are equal.
    if better and len(set(present)) > 1:
        target = min(present) if better == "low" else max(present)
    values = []
    for index, number in enumerate(numbers):
        if number is None:
            values.append(Value(ABSENT))
            continue
        value = Value(
            fixed(number, digits, "+" if signed else ""),
            number,
            best=target is not None and round(number, digits) == target,
        )
        base = numbers[0]
        if index and base is not None and (compare or relative):
            difference = number - base
            change = fixed(difference, digits, "+")
            if relative and base:
                change += f" ({difference / base:+.2%})"
            value = replace(value, change=change, difference=difference)
        values.append(value)
    return Measure(section, name, tuple(values))
