"""The outcome of an evaluation, and its form in results.json."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers

from gaguide import __version__
from gaguide.evaluate.results.earlier import task_content
from gaguide.evaluate.results.groups import group_results
from gaguide.evaluate.results.metrics import ScoredExample, answer_pattern, band_sums, not_finite, worst
from gaguide.evaluate.results.near_ties import near_ties
from gaguide.evaluate.results.paper import PaperColumn, paper_accuracy
from gaguide.evaluate.results.parts import part_results
from gaguide.evaluate.results.task_results import TaskResult
from gaguide.log import code_fingerprint

_WORST = 5
"""Confidently wrong examples of each task in results.json."""


@dataclass(frozen=True)
class Results:
    """The outcome of one model on all tasks."""

    model: str
    """Folder or hub id."""
    tasks: Mapping[str, TaskResult]
    """Outcomes by task name."""
    settings: Mapping[str, Any]
    """How it was evaluated, as plain JSON."""
    world_size: int
    """Number of ranks."""
    seconds: Mapping[str, float]
    """Durations of the phases: read, load, score, total."""
    tokens: Mapping[str, int]
    """Counts of tokens, batches and cached prefixes."""
    paper_column: PaperColumn | None = None
    """The paper's column for the model."""
    resumed: float = 0.0
    """Share of the work, by predicted cost, that an interrupted launch had finished."""
    identity: Mapping[str, Any] | None = None
    """The model's content, see `ModelFolder.identity`."""

    def paper_accuracy(self, task: str) -> float | None:
        """The paper's accuracy for this model and task; None where it reports none."""
        return paper_accuracy(self.tasks[task].data.task.paper, self.paper_column)

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        dtype = str(self.settings["dtype"])
        return {
            "model": self.model,
            "identity": None if self.identity is None else dict(self.identity),
            "tasks": {
                name: _task_json(result, dtype) | {"reported_acc": self.paper_accuracy(name)}
                for name, result in self.tasks.items()
            },
            "groups": {
                name: {
                    "tasks": list(one.tasks),
                    "count": one.count,
                    "metrics": {metric: asdict(value) for (metric, _), value in one.metrics.items()},
                }
                for name, one in group_results(self.tasks).items()
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
    """Versions of the software that the numbers depend on."""
    return {
        "gaguide": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _truncated_json(scored: Sequence[ScoredExample]) -> dict[str, Any]:
    """The examples whose prompts were cut, and by how many tokens."""
    cut = {one.example.id: max(one.tokens_cut) for one in scored if any(one.tokens_cut)}
    sizes = {"least": min(cut.values(), default=0), "most": max(cut.values(), default=0)}
    return _share_json(list(cut), len(scored)) | sizes


def _bands_json(result: TaskResult) -> dict[str, Any]:
    """Kind near_cue: the lexicon, and how many tokens each band has."""
    if result.data.kind != "near_cue":
        return {}
    task = result.data.task
    tokens = {band: sum(counts) for band, (_, counts) in band_sums(result.scored).items()}
    return {"cues": {"lexicon": task.lexicon, "mode": task.cue_mode, "tokens": tokens}}


def _share_json(ids: list[str], count: int) -> dict[str, Any]:
    return {"count": len(ids), "share": len(ids) / count, "ids": ids}


def _task_json(result: TaskResult, dtype: str) -> dict[str, Any]:
    data = result.data
    return {
        "kind": data.kind,
        "summary": data.task.summary,
        "description": data.task.description,
        "count": len(result.scored),
        "chance": result.chance,
        "metrics": {name: asdict(metric) for name, metric in result.metrics.items()},
        "answers": None if (pattern := answer_pattern(result.scored, "acc")) is None else pattern.to_json(),
        "uninformative": {name: asdict(one) for name, one in result.uninformative.items()},
        **_bands_json(result),
        "parts": {name: asdict(part) for name, part in part_results(data.kind, result.scored).items()},
        "not_finite": _share_json(not_finite(result.scored), len(result.scored)),
        "truncated": _truncated_json(result.scored),
        "source": data.source,
        "sha256": data.sha256,
        "content": task_content(data),
        "warnings": [*data.warnings, *result.doubts()],
        "paper": {model: dict(row) for model, row in data.task.paper.items()},
        "near_ties": near_ties(result.scored, dtype),
        "worst": [
            {
                "id": one.example.id,
                "prompt": one.example.prompts[0],
                "continuations": list(one.example.continuations),
                "answer_index": one.example.answer_index,
                "predicted": one.predicted,
                "margin": one.margin,
            }
            for one in worst(result.scored, _WORST)
        ],
    }
