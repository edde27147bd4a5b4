"""An ablation as Parquet: heads.parquet, a row for each head, effects.parquet, one for each effect, and
spans.parquet, one for each head and set of queries on the spans of a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gaguide.ablate.records import AblationRecord, Effect, MethodEffects
from gaguide.files import replacing

HEADS, EFFECTS, SPANS = "heads.parquet", "effects.parquet", "spans.parquet"
_HEADS = pa.schema(
    [
        ("model", pa.string()), ("layer", pa.int64()), ("head", pa.int64()), ("role", pa.string()),
        ("pattern", pa.string()), ("attention", pa.float64()), ("attention_before", pa.float64()),
        ("rise", pa.float64()), ("rise_low", pa.float64()), ("rise_high", pa.float64()),
        ("rise_p_holm", pa.float64()), ("output_norm", pa.float64()), ("target_norm", pa.float64()),
        ("weighted_norm", pa.float64()), ("moved", pa.string()), ("used", pa.string()),
    ]
)  # fmt: skip
_EFFECTS = pa.schema(
    [
        ("model", pa.string()), ("layer", pa.int64()), ("head", pa.int64()), ("role", pa.string()),
        ("method", pa.string()), ("task", pa.string()), ("effect", pa.string()),
        ("difference", pa.float64()), ("low", pa.float64()), ("high", pa.float64()), ("p", pa.float64()),
        ("p_holm", pa.float64()), ("count", pa.int64()),
    ]
)  # fmt: skip
_SPANS = pa.schema(
    [
        ("model", pa.string()), ("layer", pa.int64()), ("head", pa.int64()), ("role", pa.string()),
        ("task", pa.string()), ("mark", pa.string()), ("queries", pa.string()), ("attention", pa.float64()),
        ("low", pa.float64()), ("high", pa.float64()), ("rise", pa.float64()), ("rise_low", pa.float64()),
        ("rise_high", pa.float64()), ("rise_p", pa.float64()), ("rise_p_holm", pa.float64()),
        ("rise_examples", pa.int64()), ("moved", pa.string()), ("examples", pa.int64()),
        ("query_count", pa.int64()), ("cut", pa.int64()), ("of", pa.int64()),
    ]
)  # fmt: skip


def write_tables(folder: Path, record: AblationRecord) -> None:
    """Write the files into `folder`; layer and head are null where all guided heads are removed at once."""
    for name, rows, schema in (
        (HEADS, head_rows(record), _HEADS), (EFFECTS, effect_rows(record), _EFFECTS),
        (SPANS, span_rows(record), _SPANS),
    ):  # fmt: skip
        with replacing(folder / name) as temporary:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary)


def head_rows(record: AblationRecord) -> Iterator[dict[str, Any]]:
    """A row for each head of each model."""
    plain = [name for name in _HEADS.names if not name.startswith("rise") and name != "model"]
    for model in record.models:
        for head in model.heads:
            rise = head.rise or Effect(None)
            yield {"model": model.name} | {name: getattr(head, name) for name in plain} | {
                "rise": rise.difference, "rise_low": rise.low, "rise_high": rise.high,
                "rise_p_holm": rise.p_holm,
            }  # fmt: skip


def effect_rows(record: AblationRecord) -> Iterator[dict[str, Any]]:
    """A row for each effect of each removal: loss, near, bands, comparisons, and metrics of tasks."""
    for model in record.models:
        for head in model.heads:
            where = {"model": model.name, "layer": head.layer, "head": head.head, "role": head.role}
            for method, effects in head.methods.items():
                yield from (where | {"method": method} | row for row in _rows(effects))
        for method, effects in model.together.items():
            where = {"model": model.name, "layer": None, "head": None, "role": "all guided"}
            yield from (where | {"method": method} | row for row in _rows(effects))


def span_rows(record: AblationRecord) -> Iterator[dict[str, Any]]:
    """A row for each head, task, mark and set of queries; none where no task has spans."""
    for model in record.models:
        for head in model.heads:
            where = {"model": model.name, "layer": head.layer, "head": head.head, "role": head.role}
            for one in head.spans:
                rise = one.rise or Effect(None)
                yield where | asdict(one) | {
                    "rise": rise.difference, "rise_low": rise.low, "rise_high": rise.high,
                    "rise_p": rise.p, "rise_p_holm": rise.p_holm, "rise_examples": rise.count,
                }  # fmt: skip


def _rows(effects: MethodEffects) -> Iterator[dict[str, Any]]:
    names = ("loss", "near", "over_controls", "near_over_controls", "over_first", "near_over_first")
    for name in names:
        if (effect := getattr(effects, name)) is not None and effect.count:
            yield {"task": None, "effect": name} | asdict(effect)
    for name, effect in effects.bands.items():
        if effect.count:
            yield {"task": None, "effect": f"distance {name}"} | asdict(effect)
    for task, metrics in effects.tasks.items():
        for metric, effect in metrics.items():
            yield {"task": task, "effect": metric} | asdict(effect)
