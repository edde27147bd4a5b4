"""All records of a study and the files they are stored in; docs/studies.md lists the files.

study.json has the settings, the state of each cell, and the name of the folder with the tables, which
`gaguide.study.collect` makes from the cells' own records. Each collection writes a new folder and then
replaces study.json: a reader sees the tables of one collection, never some of two.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from gaguide.errors import Fault, UserError, mask_all
from gaguide.files import replacing, write_json, write_text
from gaguide.log import read_metrics
from gaguide.study.analysis_records import (
    Analysis,
    Change,
    Gain,
    HeadAttention,
    HeadKnockOut,
    HeadVerdict,
    LexiconShare,
    LossCost,
)
from gaguide.study.index import StudyIndex
from gaguide.study.records import CellRecord, Comparison, LeftOut, Mean, Result, ScalingVerdict

STUDY, RESULTS, MEANS, LEFT_OUT = "study.json", "results.parquet", "means.jsonl", "left_out.jsonl"
COMPARISONS, VERDICTS, ANALYSIS, CHANGES = (
    "comparisons.jsonl", "verdicts.jsonl", "analysis.jsonl", "changes.parquet",
)  # fmt: skip
_TABLES = (RESULTS, MEANS, COMPARISONS, VERDICTS, ANALYSIS, CHANGES, LEFT_OUT)
_PREFIX = "tables-"
"""Folders of tables are numbered; study.json names the current one."""
T = TypeVar("T")


@dataclass(frozen=True)
class StudyRecords:
    """All records of a study; the tables are empty until it is collected."""

    name: str
    """Name of the study."""
    study: Mapping[str, Any]
    """The study file, as resolved."""
    provenance: Mapping[str, Any]
    """Versions, machine, commit and time of collection."""
    cells: tuple[CellRecord, ...]
    """Every cell."""
    results: tuple[Result, ...] = ()
    """Metrics of each cell."""
    means: tuple[Mean, ...] = ()
    """Means over seeds."""
    comparisons: tuple[Comparison, ...] = ()
    """Experiments compared with their baselines."""
    verdicts: tuple[ScalingVerdict, ...] = ()
    """How scores move with size."""
    shares: tuple[LexiconShare, ...] = ()
    """Shares of examples that contain a lexicon."""
    gains: tuple[Gain, ...] = ()
    """Gains on examples with and without guided words."""
    attention: tuple[HeadAttention, ...] = ()
    """Attention of each guided or measured head."""
    losses: tuple[LossCost, ...] = ()
    """Held-out loss compared with the baselines."""
    changes: tuple[Change, ...] = ()
    """Every example under every guided experiment."""
    left_out: tuple[LeftOut, ...] = ()
    """Numbers of finished cells that are in none of the tables above."""
    knock_outs: tuple[HeadKnockOut, ...] = ()
    """What each cell's model loses without each of its heads."""
    head_verdicts: tuple[HeadVerdict, ...] = ()
    """Over seeds: is a head's attention moved, is the head used."""

    @cached_property
    def index(self) -> StudyIndex:
        """The records by key."""
        return StudyIndex(self)

    @property
    def analysis(self) -> tuple[Analysis, ...]:
        """The rows of analysis.jsonl."""
        return (
            *self.shares, *self.gains, *self.attention, *self.losses, *self.knock_outs, *self.head_verdicts,
        )  # fmt: skip


def write_study(folder: Path, records: StudyRecords) -> None:
    """Write study.json, the settings and the state of each cell; the tables stay as they are."""
    _write_study(folder, records, _current(folder))


def write_tables(folder: Path, records: StudyRecords) -> None:
    """Replace study.json and all tables at once. Where this fails, all stay as they were."""
    before = _current(folder)
    numbers = [int(path.name.removeprefix(_PREFIX)) for path in _table_folders(folder)]
    tables = folder / f"{_PREFIX}{max(numbers, default=0) + 1}"
    tables.mkdir(parents=True)
    try:
        _write_parquet(tables / RESULTS, records.results, _RESULTS)
        _write_lines(tables / MEANS, records.means)
        _write_lines(tables / COMPARISONS, records.comparisons)
        _write_lines(tables / VERDICTS, records.verdicts)
        _write_lines(tables / ANALYSIS, records.analysis)
        _write_parquet(tables / CHANGES, records.changes, _CHANGES)
        _write_lines(tables / LEFT_OUT, records.left_out)
        _write_study(folder, records, tables.name)
    except BaseException:
        shutil.rmtree(tables, ignore_errors=True)
        raise
    for old in _table_folders(folder):
        # A reader may have opened study.json just before it was replaced: the previous tables stay.
        if old.name not in (tables.name, before):
            shutil.rmtree(old, ignore_errors=True)
    for name in _TABLES:  # of versions that wrote tables next to study.json
        (folder / name).unlink(missing_ok=True)


def tables_folder(folder: Path) -> Path:
    """Where the study in `folder` has its tables now."""
    return folder / (_current(folder) or "")


def _current(folder: Path) -> str | None:
    """Name of the folder with the tables; None before collection, and where they lie next to study.json."""
    path = folder / STUDY
    found = json.loads(path.read_text("utf-8")).get("tables") if path.is_file() else None
    return None if found is None else str(found)


def _table_folders(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]


def _write_study(folder: Path, records: StudyRecords, tables: str | None) -> None:
    write_json(
        folder / STUDY,
        {
            "schema": 1,
            "name": records.name,
            # The study's data may name an address with a password in it.
            "study": mask_all(records.study),
            "provenance": records.provenance,
            "tables": tables,
            "cells": [asdict(cell) for cell in records.cells],
        },
    )


def read_study(folder: Path) -> StudyRecords:
    """The records in a study's folder. Raises `UserError` where there are none, or of another schema."""
    path = folder / STUDY
    if not path.is_file():
        raise UserError(
            Fault("STUDY", "contains no study.json", "give the output folder of a study", str(folder))
        )
    tree = json.loads(path.read_text("utf-8"))
    if tree.get("schema") != 1:
        problem = f"{STUDY} has schema {tree.get('schema')!r}; this version reads 1"
        raise UserError(Fault("STUDY", problem, "run gaguide study collect", str(folder)))
    tables = folder / (tree.get("tables") or "")
    analysis = _read_lines(tables / ANALYSIS)

    def of_kind(kind: str, record: type[T]) -> tuple[T, ...]:
        return tuple(_record(record, row) for row in analysis if row["kind"] == kind)

    return StudyRecords(
        tree["name"],
        tree["study"],
        tree["provenance"],
        tuple(_record(CellRecord, cell) for cell in tree["cells"]),
        tuple(_record(Result, row) for row in _read_parquet(tables / RESULTS)),
        tuple(_record(Mean, row) for row in _read_lines(tables / MEANS)),
        tuple(_record(Comparison, row) for row in _read_lines(tables / COMPARISONS)),
        tuple(_record(ScalingVerdict, row) for row in _read_lines(tables / VERDICTS)),
        of_kind("lexicon-share", LexiconShare),
        of_kind("gain", Gain),
        of_kind("attention", HeadAttention),
        of_kind("loss", LossCost),
        tuple(_record(Change, row) for row in _read_parquet(tables / CHANGES)),
        tuple(_record(LeftOut, row) for row in _read_lines(tables / LEFT_OUT)),
        of_kind("knock-out", HeadKnockOut),
        of_kind("head-verdict", HeadVerdict),
    )


_RESULTS = pa.schema(
    [
        ("cell", pa.string()), ("size", pa.string()), ("parameters", pa.int64()), ("experiment", pa.string()),
        ("seed", pa.int64()), ("task", pa.string()), ("kind", pa.string()), ("metric", pa.string()),
        ("better", pa.string()), ("value", pa.float64()), ("stderr", pa.float64()), ("low", pa.float64()),
        ("high", pa.float64()), ("count", pa.int64()), ("chance", pa.float64()), ("paper", pa.float64()),
        ("doubt", pa.string()), ("truncated", pa.int64()),
    ]
)  # fmt: skip
_CHANGES = pa.schema(
    [
        ("size", pa.string()), ("experiment", pa.string()), ("baseline", pa.string()), ("task", pa.string()),
        ("example", pa.string()), ("prompt", pa.string()), ("contains", pa.list_(pa.string())),
        ("seeds", pa.int64()), ("baseline_correct", pa.int64()), ("correct", pa.int64()),
        ("change", pa.float64()),
    ]
)  # fmt: skip


def _record(kind: type[T], row: Mapping[str, Any]) -> T:
    """A row as a record, without columns that a newer version may have added."""
    known = {column.name for column in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in row.items() if name in known})


def _write_lines(path: Path, rows: Iterable[Any]) -> None:
    lines = [json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) for row in rows]
    write_text(path, "".join(line + "\n" for line in lines))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return read_metrics(path) if path.is_file() else []


def _write_parquet(path: Path, rows: Iterable[Any], schema: pa.Schema) -> None:
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema), temporary)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist() if path.is_file() else []
    return rows
