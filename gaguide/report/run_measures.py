"""Numbers that runs are compared by: one `Measure` per row, one `Value` per run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gaguide.evaluate.compare.records import TaskComparison
from gaguide.evaluate.results.metric_names import Better, Doubt
from gaguide.log import format_duration
from gaguide.numbers import fixed
from gaguide.report.run_paired import RunTests, paired_tests
from gaguide.report.run_records import RunRecord
from gaguide.report.run_scores import TaskScore
from gaguide.report.text import ABSENT, DIRECTIONS, excludes_zero, interval, mark, p_value, percent, tally

_BANDS = {
    "on": "the cues themselves",
    "1-5": "1 to 5 tokens after",
    "6-20": "6 to 20 tokens after",
    "rest": "other tokens",
}
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
    """Examples behind the number; tokens, for a loss near cues."""
    change: str | None = None
    """Difference to the first run as it is shown; None in the first run and where a number is missing."""
    difference: float | None = None
    """Difference to the first run."""
    best: bool = False
    """Whether the difference to the first run, or of the first to every other, is an improvement beyond its
    95% interval on the same examples."""
    digits: int = 3
    """Decimals of the interval."""
    tested: str = ""
    """Interval and p value of the difference, in words; empty where it was not tested."""
    doubt: Doubt | None = None
    """Why an accuracy says nothing about the model's answers; `text` then has the mark."""


@dataclass(frozen=True)
class Measure:
    """A row of the comparison."""

    section: str
    """Heading of the group that the row belongs to."""
    name: str
    """Name of the quantity, with its unit."""
    values: tuple[Value, ...]
    """One value per run."""


def measures(runs: Sequence[RunRecord], tests: RunTests | None = None) -> list[Measure]:
    """Every row for which some run has a value; the first run is the baseline."""
    tests = paired_tests(runs) if tests is None else tests
    rows = (
        _about_runs(runs)
        + _language_model(runs)
        + _near_cue(runs)
        + _attention(runs)
        + _ablations(runs)
        + _tasks(runs, tests)
    )
    return [
        row for row in rows if any(value.number is not None or value.text != ABSENT for value in row.values)
    ]


def _about_runs(runs: Sequence[RunRecord]) -> list[Measure]:
    def row(name: str, show: Callable[[float], str], number: Callable[[RunRecord], float | None]) -> Measure:
        numbers = [number(run) for run in runs]
        return Measure(
            "Run", name, tuple(Value(ABSENT) if n is None else Value(show(n), float(n)) for n in numbers)
        )

    return [
        Measure("Run", "state", tuple(Value(run.state) for run in runs)),
        Measure("Run", "experiment", tuple(Value(run.experiment or ABSENT) for run in runs)),
        row("guidance weight", "{:g}".format, lambda run: run.guidance_weight),
        row("parameters trained (others frozen)", "{:,.0f}".format, lambda run: run.trained),
        row("optimizer steps", "{:,.0f}".format, lambda run: run.steps),
        row("dropped steps (gradient not finite)", "{:,.0f}".format, lambda run: run.dropped or None),
        row("training tokens", "{:,.0f}".format, lambda run: run.tokens),
        row("ranks", "{:,.0f}".format, lambda run: run.world_size),
        row("time in steps", format_duration, lambda run: run.seconds),
        row("tokens per second", "{:,.0f}".format, lambda run: run.tokens_per_second),
    ]


def _language_model(runs: Sequence[RunRecord]) -> list[Measure]:
    section = "Language model on held-out text"
    before = [run.before.lm_loss if run.before else None for run in runs]
    after = [run.after.lm_loss if run.after else None for run in runs]
    return [
        _numbers(section, "loss before", before, 4),
        _compared(
            _numbers(section, f"loss after (nats per token){DIRECTIONS['low']}", after, 4, relative=True),
            [run.has_blocks_of(runs[0]) for run in runs],
        ),
    ]


def _compared(row: Measure, are_comparable: Sequence[bool]) -> Measure:
    """The row without differences to the first run where a run's numbers are not comparable with it."""
    return replace(
        row,
        values=tuple(
            one if comparable else replace(one, change=None, difference=None)
            for one, comparable in zip(row.values, are_comparable, strict=True)
        ),
    )


def _near_cue(runs: Sequence[RunRecord]) -> list[Measure]:
    """Rows for each set of cues by content: losses of different cues are never in one row."""
    names = {
        one.cue_content: one.cues for run in runs for one in (run.before, run.after) if one and one.near_cue
    }
    rows = []
    for content, known in names.items():
        name = known if list(names.values()).count(known) == 1 else f"{known} {content[:6]}"
        section = f"Loss near cues on held-out text (tokens after {name}; n: tokens)"
        for when, direction in (("before", ""), ("after", DIRECTIONS["low"])):
            measured = [getattr(run, when) for run in runs]
            own = [one.near_cue if one and one.cue_content == content else {} for one in measured]
            for band in dict.fromkeys(band for losses in own for band in losses):
                losses = [found.get(band) for found in own]
                name_of_row = f"{_BANDS.get(band, band)}, {when}{direction}"
                row = _numbers(section, name_of_row, losses, 4, relative=when == "after")
                counts = [one.near_cue_tokens.get(band) if one else None for one in measured]
                rows.append(
                    _compared(_with_counts(row, counts), [run.has_blocks_of(runs[0]) for run in runs])
                )
    return rows


def _attention(runs: Sequence[RunRecord]) -> list[Measure]:
    section = "Attention on the guided words, held-out text"
    before = [run.before.guided_attention if run.before else None for run in runs]
    after = [run.after.guided_attention if run.after else None for run in runs]
    row = _numbers(section, f"after{DIRECTIONS['high']}", after, 3, compare=True)
    return [
        _numbers(section, "before", before, 3),
        _compared(row, [run.has_heads_of(runs[0]) for run in runs]),
        _numbers(section, "rise", [run.rise for run in runs], 3, signed=True),
    ]


def _with_counts(row: Measure, counts: Sequence[int | None]) -> Measure:
    """The row with the number of examples or tokens behind each value."""
    values = zip(row.values, counts, strict=True)
    return replace(
        row, values=tuple(replace(one, count=None if one.number is None else n) for one, n in values)
    )


def _ablations(runs: Sequence[RunRecord]) -> list[Measure]:
    """Loss without the guided heads, and the verdicts on them."""
    section = "Without the guided heads, held-out text"
    counts = [len(run.ablation.heads) if run.ablation else 0 for run in runs]
    which = "that head" if max(counts, default=0) == 1 else "those heads, all at once"
    values, verdicts = [], []
    for run in runs:
        loss = None if run.ablation is None else run.ablation.loss
        if run.ablation is None or loss is None or loss.difference is None:
            values.append(Value(ABSENT))
        else:
            text = fixed(loss.difference, 4, "+")
            values.append(Value(text, loss.difference, loss.low, loss.high, digits=4))
        heads = run.ablation.heads if run.ablation else ()
        verdicts.append(Value(tally(head.verdict for head in heads) or ABSENT))
    return [
        Measure(section, f"loss without {which} (nats per token)", tuple(values)),
        Measure(section, "heads", tuple(verdicts)),
    ]


def _tasks(runs: Sequence[RunRecord], tests: RunTests) -> list[Measure]:
    """Each task's main metric, which the evaluator lists first, then the others in a separate section."""
    keys = dict.fromkeys(score.key for run in runs for score in run.scores or ())
    main = {task: metric for task, metric in reversed(keys)}
    first = [_task(runs, tests, TASKS, *key) for key in keys if main[key[0]] == key[1]]
    return first + [_task(runs, tests, FURTHER, *key) for key in keys if main[key[0]] != key[1]]


def _task(runs: Sequence[RunRecord], tests: RunTests, section: str, task: str, metric: str) -> Measure:
    found = [next((score for score in run.scores or () if score.key == (task, metric)), None) for run in runs]
    known = next(score for score in found if score is not None)
    name = f"{task} · {metric}{DIRECTIONS.get(known.better or '', '')}" + (
        "" if known.chance is None else f" (chance {known.chance:.3f})"
    )
    numbers = [score.value if score else None for score in found]
    row = _numbers(section, name, numbers, 3, compare=True)
    values = [
        _with_interval(value, score, evaluated=run.scores is not None)
        for value, score, run in zip(row.values, found, runs, strict=True)
    ]
    values = [
        replace(value, change=None, difference=None) if (run.name, task) in tests.other_examples else value
        for value, run in zip(values, runs, strict=True)
    ]
    made = [tests.of(run.name, task, metric) for run in runs]
    return replace(row, values=tuple(_with_tests(values, made, known.better)))


def _with_tests(
    values: Sequence[Value], tests: Sequence[TaskComparison | None], better: Better | None
) -> list[Value]:
    """The values with their tests, bold where one shows an improvement."""
    improved = [_improved(one, better) for one in tests]
    first = len(values) > 1 and all(one is False for one in improved[1:])
    return [
        replace(value, best=bool(improved[index]) if index else first, tested=_tested(tests[index]))
        for index, value in enumerate(values)
    ]


def _improved(test: TaskComparison | None, better: Better | None) -> bool | None:
    """Whether a difference beyond its interval is an improvement; None where nothing is shown, as by constant
    answers."""
    if test is None or better is None or test.is_constant or not excludes_zero(test.low, test.high):
        return None
    return (test.difference > 0) == (better == "high")


def _tested(test: TaskComparison | None) -> str:
    if test is None:
        return ""
    ends = interval(test.low, test.high)
    return " ".join(filter(None, [ends, "" if test.p is None else f"p {p_value(test.p)}"]))


def _with_interval(value: Value, score: TaskScore | None, evaluated: bool) -> Value:
    if score is None:
        return replace(value, text=ABSENT if evaluated else "not evaluated")
    return replace(
        value,
        text=value.text + mark(score.doubt),
        low=score.low,
        high=score.high,
        count=score.count,
        doubt=score.doubt,
    )


def _numbers(
    section: str,
    name: str,
    numbers: Sequence[float | None],
    digits: int,
    *,
    compare: bool = False,
    relative: bool = False,
    signed: bool = False,
) -> Measure:
    """A row of numbers.

    compare: add the difference to the first run. relative: add it in percent too. signed: show a plus sign.
    """
    values = []
    for index, number in enumerate(numbers):
        if number is None:
            values.append(Value(ABSENT))
            continue
        value = Value(fixed(number, digits, "+" if signed else ""), number)
        base = numbers[0]
        if index and base is not None and (compare or relative):
            difference = number - base
            change = fixed(difference, digits, "+")
            if relative and base:
                change += f" ({percent(difference / base)})"
            value = replace(value, change=change, difference=difference)
        values.append(value)
    return Measure(section, name, tuple(values))
