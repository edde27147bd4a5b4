"""From a study's cells to its tables: read their records, compare, analyse, write (docs/studies.md)."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from transformers import AutoTokenizer

from gaguide.log import code_commit, code_fingerprint, say
from gaguide.study.analysis import (
    GuidedWords,
    WordFinder,
    changes,
    gains,
    head_attention,
    lexicon_shares,
    loss_costs,
)
from gaguide.study.compare import compare, find_contrasts, means
from gaguide.study.crate import write_study_crate
from gaguide.study.evaluated import count_parameters, evaluation_fingerprints, read_evaluated, results_of
from gaguide.study.grid import Cell, Grid
from gaguide.study.head_verdicts import head_verdicts, knock_outs, stale_knock_outs
from gaguide.study.left_out import leave_out
from gaguide.study.record_files import write_study, write_tables
from gaguide.study.records import CellRecord
from gaguide.study.state import read_state, read_summary
from gaguide.study.study_records import StudyRecords
from gaguide.study.verdicts import verdicts

_PACKAGES = ("gaguide", "torch", "deepspeed", "transformers", "scipy", "statsmodels")


def write_progress(grid: Grid) -> StudyRecords:
    """Write study.json, the settings and the state of each cell, and return its content."""
    records = _progress(grid)
    write_study(grid.folder, records)
    return records


def _progress(grid: Grid) -> StudyRecords:
    return StudyRecords(
        grid.study.name,
        grid.study.model_dump(mode="json"),
        {
            "collected": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
            "code": {"sha256": code_fingerprint(), "commit": code_commit() or "not in a checkout"},
            "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}",
            "evaluation": grid.evaluation,
            "notes": list(grid.notes),
        },
        tuple(_cell_record(grid, cell) for cell in grid.cells),
    )


def collect(grid: Grid) -> StudyRecords:
    """Write all files of the study from its finished cells, and return their content."""
    records = _progress(grid)
    cells, left = leave_out(grid, read_evaluated(grid))
    left += stale_knock_outs(grid)
    for row in left:
        say(f"left out: {row.sentence}")
    if not cells:
        records = replace(records, left_out=tuple(left))
        write_tables(grid.folder, records)
        write_study_crate(grid, records)
        return records
    results = [row for one in cells for row in results_of(one)]
    contrasts = find_contrasts(grid, cells)
    finder = WordFinder(AutoTokenizer.from_pretrained(str(cells[0].cell.model)))
    used = [GuidedWords.of(cell.run.guidance) for cell in grid.cells if cell.run is not None]
    removed = tuple(knock_outs(grid, left))
    experiments = dict.fromkeys(row.experiment for row in removed)
    complete = replace(
        records,
        results=tuple(results),
        means=tuple(means(results, left)),
        comparisons=tuple(compare(contrasts, left)),
        verdicts=tuple(verdicts(cells, left)),
        shares=tuple(lexicon_shares(cells[0], used, finder)),
        gains=tuple(gains(contrasts, finder)),
        attention=tuple(head_attention(grid, left)),
        losses=tuple(loss_costs(contrasts)),
        changes=tuple(changes(contrasts, finder)),
        left_out=tuple(left),
        knock_outs=removed,
        head_verdicts=tuple(head_verdicts(removed, {name: grid.twin(name) for name in experiments})),
    )
    write_tables(grid.folder, complete)
    write_study_crate(grid, complete)
    return complete


def _cell_record(grid: Grid, cell: Cell) -> CellRecord:
    state, folder = read_state(grid, cell), grid.path(cell)
    record = read_summary(folder)
    fingerprints = record.get("fingerprints", {}) | evaluation_fingerprints(folder)
    model = folder / "model" if cell.run is not None else Path(cell.model or "")
    known = (model / "config.json").is_file()
    return CellRecord(
        id=cell.id,
        role=cell.role,
        size=cell.size,
        experiment=cell.experiment,
        seed=cell.seed,
        folder=cell.folder,
        state=state.state,
        parameters=count_parameters(str(model)) if known else None,
        base=cell.base,
        wall_seconds=state.total("wall"),
        cpu_seconds=state.total("cpu"),
        tokens=record.get("tokens"),
        steps=record.get("steps"),
        dropped_steps=record.get("dropped_steps"),
        error=state.error,
        versions=record.get("versions", {}),
        fingerprints=fingerprints,
    )
