"""A study's analysis as tables: loss, attention, words in the tasks, and gains by words.

Only averages over heads are computed here; the statistics are in the records.
"""

from __future__ import annotations

from collections.abc import Sequence

from gaguide.numbers import fixed
from gaguide.report.document import Cell, Table
from gaguide.report.text import ABSENT, before_after, change, excludes_zero, interval, known_mean, percent
from gaguide.study.analysis_records import HeadAttention, HeadVerdict, LossCost
from gaguide.study.study_records import StudyRecords


def loss_table(study: StudyRecords) -> Table:
    """The cost of guidance in held-out language-model loss."""
    rows = []
    for row in study.losses:
        near = "" if row.near is None else f", near {row.near}"
        rows.append((f"{row.size} · {row.experiment} against {row.baseline}{near}", _loss(row)))
    header = ("", "loss", "baseline", "difference", "relative", "95% interval", "seeds")
    note = "Nats per token on held-out text; differences paired by seed, t-interval over seeds."
    if any(row.near for row in study.losses):
        note += " Near a lexicon: tokens on one of its words or up to 20 tokens after it."
    return Table("loss", "Cost in language-model loss", header, tuple(rows), note)


def _loss(row: LossCost) -> tuple[Cell, ...]:
    return (
        Cell(f"{row.loss:.4f}"),
        Cell(f"{row.baseline_loss:.4f}"),
        Cell(fixed(row.difference, 4, "+")),
        Cell(percent(row.relative)),
        Cell(interval(row.low, row.high, 4) or ABSENT),
        Cell(str(row.seeds)),
    )


def attention_table(study: StudyRecords) -> Table:
    """Attention of the guided or measured heads on their words by layer, before → after training."""
    columns, rows = study.index.experiments, []
    by_layer = study.index.attention_by_layer
    layers: dict[str, set[int]] = {}
    for size, layer, _ in by_layer:
        layers.setdefault(size, set()).add(layer)
    for size in study.index.sizes:
        for layer in sorted(layers.get(size, ())):
            cells = tuple(
                Cell(before_after(*attention_means(by_layer.get((size, layer, experiment), ()))))
                for experiment in columns
            )
            rows.append((f"{size} · layer {layer}", cells))
    unguided = sorted({row.experiment for row in study.attention if not row.guided})
    note = "Attention mass on a head's words, held-out text, mean over heads and seeds. "
    note += f"Only measured, not guided: {', '.join(unguided)}." if unguided else ""
    return Table(
        "attention", "Attention on the guided words, before → after", ("", *columns), tuple(rows), note
    )


def attention_means(rows: Sequence[HeadAttention | HeadVerdict]) -> tuple[float | None, float | None]:
    """Means before and after training, over the heads that saw a guided word; None where none did.

    Where some have both, over these only: the mean of other heads cannot serve as their "before".
    """
    rows = [row for row in rows if row.before is not None and row.after is not None] or rows
    return known_mean(row.before for row in rows), known_mean(row.after for row in rows)


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
    main = study.index.main_metrics
    for row in study.gains:
        if row.metric != main.get(row.task):
            continue
        name = f"{row.task} ({row.metric}) · {row.size} · {row.experiment} against {row.baseline}"
        small = " ".join(filter(None, [interval(row.low, row.high, 4), f"n = {row.examples}"]))
        pairs.setdefault(name, {})[row.words] = Cell(
            change(row.gain), excludes_zero(row.low, row.high), small=small
        )
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
