"""The examples of an evaluation: each one's question, and its outcome in every metric; without torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from gaguide.evaluate.results.intervals import clusters
from gaguide.evaluate.results.metric_names import ACCURACIES, CUE_LOSSES
from gaguide.grouping import grouped
from gaguide.numbers import finite

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
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Metric → weight of each example, where they differ, such as its tokens for a loss per token; the
    metric's value is the mean with these weights."""
    answers: tuple[str | None, ...] = ()
    """Text of the right answer; None where there is none."""
    predictions: tuple[str | None, ...] = ()
    """Text of the model's answer; None where there is none."""

    @property
    def question_keys(self) -> tuple[str, ...]:
        """Id of each example with its answer: equal for one question in several wordings of its prompt."""
        return tuple(json.dumps(pair) for pair in zip(self.ids, self.answers, strict=True))


def read_examples(folder: Path) -> Mapping[str, TaskExamples]:
    """Task → its examples, from the examples.parquet of an evaluation."""
    rows = pq.read_table(folder / "examples.parquet").to_pylist()
    return {name: _task_examples(listed) for name, listed in grouped((r["task"], r) for r in rows).items()}


def _task_examples(rows: Sequence[Mapping[str, Any]]) -> TaskExamples:
    return TaskExamples(
        tuple(row["id"] for row in rows),
        tuple(row["prompt"] for row in rows),
        tuple(row["content"] for row in rows),
        {name: np.asarray(values, float) for name, values in _outcomes(rows).items()},
        clusters([row["id"] for row in rows], [row.get("group") for row in rows]),
        _weights(rows),
        tuple(_answer(row) for row in rows),
        tuple(_prediction(row) for row in rows),
    )


def _answer(row: Mapping[str, Any]) -> str | None:
    if row["kind"] == "numeric":
        return str(row["answer"])
    if row["answer_index"] is not None:
        return str(row["continuations"][row["answer_index"]])
    return str(row["continuations"][0]) if len(row["continuations"]) == 1 else None


def _prediction(row: Mapping[str, Any]) -> str | None:
    if row["kind"] == "numeric":
        return None if row["text"] is None else str(row["text"])
    return None if row["predicted"] is None else str(row["continuations"][row["predicted"]])


def _outcomes(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Metric → one number per example, NaN where it has none."""
    kind = rows[0]["kind"]
    values = [math.nan if finite(row["value"]) is None else row["value"] for row in rows]
    if kind == "classification":
        known = [all(finite(one) is not None for one in row["log_probabilities"]) for row in rows]
        asked = [  # few tasks ask for mutual information
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
    if kind == "perplexity":  # nats a token, each block
        return {
            "loss": [value / sum(row["continuation_tokens"]) for value, row in zip(values, rows, strict=True)]
        }
    if kind == "near_cue":  # nats a token of each band, each text
        return {
            metric: (sums / np.maximum(units, 1)).tolist()
            for metric, (sums, units) in _band_losses(rows).items()
        }
    if kind == "rolling":  # per word in nats, per byte in bits, each document
        units = _weights(rows)
        return {
            "word_loss": (np.asarray(values) / units["word_loss"]).tolist(),
            "bits_per_byte": (np.asarray(values) / math.log(2) / units["bits_per_byte"]).tolist(),
        }
    if kind == "numeric":
        return {"acc": [_correct_number(row) for row in rows]}
    if kind == "sequence_prob" and all(row.get("greedy") is not None for row in rows if row["finite"]):
        greedy = [float(row["greedy"]) if row["finite"] else math.nan for row in rows]
        return {"loss": values, "greedy_acc": greedy}
    return {"loss" if kind == "sequence_prob" else kind: values}


def _weights(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Weight of each example in a metric over tokens; see `TaskExamples.weights`."""
    if rows[0]["kind"] == "rolling":
        texts = [row["continuations"][0] for row in rows]
        return {
            "word_loss": np.asarray([len(re.split(r"\s+", text)) for text in texts], float),
            "bits_per_byte": np.asarray([max(1, len(text.encode("utf-8"))) for text in texts], float),
        }
    if rows[0]["kind"] == "near_cue":
        return {metric: units for metric, (_, units) in _band_losses(rows).items()}
    if rows[0]["kind"] != "perplexity":
        return {}
    return {"loss": np.asarray([sum(row["continuation_tokens"]) for row in rows], float)}


def _band_losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric → summed loss and tokens of each text, float [examples]; 0 where it has none of a band."""
    found = {}
    for band, metric in [(None, "loss"), *CUE_LOSSES.items()]:
        picked = [[at for at, own in enumerate(row["bands"]) if band in (None, own)] for row in rows]
        pairs = list(zip(rows, picked, strict=True))
        tokens = np.asarray(
            [sum(row["continuation_tokens"][at] for at in places) for row, places in pairs], float
        )
        sums = [-math.fsum(row["log_probabilities"][at] for at in places) for row, places in pairs]
        if tokens.any():
            found[metric] = np.asarray(sums), tokens
    return found


def _correct_number(row: Mapping[str, Any]) -> float:
    if not row["finite"]:
        return math.nan
    return float(row["number"] is not None and math.isclose(row["number"], row["answer"]))
