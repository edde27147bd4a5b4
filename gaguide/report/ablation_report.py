"""The report on ablations: verdicts in words, tables, heat maps, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Sequence

from gaguide.ablate.records import AblationRecord
from gaguide.report.ablation_csv import ablation_csv
from gaguide.report.ablation_figures import draw_heads
from gaguide.report.ablation_findings import findings
from gaguide.report.ablation_tables import (
    methods_table,
    norm_table,
    side_table,
    span_table,
    summary_table,
    task_table,
    verdict_table,
)
from gaguide.report.document import Cell, Chart, Report, Section, Table, folded
from gaguide.report.text import ABSENT, shown, words


def ablation_report(records: Sequence[AblationRecord]) -> Report:
    """The report on one or several ablations."""
    verdicts, methods, norms = verdict_table(records), methods_table(records), norm_table(records)
    sides, tasks, spans = side_table(records), task_table(records), span_table(records)
    heat = Chart(
        "heads",
        "By layer and head",
        "Above: change of held-out loss without the head, red where the model loses by it. Below: attention "
        "on the head's words (of other heads: on those of a head of the plan). Frames: heads of the plan; "
        "hatched: not removed.",
        lambda: draw_heads(records),
    )
    tables = tuple(table for table in (verdicts, methods, norms, spans, sides, tasks) if table.rows)
    return Report(
        title="Ablation of heads",
        findings=tuple(text for record in records for text in findings(record)),
        cautions=tuple(
            f"{model.name}: {note}." for record in records for model in record.models for note in model.notes
        ),
        summary=summary_table(records),
        tables=tables,
        charts=(heat,),
        body=(
            verdicts, heat,
            *(table for table in (methods, norms, spans) if table.rows),
            *(folded(table) for table in (sides, tasks) if table.rows),
            _provenance(records),
        ),
        csv_files=lambda: ablation_csv(records),
    )  # fmt: skip


def _provenance(records: Sequence[AblationRecord]) -> Section:
    """Models, settings and versions of each ablation."""
    models = Table(
        "models",
        "Models",
        ("", "folder", "held-out loss", "tokens near cues", "tokens", "time"),
        tuple(
            (
                model.name,
                (
                    Cell(model.model),
                    Cell(shown(model.loss, ".4f")),
                    Cell(f"{sum(model.band_tokens.values()) - model.band_tokens.get('rest', 0):,}"),
                    Cell(f"{sum(model.band_tokens.values()):,}"),
                    Cell(f"{model.seconds:.0f} s"),
                ),
            )
            for record in records
            for model in record.models
        ),
    )
    names = dict.fromkeys(name for record in records for name in record.settings if name != "patterns")
    columns = tuple(str(at) if len(records) > 1 else "" for at in range(1, len(records) + 1))
    rows = [(name, tuple(Cell(words(record.settings.get(name))) for record in records)) for name in names]
    rows += [("attention compared with", tuple(Cell(record.before or ABSENT) for record in records))]
    rows += [
        (name, tuple(Cell(words(record.versions.get(name))[:16]) for record in records))
        for name in dict.fromkeys(name for record in records for name in record.versions)
    ]
    settings = Table("settings", "Settings and versions", ("", *columns), tuple(rows), monospace=True)
    return Section("provenance", "Where the numbers come from", (models, folded(settings)))
