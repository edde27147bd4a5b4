"""Is the guided head used? A study's verdicts on heads as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gaguide.ablate.records import Effect
from gaguide.grouping import grouped
from gaguide.report.ablation_tables import effect_cell
from gaguide.report.document import Cell, Row, Table
from gaguide.report.study_analysis import attention_means
from gaguide.report.text import before_after, change, counted, head_name, known_mean, p_words, tally
from gaguide.stats.groups import ALPHA
from gaguide.study.analysis_records import HeadVerdict
from gaguide.study.study_records import StudyRecords


def head_count_table(study: StudyRecords) -> Table:
    """Verdicts counted, for each size and experiment."""
    rows: list[Row] = []
    for (size, experiment), heads in head_families(study).items():
        cells = (
            Cell(str(len(heads)), small=_basis(heads)),
            Cell(before_after(*attention_means(heads))),
            Cell(change(known_mean(one.loss for one in heads))),
            Cell(change(known_mean(one.over_controls for one in heads))),
            _mean_over(heads),
            Cell(tally(one.verdict for one in heads)),
        )
        name = f"{size} · {experiment}{'' if heads[0].guided else ' (only measured)'}"
        rows.append((name, cells))
    return Table(
        "head-counts",
        "Is the guided head used?",
        ("", "heads", "attention", "loss without one", "more than controls", _more_than(study),
         "verdicts"),
        tuple(rows),
        _note(study) + " Numbers are means over heads and seeds.",
    )  # fmt: skip


def head_verdict_table(study: StudyRecords) -> Table:
    """Every head with its tests."""
    rows: list[Row] = []
    groups: list[str] = []
    for (size, experiment), heads in head_families(study).items():
        rows += [(head_name(one), _cells(one)) for one in heads]
        groups += [f"{size} · {experiment}"] * len(heads)
    header = ("", "words", "attention", "loss without it", "near cues", "more than controls",
              _more_than(study), "verdict")  # fmt: skip
    title = "Verdicts on every guided or measured head"
    return Table("heads", title, header, tuple(rows), _note(study), groups=tuple(groups))


def head_findings(study: StudyRecords) -> Iterator[str]:
    """One sentence for each guided experiment: how many of its heads are moved, used, harmful."""
    for experiment in dict.fromkeys(one.experiment for one in study.head_verdicts if one.guided):
        heads = [one for one in study.head_verdicts if one.experiment == experiment]
        number, verdicts = counted(len(heads), "guided head"), tally(one.verdict for one in heads)
        yield f"{experiment}: {number} over all sizes ({_basis(heads)}): {verdicts}."


def head_families(study: StudyRecords) -> dict[tuple[str, str], list[HeadVerdict]]:
    """(Size, experiment) → its heads, in the order of the records."""
    return grouped(((one.size, one.experiment), one) for one in study.head_verdicts)


def _more_than(study: StudyRecords) -> str:
    """Heading of the differences to the same head without guidance."""
    twins = {one.twin for one in study.head_verdicts if one.over_finetuned is not None}
    return f"more than {twins.pop()}" if len(twins) == 1 else "more than unguided"


def _twin_note(study: StudyRecords) -> str:
    """Names the experiments without guidance where there are several."""
    known = [one for one in study.head_verdicts if one.over_finetuned is not None]
    twins = grouped((one.twin, one.experiment) for one in known)
    if len(twins) < 2:
        return ""
    named = "; ".join(f"{', '.join(dict.fromkeys(names))} with {twin}" for twin, names in twins.items())
    return f" More than unguided: than the same head of the experiment's twin without guidance: {named}."


def _note(study: StudyRecords) -> str:
    methods = ", ".join(dict.fromkeys(one.method for one in study.head_verdicts))
    tests = ", ".join(dict.fromkeys(one.test for one in study.head_verdicts))
    controls = (study.study.get("ablation") or {}).get("controls")
    random = "" if not controls else (
        f" Controls: {counted(controls, 'random other head')} of the layer for each, the same in all seeds."
    )  # fmt: skip
    return (
        f"Removed by: {methods}. Change of held-out loss in nats per token; tests: {tests}, Holm-corrected "
        "over the heads of a size and experiment; bold: p < 0.05. Moved: attention on the head's words "
        "changed from before training beyond noise. Used: the loss rises without the head beyond noise; "
        "harmful: it falls. Not moved, not used: nothing was shown, which few seeds often cannot; not "
        "tested: no p value. Over seeds, a verdict holds for other seeds on these blocks of text, which are "
        "the same for all; over blocks, for other text and this seed. Attention is that on these blocks, "
        f"which may be fewer than those of the validation.{random}{_twin_note(study)}"
    )


def _cells(one: HeadVerdict) -> tuple[Cell, ...]:
    is_moved = one.p_moved is not None and one.p_moved < ALPHA
    return (
        Cell(one.pattern),
        Cell(before_after(one.before, one.after), is_moved, small=p_words(one.p_moved)),
        effect_cell(Effect(one.loss, one.low, one.high, one.p_used)),
        Cell(change(one.near)),
        Cell(change(one.over_controls)),
        _over(one),
        Cell(one.verdict, one.used in ("used", "harmful")),
    )


def _over(one: HeadVerdict) -> Cell:
    """The change minus that in finetuned; says how many seeds have both where not all do."""
    cell = effect_cell(Effect(one.over_finetuned, one.over_low, one.over_high, one.p_over))
    if not 0 < one.seeds_over < one.seeds:
        return cell
    return replace(cell, small=f"{cell.small}\n{one.seeds_over} of {one.seeds} seeds".strip())


def _basis(heads: Sequence[HeadVerdict]) -> str:
    """Units of a row's verdicts: those over seeds and those over blocks come from different tests."""
    seeds = sorted({one.seeds for one in heads})
    return "1 seed, over blocks" if seeds == [1] else f"{'–'.join(map(str, seeds))} seeds"


def _mean_over(heads: Sequence[HeadVerdict]) -> Cell:
    """The mean change minus that in finetuned, and for how many heads it is beyond noise."""
    ps = [one.p_over for one in heads if one.p_over is not None]
    beyond = [one for one in heads if one.p_over is not None and one.p_over < ALPHA]
    more = sum((one.over_finetuned or 0) > 0 for one in beyond)
    words = f"{more} more, {len(beyond) - more} less of {len(ps)} beyond noise" if ps else ""
    return Cell(change(known_mean(one.over_finetuned for one in heads)), small=words)
