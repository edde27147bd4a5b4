"""A report as one HTML file that needs nothing else: no network, no script; figures are inline SVG.

Figures take the page's text colour, so that they can be read on a dark screen and in print.
"""

from __future__ import annotations

import re

from markupsafe import Markup

from gaguide.figures import render
from gaguide.html import content_policy, read_asset, render_page
from gaguide.report.document import Chart, Report
from gaguide.report.style import INK

_PACKAGE = "gaguide.report"


def to_html(report: Report) -> str:
    """The whole page."""
    return render_page(
        _PACKAGE,
        "page.html",
        report=report,
        policy=content_policy(),
        style=read_asset(_PACKAGE, "page.css"),
        inline_svg=inline_svg,
    )


def inline_svg(chart: Chart) -> Markup:
    """The chart as an SVG element in the page's text colour; empty where it has nothing to show."""
    figure = chart.draw()
    if figure is None:
        return Markup()
    figure.patch.set_alpha(0)
    for ax in figure.axes:
        if ax.patch.get_facecolor()[:3] == (1.0, 1.0, 1.0):  # another colour has a meaning
            ax.patch.set_alpha(0)
    svg = render(figure, ".svg").decode("utf-8")
    # One page holds several figures, whose ids (clip paths, markers, glyphs) must not collide.
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{chart.name}-", svg[svg.index("<svg") :])
    return Markup(svg.replace(INK.lower(), "currentColor"))
