"""The outcome of an evaluation: values, and what results.json says of them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers

from gaguide import __version__
from gaguide.evaluate.results.metrics import Metric, ScoredExample, near_ties, worst
from gaguide.evaluate.results.paper import Published, reported_accuracy
from gaguide.evaluate.tasks.read import TaskData
from gaguide.log import code_fingerprint

WORST = 5
"""Examples of each task in results.json on which the model was wrong and sure."""


@dataclass(frozen=True)
class TaskResult:
    """One task's outcome; `scored` follows the order of its data."""

    data: TaskData
    metrics: Mapping[str, Metric]
    chance: float | None
    scored: tuple[ScoredExample, ...]


@dataclass(frozen=True)
class Results:
    """The outcome of one model on all tasks; `resumed`: share of the work that an earlier launch had done."""

    model: str
    tasks: Mapping[str, TaskResult]
    settings: Mapping[str, Any]
    world_size: int
    seconds: Mapping[str, float]
    tokens: Mapping[str, int]
    published: Published | None = None
    resumed: float = 0.0

    def reported(self, task: str) -> float | None:
        """The accuracy that the study printed for this model and task, where it did."""
        return reported_accuracy(self.tasks[task].data.task.paper, self.published)

    def to_json(self) -> dict[str, Any]:
        """What results.json holds."""
        return {
            "model": self.model,
            "tasks": {
                name: _task_json(result) | {"reported_acc": self.reported(name)}
                for name, result in self.tasks.items()
            },
            "settings": dict(self.settings),
            "world_size": self.world_size,
            "seconds": dict(self.seconds),
            "tokens": dict(self.tokens),
            "resumed": self.resumed,
            "versions": versions(),
            "code": code_fingerprint(),
        }


def versions() -> dict[str, str]:
    """Of everything that the numbers depend on."""
    return {
        "gaguide": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


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
        "near_ties": near_ties(result.scored),
        "worst": [
            {
                "id": one.example.id,
                "prompt": one.example.prompts[0],
                "continuations": list(one.example.continuations),
                "answer_index": one.example.answer_index,
                "predicted": one.predicted,
                "margin": one.margin,
            }
            for one in worst(result.scored, WORST)
        ],
    }
