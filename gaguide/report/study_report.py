"""The report on a study: tables, figures, the examples that changed most, where the numbers come from."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from gaguide.log import format_duration
from gaguide.numbers import fixed
from gaguide.report.document import Cell, Chart, Part, Preformatted, Report, Row, Section, Table, folded
from gaguide.report.study_analysis import attention_table, gain_table, loss_table, share_table
from gaguide.report.study_comparisons import comparison_table, verdict_table
from gaguide.report.study_figures import draw_attention, draw_loss, draw_tasks
from gaguide.report.study_findings import study_cautions, study_findings
from gaguide.report.study_head_figure import draw_heads
from gaguide.report.study_heads import head_count_table, head_verdict_table
from gaguide.report.study_tables import interval_units, mean_of, size_tables
from gaguide.report.text import ABSENT, counted, end_of, records_csv, shown, words
from gaguide.study.analysis_records import Change
from gaguide.study.records import HELD_OUT, KNOCK_OUT, CellRecord
from gaguide.study.study_records import StudyRecords

_CHANGES_SHOWN = 8
_PROMPT_SHOWN = 240
_RECORDS = (
    "cells", "results", "means", "comparisons", "verdicts", "shares", "gains", "attention", "losses",
    "changes", "knock_outs", "head_verdicts",
)  # fmt: skip


def study_report(study: StudyRecords) -> Report:
    """The report on the study."""
    by_size = size_tables(study)
    verdicts, losses, attention = verdict_table(study), loss_table(study), attention_table(study)
    shares = [share_table(study, "pieces"), share_table(study, "words")]
    gains, comparisons = gain_table(study), comparison_table(study)
    counts, heads = head_count_table(study), head_verdict_table(study)
    tasks_chart = Chart(
        "tasks",
        "Tasks against size",
        f"{_interval_caption(study)} Dashed: chance.{_left_out_caption(study)}",
        lambda: draw_tasks(study),
    )
    loss_chart = Chart(
        "loss",
        "Loss against size",
        "Held-out text, mean over seeds; bars: 95% interval over seeds, none for a single one."
        + _left_out_caption(study, held_out=True),
        lambda: draw_loss(study),
    )
    attention_chart = Chart(
        "attention",
        "Attention against size and layer",
        "Held-out text, mean over heads. Hollow: before training; filled: after; "
        "bars: lowest to highest seed.",
        lambda: draw_attention(study),
    )
    heads_chart = Chart(
        "heads",
        "Attention of guided heads, and what removing them costs",
        "Mean over seeds, a mark for each head; bars: 95% interval, where few heads share a row. Blue: "
        "attention moved beyond noise. Green: the head is used; orange: it is harmful.",
        lambda: draw_heads(study),
    )
    body: list[Part] = [
        *by_size, tasks_chart, verdicts, loss_chart, losses, attention_chart, attention, heads_chart, counts,
        *shares,
        *(folded(table) for table in (heads, gains, comparisons) if table.rows), *_changes(study),
    ]  # fmt: skip
    tables = [*by_size, verdicts, losses, attention, counts, heads, *shares, gains, comparisons]
    return Report(
        title=f"Study {study.name}",
        findings=tuple(study_findings(study)),
        cautions=tuple(study_cautions(study)),
        summary=None,
        tables=tuple(table for table in tables if table.rows),
        charts=(tasks_chart, loss_chart, attention_chart, heads_chart),
        body=(*(p for p in body if not isinstance(p, Table) or p.rows), _provenance(study)),
        csv_files=lambda: _csv_files(study),
    )


def _csv_files(study: StudyRecords) -> dict[str, str]:
    """Name → CSV of each of the study's tables of records, in full precision."""
    tables = {name: getattr(study, name) for name in _RECORDS}
    return {name: records_csv(type(rows[0]), rows) for name, rows in tables.items() if rows}


def _changes(study: StudyRecords) -> Iterator[Section]:
    """The examples that guidance helped and hurt the most against finetuned, for each guided experiment."""
    tables: list[Table] = []
    for experiment in dict.fromkeys(row.experiment for row in study.changes):
        rows = study.index.changes.get((experiment, "finetuned"), ())
        ordered = sorted(rows, key=lambda row: row.change)
        helped = [row for row in ordered if row.change < 0][:_CHANGES_SHOWN]
        hurt = [row for row in reversed(ordered) if row.change > 0][:_CHANGES_SHOWN]
        for what, listed in (("helped", helped), ("hurt", hurt)):
            if listed:
                tables.append(
                    Table(
                        name=f"changes-{len(tables)}",
                        title=f"{experiment}: {what} most",
                        header=("task · size · example", "prompt, its end", "guided words", "right in seeds",
                                "loss"),
                        rows=tuple(map(_change, listed)),
                        monospace=True,
                    )
                )  # fmt: skip
    if tables:
        title = "Examples that guidance helped or hurt the most, against finetuned"
        yield Section("changes", title, tuple(tables), folded=True)


def _change(row: Change) -> Row:
    right = ABSENT if row.correct is None else f"{row.baseline_correct} → {row.correct} of {row.seeds}"
    cells = (
        end_of(row.prompt, _PROMPT_SHOWN),
        ", ".join(row.contains) or ABSENT,
        right,
        fixed(row.change, 3, "+"),
    )
    return f"{row.task} · {row.size} · {row.example}", tuple(map(Cell, cells))


def _provenance(study: StudyRecords) -> Section:
    """Versions, machine and code, the study file as resolved, and every cell."""
    versions = Table(
        name="versions",
        title="",
        header=("", ""),
        rows=tuple(
            (str(name), (Cell(words(value)),)) for name, value in study.provenance.items() if name != "notes"
        ),
        monospace=True,
    )
    cells = Table(
        name="cells",
        title="Every cell",
        header=("cell", "state", "seed", "parameters", "tokens", "dropped steps", "time", "fingerprints",
                "versions"),
        rows=tuple(
            (
                cell.id,
                (Cell(cell.state, cell.state == "failed", small=(cell.error or "").strip()[-200:]),
                 Cell(words(cell.seed)),
                 Cell(shown(cell.parameters, ",")),
                 Cell(shown(cell.tokens, ",")),
                 Cell(_dropped(cell), bool(cell.dropped_steps)),
                 Cell(ABSENT if cell.wall_seconds is None else format_duration(cell.wall_seconds)),
                 Cell(words({name: text[:12] for name, text in cell.fingerprints.items()})),
                 Cell(words(cell.versions))),
            )
            for cell in study.cells
        ),
    )  # fmt: skip
    file = yaml.safe_dump(dict(study.study), sort_keys=False, allow_unicode=True)
    resolved = Section("study-file", "The study file, as resolved", (Preformatted(file),), folded=True)
    return Section("provenance", "Where the numbers come from", (versions, resolved, folded(cells)))


def _interval_caption(study: StudyRecords) -> str:
    """Caption of the bars in the tasks' figure."""
    metrics = study.index.main_metrics
    means = (
        mean_of(study, size, experiment, task, metric)
        for task, metric in metrics.items()
        for size in study.index.sizes
        for experiment in study.index.experiments
    )
    over_seeds, over_examples = interval_units(mean for mean in means if mean is not None)
    dotted = "95% interval over the examples of a single model, which says nothing about other seeds."
    if not over_seeds:
        return (
            f"One seed. Dotted bars: {dotted}"
            if over_examples
            else "Values of single models, without intervals."
        )
    found = "Mean over seeds. Solid bars: 95% interval over seeds."
    return f"{found} Dotted bars: {dotted}" if over_examples else found


def _left_out_caption(study: StudyRecords, held_out: bool = False) -> str:
    """How much is missing in a figure of the tasks, or of held-out text."""
    rows = [row for row in study.left_out if row.task != KNOCK_OUT]
    cells = {row.cell for row in rows if row.task is None or (row.task == HELD_OUT) == held_out}
    return f" Left out: numbers of {counted(len(cells), 'cell')}, see the cautions." if cells else ""


def _dropped(cell: CellRecord) -> str:
    if cell.dropped_steps is None:
        return ABSENT
    return f"{cell.dropped_steps:,}" + ("" if cell.steps is None else f" of {cell.steps:,}")
