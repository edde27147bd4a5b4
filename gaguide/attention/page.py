"""Attention as one interactive HTML file: models side by side, a choice of layer and head, details by token.

The page contains the panels' numbers and draws them as lines or as a heat map. It works offline.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from gaguide.attention.panels import Panel
from gaguide.errors import UserError
from gaguide.html import content_policy, read_asset, render_page, script_data

MAX_CELLS = 16_000_000
"""About 43 MB of HTML; beyond, browsers take seconds to open a page."""
_PACKAGE = "gaguide.attention"
_GUIDED_BIT, _STEPS = 0x8000, 0x7FFF


def to_page(windows: Sequence[Sequence[Panel]], spans: Sequence[tuple[int, int]], title: str) -> str:
    """The page as HTML. windows: the panels of each part of the text; spans: the tokens [start, stop) of
    each.

    Attention is rounded to 1/32767. Raises `UserError` for a page that would be too large to open.
    """
    cells = sum(_visible(panel).sum() for panels in windows for panel in panels)
    if cells > MAX_CELLS:
        raise UserError.of(
            "--layers, --heads, --window",
            f"give {cells:,} numbers, but a page has at most {MAX_CELLS:,}",
            "choose fewer layers or heads, or a part of the text",
        )
    data = [
        {"start": start, "stop": stop, "models": _models(panels)}
        for panels, (start, stop) in zip(windows, spans, strict=True)
    ]
    script = read_asset(_PACKAGE, "page.js")
    return render_page(
        _PACKAGE,
        "page.html",
        title=title,
        policy=content_policy(script),
        style=read_asset(_PACKAGE, "page.css"),
        data=script_data(data),
        script=script,
    )


def _models(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Tokens and panels by model; the tokens are the same in all panels of a model."""
    models: dict[str, dict[str, Any]] = {}
    for panel in panels:
        model = models.setdefault(
            panel.model,
            {"name": panel.model, "queries": panel.query_labels, "keys": panel.key_labels, "panels": []},
        )
        model["panels"].append(
            {
                "layer": panel.layer,
                "head": panel.head,
                "pattern": panel.pattern,
                "mass": panel.mass,
                "marked": sorted(panel.guided_keys),
                "cells": pack(panel),
            }
        )
    return list(models.values())


def pack(panel: Panel) -> str:
    """The cells that causal queries can see, row by row, as base64 of little-endian uint16.

    The low 15 bits are the attention in steps of 1/32767; the highest bit is set in guided cells.
    """
    visible_QK = _visible(panel)
    steps = np.rint(panel.weights_QK.numpy()[visible_QK].clip(0, 1) * _STEPS).astype("<u2")
    steps |= np.where(panel.guided_QK.numpy()[visible_QK], _GUIDED_BIT, 0).astype("<u2")
    return base64.b64encode(steps.tobytes()).decode("ascii")


def _visible(panel: Panel) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool [Q, K], True where the key is at or before the query."""
    return np.tri(len(panel.query_labels), len(panel.key_labels), panel.first_key, dtype=bool)
