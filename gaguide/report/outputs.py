"""A report in every format: names of files and their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gaguide.figures import render
from gaguide.report.document import FORMATS, Report
from gaguide.report.html import to_html
from gaguide.report.latex import to_latex
from gaguide.report.markdown import to_markdown
from gaguide.report.run_records import RunRecord
from gaguide.report.run_report import run_report
from gaguide.report.study_report import study_report
from gaguide.study.study_records import StudyRecords

_WRITERS = {"html": to_html, "md": to_markdown, "latex": to_latex}


def make_report(records: Sequence[RunRecord] | StudyRecords) -> Report:
    """The report on runs, or on a study."""
    return study_report(records) if isinstance(records, StudyRecords) else run_report(records)


def render_report(report: Report, kind: str, stem: str) -> Mapping[str, bytes]:
    """File name → content, in one of `FORMATS`.

    Pages and texts are one file, STEM.SUFFIX; figures are STEM-FIGURE.SUFFIX, a study's CSV STEM-TABLE.csv.
    Empty where there is nothing to write.
    """
    suffix = FORMATS[kind]
    if kind in ("png", "svg", "pdf"):
        figures = {chart.name: figure for chart in report.charts if (figure := chart.draw()) is not None}
        return {f"{stem}-{name}{suffix}": render(figure, suffix) for name, figure in figures.items()}
    if kind == "csv":
        return {
            (f"{stem}-{name}" if name else stem) + suffix: _encode(text)
            for name, text in report.csv_files().items()
        }
    return {stem + suffix: _encode(_WRITERS[kind](report))}


def _encode(text: str) -> bytes:
    # A broken prompt may contain half a character, which cannot be written as UTF-8.
    return text.encode("utf-8", "backslashreplace")
