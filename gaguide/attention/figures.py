"""Matplotlib without its global state: figures, colours that colour-blind readers tell apart, saving.

A figure saved twice gives the same bytes: no dates, no random ids.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

from gaguide.errors import Fault, UserError

GUIDED = "#C04A00"
"""Guided words and the attention on them."""
OTHER = "#3B6FA5"
"""All other attention."""
FORMATS = (".png", ".svg", ".pdf")

_SETTINGS: Any = {
    "svg.hashsalt": "gaguide",
    "svg.fonttype": "path",  # looks the same on every machine, whatever fonts it has
}


def check_figure_path(path: Path, field: str = "--output", also: tuple[str, ...] = ()) -> list[Fault]:
    """What is wrong with writing a figure there; `also` names further endings that are taken."""
    known = FORMATS + also
    if path.suffix.lower() not in known:
        return [Fault(field, "unknown kind of figure", f"end the name in {', '.join(known)}", str(path))]
    if not path.parent.is_dir():
        return [Fault(field, "the folder does not exist", "make it, or choose another", str(path))]
    return []


def render(figure: Figure, suffix: str, dpi: int = 160) -> bytes:
    """The figure as a file's bytes; the same figure gives the same bytes."""
    kind = suffix.lower().lstrip(".")
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    file = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar sign in a user's text is no formula
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # A script that no installed font has is drawn as boxes, which says enough.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(file, format=kind, dpi=dpi, metadata=metadata)
    return file.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write PNG, SVG or PDF by the name's suffix; the file exists whole or not at all."""
    faults = check_figure_path(path)
    if faults:
        raise UserError(faults)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(render(figure, path.suffix))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
