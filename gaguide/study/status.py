"""Progress of a study on the console: a row for each experiment, a column for each size, and the failures."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gaguide.study.grid import Grid
from gaguide.study.state import read_state

_MARKS = {"done": "✓", "failed": "✗", "running": "…", "pending": "·", "blocked": "–"}


def print_status(grid: Grid) -> None:
    """Print a table of experiments × sizes with a mark for each seed, the time spent, and the errors."""
    states = {cell.id: read_state(grid, cell) for cell in grid.cells}
    table = Table("", title=f"{grid.study.name} · {grid.folder}")
    for size in grid.study.sizes:
        table.add_column(escape(size.name), overflow="fold")
    for experiment in dict.fromkeys(cell.experiment for cell in grid.cells):
        marks = [
            " ".join(
                _MARKS[states[cell.id].state]
                for cell in grid.cells
                if (cell.size, cell.experiment) == (size.name, experiment)
            )
            for size in grid.study.sizes
        ]
        table.add_row(escape(experiment), *marks)
    console = Console()
    console.print(table)
    counts = Counter(state.state for state in states.values())
    console.print(", ".join(f"{count} {_MARKS[state]} {state}" for state, count in counts.items()))
    wall, cpu = (sum(state.total(clock) or 0.0 for state in states.values()) for clock in ("wall", "cpu"))
    console.print(f"{wall / 60:.1f} minutes in cells, {cpu / 60:.1f} CPU minutes", highlight=False)
    for cell_id, state in states.items():
        if state.state == "failed" and state.error:
            console.print(f"\n[bold]{escape(cell_id)}[/bold]\n{escape(state.error)}", highlight=False)
