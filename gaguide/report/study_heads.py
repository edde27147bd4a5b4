"""Is the guided head used? A study's verdicts on heads as tables and sentences."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from gaguide.report.document import Cell, Row, Table
from gaguide.report.text import ABSENT, counted, fixed, interval, known_mean, p_value
from gaguide.study.analysis_records import HeadVerdict
from gaguide.study.record_files import StudyRecords

_SIGNIFICANT = 0.05


def head_count_table(study: StudyRecords) -> Table:
    """Verdicts counted, for each size and experiment."""
    rows: list[Row] = []
    for (size, experiment), heads in head_families(study).items():
        counts = Counter(one.verdict for one in heads).most_common()
        listed = "; ".join(f"{count} {verdict}" for verdict, count in counts)
        rows.append(
            (
                f"{size} · {experiment}{'' if heads[0].guided else ' (only measured)'}",
                (
                    Cell(str(len(heads))),
                    Cell(
                        _before_after(
                            known_mean(one.before for one in heads), known_mean(one.after for one in heads)
                        )
                    ),
                    Cell(_number(known_mean(one.loss for one in heads))),
                    Cell(_number(known_mean(one.over_controls for one in heads))),
                    Cell(_number(known_mean(one.over_finetuned for one in heads))),
                    Cell(listed),
                ),
            )
        )
    return Table(
        "head-counts",
        "Is the guided head used?",
        (
            "",
            "heads",
            "attention",
            "loss without one",
            "more than controls",
            "more than finetuned",
            "verdicts",
        ),
        tuple(rows),
        _note(study) + " Numbers are means over heads and seeds.",
    )


def head_verdict_table(study: StudyRecords) -> Table:
    """Every head with its tests."""
    rows: list[Row] = []
    groups: list[str] = []
    for (size, experiment), heads in head_families(study).items():
        rows += [(f"layer {one.layer} · head {one.head}", _cells(one)) for one in heads]
        groups += [f"{size} · {experiment}"] * len(heads)
    header = ("", "words", "attention", "loss without it", "near cues", "more than controls",
              "more than finetuned", "verdict")  # fmt: skip
    title = "Verdicts on every guided or measured head"
    return Table("heads", title, header, tuple(rows), _note(study), groups=tuple(groups))


def head_findings(study: StudyRecords) -> list[str]:
    """One sentence for each guided experiment: how many of its heads are moved, used, harmful."""
    sentences = []
    for experiment in dict.fromkeys(one.experiment for one in study.head_verdicts if one.guided):
        heads = [one for one in study.head_verdicts if one.experiment == experiment]
        counts = Counter(one.verdict for one in heads).most_common()
        listed = "; ".join(f"{count} {verdict}" for verdict, count in counts)
        sentences.append(f"{experiment}: {counted(len(heads), 'guided head')} over all sizes: {listed}.")
    return sentences


def head_families(study: StudyRecords) -> dict[tuple[str, str], list[HeadVerdict]]:
    """(Size, experiment) → its heads, in the order of the records."""
    found: dict[tuple[str, str], list[HeadVerdict]] = {}
    for one in study.head_verdicts:
        found.setdefault((one.size, one.experiment), []).append(one)
    return found


def _note(study: StudyRecords) -> str:
    methods = ", ".join(dict.fromkeys(one.method for one in study.head_verdicts))
    tests = ", ".join(dict.fromkeys(one.test for one in study.head_verdicts))
    return (
        f"Removed by: {methods}. Change of held-out loss in nats per token; tests: {tests}, Holm-corrected "
        "over the heads of a size and experiment; bold: p < 0.05. Moved: attention on the head's words "
        "changed from before training. Used: the loss rises without the head beyond noise; harmful: it "
        "falls; not used: neither was shown, which few seeds often cannot; not tested: no p value."
    )


def _cells(one: HeadVerdict) -> tuple[Cell, ...]:
    return (
        Cell(one.pattern),
        Cell(_before_after(one.before, one.after), _beyond(one.p_moved), small=_p(one.p_moved)),
        _effect(one.loss, one.low, one.high, one.p_used),
        Cell(_number(one.near)),
        Cell(_number(one.over_controls)),
        _over(one),
        Cell(one.verdict, one.used in ("used", "harmful")),
    )


def _over(one: HeadVerdict) -> Cell:
    """The change minus that in finetuned; says how many seeds have both where not all do."""
    cell = _effect(one.over_finetuned, one.over_low, one.over_high, one.p_over)
    if not 0 < one.seeds_over < one.seeds:
        return cell
    return replace(cell, small=f"{cell.small}\n{one.seeds_over} of {one.seeds} seeds".strip())


def _effect(value: float | None, low: float | None, high: float | None, p: float | None) -> Cell:
    small = "\n".join(filter(None, [interval(low, high, 4), _p(p)]))
    return Cell(_number(value), _beyond(p), small=small if value is not None else "")


def _beyond(p: float | None) -> bool:
    return p is not None and p < _SIGNIFICANT


def _p(p: float | None) -> str:
    if p is None:
        return ""
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _number(value: float | None) -> str:
    return ABSENT if value is None else fixed(value, 4, "+")


def _before_after(before: float | None, after: float | None) -> str:
    return ABSENT if before is None or after is None else f"{before:.3f} → {after:.3f}"
