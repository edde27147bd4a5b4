"""An ablation as CSV: `heads`, a row for each head, `effects`, one for each effect of each removal, and
`spans`, one for each head and set of queries on the spans of a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from gaguide.ablate.records import AblationRecord, Effect, MethodEffects
from gaguide.report.text import csv_text

_OF_HEAD = (
    "layer", "head", "role", "pattern", "attention", "attention_before", "output_norm", "target_norm",
    "weighted_norm", "moved", "used",
)  # fmt: skip


def ablation_csv(records: Sequence[AblationRecord]) -> dict[str, str]:
    """Name → CSV text, in full precision."""
    found = {}
    for name, rows_of in (("heads", head_rows), ("effects", effect_rows), ("spans", span_rows)):
        rows = [row for record in records for row in rows_of(record)]
        if rows:
            found[name] = csv_text(list(rows[0]), [list(row.values()) for row in rows])
    return found


def head_rows(record: AblationRecord) -> Iterator[dict[str, Any]]:
    """A row for each head of each model."""
    for model in record.models:
        for head in model.heads:
            rise = head.rise or Effect(None)
            yield {"model": model.name} | {name: getattr(head, name) for name in _OF_HEAD} | {
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
