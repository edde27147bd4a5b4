"""A report in every format: names of files and what to write into them, for runs and for studies alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from matplotlib.figure import Figure

from gaguide.figures import render
from gaguide.report.curves import draw_curves, draw_heads
from gaguide.report.latex import to_latex
from gaguide.report.measures import Value, interval_text, measures
from gaguide.report.page import to_html
from gaguide.report.records import RunRecord
from gaguide.report.study import slug
from gaguide.report.study_page import (
    study_figures,
    study_to_csv,
    study_to_html,
    study_to_latex,
    study_to_markdown,
)
from gaguide.report.tables import Cell, Table
from gaguide.report.text import to_csv, to_markdown
from gaguide.study.records import StudyRecords

FORMATS = {"html": ".html", "md": ".md", "csv": ".csv", "latex": ".tex", "png": ".png", "svg": ".svg"}
"""Format → the suffix of its files."""
Reported = Sequence[RunRecord] | StudyRecords


def render_report(report: Reported, kind: str, stem: str) -> Mapping[str, bytes]:
    """File name → content of one of `FORMATS`.

    Pages and texts are one file, STEM.SUFFIX; figures are STEM-FIGURE.SUFFIX, a study's CSV STEM-TABLE.csv.
    """
    suffix = FORMATS[kind]
    if kind in ("png", "svg"):
        return {f"{stem}-{name}{suffix}": render(figure, suffix) for name, figure in _figures(report).items()}
    if isinstance(report, StudyRecords) and kind == "csv":
        return {f"{stem}-{name}.csv": _encode(text) for name, text in study_to_csv(report).items()}
    if isinstance(report, StudyRecords):
        write = {"html": study_to_html, "md": study_to_markdown, "latex": study_to_latex}[kind]
        return {stem + suffix: _encode(write(report))}
    of_runs = {"html": to_html, "md": to_markdown, "csv": to_csv, "latex": runs_to_latex}[kind]
    return {stem + suffix: _encode(of_runs(report))}


def _encode(text: str) -> bytes:
    # Half a character that a broken prompt may hold cannot be written as UTF-8.
    return text.encode("utf-8", "backslashreplace")


def _figures(report: Reported) -> dict[str, Figure]:
    if isinstance(report, StudyRecords):
        return {name: figure for name, (_, _, figure) in study_figures(report).items()}
    found = {"curves": draw_curves(report), "heads": draw_heads(report)}
    return {name: figure for name, figure in found.items() if figure is not None}


def runs_to_latex(runs: Sequence[RunRecord]) -> str:
    """The comparison of runs, a table for each of its sections."""
    return to_latex(
        [
            Table(
                f"runs-{slug(section)}",
                section,
                ("", *(run.name for run in runs)),
                tuple((row.name, tuple(map(_cell, row.values))) for row in rows),
                "Bold: best number. Brackets: 95% interval of the number itself.",
            )
            for section, rows in groupby(measures(runs), key=lambda row: row.section)
        ]
    )


def _cell(value: Value) -> Cell:
    return Cell(value.text, value.best, small=interval_text(value))
