"""Reports: runs side by side from their records, as tables, curves and one self-contained page."""

from gaguide.report.curves import draw_curves, draw_heads
from gaguide.report.evaluation import TaskScore, read_evaluation
from gaguide.report.findings import cautions, findings
from gaguide.report.measures import Measure, Value, measures
from gaguide.report.page import to_html
from gaguide.report.records import HeadMass, RunRecord, Validation, read_runs
from gaguide.report.text import to_csv, to_markdown

__all__ = [
    "HeadMass",
    "Measure",
    "RunRecord",
    "TaskScore",
    "Validation",
    "Value",
    "cautions",
    "draw_curves",
    "draw_heads",
    "findings",
    "measures",
    "read_evaluation",
    "read_runs",
    "to_csv",
    "to_html",
    "to_markdown",
]
