"""The paper's Tables 1 and 2 from a study's records: a row per task, a column per experiment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from gaguide.evaluate.results.metric_names import Doubt
from gaguide.numbers import fixed
from gaguide.report.document import Cell, Table
from gaguide.report.study_comparisons import decisive, is_significant
from gaguide.report.text import ABSENT, DIRECTIONS, interval, mark, mark_notes, slug
from gaguide.stats.groups import ALPHA
from gaguide.study.records import Mean
from gaguide.study.study_records import StudyRecords


def interval_units(means: Iterable[Mean]) -> tuple[bool, bool]:
    """Whether some interval is over seeds, and some over the examples of a single model."""
    shown = [mean for mean in means if mean.low is not None]
    return any(mean.seeds > 1 for mean in shown), any(mean.seeds == 1 for mean in shown)


def mean_of(study: StudyRecords, size: str, experiment: str, task: str, metric: str) -> Mean | None:
    """A row of the means, None where it is missing; a single seed gets the interval over examples."""
    key = (size, experiment, task, metric)
    found = study.index.means.get(key)
    if found is None or found.seeds > 1 or found.low is not None:
        return found
    rows = study.index.results.get(key, ())
    return replace(found, low=rows[0].low, high=rows[0].high) if len(rows) == 1 else found


def size_tables(study: StudyRecords) -> list[Table]:
    """The paper's Tables 1 and 2, one for each size: a row per task, a column per experiment."""
    return [table for size in study.index.sizes if (table := _size_table(study, size)).rows]


def _size_table(study: StudyRecords, size: str) -> Table:
    columns, rows, with_paper, seeds = study.index.experiments, [], False, set()
    doubts: set[Doubt | None] = set()
    incomplete = truncated = False
    several = any(mean.seeds > 1 for mean in study.means if mean.size == size)
    for task, metric in study.index.table_metrics:
        means = [mean_of(study, size, experiment, task, metric) for experiment in columns]
        known = [mean for mean in means if mean is not None]
        if not known:
            continue
        digits = 3 if max(abs(mean.value) for mean in known) < 100 else 1
        better = known[0].better
        # Neither a share of the data nor the score of a constant answer is the best result.
        ours = [None if mean is None or mean.doubt else mean.value for mean in means]
        papers = [None if mean is None else mean.paper for mean in means]
        best, paper_best = _best(ours, better, digits), _best(papers, better, 4)
        with_paper |= any(paper is not None for paper in papers)
        seeds |= {mean.seeds for mean in known}
        incomplete |= any(mean.left_out for mean in known)
        truncated |= any(mean.truncated for mean in known)
        doubts |= {mean.doubt for mean in known}
        cells = tuple(
            Cell(ABSENT) if mean is None else Cell(
                fixed(mean.value, digits) + mark(mean.doubt) + _marks(study, size, experiment, task, metric),
                index in best,
                None if mean.paper is None else f"{mean.paper:g}",
                index in paper_best,
                _small_print(mean, digits, several),
            )
            for index, (experiment, mean) in enumerate(zip(columns, means, strict=True))
        )  # fmt: skip
        rows.append((_task_name(known[0]), cells))
    note = [_interval_note(seeds), "Bold: best of its row."]
    if with_paper:
        limit = (study.study.get("evaluate") or {}).get("limit")
        of = "" if limit is None else f", of all examples, where ours is of the first {limit:,} of each task"
        note.append(f"Second number: the paper's{of}, its best in bold as well.")
    note.append(f"* differs from finetuned, † from original (Holm-corrected over tasks, p < {ALPHA:g}).")
    if incomplete:
        note.append("Of seeds: the others are left out, for the reasons in the cautions.")
    if truncated:
        note.append("Cut: examples whose prompts were longer than the model, the most of any seed.")
    note += mark_notes(doubts)
    parameters = study.index.parameters.get(size)
    title = size if parameters is None else f"{size} ({parameters:,} parameters)"
    return Table(f"table-{slug(size)}", title, ("task", *columns), tuple(rows), " ".join(note))


def _interval_note(seeds: set[int]) -> str:
    """Explains the brackets of cells with these numbers of seeds."""
    if seeds == {1}:
        return "One seed; brackets: 95% interval over examples."
    single = (
        "; where one seed is named, over its examples, which says nothing about other seeds"
        if 1 in seeds
        else ""
    )
    return f"Mean over seeds; brackets: 95% interval over seeds{single}."


def _small_print(mean: Mean, digits: int, several: bool) -> str:
    """Interval, seeds where others have several or some are left out, and examples that were cut."""
    lines = [interval(mean.low, mean.high, digits)]
    if mean.left_out:
        lines.append(f"{mean.seeds} of {mean.seeds + mean.left_out} seeds")
    elif mean.seeds == 1 and several:
        lines.append("1 seed")
    if mean.truncated:
        lines.append(f"{mean.truncated} cut")
    return "\n".join(filter(None, lines))


def _task_name(mean: Mean) -> str:
    arrow = DIRECTIONS.get(mean.better or "", "")
    chance = "" if mean.chance is None else f", chance {mean.chance:.3f}"
    return f"{mean.task} ({mean.metric}{arrow}{chance})"


def _best(values: Sequence[float | None], better: str | None, digits: int) -> set[int]:
    known = {index: round(value, digits) for index, value in enumerate(values) if value is not None}
    if better is None or len(set(known.values())) < 2:
        return set()
    target = max(known.values()) if better == "high" else min(known.values())
    return {index for index, value in known.items() if value == target}


def _marks(study: StudyRecords, size: str, experiment: str, task: str, metric: str) -> str:
    return "".join(
        mark
        for mark, baseline in (("*", "finetuned"), ("†", "original"))
        if (row := decisive(study, size, experiment, baseline, task, metric)) is not None
        and is_significant(row)
    )
