"""A study's comparisons with baselines and its verdicts on size, as tables."""

from __future__ import annotations

from collections.abc import Iterator

from gaguide.evaluate.results.metric_names import GROUP_ACC
from gaguide.numbers import fixed
from gaguide.report.document import Cell, Table
from gaguide.report.text import ABSENT, interval, mark, p_value, p_words, small_number, smallest_p
from gaguide.stats.groups import ALPHA
from gaguide.study.records import Comparison, ScalingVerdict
from gaguide.study.study_records import StudyRecords


def decisive(
    study: StudyRecords, size: str, experiment: str, baseline: str, task: str, metric: str
) -> Comparison | None:
    """The comparison over seeds where there are several, else that of the only seed; None without either."""
    rows = study.index.comparisons.get((size, experiment, baseline, task, metric), ())
    over = [row for row in rows if row.level == "seeds" and row.seeds > 1]
    single = [row for row in rows if row.level == "seed"]
    return over[0] if over else single[0] if len(single) == 1 else None


def is_significant(row: Comparison) -> bool:
    """Whether p, corrected where there is a correction, is below `ALPHA`."""
    p = row.p if row.p_holm is None else row.p_holm
    return p is not None and p < ALPHA


def comparison_table(study: StudyRecords) -> Table:
    """Every decisive comparison of each task's main metric, and of whole groups, with its test."""
    rows, constant = [], False
    for task, metric in study.index.table_metrics:
        named = task if metric == study.index.main_metrics[task] else f"{task} ({metric})"
        for size in study.index.sizes:
            for baseline in study.index.baselines:
                for experiment in study.index.experiments:
                    row = decisive(study, size, experiment, baseline, task, metric)
                    if row is not None:
                        name = f"{named} · {size} · {experiment} against {baseline}"
                        rows.append((name, _comparison(row)))
                        constant |= row.constant > 0
    return Table(
        "comparisons",
        "Comparisons on the same examples",
        ("", "difference", "95% interval", "p", "p, Holm", "detectable", "test", "helped / hurt"),
        tuple(rows),
        "Over seeds where there are several: t-test of the paired differences; else McNemar for accuracies "
        "and a paired bootstrap for losses. Holm-corrected over the tasks of a size, experiment and "
        "baseline, whole groups (group_acc) among themselves. "
        "Detectable: the smallest true difference that these seeds (examples, where there is one "
        "seed) show with probability 0.8 before correction, and corrected where it is the clearest of its "
        "family; –: none. Over seeds, p and interval hold for other seeds on these examples, not for other "
        "examples; over the examples of one seed, the other way round."
        + smallest_p(len(study.index.main_metrics))
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
        _detectable(row),
        Cell(row.test, small="\n".join(_units(row))),
        Cell(moved),
    )


def _detectable(row: Comparison) -> Cell:
    """Detectable differences before and after correction; none for constant answers."""
    if row.detectable is None or row.constant:
        return Cell(ABSENT)
    small = ""
    if row.p_holm is not None:
        least = ABSENT if row.detectable_holm is None else small_number(row.detectable_holm, 4)
        small = f"{least} corrected"
    return Cell(small_number(row.detectable, 4), small=small)


def _units(row: Comparison) -> Iterator[str]:
    """The units of the test, and how many are left out."""
    if row.level == "seeds":
        yield f"{row.seeds} seeds"
    elif row.count is not None:
        yield f"{row.count:,} {'groups' if row.metric == GROUP_ACC else 'examples'}"
    if row.groups is not None:
        yield f"{row.groups:,} groups"
    if row.left_out:
        yield f"{row.left_out} left out"


def verdict_table(study: StudyRecords) -> Table:
    """How each task's score moves with size, for each experiment."""
    columns, rows = study.index.experiments, []
    by_key = {(v.task, v.metric, v.experiment): v for v in study.verdicts}
    for task, metric in study.index.main_metrics.items():
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


def _slope_text(row: ScalingVerdict) -> str:
    """The slope and the p value that decided: of the bend where one is claimed, else of the slope."""
    if row.slope is None:
        return ""
    bent = row.verdict in ("U-shaped", "inverted U")
    p = p_words(row.p_bend_holm if bent else row.p_slope_holm) or f"p = {ABSENT}"
    unbroken = interval(row.slope_low, row.slope_high).replace(" ", "\u00a0")
    slope = f"{fixed(row.slope, 3, '+')} {unbroken}"
    lines = [slope, f"{'bend: ' if bent else ''}{p}"]
    if row.slope_detectable is not None:
        lines.append(f"detectable {small_number(row.slope_detectable, 3)}")
    if row.left_out:
        lines.append(f"{row.left_out} left out")
    return "\n".join(lines)
