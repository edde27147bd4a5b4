"""A report as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import groupby

from gaguide.report.findings import cautions, findings
from gaguide.report.measures import Measure, Value, interval_text, measures
from gaguide.report.records import RunRecord
from gaguide.report.tables import plain


def to_markdown(runs: Sequence[RunRecord]) -> str:
    """Findings, then one table with a column for each run; best numbers in bold."""
    lines = ["# Runs side by side", ""]
    lines += [f"- {plain(sentence)}" for sentence in findings(runs)]
    lines += [f"- **Careful:** {plain(caution)}" for caution in cautions(runs)]
    lines += ["", _row(["", *(plain(run.name) for run in runs)]), _row(["---"] * (len(runs) + 1))]
    for section, rows in groupby(measures(runs), key=lambda row: row.section):
        lines.append(_row([f"*{plain(section)}*", *([""] * len(runs))]))
        lines += [_row([plain(row.name), *map(_cell, row.values)]) for row in rows]
    lines += ["", "Differences (Δ) are against the first run and not tested. Best numbers are bold.", ""]
    return "\n".join(lines)


def to_csv(runs: Sequence[RunRecord]) -> str:
    """One line for each run and measure: section, measure, run, value, low, high, count, difference."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["section", "measure", "run", "value", "low", "high", "count", "difference_to_first"])
    for row in measures(runs):
        for run, value in zip(runs, row.values, strict=True):
            writer.writerow(_fields(row, run, value))
    return file.getvalue()


def _fields(row: Measure, run: RunRecord, value: Value) -> list[object]:
    shown: list[object] = [value.text if value.number is None else repr(value.number)]
    rest = (value.low, value.high, value.count, value.difference)
    return [row.section, row.name, run.name, *shown, *("" if item is None else repr(item) for item in rest)]


def _cell(value: Value) -> str:
    text = f"**{value.text}**" if value.best else plain(value.text)
    if value.change:
        text += f" (Δ {value.change})" if "(" not in value.change else f" [Δ {value.change}]"
    interval = interval_text(value)
    return f"{text} {interval}" if interval else text


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
