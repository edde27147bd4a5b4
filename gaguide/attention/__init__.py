"""Attention maps of chosen layers and heads, and pictures and pages of them."""

from gaguide.attention.collect import AttentionMaps, collect, collecting
from gaguide.attention.overview import draw_overview
from gaguide.attention.page import to_page
from gaguide.attention.panels import Panel, make_panels
from gaguide.attention.views import draw_difference, draw_heatmaps, draw_lines
from gaguide.attention.windows import split, text_panels, window_panels
from gaguide.figures import save_figure

__all__ = [
    "AttentionMaps",
    "Panel",
    "collect",
    "collecting",
    "draw_difference",
    "draw_heatmaps",
    "draw_lines",
    "draw_overview",
    "make_panels",
    "save_figure",
    "split",
    "text_panels",
    "to_page",
    "window_panels",
]
