"""A report as a value, apart from how it is written: every format is made from the same one.

Every text is plain text; the writers escape it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = {
    "html": ".html",
    "md": ".md",
    "csv": ".csv",
    "latex": ".tex",
    "png": ".png",
    "svg": ".svg",
    "pdf": ".pdf",
}
"""Format → suffix of its files."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    """The number or word of the cell."""
    best: bool = False
    """Print `text` in bold."""
    second: str | None = None
    """A second number next to `text`, such as the paper's."""
    second_best: bool = False
    """Print `second` in bold."""
    small: str = ""
    """Small print below; its lines are kept in HTML and joined in other formats."""
    differs: bool = False
    """Set off as different from the first column, in HTML."""


Row = tuple[str, tuple[Cell, ...]]
"""The heading of a row and its cells."""


@dataclass(frozen=True)
class Table:
    """A table whose first column is the headings of its rows."""

    name: str
    """Name for files, links and labels: lower case, digits and hyphens."""
    title: str
    """Heading; an empty one is left out."""
    header: tuple[str, ...]
    """Headings of the columns, including the first."""
    rows: tuple[Row, ...]
    """Rows from top to bottom; each has one cell fewer than `header`."""
    note: str = ""
    """A paragraph below the table."""
    groups: tuple[str, ...] = ()
    """For each row the heading of the group it belongs to, "" for none; empty where no row has one."""
    colours: tuple[str, ...] = ()
    """For each column of `header` the colour of its line in figures or ""; empty where none has one."""
    monospace: bool = False
    """Set the cells, texts rather than numbers, left-aligned in a monospaced font."""
    caption: str = ""
    """Title on the console; empty for the report's."""

    kind: ClassVar[str] = "table"

    def grouped(self) -> Iterator[tuple[str, tuple[Row, ...]]]:
        """(heading, rows) of each run of rows in one group; a single ("", rows) without groups."""
        names = self.groups or ("",) * len(self.rows)
        for name, pairs in groupby(zip(names, self.rows, strict=True), key=lambda pair: pair[0]):
            yield name, tuple(row for _, row in pairs)


@dataclass(frozen=True)
class Chart:
    """A figure that is drawn when a format needs it."""

    name: str
    """Name for files and ids, as in `Table`."""
    title: str
    """Heading."""
    caption: str
    """Text below the figure."""
    draw: Callable[[], Figure | None]
    """Makes the figure; None where there is nothing to show."""

    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class Preformatted:
    """A text whose line breaks are kept, such as a configuration file."""

    text: str
    """The text."""

    kind: ClassVar[str] = "preformatted"


@dataclass(frozen=True)
class Section:
    """Parts below a common heading."""

    name: str
    """Id in the page."""
    title: str
    """Heading."""
    parts: tuple[Part, ...]
    """Contents; headings inside are one level lower."""
    folded: bool = False
    """Closed until the reader opens it."""

    kind: ClassVar[str] = "section"


Part = Table | Chart | Preformatted | Section


@dataclass(frozen=True)
class Report:
    """Everything that a report shows, in any format."""

    title: str
    """Main heading."""
    findings: tuple[str, ...]
    """Findings, one sentence each."""
    cautions: tuple[str, ...]
    """Notes for the reader of the numbers, one sentence each."""
    summary: Table | None
    """Table for the console."""
    tables: tuple[Table, ...]
    """Tables of the Markdown and LaTeX files."""
    charts: tuple[Chart, ...]
    """Figures of the PNG and SVG files."""
    body: tuple[Part, ...]
    """The HTML page below findings and cautions."""
    csv_files: Callable[[], Mapping[str, str]]
    """Name → CSV text; the name "" is that of a report with a single file."""


def folded(table: Table) -> Section:
    """The table in a section that is closed at first; its title becomes the section's."""
    return Section(f"{table.name}-section", table.title, (replace(table, title=""),), folded=True)
