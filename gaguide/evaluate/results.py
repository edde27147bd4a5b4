"""Results as values and as files: results.json, results_lm_eval.json and examples.parquet."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from gaguide import __version__
from gaguide.data.files import replacing
from gaguide.evaluate.load import TaskData
from gaguide.evaluate.metrics import Metric, ScoredExample
from gaguide.log import write_json


@dataclass(frozen=True)
class TaskResult:
    """One task's outcome; `scored` follows the order of its data."""

    data: TaskData
    metrics: Mapping[str, Metric]
    chance: float | None
    scored: tuple[ScoredExample, ...]


@dataclass(frozen=True)
class Results:
    """The outcome of one model on all tasks."""

    model: str
    tasks: Mapping[str, TaskResult]
    settings: Mapping[str, Any]
    world_size: int
    seconds: Mapping[str, float]
    tokens: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """What results.json holds."""
        return {
            "model": self.model,
            "tasks": {name: _task_json(result) for name, result in self.tasks.items()},
            "settings": dict(self.settings),
            "world_size": self.world_size,
            "seconds": dict(self.seconds),
            "tokens": dict(self.tokens),
            "versions": {
                "gaguide": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        }


def write_results(results: Results, output: Path) -> None:
    """Write the three files into `output`; results.json last, so that where it stands all are there."""
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / "examples.parquet") as temporary:
        pq.write_table(_examples_table(results), temporary)
    write_json(output / "results_lm_eval.json", _lm_eval_json(results))
    write_json(output / "results.json", results.to_json())


def _task_json(result: TaskResult) -> dict[str, Any]:
    data = result.data
    return {
        "kind": data.kind,
        "description": data.task.description,
        "count": len(result.scored),
        "chance": result.chance,
        "metrics": {name: asdict(metric) for name, metric in result.metrics.items()},
        "source": data.source,
        "sha256": data.sha256,
        "warnings": list(data.warnings),
        "paper": {model: dict(row) for model, row in data.task.paper.items()},
    }


_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("id", pa.string()),
        ("kind", pa.string()),
        ("prompt", pa.string()),
        ("continuations", pa.list_(pa.string())),
        ("answer_index", pa.int32()),
        ("log_probabilities", pa.list_(pa.float64())),
        ("continuation_tokens", pa.list_(pa.int32())),
        ("predicted", pa.int32()),
        ("predicted_norm", pa.int32()),
        ("correct", pa.bool_()),
        ("margin", pa.float64()),
        ("value", pa.float64()),
    ]
)


def _examples_table(results: Results) -> pa.Table:
    rows = [
        {
            "task": name,
            "id": one.example.id,
            "kind": result.data.kind,
            "prompt": one.example.prompts[0],
            "continuations": list(one.example.continuations),
            "answer_index": one.example.answer_index,
            "log_probabilities": list(one.log_probabilities),
            "continuation_tokens": list(one.target_tokens),
            "predicted": one.predicted,
            "predicted_norm": one.predicted_norm,
            "correct": one.correct,
            "margin": one.margin,
            "value": one.value,
        }
        for name, result in results.tasks.items()
        for one in result.scored
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _lm_eval_json(results: Results) -> dict[str, Any]:
    """The same in the form of lm-evaluation-harness's results file, for the tools that read it."""
    names = {name: result.data.task.lm_eval or name for name, result in results.tasks.items()}
    tasks = {names[name]: result for name, result in results.tasks.items()}
    return {
        "results": {name: {"alias": name, **_lm_eval_metrics(result)} for name, result in tasks.items()},
        "group_subtasks": {},
        "configs": {
            name: {
                "task": name,
                "output_type": _output_type(result),
                "target_delimiter": "",
                "num_fewshot": 0,
            }
            for name, result in tasks.items()
        },
        "versions": {name: 0 for name in tasks},
        "n-shot": {name: 0 for name in tasks},
        "higher_is_better": {
            name: {metric: metric.startswith("acc") for metric in result.metrics}
            for name, result in tasks.items()
        },
        "n-samples": {
            name: {"original": len(result.scored), "effective": len(result.scored)}
            for name, result in tasks.items()
        },
        "config": {
            "model": "gaguide",
            "model_args": f"pretrained={results.model},dtype={results.settings['dtype']}",
            "limit": results.settings["limit"],
        },
        "git_hash": None,
        "date": time.time(),
        "transformers_version": transformers.__version__,
        "total_evaluation_time_seconds": str(results.seconds["total"]),
    }


def _lm_eval_metrics(result: TaskResult) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, metric in result.metrics.items():
        found[f"{name},none"] = metric.value
        found[f"{name}_stderr,none"] = "N/A" if math.isnan(metric.stderr) else metric.stderr
    return found


def _output_type(result: TaskResult) -> str:
    return "multiple_choice" if result.data.kind == "classification" else "loglikelihood"
