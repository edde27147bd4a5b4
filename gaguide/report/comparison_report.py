"""The report on compared evaluations: tests, what the examples could show, gains and losses with text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, fields
from itertools import groupby

from gaguide.evaluate.compare.records import Comparison, ExampleChange, TaskComparison
from gaguide.evaluate.results.metric_names import GROUP_ACC
from gaguide.files import without_nonfinite
from gaguide.numbers import fixed
from gaguide.report.comparison_figure import draw_differences
from gaguide.report.document import Cell, Chart, Part, Report, Row, Table, folded
from gaguide.report.text import (
    ABSENT,
    DIRECTIONS,
    change,
    csv_text,
    differences_shown,
    end_of,
    interval,
    mark,
    mark_notes,
    p_value,
    records_csv,
    shorten,
    shown,
    slug,
    small_number,
    smallest_p,
)

_DIGITS = 4
_PROMPT_SHOWN = 400
"""Characters from the end of a prompt."""
_ANSWER_SHOWN = 120
"""Characters of an answer."""
_NOTE = (
    "Difference: evaluation minus baseline on the same examples, with its 95% interval. p: McNemar's mid-p "
    "for right and wrong answers, else a paired bootstrap; where examples come in groups, groups are the "
    "unit. p, Holm: corrected over the main metrics of all tasks and pairs; further metrics each over their "
    "own tests. Bold: p, Holm below 0.05. Intervals are over examples: they do not cover the variation "
    "between trainings. ↑: higher is better, ↓: lower is better. Repeated: examples that ask the same as an "
    "earlier one; each counts, so that intervals are too narrow."
)
_POWER_NOTE = (
    "Effect: Cohen's g (share of the changed examples that were gained, minus 0.5) or Cohen's d (difference "
    "by the standard deviation of the differences), with its 95% interval. Detectable: the smallest true "
    "difference that these examples show with probability 0.8, before correction. Power: probability of "
    "showing a true difference of that size, in units of the metric. Needed: examples of this kind that "
    "would show the observed difference with probability 0.8."
)


def comparison_report(compared: Comparison, examples: int = 5) -> Report:
    """The report on a comparison. `examples`: gained and lost ones of each task in pages."""
    main = [one for one in compared.tests if one.is_main]
    tables = (differences_table(compared.tests), power_table(compared.tests))
    changed = tuple(_example_tables(compared.changes, examples))
    chart = Chart(
        "differences",
        "Differences",
        "Main metric of each task, with the 95% interval of the difference over examples, which does not "
        "cover the variation between trainings. Grey: differences that these examples do not show with "
        "power 0.8. Filled marks: p, Holm below 0.05. Losses are in nats: of a completion or class; of "
        "held-out text, per token.",
        lambda: draw_differences(main),
    )
    body: list[Part] = [tables[0], chart, tables[1], *map(folded, changed), _sources(compared)]
    return Report(
        title="Comparison of evaluations",
        findings=tuple(_findings(main)),
        cautions=tuple(f"{text.rstrip('.')}." for text in _cautions(compared)),
        summary=differences_table(main),
        tables=(*tables, *changed, _sources(compared)) if compared.tests else (_sources(compared),),
        charts=(chart,),
        body=tuple(body),
        csv_files=lambda: {
            "": _csv(compared.tests),
            "examples": records_csv(ExampleChange, compared.changes),
        },
    )


def comparison_json(compared: Comparison) -> str:
    """Evaluations, tests, examples that changed and notes, as JSON with every digit."""
    tree = {
        "evaluations": [
            {"name": one.name, "path": str(one.path), "model": one.model, "tasks": list(one.tasks)}
            for one in compared.evaluations
        ],
        "tests": [asdict(one) | {"improved": one.improved} for one in compared.tests],
        "examples": [asdict(one) for one in compared.changes],
        "notes": list(compared.notes),
        "warnings": [text for one in compared.evaluations for text in one.warnings],
    }
    return json.dumps(without_nonfinite(tree), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def differences_table(tests: Sequence[TaskComparison]) -> Table:
    """Values, differences and tests: a row for each metric of each task and pair."""
    rows: list[Row] = [
        (
            _label(one),
            (
                Cell(fixed(one.baseline_value, _DIGITS) + mark(one.baseline_doubt)),
                Cell(fixed(one.value, _DIGITS) + mark(one.doubt)),
                Cell(fixed(one.difference, _DIGITS, "+"), best=one.is_shown),
                Cell(interval(one.low, one.high, _DIGITS) or ABSENT),
                Cell(p_value(one.p)),
                Cell(p_value(one.p_holm)),
                Cell(ABSENT if one.gained is None else f"{one.gained} / {one.lost}"),
                Cell(f"{one.count:,}", small="\n".join(_counts(one))),
            ),
        )
        for one in tests
    ]
    header = (
        "", "baseline", "evaluation", "difference", "95% interval", "p", "p, Holm", "gained / lost",
        "examples",
    )  # fmt: skip
    note = _NOTE + smallest_p(sum(one.is_main for one in tests))
    note = " ".join([note, *mark_notes(doubt for one in tests for doubt in (one.doubt, one.baseline_doubt))])
    return Table("tests", "Tests on the same examples", header, tuple(rows), note, _groups(tests))


def power_table(tests: Sequence[TaskComparison]) -> Table:
    """Effect sizes, power, and detectable differences."""
    sizes = next((tuple(size for size, _ in one.power) for one in tests if one.power), ())
    rows: list[Row] = [
        (
            _label(one),
            (
                _effect(one),
                Cell(_detectable(one)),
                *(Cell(f"{power:.0%}") for _, power in one.power),
                *(Cell(ABSENT) for _ in sizes[len(one.power) :]),
                Cell(shown(one.needed, ",")),
                Cell(f"{one.count:,}", small="\n".join(_counts(one))),
            ),
        )
        for one in tests
    ]
    header = ("", "effect", "detectable", *(f"power for {size:g}" for size in sizes), "needed", "examples")
    title = "What these examples could show"
    return Table("power", title, header, tuple(rows), _POWER_NOTE, _groups(tests))


def _label(one: TaskComparison) -> str:
    return f"{one.task} · {one.metric}{DIRECTIONS.get(one.better or '', '')}"


def _groups(tests: Sequence[TaskComparison]) -> tuple[str, ...]:
    return tuple(f"{one.evaluation} against {one.baseline}" for one in tests)


def _counts(one: TaskComparison) -> Iterator[str]:
    """Notes on the number of examples: left out, unmatched, repeated."""
    if one.groups is not None:
        yield f"{one.groups:,} groups"
    if one.left_out:
        is_groups = one.metric == GROUP_ACC
        why = "groups not finite or not asked as a whole" if is_groups else "not finite"
        yield f"{one.left_out:,} {why}, left out"
    if one.unmatched or one.baseline_unmatched:
        yield f"{one.unmatched:,} and {one.baseline_unmatched:,} not in both"
    if one.repeated:
        yield f"{one.repeated:,} repeated"


def _detectable(one: TaskComparison) -> str:
    """The smallest detectable difference; none of constant answers, which show the data's."""
    return ABSENT if one.detectable is None or one.is_constant else small_number(one.detectable, _DIGITS)


def _effect(one: TaskComparison) -> Cell:
    found = one.effect
    if found is None:
        return Cell(ABSENT)
    name = {"cohen_g": "g", "cohen_d": "d"}[found.name]
    return Cell(f"{name} = {fixed(found.value, 2, '+')}", small=interval(found.low, found.high, 2))


def _findings(main: Sequence[TaskComparison]) -> Iterator[str]:
    """For each pair: tasks shown to be better or worse, and differences that the rest could have shown."""
    for (name, baseline), group in groupby(main, key=lambda one: (one.evaluation, one.baseline)):
        every = list(group)
        tests = [one for one in every if not one.is_constant]
        parts = list(differences_shown(tests, 4))
        rest = [_not_shown(one) for one in tests if not one.is_shown]
        parts += [f"no difference is shown on {'; '.join(rest)}"] if rest else []
        constant = ", ".join(one.task for one in every if one.is_constant)
        parts += [f"nothing is measured on {constant}, as answers are constant (‡)"] if constant else []
        yield f"{name} against {baseline}: {'; '.join(parts)}."


def _not_shown(one: TaskComparison) -> str:
    if one.detectable is None:
        return f"{one.task} (these examples can show none)"
    return f"{one.task} (these examples show {small_number(one.detectable, 3)} or more)"


def _cautions(compared: Comparison) -> Iterator[str]:
    yield from compared.notes
    for one in compared.tests:
        if one.is_main and one.left_out:
            yield (
                f"{one.evaluation}, {one.task}: {one.left_out} of {one.left_out + one.count} examples are "
                "left out, as their scores are not finite"
            )
    for evaluation in compared.evaluations:
        yield from (f"{evaluation.name}: {text}" for text in evaluation.warnings)


def _example_tables(changes: Sequence[ExampleChange], limit: int) -> Iterator[Table]:
    """For each pair and task the examples that were gained and lost, the largest changes first."""
    keyed = groupby(changes, key=lambda one: (one.evaluation, one.baseline, one.task))
    for (name, baseline, task), group in keyed:
        listed = list(group)
        rows: list[Row] = []
        groups = []
        for word in ("gained", "better", "lost", "worse"):
            own = [one for one in listed if one.change == word]
            rows += [_example_row(one) for one in own[:limit]]
            groups += [f"{word}: {min(limit, len(own))} of {len(own)}"] * len(own[:limit])
        if rows:
            yield Table(
                f"examples-{slug(name)}-{slug(baseline)}-{slug(task)}",
                f"Examples that changed: {task}, {name} against {baseline}",
                ("example", "prompt", "right", baseline, name, "loss, difference"),
                tuple(rows),
                "The largest changes first. Prompts are shown from their end.",
                tuple(groups),
                monospace=True,
            )


def _example_row(one: ExampleChange) -> Row:
    return one.id, (
        Cell(end_of(one.prompt, _PROMPT_SHOWN)),
        *(Cell(_answer(text)) for text in (one.answer, one.baseline_prediction, one.prediction)),
        Cell(change(one.loss_difference, 3)),
    )


def _answer(text: str | None) -> str:
    return ABSENT if text is None else shorten(text, _ANSWER_SHOWN)


def _sources(compared: Comparison) -> Table:
    rows: list[Row] = [
        (one.name, (Cell(one.model), Cell(str(one.path)), Cell(", ".join(one.tasks))))
        for one in compared.evaluations
    ]
    return Table(
        "evaluations", "Evaluations", ("", "model", "read from", "tasks"), tuple(rows), monospace=True
    )


def _csv(tests: Sequence[TaskComparison]) -> str:
    columns = [column.name for column in fields(TaskComparison) if column.name not in ("effect", "power")]
    effect = ("effect_name", "effect", "effect_low", "effect_high")
    sizes = list(dict.fromkeys(size for one in tests for size, _ in one.power))
    return csv_text(
        [*columns, *effect, *(f"power_{size:g}" for size in sizes)],
        [
            [
                *(getattr(one, name) for name in columns),
                *(astuple(one.effect) if one.effect is not None else [None] * 4),
                *(dict(one.power).get(size) for size in sizes),
            ]
            for one in tests
        ],
    )
