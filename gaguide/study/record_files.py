"""All records of a study and the files they are stored in; docs/studies.md lists the files.

study.json has the settings, the state of each cell, and the name of the folder with the tables, which
`gaguide.study.collect` makes from the cells' own records. Each collection writes a new folder and then
replaces study.json: a reader sees the tables of one collection, never some of two.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from gaguide.errors import UserError, mask_all
from gaguide.files import replacing, write_json, write_text
from gaguide.log import read_metrics
from gaguide.study.records import CellRecord
from gaguide.study.study_records import StudyRecords

STUDY = "study.json"
_FILES = {
    "results": "results.parquet",
    "means": "means.jsonl",
    "comparisons": "comparisons.jsonl",
    "verdicts": "verdicts.jsonl",
    "changes": "changes.parquet",
    "left_out": "left_out.jsonl",
}
"""Field of `StudyRecords` → its file."""
_ANALYSIS = ("shares", "gains", "attention", "losses", "knock_outs", "head_verdicts")
"""Fields of `StudyRecords` that share analysis.jsonl, distinguished by `kind`."""
_KINDS: Mapping[str, type[Any]] = {
    name: get_args(hint)[0]
    for name, hint in get_type_hints(StudyRecords).items()
    if name in (*_FILES, *_ANALYSIS)
}
"""Field of `StudyRecords` → the class of its records."""
_ANALYSIS_FILE = "analysis.jsonl"
_PREFIX = "tables-"
"""Folders of tables are numbered; study.json names the current one."""
T = TypeVar("T")


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
        for name, file in _FILES.items():
            _write(tables / file, getattr(records, name), _KINDS[name])
        _write(tables / _ANALYSIS_FILE, (row for name in _ANALYSIS for row in getattr(records, name)))
        _write_study(folder, records, tables.name)
    except BaseException:
        shutil.rmtree(tables, ignore_errors=True)
        raise
    for old in _table_folders(folder):
        # A reader may have opened study.json just before it was replaced: the previous tables stay.
        if old.name not in (tables.name, before):
            shutil.rmtree(old, ignore_errors=True)


def tables_folder(folder: Path) -> Path:
    """Folder of the current tables of the study in `folder`."""
    return folder / (_current(folder) or "")


def _current(folder: Path) -> str | None:
    """Name of the folder with the tables; None before collection."""
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
        raise UserError.of(
            "STUDY", "contains no study.json", "give the output folder of a study", str(folder)
        )
    tree = json.loads(path.read_text("utf-8"))
    if tree.get("schema") != 1:
        problem = f"{STUDY} has schema {tree.get('schema')!r}; this version reads 1"
        raise UserError.of("STUDY", problem, "run gaguide study collect", str(folder))
    tables = folder / (tree.get("tables") or "")
    found = {name: _records(_KINDS[name], _read(tables / file)) for name, file in _FILES.items()}
    analysis = _read(tables / _ANALYSIS_FILE)
    for name in _ANALYSIS:
        kind = _KINDS[name]
        found[name] = _records(kind, (row for row in analysis if row["kind"] == kind.kind))
    cells = _records(CellRecord, tree["cells"])
    return StudyRecords(tree["name"], tree["study"], tree["provenance"], cells, **found)


def _records(kind: type[T], rows: Iterable[Mapping[str, Any]]) -> tuple[T, ...]:
    """Rows as records, without columns that a newer version may have added."""
    known = {column.name for column in fields(kind)}  # type: ignore[arg-type]
    return tuple(kind(**{name: value for name, value in row.items() if name in known}) for row in rows)


def _write(path: Path, rows: Iterable[Any], kind: type[Any] | None = None) -> None:
    """Rows as JSON lines, or as Parquet with the columns of `kind`, by the name of the file."""
    trees = [asdict(row) for row in rows]
    if kind is None or path.suffix == ".jsonl":
        lines = [json.dumps(tree, ensure_ascii=False, allow_nan=False) for tree in trees]
        write_text(path, "".join(line + "\n" for line in lines))
        return
    schema = pa.schema([(name, _column(hint)) for name, hint in get_type_hints(kind).items()])
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(trees, schema=schema), temporary)


def _column(hint: Any) -> pa.DataType:
    """The Arrow type of a field; words of a `Literal` are strings."""
    given = [kind for kind in get_args(hint) if kind is not NoneType]
    types = {int: pa.int64(), float: pa.float64(), Sequence[str]: pa.list_(pa.string())}
    return types.get(given[0] if NoneType in get_args(hint) else hint, pa.string())


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return read_metrics(path) if path.suffix == ".jsonl" else list(pq.read_table(path).to_pylist())
