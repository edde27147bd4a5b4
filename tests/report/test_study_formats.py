"""The report on a study in every format: nothing becomes code, and pages in a browser."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gaguide.cli import report as command
from gaguide.errors import UserError
from gaguide.report.latex import latex_text
from gaguide.report.outputs import make_report, render_report
from gaguide.report.run_records import read_runs
from gaguide.study.study_records import StudyRecords
from tests.report.synthetic import HOSTILE, write_run
from tests.support.browser import Browser, needs_browser
from tests.support.patience import patience


@pytest.fixture(scope="module")
def hostile(study: StudyRecords) -> StudyRecords:
    """The same study with a name, experiment, task and error that are code in every format."""

    renamed = (("experiment", "1-negation"), ("task", "memo-trap"))

    def rename(rows: tuple) -> tuple:
        return tuple(
            replace(row, **{name: HOSTILE for name, old in renamed if getattr(row, name, None) == old})
            for row in rows
        )

    tables = (
        "cells", "results", "means", "comparisons", "verdicts", "shares", "gains", "attention", "losses",
        "changes",
    )  # fmt: skip
    hostile = replace(study, name=HOSTILE, **{name: rename(getattr(study, name)) for name in tables})
    cells = tuple(replace(cell, error=HOSTILE if cell.error else None) for cell in hostile.cells)
    return replace(hostile, cells=cells, provenance={HOSTILE: HOSTILE}, study={HOSTILE: [HOSTILE]})


def test_csv_keeps_every_digit(study: StudyRecords) -> None:
    tables = make_report(study).csv_files()
    rows = list(csv.DictReader(io.StringIO(tables["results"])))
    assert [float(row["value"]) for row in rows] == [row.value for row in study.results]
    assert {row["prompt"] for row in csv.DictReader(io.StringIO(tables["changes"]))} == {HOSTILE}
    assert {row["slope"] for row in csv.DictReader(io.StringIO(tables["verdicts"]))} == {
        repr(row.slope) for row in study.verdicts
    }


def test_an_empty_study_is_reported_as_such(study: StudyRecords) -> None:
    empty = StudyRecords("new", {}, {}, tuple(replace(cell, state="pending") for cell in study.cells))
    report = make_report(empty)
    assert report.tables == () and report.findings == ()
    assert b"48 pending of 48" in render_report(report, "html", "r")["r.html"]
    assert render_report(report, "png", "r") == {}


def test_no_text_becomes_code_in_any_format(hostile: StudyRecords, tmp_path: Path) -> None:
    report = make_report(hostile)
    page = render_report(report, "html", "s")["s.html"].decode()
    markdown = render_report(report, "md", "s")["s.md"].decode()
    assert "<script" not in page and "<script" not in markdown
    assert "default-src &#39;none&#39;" in page
    assert not re.search(r"(?:src|href)=[\"'](?!#)", page)
    for line in markdown.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) >= 3


def test_latex_escapes_commands() -> None:
    assert latex_text("50% of_a & $b #1 {c} ~ ^ \\x") == (
        r"50\% of\_a \& \$b \#1 \{c\} \textasciitilde{} \textasciicircum{} \textbackslash{}x"
    )
    assert latex_text("naïve 日 ≥ †") == r"naive U+65E5 $\geq$ $\dagger$"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex (Debian: texlive-latex-base)")
def test_latex_compiles_whatever_the_names_are(hostile: StudyRecords, tmp_path: Path) -> None:
    (tmp_path / "study.tex").write_bytes(render_report(make_report(hostile), "latex", "study")["study.tex"])
    runs = [write_run(tmp_path / "a", HOSTILE), write_run(tmp_path / "b", "b", scores={HOSTILE: 0.5})]
    (tmp_path / "runs.tex").write_bytes(
        render_report(make_report(read_runs(runs)), "latex", "runs")["runs.tex"]
    )
    (tmp_path / "d.tex").write_text(
        "\\documentclass{article}\\begin{document}\\input{study}\\input{runs}\\end{document}"
    )
    call = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "d.tex"]
    done = subprocess.run(
        call, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=patience(120)
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_command_reports_a_study(folder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command.report)
    arguments = [str(folder), "--output", str(tmp_path / "s.html"), "--formats", "all"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Against finetuned, 0 of 8" in " ".join(result.output.split())
    names = {path.name for path in tmp_path.iterdir()}
    assert {
        "s.html",
        "s.md",
        "s.tex",
        "s-results.csv",
        "s-verdicts.csv",
        "s-tasks.png",
        "s-loss.svg",
    } <= names
    result = CliRunner().invoke(app, [str(folder), str(tmp_path)])
    assert isinstance(result.exception, UserError) and "together with other folders" in str(result.exception)
    result = CliRunner().invoke(app, [str(folder), "--formats", "csv"])
    assert isinstance(result.exception, UserError) and "needs a name" in str(result.exception)


@pytest.mark.processes
@needs_browser
def test_pages_open_in_a_browser_light_dark_narrow_and_printed(hostile: StudyRecords, tmp_path: Path) -> None:
    path = tmp_path / "study page.html"
    path.write_bytes(render_report(make_report(hostile), "html", "s")["s.html"])
    runs = tmp_path / "runs.html"
    folders = [write_run(tmp_path / "a", HOSTILE), write_run(tmp_path / "b", "b", attention=(0.02, 0.9))]
    runs.write_bytes(render_report(make_report(read_runs(folders)), "html", "r")["r.html"])
    with Browser() as browser:
        for page in (path, runs):
            browser.open(page)
            assert browser.errors == []
            assert browser.evaluate("document.querySelectorAll('script, img, iframe').length") == 0
            assert browser.evaluate("document.querySelectorAll('figure svg').length") >= 2
            assert HOSTILE in browser.evaluate("document.body.textContent")
            # On a narrow phone the second run, and a study's second column, are on the screen.
            browser.open(page, width=360, phone=True)
            second = "[...document.querySelectorAll('tr')].find((row) => row.cells.length > 2).cells[2]"
            assert browser.evaluate(f"{second}.getBoundingClientRect().right") <= 360
            browser.open(page, dark=True, width=390, phone=True)
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390
            assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
            fill = "figure svg [style*='fill: currentColor']"
            ink = f'getComputedStyle(document.querySelector("{fill}")).fill'
            assert browser.evaluate(ink) == "rgb(230, 233, 236)"
            # Paper does not scroll: nothing is wider than A4, 718 pixels between its margins.
            browser.open(page, dark=True, media="print", width=718)
            wide = "[...document.querySelectorAll('.wide, figure')].filter((e) => e.scrollWidth > 718).length"
            assert browser.evaluate(wide) == 0
            # A table that does not fit below what is before it begins there nevertheless.
            assert (
                browser.evaluate("getComputedStyle(document.querySelector('section')).breakInside") == "auto"
            )
            assert browser.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
            browser.hover("summary", click=True)
            assert browser.evaluate("document.querySelector('details').open") is True
