"""All records of a study and the files they are stored in; docs/studies.md lists the files.

study.json has the settings and the state of each cell. The other files are made from the cells' own records
by `gaguide.study.collect`, atomically.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from gaguide.errors import Fault, UserError
from gaguide.files import replacing, write_json, write_text
from gaguide.log import read_metrics
from gaguide.study.analysis_records import Analysis, Change, Gain, HeadAttention, LexiconShare, LossCost
from gaguide.study.records import CellRecord, Comparison, Mean, Result, ScalingVerdict

STUDY, RESULTS, MEANS = "study.json", "results.parquet", "means.jsonl"
COMPARISONS, VERDICTS, ANALYSIS, CHANGES = (
    "comparisons.jsonl", "verdicts.jsonl", "analysis.jsonl", "changes.parquet",
)  # fmt: skip
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

    @property
    def analysis(self) -> tuple[Analysis, ...]:
        """The rows of analysis.jsonl."""
        return (*self.shares, *self.gains, *self.attention, *self.losses)


def write_study(folder: Path, records: StudyRecords) -> None:
    """Write study.json: the settings and the state of each cell."""
    write_json(
        folder / STUDY,
        {
            "schema": 1,
            "name": records.name,
            "study": records.study,
            "provenance": records.provenance,
            "cells": [asdict(cell) for cell in records.cells],
        },
    )


def write_tables(folder: Path, records: StudyRecords) -> None:
    """Write every file but study.json, each atomically."""
    _write_parquet(folder / RESULTS, records.results, _RESULTS)
    _write_lines(folder / MEANS, records.means)
    _write_lines(folder / COMPARISONS, records.comparisons)
    _write_lines(folder / VERDICTS, records.verdicts)
    _write_lines(folder / ANALYSIS, records.analysis)
    _write_parquet(folder / CHANGES, records.changes, _CHANGES)


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
    analysis = _read_lines(folder / ANALYSIS)

    def of_kind(kind: str, record: type[T]) -> tuple[T, ...]:
        return tuple(_record(record, row) for row in analysis if row["kind"] == kind)

    return StudyRecords(
        tree["name"],
        tree["study"],
        tree["provenance"],
        tuple(_record(CellRecord, cell) for cell in tree["cells"]),
        tuple(_record(Result, row) for row in _read_parquet(folder / RESULTS)),
        tuple(_record(Mean, row) for row in _read_lines(folder / MEANS)),
        tuple(_record(Comparison, row) for row in _read_lines(folder / COMPARISONS)),
        tuple(_record(ScalingVerdict, row) for row in _read_lines(folder / VERDICTS)),
        of_kind("lexicon-share", LexiconShare),
        of_kind("gain", Gain),
        of_kind("attention", HeadAttention),
        of_kind("loss", LossCost),
        tuple(_record(Change, row) for row in _read_parquet(folder / CHANGES)),
    )


_RESULTS = pa.schema(
    [
        ("cell", pa.string()), ("size", pa.string()), ("parameters", pa.int64()), ("experiment", pa.string()),
        ("seed", pa.int64()), ("task", pa.string()), ("kind", pa.string()), ("metric", pa.string()),
        ("better", pa.string()), ("value", pa.float64()), ("stderr", pa.float64()), ("low", pa.float64()),
        ("high", pa.float64()), ("count", pa.int64()), ("chance", pa.float64()), ("paper", pa.float64()),
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
