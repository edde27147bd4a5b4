"""Saving matplotlib figures without its global state.

The same figure gives the same bytes: no dates, no random ids.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaguide.errors import Fault, UserError
from gaguide.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    """Faults of writing a figure to `path`; `also` lists further suffixes that are accepted."""
    known = FORMATS + also
    if path.suffix.lower() not in known:
        return [Fault(field, "unknown kind of figure", f"use one of {', '.join(known)}", str(path))]
    if not path.parent.is_dir():
        return [Fault(field, "the folder does not exist", "create it, or choose another", str(path))]
    return []


def render(figure: Figure, suffix: str, dpi: int = 160) -> bytes:
    """Bytes of `figure` as PNG, SVG or PDF, by `suffix`."""
    import matplotlib as mpl
    from matplotlib.text import Text

    kind = suffix.lower().lstrip(".")
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    file = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar sign in a user's text does not start a formula
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # Characters that no installed font has are drawn as boxes, which needs no warning.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(file, format=kind, dpi=dpi, metadata=metadata)
    return file.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write PNG, SVG or PDF, by the suffix of `path`, atomically. Raises `UserError` for another suffix or a
    missing folder."""
    faults = check_figure_path(path)
    if faults:
        raise UserError(faults)
    write_bytes(path, render(figure, path.suffix))
