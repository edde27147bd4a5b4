"""Progress of a cell: state.json in its folder, and a lock that a process working on it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gaguide.files import write_json
from gaguide.log import run_files
from gaguide.model.content import other_files
from gaguide.study.content import ContentHashes
from gaguide.study.grid import Cell, Grid
from gaguide.study.records import State

_FILE, _LOCK = "state.json", ".cell.lock"


@dataclass(frozen=True)
class CellState:
    """Content of state.json."""

    state: State = "pending"
    """State of the cell."""
    stage: str | None = None
    """Stage that runs or failed, `train`, `evaluate` or `ablate`."""
    evaluation: str | None = None
    """The grid's `evaluation` with which the cell was evaluated."""
    error: str | None = None
    """Why it failed, with the end of its log."""
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Stage → seconds by `wall` and by `cpu` (of all its processes)."""
    contents: Mapping[str, str] | None = None
    """Task → identity of the content that the cell was evaluated on; None in records of older versions."""
    ablation: str | None = None
    """The grid's `ablation` with which the cell's heads were removed."""

    def total(self, clock: str) -> float | None:
        """Seconds of all stages, by `wall` or `cpu`; None before the first has ended."""
        found = [stage[clock] for stage in self.seconds.values()]
        return sum(found) if found else None

    def with_stage(self, stage: str, wall: float, cpu: float) -> CellState:
        """The state with the seconds of a stage added, which may be one part of an interrupted stage."""
        before = self.seconds.get(stage, {"wall": 0.0, "cpu": 0.0})
        spent = {"wall": round(before["wall"] + wall, 2), "cpu": round(before["cpu"] + cpu, 2)}
        return replace(self, seconds={**self.seconds, stage: spent})


def cell_lock(folder: Path) -> FileLock:
    """The lock of a cell's folder, which must exist."""
    return FileLock(folder / _LOCK)


def write_state(folder: Path, state: CellState) -> None:
    """Replace the state.json in `folder`."""
    write_json(folder / _FILE, asdict(state))


def read_state(grid: Grid, cell: Cell) -> CellState:
    """The cell's state now: `running` only while a process holds its lock, `done` only if it is complete."""
    folder = grid.path(cell)
    state = stored_state(folder)
    if state.state == "running" and not _held(folder):
        return replace(state, state="pending")
    if state.state == "done" and not is_complete(grid, cell):
        return replace(state, state="pending")
    return state


def stored_state(folder: Path) -> CellState:
    """The state in state.json, whether or not a process is working on the cell."""
    path = folder / _FILE
    return CellState(**json.loads(path.read_text("utf-8"))) if path.is_file() else CellState()


def is_trained(folder: Path) -> bool:
    """Whether training has ended: the summary is the last file it writes."""
    return (folder / run_files.SUMMARY).is_file()


def is_evaluated(grid: Grid, cell: Cell) -> bool:
    """Whether the evaluation has ended, and was of these weights and the study's tasks (both by content) and
    settings."""
    folder = grid.path(cell)
    state = stored_state(folder)
    if not evaluation_file(folder).is_file() or state.evaluation != grid.evaluation:
        return False
    recorded = json.loads(evaluation_file(folder).read_text("utf-8")).get("identity")
    return not changed_tasks(grid, folder, state) and not changed_weights(grid, cell, recorded)


def changed_weights(grid: Grid, cell: Cell, recorded: Mapping[str, Any] | None) -> list[str]:
    """Files in which the cell's model now differs, by content, from the one in a record.

    None where that is not known: for a hub's model, or where the weights are missing.
    """
    model = Path(cell.model or "")
    if not recorded or cell.model is None or not model.is_dir():
        return []
    hashes = ContentHashes(grid.path(cell))
    found = other_files(recorded, model, hashes.record(model))
    hashes.save()
    return found


def changed_tasks(grid: Grid, folder: Path, state: CellState) -> list[str]:
    """Tasks whose content now differs from that of the evaluation in a cell's folder.

    Tasks whose data cannot be read now are not listed.
    """
    recorded = json.loads(evaluation_file(folder).read_text("utf-8"))["tasks"]
    changed = []
    for name, content in grid.tasks.contents.items():
        data = recorded.get(name, {}).get("sha256")
        known = None if state.contents is None else state.contents.get(name)
        if (known is not None and known != content.identity) or (
            content.data is not None and data is not None and data != content.data
        ):
            changed.append(name)
    return changed


def evaluation_file(folder: Path) -> Path:
    """The results of a cell's evaluation, the last file it writes."""
    return folder / "evaluation" / run_files.RESULTS


def is_complete(grid: Grid, cell: Cell) -> bool:
    """Whether the cell is trained and evaluated, as far as its role requires."""
    trained = cell.run is None or is_trained(grid.path(cell))
    return trained and (cell.model is None or is_evaluated(grid, cell))


def needs_ablation(grid: Grid, cell: Cell) -> bool:
    """Whether the study asks for the removal of the cell's heads and it has not been measured.

    A cell is done without it: its results remain valid, and a study of an older version keeps them.
    """
    if grid.ablation is None or cell.role != "tuned" or not cell.names_heads:
        return False
    return not ablation_file(grid.path(cell)).is_file() or stale_ablation(grid, cell) is not None


def stale_ablation(grid: Grid, cell: Cell) -> str | None:
    """Why the ablation in the cell's folder does not match the study.

    None where there is none, and where weights, text and settings match.
    """
    folder = grid.path(cell)
    if not ablation_file(folder).is_file():
        return None
    if stored_state(folder).ablation != grid.ablation:
        return "its ablation had other settings"
    record = json.loads(ablation_file(folder).read_text("utf-8"))
    if other := changed_weights(grid, cell, record["models"][0].get("identity")):
        return f"its ablation is of a model with other content ({', '.join(other)})"
    data = read_summary(folder).get("fingerprints", {}).get("data")
    text = record["settings"].get("text_fingerprint")
    # While data are built during training, their identity is that of the request.
    is_built = cell.run is not None and cell.run.data.source is None
    if is_built and None not in (data, text) and data != text:
        return "its ablation is on other text"
    return None


def ablation_file(folder: Path) -> Path:
    """The record of a cell's ablation, the last file it writes."""
    return folder / "ablation" / "ablation.json"


def _held(folder: Path) -> bool:
    try:
        with cell_lock(folder).acquire(timeout=0):
            return False
    except Timeout:
        return True


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary.json in a cell's folder; empty where it is not trained."""
    path = folder / run_files.SUMMARY
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found
