"""Run examples/tutorial.py cell by cell and write docs/tutorial.md: its text, code, output and pictures.

    python examples/render.py [--docs FOLDER]

The page is committed, so that the documentation builds without training. Run this after editing the tutorial.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

TUTORIAL = Path(__file__).with_name("tutorial.py")
DOCS = TUTORIAL.parents[1] / "docs"


@dataclass(frozen=True)
class Cell:
    """One cell of a py:percent file."""

    is_markdown: bool
    """Whether it is text; else it is code."""
    source: str
    """Markdown without the comment signs, or Python."""


def read_cells(text: str) -> list[Cell]:
    """The cells of a py:percent file, in order."""
    cells = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        is_markdown = "[markdown]" in title
        if is_markdown:
            body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.splitlines())
        cells.append(Cell(is_markdown, body.strip("\n").rstrip()))
    return cells


def run(cells: list[Cell], images: Path) -> Iterator[str]:
    """Markdown of each cell; code is executed, and the PNG files it writes are moved to `images`."""
    names: dict[str, object] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for cell in cells:
            if cell.is_markdown:
                yield cell.source
                continue
            yield f"```python\n{cell.source}\n```"
            printed = io.StringIO()
            with redirect_stdout(printed):
                exec(compile(cell.source, str(TUTORIAL), "exec"), names)
            if printed.getvalue():
                yield f"```text\n{printed.getvalue().rstrip()}\n```"
            for picture in sorted(Path().glob("*.png")):
                (images / picture.name).write_bytes(picture.read_bytes())
                picture.unlink()
                yield f"![{picture.stem}](images/{picture.name})"


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder for tutorial.md and images/")
    docs = parser.parse_args().docs.absolute()
    (docs / "images").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parts = run(read_cells(TUTORIAL.read_text("utf-8")), docs / "images")
    (docs / "tutorial.md").write_text("\n\n".join(parts) + "\n", "utf-8")


if __name__ == "__main__":
    main()
