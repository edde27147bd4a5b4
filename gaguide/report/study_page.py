"""A study's report as one HTML file, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from html import escape
from typing import Any

import yaml
from matplotlib.figure import Figure

from gaguide.report.latex import to_latex
from gaguide.report.measures import ABSENT, duration
from gaguide.report.page import figure_section, fill, list_items
from gaguide.report.study import (
    attention_table,
    comparison_table,
    gain_table,
    loss_table,
    share_table,
    size_tables,
    verdict_table,
)
from gaguide.report.study_figures import draw_attention, draw_loss, draw_tasks
from gaguide.report.study_findings import study_cautions, study_findings
from gaguide.report.tables import Cell, Table, html_table, markdown_table, plain
from gaguide.study.records import Change, StudyRecords

_CHANGES_SHOWN = 8


def study_tables(study: StudyRecords) -> list[Table]:
    """Every table that has rows, in the page's order."""
    tables = [
        *size_tables(study),
        verdict_table(study),
        loss_table(study),
        attention_table(study),
        share_table(study, "pieces"),
        share_table(study, "words"),
        gain_table(study),
        comparison_table(study),
    ]
    return [table for table in tables if table.rows]


def study_figures(study: StudyRecords) -> dict[str, tuple[str, str, Figure]]:
    """Name → title, caption and figure, of those that have something to show."""
    found = {
        "tasks": ("Tasks against size", "Mean over seeds with its 95% interval. Dashed: chance.",
            draw_tasks(study)),
        "loss": ("Loss against size", "Held-out text; bars: 95% interval over seeds.", draw_loss(study)),
        "attention": (
            "Attention against size and layer",
            "Held-out text, mean over heads. Hollow: before training; filled: after; bars: lowest to highest "
            "seed.",
            draw_attention(study),
        ),
    }  # fmt: skip
    return {
        name: (title, caption, figure)
        for name, (title, caption, figure) in found.items()
        if figure is not None
    }


def study_to_html(study: StudyRecords) -> str:
    """The whole page."""
    tables = {table.name: html_table(table) for table in study_tables(study)}
    figures = {
        name: figure_section(figure, title, caption)
        for name, (title, caption, figure) in study_figures(study).items()
    }
    long = [tables.pop(name, "") for name in ("gains", "comparisons")]
    by_size = [tables.pop(name) for name in list(tables) if name.startswith("table-")]
    parts = [
        list_items("findings", study_findings(study)),
        list_items("cautions", [f"Careful: {text}" for text in study_cautions(study)]),
        *by_size,
        figures.get("tasks", ""),
        tables.pop("verdicts", ""),
        figures.get("loss", ""),
        tables.pop("loss", ""),
        figures.get("attention", ""),
        *tables.values(),
        *(f"<details><summary>{_title(text)}</summary>{text}</details>" for text in long if text),
        _changes(study),
        _provenance(study),
    ]
    return fill(f"Study {study.name}", parts)


def _title(section: str) -> str:
    return section.partition("<h2>")[2].partition("</h2>")[0]


def study_to_markdown(study: StudyRecords) -> str:
    """Findings, cautions and every table."""
    lines = [f"# Study {plain(study.name)}", ""]
    lines += [f"- {plain(text)}" for text in study_findings(study)]
    lines += [f"- **Careful:** {plain(text)}" for text in study_cautions(study)]
    return "\n".join([*lines, "", *map(markdown_table, study_tables(study))])


def study_to_latex(study: StudyRecords) -> str:
    """Every table."""
    return to_latex(study_tables(study))


def study_to_csv(study: StudyRecords) -> dict[str, str]:
    """Name → CSV of each of the study's tables of records, in full precision."""
    names = ("cells", "results", "means", "comparisons", "verdicts", "shares", "gains", "attention", "losses",
             "changes")  # fmt: skip
    return {name: _csv(rows) for name in names if (rows := getattr(study, name))}


def _csv(rows: Sequence[Any]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = [column.name for column in fields(rows[0])]
    writer.writerow(columns)
    for row in rows:
        values = asdict(row)
        writer.writerow([_csv_value(values[name]) for name in columns])
    return file.getvalue()


def _csv_value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return ";".join(f"{key}={item}" for key, item in value.items())
    return ";".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _changes(study: StudyRecords) -> str:
    """The examples that guidance helped and hurt the most against finetuned, for each guided column."""
    sections = []
    for column in dict.fromkeys(row.experiment for row in study.changes):
        rows = [row for row in study.changes if (row.experiment, row.baseline) == (column, "finetuned")]
        ordered = sorted(rows, key=lambda row: row.change)
        helped = [row for row in ordered if row.change < 0][:_CHANGES_SHOWN]
        hurt = [row for row in reversed(ordered) if row.change > 0][:_CHANGES_SHOWN]
        for title, listed in ((f"{column}: helped most", helped), (f"{column}: hurt most", hurt)):
            if listed:
                body = "".join(map(_change, listed))
                sections.append(
                    f"<h3>{escape(title)}</h3><div class='wide' tabindex='0'><table class='texts'><thead><tr>"
                    "<th scope='col'>task · size · example</th><th scope='col'>prompt, its end</th>"
                    "<th scope='col'>guided words</th><th scope='col'>right in seeds</th>"
                    f"<th scope='col'>loss</th></tr></thead><tbody>{body}</tbody></table></div>"
                )
    if not sections:
        return ""
    return (
        "<details id='changes'><summary>Examples that guidance helped or hurt the most, against finetuned"
        f"</summary>{''.join(sections)}</details>"
    )


def _change(row: Change) -> str:
    prompt = row.prompt if len(row.prompt) <= 240 else "…" + row.prompt[-239:]
    right = ABSENT if row.correct is None else f"{row.baseline_correct} → {row.correct} of {row.seeds}"
    cells = [f"{row.task} · {row.size} · {row.example}", prompt, ", ".join(row.contains) or ABSENT, right,
             f"{row.change:+.3f}"]  # fmt: skip
    return "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in cells) + "</tr>"


def _provenance(study: StudyRecords) -> str:
    """Where the numbers come from: versions, the study file as resolved, and every cell."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(_words(value))}</td></tr>'
        for name, value in study.provenance.items()
    )
    cells = Table(
        "cells",
        "Cells",
        ("cell", "state", "seed", "parameters", "tokens", "time", "fingerprints", "versions"),
        tuple(
            (
                cell.id,
                (Cell(cell.state, cell.state == "failed", small=(cell.error or "").strip()[-200:]),
                 Cell(ABSENT if cell.seed is None else str(cell.seed)),
                 Cell(ABSENT if cell.parameters is None else f"{cell.parameters:,}"),
                 Cell(ABSENT if cell.tokens is None else f"{cell.tokens:,}"),
                 Cell(ABSENT if cell.wall_seconds is None else duration(cell.wall_seconds)),
                 Cell(_words({name: text[:12] for name, text in cell.fingerprints.items()})),
                 Cell(_words(cell.versions))),
            )
            for cell in study.cells
        ),
    )  # fmt: skip
    file = yaml.safe_dump(dict(study.study), sort_keys=False, allow_unicode=True)
    return (
        '<section id="provenance"><h2>Where the numbers come from</h2>'
        f'<div class="wide" tabindex="0"><table class="texts"><tbody>{rows}</tbody></table></div>'
        f"<details><summary>The study file, as resolved</summary><pre>{escape(file)}</pre></details>"
        f"<details><summary>Every cell</summary>{html_table(cells)}</details></section>"
    )


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or ABSENT
    return str(value)
