"""What a study's folder holds, as values and as files: the one place that knows their columns.

docs/studies.md says which file is which.

study.json says what was asked and how far each cell is; the other files are made from the cells' own records
by `gaguide.study.collect`, whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from gaguide.errors import Fault, UserError
from gaguide.evaluate.results.metric_names import Better
from gaguide.files import replacing, write_json, write_text
from gaguide.log import read_metrics

STUDY, RESULTS, MEANS = "study.json", "results.parquet", "means.jsonl"
COMPARISONS, VERDICTS, ANALYSIS, CHANGES = (
    "comparisons.jsonl", "verdicts.jsonl", "analysis.jsonl", "changes.parquet",
)  # fmt: skip
HELD_OUT = "held-out text"
"""The task name under which held-out loss and guided attention stand beside the tasks."""

State = Literal["pending", "running", "done", "failed", "blocked"]
Verdict = Literal["inverse", "positive", "U-shaped", "inverted U", "flat", "not enough sizes"]


@dataclass(frozen=True)
class CellRecord:
    """One cell. `role`: base (trained, not evaluated), original (evaluated, not trained) or tuned.

    `folder` is relative to the study's. `seed` is None for an original that no seed changes.
    """

    id: str
    role: Literal["base", "original", "tuned"]
    size: str
    experiment: str
    seed: int | None
    folder: str
    state: State
    parameters: int | None = None
    base: str | None = None
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    tokens: int | None = None
    error: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One cell × task × metric; `low` and `high` bound the 95% interval over examples."""

    cell: str
    size: str
    parameters: int
    experiment: str
    seed: int | None
    task: str
    kind: str
    metric: str
    better: Better | None
    value: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    chance: float | None = None
    paper: float | None = None


@dataclass(frozen=True)
class Mean:
    """One size × experiment × task × metric over seeds; t-interval, None with a single seed."""

    size: str
    parameters: int
    experiment: str
    task: str
    metric: str
    better: Better | None
    seeds: int
    value: float
    low: float | None
    high: float | None
    chance: float | None = None
    paper: float | None = None


@dataclass(frozen=True)
class Comparison:
    """An experiment against a baseline of the same size on the same examples.

    level `seed`: one seed, `test` is mcnemar or bootstrap; level `seeds`: the mean difference over seeds,
    t-test. `p_holm` is corrected over the tasks' main metrics of one size, seed, experiment and baseline;
    each further metric, and held-out loss, is a family of its own.
    """

    level: Literal["seed", "seeds"]
    size: str
    parameters: int
    experiment: str
    baseline: str
    seed: int | None
    seeds: int
    task: str
    metric: str
    better: Better | None
    test: Literal["mcnemar", "bootstrap", "t"]
    count: int | None
    value: float
    baseline_value: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_exact: float | None = None
    p_holm: float | None = None
    helped: int | None = None
    hurt: int | None = None

    @property
    def improved(self) -> bool | None:
        """Whether the difference is for the better; None where that has no meaning or it is 0."""
        if self.better is None or self.difference == 0:
            return None
        return (self.difference > 0) == (self.better == "high")


@dataclass(frozen=True)
class ScalingVerdict:
    """How a task moves with size under one experiment. Slopes are per tenfold of parameters."""

    experiment: str
    task: str
    metric: str
    better: Better
    sizes: Sequence[str]
    parameters: Sequence[int]
    means: Sequence[float]
    seeds: int
    unit: Literal["seeds", "examples"]
    slope: float | None
    slope_low: float | None
    slope_high: float | None
    p_slope: float | None
    p_slope_holm: float | None
    p_bend: float | None
    p_bend_holm: float | None
    turning_point: float | None
    verdict: Verdict


@dataclass(frozen=True)
class LexiconShare:
    """Share of a task's examples whose prompt contains a lexicon, with Wilson's interval."""

    task: str
    lexicon: str
    mode: Literal["pieces", "words"]
    examples: int
    containing: int
    share: float
    low: float
    high: float
    kind: Literal["lexicon-share"] = "lexicon-share"


@dataclass(frozen=True)
class Gain:
    """Mean change of `metric` from a baseline, on examples with or without words that the column guides to.

    Below 0 is better where `better` is low. Over all seeds; the interval is a bootstrap over
    examples, None where there are fewer than two.
    """

    size: str
    experiment: str
    baseline: str
    task: str
    metric: str
    better: Better
    words: Literal["with", "without"]
    lexicons: Sequence[str]
    seeds: int
    examples: int
    gain: float | None
    low: float | None
    high: float | None
    kind: Literal["gain"] = "gain"


@dataclass(frozen=True)
class HeadAttention:
    """Attention mass of one guided (or only measured) head on its words, held-out text, before and after."""

    cell: str
    size: str
    experiment: str
    seed: int | None
    guided: bool
    layer: int
    head: int
    pattern: str
    before: float | None
    after: float | None
    kind: Literal["attention"] = "attention"


@dataclass(frozen=True)
class LossCost:
    """Held-out loss (nats a token) against a baseline, paired by seed; t-interval over seeds."""

    size: str
    experiment: str
    baseline: str
    seeds: int
    loss: float
    baseline_loss: float
    difference: float
    relative: float
    low: float | None
    high: float | None
    kind: Literal["loss"] = "loss"


@dataclass(frozen=True)
class Change:
    """One example under an experiment against a baseline, over `seeds` seeds.

    `correct` and `baseline_correct` count seeds (None where the task has no accuracy); `change` is the mean
    change of its value in the task's main loss (below 0: better), `contains` the lexicons in its prompt.
    """

    size: str
    experiment: str
    baseline: str
    task: str
    example: str
    prompt: str
    contains: Sequence[str]
    seeds: int
    baseline_correct: int | None
    correct: int | None
    change: float


Analysis = LexiconShare | Gain | HeadAttention | LossCost


@dataclass(frozen=True)
class StudyRecords:
    """Everything that is known of a study; the tables are empty until it was collected.

    `study`: the study file as resolved. `provenance`: versions, machine, commit and when it was collected.
    """

    name: str
    study: Mapping[str, Any]
    provenance: Mapping[str, Any]
    cells: tuple[CellRecord, ...]
    results: tuple[Result, ...] = ()
    means: tuple[Mean, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    verdicts: tuple[ScalingVerdict, ...] = ()
    shares: tuple[LexiconShare, ...] = ()
    gains: tuple[Gain, ...] = ()
    attention: tuple[HeadAttention, ...] = ()
    losses: tuple[LossCost, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def analysis(self) -> tuple[Analysis, ...]:
        """The rows of analysis.jsonl."""
        return (*self.shares, *self.gains, *self.attention, *self.losses)


def write_study(folder: Path, records: StudyRecords) -> None:
    """Write study.json: what was asked, and the state of each cell."""
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
    """Write everything but study.json; each file is whole whenever it is there."""
    _write_parquet(folder / RESULTS, records.results, _RESULTS)
    _write_lines(folder / MEANS, records.means)
    _write_lines(folder / COMPARISONS, records.comparisons)
    _write_lines(folder / VERDICTS, records.verdicts)
    _write_lines(folder / ANALYSIS, records.analysis)
    _write_parquet(folder / CHANGES, records.changes, _CHANGES)


def read_study(folder: Path) -> StudyRecords:
    """The records in a study's folder. Raises a `UserError` where it holds none, or of another schema."""
    path = folder / STUDY
    if not path.is_file():
        raise UserError(
            Fault("STUDY", "holds no study.json", "give a folder that gaguide study run made", str(folder))
        )
    tree = json.loads(path.read_text("utf-8"))
    if tree.get("schema") != 1:
        problem = f"{STUDY} has schema {tree.get('schema')!r}; this version reads 1"
        raise UserError(Fault("STUDY", problem, "run gaguide study collect on it", str(folder)))
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


T = TypeVar("T")

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
    """A row as a record; columns that a newer version added are left out."""
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
