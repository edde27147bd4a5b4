"""A study in sentences: does guidance raise attention, what does it cost in loss, does any task change?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from gaguide.grouping import grouped
from gaguide.numbers import fixed
from gaguide.report.run_findings import unseen_words
from gaguide.report.study_analysis import attention_means
from gaguide.report.study_comparisons import decisive, is_significant
from gaguide.report.study_heads import head_findings
from gaguide.report.text import constant_note, counted, excludes_zero, first_few, percent, tally
from gaguide.study.analysis_records import LossCost
from gaguide.study.records import HELD_OUT, Comparison
from gaguide.study.study_records import StudyRecords


def study_findings(study: StudyRecords) -> list[str]:
    """Sentences with their numbers; none about quantities that were not measured."""
    return [*_attention(study), *head_findings(study), *_losses(study), *_tasks(study), *_verdicts(study)]


def _attention(study: StudyRecords) -> Iterator[str]:
    for experiment in study.index.experiments:
        rows = study.index.attention.get(experiment, ())
        before, after = attention_means(rows)
        if before is None or after is None:
            continue
        what = "guided to" if any(row.guided for row in rows) else "only measured on"
        yield (
            f"{experiment}: attention of the heads {what} words went from {before:.3f} to {after:.3f} "
            f"(mean over heads, {counted(len({row.size for row in rows}), 'size')} and "
            f"{counted(len({row.seed for row in rows}), 'seed')})."
        )


def _losses(study: StudyRecords) -> Iterator[str]:
    for (experiment, baseline), rows in study.index.losses.items():
        if baseline == "original":
            continue
        parts = [f"{row.size} {fixed(row.difference, 4, '+')} ({percent(row.relative)})" for row in rows]
        yield f"{experiment}: held-out loss against {baseline} {', '.join(parts)}; {_noise(rows)}."


def _noise(rows: Sequence[LossCost]) -> str:
    """At which sizes the interval over seeds excludes 0; a single seed has no interval."""
    tested = [(row.size, row.low, row.high) for row in rows if row.low is not None and row.high is not None]
    beyond = [size for size, low, high in tested if excludes_zero(low, high)]
    parts = [f"beyond noise at {', '.join(beyond)}"] if beyond else []
    if tested and not beyond:
        parts = ["within noise at " + ("every size" if len(tested) == len(rows) else
                                       ", ".join(size for size, *_ in tested))]  # fmt: skip
    untested = [row.size for row in rows if row.low is None]
    if untested:
        where = "" if len(untested) == len(rows) else f" at {', '.join(untested)}"
        parts.append(f"without seeds to tell it from noise{where}")
    return ", ".join(parts)


def _tasks(study: StudyRecords) -> Iterator[str]:
    for baseline in study.index.baselines:
        rows = [
            row
            for task, metric in study.index.main_metrics.items()
            for size in study.index.sizes
            for experiment in study.index.experiments
            if (row := decisive(study, size, experiment, baseline, task, metric)) is not None
        ]
        constant = sum(row.constant > 0 for row in rows)
        rows = [row for row in rows if not row.constant]
        moved = [row for row in rows if is_significant(row)]
        if rows or constant:
            listed = first_few(list(map(_moved, moved)), "; ")
            yield (
                f"Against {baseline}, {len(moved)} of {len(rows)} comparisons of tasks are beyond noise "
                f"after Holm's correction over tasks{': ' + listed if moved else ''}."
                + constant_note(constant)
            )


def _moved(row: Comparison) -> str:
    better = {True: "better", False: "worse", None: "moved"}[row.improved]
    single = ", over the examples of one seed" if row.level == "seed" and row.seed is not None else ""
    return f"{row.task}, {row.size}, {row.experiment} {fixed(row.difference, 3, '+')} ({better}{single})"


def _verdicts(study: StudyRecords) -> list[str]:
    metrics = study.index.main_metrics
    found = [row.verdict for row in study.verdicts if metrics.get(row.task) == row.metric]
    if not set(found) - {"not enough sizes"}:
        return []
    return [f"Scaling verdicts over tasks and columns: {tally(found, ', ')}."]


def _constant_answers(study: StudyRecords) -> list[str]:
    """One sentence for each task in which models give constant answers."""
    cells: dict[str, dict[str, None]] = {}
    for row in study.results:
        if row.doubt == "constant" and study.index.main_metrics.get(row.task) == row.metric:
            cells.setdefault(row.task, {})[row.cell] = None
    return [
        f"{task}: {len(found)} models give one answer in at least 95% of the examples (‡), so that their "
        f"accuracy measures the data: {first_few(found)}."
        for task, found in cells.items()
    ]


def _repeated(study: StudyRecords) -> list[str]:
    """One sentence for each cell whose every number is that of an earlier cell of its size."""
    numbers = grouped((row.cell, (row.task, row.metric, row.value)) for row in study.results)
    first: dict[Any, str] = {}
    found = {}
    for cell in study.cells:
        own = sorted(numbers.get(cell.id, ()))
        if cell.role == "tuned" and (HELD_OUT, "lm_loss") in [one[:2] for one in own]:
            name = first.setdefault((cell.size, *own), cell.id)
            if name != cell.id:
                found[cell.id] = name
    return [
        f"{cell} has the numbers of {name} in every task and on held-out text: one training twice, which "
        "says nothing about noise."
        for cell, name in found.items()
    ]


def _dropped_steps(study: StudyRecords) -> list[str]:
    """One sentence on all cells that dropped steps."""
    found = [f"{cell.id} {cell.dropped_steps:,}" for cell in study.cells if cell.dropped_steps]
    return [f"Steps were dropped because their gradient was not finite: {first_few(found)}."] if found else []


def _truncated(study: StudyRecords) -> list[str]:
    """One sentence for each task whose prompts were cut in some cell."""
    main = study.index.main_metrics
    found = grouped((r.task, r) for r in study.results if r.truncated and main.get(r.task) == r.metric)
    return [
        f"{task}: up to {max(row.truncated for row in rows):,} of {rows[0].count:,} prompts were cut to the "
        f"model's positions, in {len(rows)} cells."
        for task, rows in found.items()
    ]


def study_cautions(study: StudyRecords) -> Iterator[str]:
    """Missing cells, different code or data between cells, and sizes too small to say much."""
    states = Counter(cell.state for cell in study.cells)
    if unfinished := {state: count for state, count in states.items() if state != "done"}:
        listed = ", ".join(f"{count} {state}" for state, count in sorted(unfinished.items()))
        has_numbers = {row.cell for row in study.results}
        early = [cell.id for cell in study.cells if cell.state != "done" and cell.id in has_numbers]
        yield (
            f"Not every cell is done ({listed} of {len(study.cells)}); numbers are of the others"
            + (
                f", and of {len(early)} that are evaluated but not done: {first_few(early)}."
                if early
                else "."
            )
        )
    yield from (f"{cell.id} failed: {(cell.error or 'no reason recorded').strip().splitlines()[-1]}"
                for cell in study.cells if cell.state == "failed")  # fmt: skip
    for cell in study.cells:
        if cell.state == "done" and cell.error:
            yield f"{cell.id}: its heads were not removed ({cell.error.strip().splitlines()[-1]})."
    yield from (f"Left out of every table, figure and test: {row.sentence}." for row in study.left_out)
    yield from (f"{note}." for note in study.provenance.get("notes", ()))
    unseen: dict[str, dict[str, None]] = {}
    for row in study.attention:
        if row.before is None and row.after is None:
            unseen.setdefault(row.experiment, {})[row.pattern] = None
    yield from (unseen_words(experiment, list(patterns)) for experiment, patterns in unseen.items())
    yield from (*_dropped_steps(study), *_truncated(study), *_constant_answers(study), *_repeated(study))
    for what in ("code", "data", "tokenizer", "tasks", "evaluation code"):
        known = {cell.fingerprints[what] for cell in study.cells if what in cell.fingerprints}
        if len(known) > 1:
            yield f"The cells have {len(known)} different fingerprints of their {what}."
    largest = max((mean.parameters for mean in study.means), default=0)
    if 0 < largest < 50_000_000:
        yield (
            f"The largest model has {largest:,} parameters: models this small show where attention goes "
            "and what that costs, hardly what it is good for."
        )
