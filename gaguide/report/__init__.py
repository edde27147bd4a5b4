"""Reports on runs and on studies from their records: tables, figures and one self-contained page.

`make_report` turns records into a `Report`, a value; `render_report` writes it in a format.
"""

from gaguide.report.document import Report
from gaguide.report.outputs import FORMATS, make_report, render_report
from gaguide.report.run_records import RunRecord, read_runs

__all__ = ["FORMATS", "Report", "RunRecord", "make_report", "read_runs", "render_report"]
