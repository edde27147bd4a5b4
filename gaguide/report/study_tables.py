"""A study's records as tables: the paper's Tables 1 and 2, comparisons, verdicts, and the analysis.

Only averages over heads are computed here; the statistics are in the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from gaguide.evaluate.results.metric_names import Doubt
from gaguide.report.document import Cell, Table
from gaguide.report.text import (
    ABSENT,
    DIRECTIONS,
    fixed,
    interval,
    mark,
    mark_notes,
    p_value,
    slug,
    small_number,
    smallest_p,
)
from gaguide.study.analysis_records import HeadAttention, LossCost
from gaguide.study.record_files import StudyRecords
from gaguide.study.records import Comparison, Mean, ScalingVerdict

SIGNIFICANT = 0.05


def interval_units(means: Iterable[Mean]) -> tuple[bool, bool]:
    """Whether some interval is over seeds, and some over the examples of a single model."""
    shown = [mean for mean in means if mean.low is not None]
    return any(mean.seeds > 1 for mean in shown), any(mean.seeds == 1 for mean in shown)


def sizes(study: StudyRecords) -> tuple[str, ...]:
    """Sizes with results, smallest first; those of the cells before there are results."""
    return study.index.sizes


def experiments(study: StudyRecords) -> tuple[str, ...]:
    """The study's experiments, the columns of most tables, in its order."""
    return study.index.experiments


def main_metrics(study: StudyRecords) -> Mapping[str, str]:
    """Task → the metric that its evaluation lists first."""
    return study.index.main_metrics


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
    return [table for size in sizes(study) if (table := _size_table(study, size)).rows]


def _size_table(study: StudyRecords, size: str) -> Table:
    columns, rows, with_paper, seeds = experiments(study), [], False, set()
    doubts: set[Doubt | None] = set()
    incomplete = truncated = False
    several = any(mean.seeds > 1 for mean in study.means if mean.size == size)
    for task, metric in main_metrics(study).items():
        means = [mean_of(study, size, experiment, task, metric) for experiment in columns]
        known = [mean for mean in means if mean is not None]
        if not known:
            continue
        digits = 3 if max(abs(mean.value) for mean in known) < 100 else 1
        better = known[0].better
        # A share of the data is not the best result.
        ours = [None if mean is None or mean.constant else mean.value for mean in means]
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
        note.append("Second number: the paper's, its best in bold as well.")
    note.append(
        f"* differs from finetuned, † from original (Holm-corrected over tasks, p < {SIGNIFICANT:g})."
    )
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
        "; where one seed is named, over its examples, which says nothing of other seeds"
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


def decisive(
    study: StudyRecords, size: str, experiment: str, baseline: str, task: str, metric: str
) -> Comparison | None:
    """The comparison over seeds where there are several, else that of the only seed; None without either."""
    rows = study.index.comparisons.get((size, experiment, baseline, task, metric), ())
    over = [row for row in rows if row.level == "seeds" and row.seeds > 1]
    single = [row for row in rows if row.level == "seed"]
    return over[0] if over else single[0] if len(single) == 1 else None


def is_significant(row: Comparison) -> bool:
    """Whether p, corrected where there is a correction, is below 0.05."""
    p = row.p if row.p_holm is None else row.p_holm
    return p is not None and p < SIGNIFICANT


def comparison_table(study: StudyRecords) -> Table:
    """Every decisive comparison of each task's main metric, with its test."""
    rows, constant = [], False
    for task, metric in main_metrics(study).items():
        for size in sizes(study):
            for baseline in ("finetuned", "original"):
                for experiment in experiments(study):
                    row = decisive(study, size, experiment, baseline, task, metric)
                    if row is not None:
                        name = f"{task} · {size} · {experiment} against {baseline}"
                        rows.append((name, _comparison(row)))
                        constant |= row.constant > 0
    return Table(
        "comparisons",
        "Comparisons on the same examples",
        ("", "difference", "95% interval", "p", "p, Holm", "detectable", "test", "helped / hurt"),
        tuple(rows),
        "Over seeds where there are several: t-test of the paired differences; else McNemar for accuracies "
        "and a paired bootstrap for losses. Holm-corrected over the tasks of a size, experiment and "
        "baseline. Detectable: the smallest true difference that these seeds (examples, where there is one "
        "seed) show with probability 0.8, before correction."
        + smallest_p(len(main_metrics(study)))
        + " Over seeds all of which differ by the same, p is that of the sign-flip test, 2 / 2^seeds."
        + _constant_note(constant),
    )


def _comparison(row: Comparison) -> tuple[Cell, ...]:
    moved = ABSENT if row.helped is None or row.hurt is None else f"{row.helped} / {row.hurt}"
    return (
        Cell(fixed(row.difference, 4, "+") + _constant_mark(row), is_significant(row)),
        Cell(interval(row.low, row.high, 4) or ABSENT),
        Cell(p_value(row.p)),
        Cell(p_value(row.p_holm)),
        Cell(ABSENT if row.detectable is None else small_number(row.detectable, 4)),
        Cell(row.test, small="\n".join(_units(row))),
        Cell(moved),
    )


def _units(row: Comparison) -> Iterator[str]:
    """What the test is over."""
    if row.level == "seeds":
        yield f"{row.seeds} seeds"
    elif row.count is not None:
        yield f"{row.count:,} examples"
    if row.groups is not None:
        yield f"{row.groups:,} groups"
    if row.left_out:
        yield f"{row.left_out} left out"


def verdict_table(study: StudyRecords) -> Table:
    """How each task's score moves with size, for each experiment."""
    columns, rows = experiments(study), []
    by_key = {(v.task, v.metric, v.experiment): v for v in study.verdicts}
    for task, metric in main_metrics(study).items():
        found = [by_key.get((task, metric, experiment)) for experiment in columns]
        if any(found):
            cells = tuple(
                Cell(ABSENT) if v is None else Cell(
                    v.verdict + _constant_mark(v),
                    v.verdict not in ("flat", "not enough sizes"),
                    small=_slope_text(v),
                )
                for v in found
            )  # fmt: skip
            rows.append((f"{task} ({metric})", cells))
    return Table(
        "verdicts",
        "Scaling verdicts",
        ("task", *columns),
        tuple(rows),
        "Small print: slope per tenfold of parameters, its 95% interval, Holm-corrected p (of the bend where "
        "one is claimed), and the smallest true slope that is detectable (with probability 0.8, before "
        "correction): flat means that no slope of about that size or more was found. "
        "Positive: bigger is better (a higher accuracy, a lower loss); inverse: bigger is worse. "
        "Bold: neither flat nor undecided." + _constant_note(any(v.constant for v in by_key.values())),
    )


def _constant_mark(row: Comparison | ScalingVerdict) -> str:
    return mark("constant" if row.constant else None)


def _constant_note(used: bool) -> str:
    note = "some of the models give constant answers there, whose accuracy measures the data."
    return f" {mark('constant')} {note.capitalize()}" if used else ""


def loss_table(study: StudyRecords) -> Table:
    """The cost of guidance in held-out language-model loss."""
    rows = [(f"{row.size} · {row.experiment} against {row.baseline}", _loss(row)) for row in study.losses]
    header = ("", "loss", "baseline", "difference", "relative", "95% interval", "seeds")
    note = "Nats per token on held-out text; differences paired by seed, t-interval over seeds."
    return Table("loss", "Cost in language-model loss", header, tuple(rows), note)


def _loss(row: LossCost) -> tuple[Cell, ...]:
    return (
        Cell(f"{row.loss:.4f}"),
        Cell(f"{row.baseline_loss:.4f}"),
        Cell(fixed(row.difference, 4, "+")),
        Cell(f"{row.relative:+.2%}"),
        Cell(interval(row.low, row.high, 4) or ABSENT),
        Cell(str(row.seeds)),
    )


def attention_table(study: StudyRecords) -> Table:
    """Attention of the guided or measured heads on their words by layer, before → after training."""
    columns, rows = experiments(study), []
    by_layer = study.index.attention_by_layer
    layers: dict[str, set[int]] = {}
    for size, layer, _ in by_layer:
        layers.setdefault(size, set()).add(layer)
    for size in sizes(study):
        for layer in sorted(layers.get(size, ())):
            cells = tuple(
                Cell(_before_after(by_layer.get((size, layer, experiment), ()))) for experiment in columns
            )
            rows.append((f"{size} · layer {layer}", cells))
    unguided = sorted({row.experiment for row in study.attention if not row.guided})
    note = "Attention mass on a head's words, held-out text, mean over heads and seeds. "
    note += f"Only measured, not guided: {', '.join(unguided)}." if unguided else ""
    return Table(
        "attention", "Attention on the guided words, before → after", ("", *columns), tuple(rows), note
    )


def _before_after(rows: Iterable[HeadAttention]) -> str:
    listed = list(rows)
    before, after = attention_means(listed)
    return ABSENT if before is None or after is None else f"{before:.3f} → {after:.3f}"


def attention_means(rows: Sequence[HeadAttention]) -> tuple[float | None, float | None]:
    """Means before and after training, over the heads that saw a guided word; None where none did."""
    before = [row.before for row in rows if row.before is not None]
    after = [row.after for row in rows if row.after is not None]
    return (fmean(before) if before else None), (fmean(after) if after else None)


def share_table(study: StudyRecords, mode: str) -> Table:
    """Share of each task's examples that contain each lexicon; the paper's criterion is more than half."""
    shares = [row for row in study.shares if row.mode == mode]
    lexicons = list(dict.fromkeys(row.lexicon for row in shares))
    by_key = {(row.task, row.lexicon): row for row in shares}
    rows = tuple(
        (
            task,
            tuple(
                Cell(ABSENT) if row is None
                else Cell(f"{row.share:.0%}", row.share > 0.5, small=f"{row.containing} of {row.examples}")
                for row in (by_key.get((task, lexicon)) for lexicon in lexicons)
            ),
        )
        for task in dict.fromkeys(row.task for row in shares)
    )  # fmt: skip
    how = {"pieces": "the paper's token pieces", "words": "whole words"}.get(mode, mode)
    title = f"Examples that contain a lexicon's words ({how})"
    return Table(f"lexicons-{mode}", title, ("task", *lexicons), rows, "Bold: more than half.")


def gain_table(study: StudyRecords) -> Table:
    """Mean gain over the baseline on examples with and without words that the experiment guides to."""
    pairs: dict[str, dict[str, Cell]] = {}
    main = main_metrics(study)
    for row in study.gains:
        if row.metric != main.get(row.task):
            continue
        name = f"{row.task} ({row.metric}) · {row.size} · {row.experiment} against {row.baseline}"
        text = ABSENT if row.gain is None else fixed(row.gain, 4, "+")
        beyond = row.low is not None and row.high is not None and not row.low <= 0 <= row.high
        small = " ".join(filter(None, [interval(row.low, row.high, 4), f"n = {row.examples}"]))
        pairs.setdefault(name, {})[row.words] = Cell(text, beyond, small=small)
    rows = tuple((name, (cells.get("with", Cell(ABSENT)), cells.get("without", Cell(ABSENT))))
                 for name, cells in pairs.items())  # fmt: skip
    return Table(
        "gains",
        "Gain on examples with and without guided words",
        ("", "with", "without"),
        rows,
        "Difference of the metric: for losses, below 0 is better. Brackets: bootstrap over examples, not "
        "corrected for the number of rows. "
        "Bold: the interval excludes 0.",
    )


def _slope_text(row: ScalingVerdict) -> str:
    """The slope and the p value that decided: of the bend where one is claimed, else of the slope."""
    if row.slope is None:
        return ""
    bent = row.verdict in ("U-shaped", "inverted U")
    text = p_value(row.p_bend_holm if bent else row.p_slope_holm)
    sign = " " if text.startswith("<") else " = "
    unbroken = interval(row.slope_low, row.slope_high).replace(" ", "\u00a0")
    slope = f"{fixed(row.slope, 3, '+')} {unbroken}"
    lines = [slope, f"{'bend: ' if bent else ''}p{sign}{text}"]
    if row.slope_detectable is not None:
        lines.append(f"detectable {small_number(row.slope_detectable, 3)}")
    if row.left_out:
        lines.append(f"{row.left_out} left out")
    return "\n".join(lines)
