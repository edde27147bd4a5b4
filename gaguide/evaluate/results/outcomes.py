"""The examples of an evaluation: what each asks, and its outcome in every metric; without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from gaguide.evaluate.results.intervals import clusters
from gaguide.evaluate.results.metric_names import ACCURACIES
from gaguide.evaluate.tasks.examples import example_key

_PREDICTIONS = ("predicted", "predicted_norm", "predicted_bytes", "predicted_mutual_info")
"""Columns of examples.parquet with the class that counts for each of `ACCURACIES`."""


@dataclass(frozen=True)
class TaskExamples:
    """One task's examples, in the order of the data."""

    ids: tuple[str, ...]
    """Id of each example."""
    prompts: tuple[str, ...]
    """Prompt of each example."""
    keys: tuple[str, ...]
    """Hash of what each example asks (`Example.key`)."""
    outcomes: Mapping[str, np.ndarray]
    """Metric → one number per example, 1 or 0 for accuracies; only metrics that are means over examples."""
    groups: tuple[str, ...] | None = None
    """Each example's group, or its own id where it has none; None where the data have no groups."""


def read_examples(folder: Path) -> Mapping[str, TaskExamples]:
    """Task → its examples, from the examples.parquet of an evaluation."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(folder / "examples.parquet").to_pylist():
        found.setdefault(row["task"], []).append(row)
    return {name: _task_examples(listed) for name, listed in found.items()}


def finite(value: Any) -> float | None:
    """The number; None for None, NaN and infinity."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _key(row: Mapping[str, Any]) -> str:
    """What a row asks, as its evaluation recorded it; of evaluations before 0.2, as far as the row says it.

    Those had neither the second prompt nor the tokens of a block; blocks were known by their place.
    """
    if row.get("content"):
        return str(row["content"])
    block = [row["id"], row["continuation_tokens"]] if row["kind"] == "perplexity" else ()
    asked = (row["continuations"], row["answer_index"], row.get("answer"))
    return example_key(row["kind"], [row["prompt"]], *asked, block)


def _task_examples(rows: Sequence[Mapping[str, Any]]) -> TaskExamples:
    return TaskExamples(
        tuple(row["id"] for row in rows),
        tuple(row["prompt"] for row in rows),
        tuple(map(_key, rows)),
        {name: np.asarray(values, float) for name, values in _outcomes(rows).items()},
        # Results of older releases have no groups.
        clusters([row["id"] for row in rows], [row.get("group") for row in rows]),
    )


def _outcomes(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Metric → one number per example, NaN where it has none; empty for generated numbers."""
    kind = rows[0]["kind"]
    values = [math.nan if finite(row["value"]) is None else row["value"] for row in rows]
    if kind == "classification":
        known = [all(finite(one) is not None for one in row["log_probabilities"]) for row in rows]
        # Results of older releases lack some predictions, and few tasks ask for mutual information.
        asked = [
            (metric, column)
            for metric, column in zip(ACCURACIES, _PREDICTIONS, strict=True)
            if not any(right and row.get(column) is None for row, right in zip(rows, known, strict=True))
        ]
        return {"class_loss": values} | {
            metric: [
                float(row[column] in (row["answer_index"], *(row.get("other_answers") or ())))
                if right
                else math.nan
                for row, right in zip(rows, known, strict=True)
            ]
            for metric, column in asked
        }
    if kind == "perplexity":  # blocks of nearly equal length: nats a token, each block
        return {
            "loss": [value / sum(row["continuation_tokens"]) for value, row in zip(values, rows, strict=True)]
        }
    return {} if kind == "numeric" else {"loss" if kind == "sequence_prob" else kind: values}
