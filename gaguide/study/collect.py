"""From a study's cells to its tables: read what they recorded, compare, analyse, write (docs/studies.md)."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from transformers import AutoTokenizer

from gaguide.log import code_commit, code_fingerprint
from gaguide.study.analysis import (
    Finder,
    GuidedWords,
    changes,
    gains,
    head_attention,
    lexicon_shares,
    loss_costs,
)
from gaguide.study.compare import compare, find_pairs, means, verdicts
from gaguide.study.evaluated import (
    count_parameters,
    evaluation_fingerprints,
    read_evaluated,
    results_of,
)
from gaguide.study.grid import Cell, Grid
from gaguide.study.records import CellRecord, StudyRecords, write_study, write_tables
from gaguide.study.state import read_state, read_summary

_PACKAGES = ("gaguide", "torch", "deepspeed", "transformers", "scipy", "statsmodels")


def write_progress(grid: Grid) -> StudyRecords:
    """Write study.json: the cells and how far they are."""
    records = StudyRecords(
        grid.study.name,
        grid.study.model_dump(mode="json"),
        {
            "collected": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
            "code": {"sha256": code_fingerprint(), "commit": code_commit() or "not in a checkout"},
            "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}",
            "evaluation": grid.evaluation,
        },
        tuple(_cell_record(grid, cell) for cell in grid.cells),
    )
    write_study(grid.folder, records)
    return records


def collect(grid: Grid) -> StudyRecords:
    """Everything that the finished cells show, written into the study's folder; the tables it is made of."""
    records = write_progress(grid)
    cells = read_evaluated(grid)
    if not cells:
        write_tables(grid.folder, records)
        return records
    results = [row for one in cells for row in results_of(one)]
    pairs = find_pairs(grid, cells)
    finder = Finder(AutoTokenizer.from_pretrained(str(cells[0].cell.model)))
    used = [GuidedWords.of(cell.run.guidance) for cell in grid.cells if cell.run is not None]
    complete = StudyRecords(
        records.name, records.study, records.provenance, records.cells, tuple(results),
        tuple(means(results)), tuple(compare(pairs)), tuple(verdicts(cells)),
        tuple(lexicon_shares(cells[0], used, finder)), tuple(gains(pairs, finder)),
        tuple(head_attention(grid)), tuple(loss_costs(pairs)), tuple(changes(pairs, finder)),
    )  # fmt: skip
    write_tables(grid.folder, complete)
    return complete


def _cell_record(grid: Grid, cell: Cell) -> CellRecord:
    state, folder = read_state(grid, cell), grid.path(cell)
    record = read_summary(folder)
    fingerprints = record.get("fingerprints", {}) | evaluation_fingerprints(folder)
    model = folder / "model" if cell.run is not None else Path(cell.model or "")
    known = (model / "config.json").is_file()
    return CellRecord(
        cell.id, cell.role, cell.size, cell.experiment, cell.seed, cell.folder, state.state,
        count_parameters(str(model)) if known else None, cell.base, state.total("wall"), state.total("cpu"),
        record.get("tokens"), state.error, record.get("versions", {}), fingerprints,
    )  # fmt: skip
