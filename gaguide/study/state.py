"""How far a cell is: state.json in its folder, and a lock that whoever works on it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gaguide.files import write_json
from gaguide.study.grid import Cell, Grid
from gaguide.study.records import State

_FILE, _LOCK = "state.json", ".cell.lock"


@dataclass(frozen=True)
class CellState:
    """`seconds`: of each stage, wall clock and CPU (all its processes). `evaluation`: what was evaluated."""

    state: State = "pending"
    stage: str | None = None
    evaluation: str | None = None
    error: str | None = None
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def total(self, clock: str) -> float | None:
        """Seconds over the stages, by `wall` or `cpu`; None before the first has ended."""
        found = [stage[clock] for stage in self.seconds.values()]
        return sum(found) if found else None

    def with_stage(self, stage: str, wall: float, cpu: float) -> CellState:
        """The state after (another part of) a stage: an interrupted one adds up."""
        before = self.seconds.get(stage, {"wall": 0.0, "cpu": 0.0})
        spent = {"wall": round(before["wall"] + wall, 2), "cpu": round(before["cpu"] + cpu, 2)}
        return replace(self, seconds={**self.seconds, stage: spent})


def cell_lock(folder: Path) -> FileLock:
    """The lock of a cell's folder, which must exist."""
    return FileLock(folder / _LOCK)


def write_state(folder: Path, state: CellState) -> None:
    """Replace state.json."""
    write_json(folder / _FILE, asdict(state))


def read_state(grid: Grid, cell: Cell) -> CellState:
    """The cell's state now: running only while someone works on it, done only with what it is for."""
    folder = grid.path(cell)
    state = stored_state(folder)
    if state.state == "running" and not _held(folder):
        return replace(state, state="pending")
    if state.state == "done" and not is_complete(grid, cell):
        return replace(state, state="pending")
    return state


def stored_state(folder: Path) -> CellState:
    """What state.json says, whoever works on it."""
    path = folder / _FILE
    return CellState(**json.loads(path.read_text("utf-8"))) if path.is_file() else CellState()


def is_trained(folder: Path) -> bool:
    """Whether training has ended; the summary is the last thing that it writes."""
    return (folder / "summary.json").is_file()


def is_evaluated(grid: Grid, cell: Cell) -> bool:
    """Whether the evaluation has ended, and was of the study's tasks."""
    folder = grid.path(cell)
    whole = (folder / "evaluation" / "results.json").is_file()
    return whole and stored_state(folder).evaluation == grid.evaluation


def is_complete(grid: Grid, cell: Cell) -> bool:
    """Whether the cell has everything that it is for."""
    trained = cell.run is None or is_trained(grid.path(cell))
    return trained and (cell.model is None or is_evaluated(grid, cell))


def _held(folder: Path) -> bool:
    try:
        with cell_lock(folder).acquire(timeout=0):
            return False
    except Timeout:
        return True


def summary(folder: Path) -> dict[str, Any]:
    """The cell's summary.json; empty where it was not trained."""
    path = folder / "summary.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found
