"""A report as one HTML file that needs nothing else: no network, no script; figures are inline SVG.

Every text of a run passes `html.escape`. Figures take the page's text colour, so that they can be read on
a dark screen and in print.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from string import Template

from matplotlib.figure import Figure

from gaguide.figures import render
from gaguide.report.curves import INK, draw_curves, draw_heads, run_style
from gaguide.report.findings import cautions, findings
from gaguide.report.measures import ABSENT, Measure, Value, interval_text, measures
from gaguide.report.records import RunRecord


def to_html(runs: Sequence[RunRecord]) -> str:
    """The whole page."""
    parts = [
        list_items("findings", findings(runs)),
        list_items("cautions", [f"Careful: {text}" for text in cautions(runs)]),
        _comparison(runs),
        figure_section(
            draw_curves(runs),
            "Training",
            "Lines: training batches. Circles: held-out text. The first run is grey.",
        ),
        figure_section(
            draw_heads(runs),
            "Guided heads",
            "Attention on a head's guided words by layer, held-out text. "
            "Hollow marks: before training; filled marks: after.",
        ),
        _heads(runs),
        _provenance(runs),
    ]
    return fill("Runs side by side", parts)


def fill(title: str, parts: Sequence[str]) -> str:
    """The page with this title (a text) and these parts (HTML)."""
    template = Template((files("gaguide.report") / "page.html").read_text("utf-8"))
    return template.substitute(title=escape(title), body="\n".join(part for part in parts if part))


def list_items(kind: str, sentences: Sequence[str]) -> str:
    """A list of sentences; nothing where there are none."""
    if not sentences:
        return ""
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(text)}</li>" for text in sentences) + "</ul>"


def _comparison(runs: Sequence[RunRecord]) -> str:
    rows = []
    for section, group in groupby(measures(runs), key=lambda row: row.section):
        heading = f'<th colspan="{len(runs) + 1}" scope="rowgroup">{escape(section)}</th>'
        rows.append(f"<tbody><tr>{heading}</tr>{''.join(map(_measure, group))}</tbody>")
    note = (
        "Differences (Δ) are against the first run and not tested. Bold: best number. "
        "Brackets: 95% interval of the number itself."
    )
    return (
        '<section><h2>Comparison</h2><div class="wide"><table>'
        f"<thead><tr><td></td>{_run_headings(runs)}</tr></thead>{''.join(rows)}</table></div>"
        f'<p class="note">{note}</p></section>'
    )


def _run_headings(runs: Sequence[RunRecord]) -> str:
    return "".join(
        f'<th scope="col"><span class="key" style="background:{run_style(at)[0]}"></span>'
        f"{escape(run.name)}</th>"
        for at, run in enumerate(runs)
    )


def _measure(row: Measure) -> str:
    return f'<tr><th scope="row">{escape(row.name)}</th>{"".join(map(_cell, row.values))}</tr>'


def _cell(value: Value) -> str:
    text = f"<b>{escape(value.text)}</b>" if value.best else escape(value.text)
    if value.change:
        text += f'<span class="sub">Δ {escape(value.change)}</span>'
    if interval := interval_text(value):
        text += f'<span class="sub">{escape(interval)}</span>'
    return f"<td>{text}</td>"


def figure_section(figure: Figure | None, title: str, caption: str) -> str:
    """A figure as inline SVG in the page's text colour; nothing where there is none."""
    if figure is None:
        return ""
    figure.patch.set_alpha(0)
    for ax in figure.axes:
        ax.patch.set_alpha(0)
    svg = render(figure, ".svg").decode("utf-8")
    # One page holds several figures, whose ids (clip paths, markers, glyphs) must not meet.
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg[svg.index("<svg") :])
    svg = svg.replace(INK.lower(), "currentColor")
    return (
        f'<section><h2>{escape(title)}</h2><figure role="img" aria-label="{escape(title)}">{svg}'
        f"<figcaption>{escape(caption)}</figcaption></figure></section>"
    )


def _heads(runs: Sequence[RunRecord]) -> str:
    """Every guided head's attention before and after, as a table to unfold."""
    masses: dict[tuple[int, int, str], list[list[str]]] = {}
    for at, run in enumerate(runs):
        for when, validation in enumerate((run.before, run.after)):
            for mass in validation.per_head if validation else ():
                key = (mass.layer, mass.head, mass.pattern)
                cells = masses.setdefault(key, [[ABSENT, ABSENT] for _ in runs])
                cells[at][when] = ABSENT if mass.attention is None else f"{mass.attention:.3f}"
    if not masses:
        return ""
    rows = "".join(
        f"<tr><td>{layer}</td><td>{head}</td><td>{escape(pattern)}</td>"
        + "".join(f"<td>{before} → {after}</td>" for before, after in cells)
        + "</tr>"
        for (layer, head, pattern), cells in sorted(masses.items())
    )
    return (
        "<details><summary>Attention of every guided head, before → after</summary>"
        '<div class="wide"><table><thead><tr><th scope="col">layer</th><th scope="col">head</th>'
        f'<th scope="col">words</th>{_run_headings(runs)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _provenance(runs: Sequence[RunRecord]) -> str:
    groups = [("Versions", "versions"), ("Fingerprints", "fingerprints")]
    rows = [
        "<tr><th scope='row'>folder</th>"
        + _plain_cells([str(run.folder) for run in runs], compared=False)
        + "</tr>"
    ]
    for title, attribute in groups:
        names = list(dict.fromkeys(name for run in runs for name in getattr(run, attribute)))
        if names:
            rows.append(f'<tr><th colspan="{len(runs) + 1}" scope="rowgroup">{title}</th></tr>')
        for name in names:
            values = [getattr(run, attribute).get(name, ABSENT) for run in runs]
            rows.append(f'<tr><th scope="row">{escape(name)}</th>{_plain_cells(values, name != "run")}</tr>')
    configs = "".join(
        f"<details><summary>Configuration of {escape(run.name)}</summary>"
        f"<pre>{escape(run.config)}</pre></details>"
        for run in runs
        if run.config
    )
    return (
        '<section><h2>Where the numbers come from</h2><div class="wide"><table class="texts">'
        f"<thead><tr><td></td>{_run_headings(runs)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"{configs}</section>"
    )


def _plain_cells(values: Sequence[str], compared: bool = True) -> str:
    """Cells; with `compared`, a value that differs from the first run's is set off."""
    return "".join(
        f'<td class="other">{escape(value)}</td>'
        if compared and value != values[0]
        else f"<td>{escape(value)}</td>"
        for value in values
    )
