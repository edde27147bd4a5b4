"""Write a finished study's tables into a page of the documentation, with its figure and its records.

    python examples/pretrained/page.py runs/pretrained-cpu docs/pretrained-study.md

Replaces what stands between the page's marks, and writes docs/images/STUDY-heads.png and docs/records/STUDY:
the records that the tables are made from, without the tasks' texts. A test makes the tables from them again.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from gaguide.figures import render
from gaguide.files import write_bytes, write_text
from gaguide.report.markdown import to_markdown
from gaguide.report.outputs import make_report
from gaguide.report.study_head_figure import draw_heads
from gaguide.study.record_files import STUDY, StudyRecords, read_study, write_tables

BEGIN, END = "<!-- results: examples/pretrained/page.py writes what follows -->", "<!-- end of results -->"
_TABLES = ("loss", "attention", "head-counts", "comparisons")
"""Tables of the page, after those of scores: the report's names."""


def results(study: StudyRecords) -> str:
    """What stands between the marks: findings, cautions and tables, as Markdown with headings of level 3."""
    report = make_report(study)
    chosen = [table for table in report.tables if table.name in _TABLES or table.name.startswith("table-")]
    _, _, text = to_markdown(replace(report, tables=tuple(chosen))).partition("\n")
    return text.strip().replace("\n## ", "\n### ")


def keep_records(study: StudyRecords, folder: Path) -> None:
    """Replace the records in `folder`: no texts of tasks, paths relative to the working folder."""
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # of a run that was stopped here
    write_tables(new, replace(study, changes=()))
    path = new / STUDY
    write_text(path, path.read_text("utf-8").replace(f"{Path.cwd()}/", ""))
    shutil.rmtree(folder, ignore_errors=True)  # records of an earlier page, all of them
    new.rename(folder)


def write_page(study: StudyRecords, page: Path) -> None:
    """Replace the page's results. Raises `ValueError` where it has no marks."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: lacks the lines {BEGIN} and {END}")
    write_text(page, f"{before}{BEGIN}\n\n{results(study)}\n\n{END}{after}")


def main(folder: str, page: str) -> int:
    """The command line; returns the exit code."""
    study, target = read_study(Path(folder)), Path(page)
    keep_records(study, target.parent / "records" / Path(folder).name)
    if (figure := draw_heads(study)) is not None:
        write_bytes(target.parent / "images" / f"{Path(folder).name}-heads.png", render(figure, ".png"))
    write_page(study, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
