"""Scores of a run's evaluations: every results.json in its folder, and those of the training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaguide.errors import UserError
from gaguide.evaluate.results.metric_names import ACCURACIES, BETTER, MARK_NOTES, Better, Doubt
from gaguide.grouping import grouped
from gaguide.log import run_files
from gaguide.model.content import FileRecord, file_record, folder_record, other_files
from gaguide.numbers import finite

_SET_ASIDE = ".replaced-"
"""In names of folders of evaluations that a study has replaced."""


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task."""

    task: str
    """Name of the task."""
    metric: str
    """Name of the metric."""
    value: float
    """Its value, a finite number."""
    low: float | None
    """Lower end of the 95% interval over examples."""
    high: float | None
    """Upper end of the 95% interval over examples."""
    count: int | None
    """Number of examples."""
    better: Better | None
    """The better direction; None where neither is."""
    chance: float | None = None
    """Accuracy of blind guessing; None for metrics other than accuracies."""
    step: int | None = None
    """Optimizer step after which it was evaluated during training; None for an evaluation of the model."""
    content: str | None = None
    """Hash of the task's examples; None in records of older versions."""
    doubt: Doubt | None = None
    """Why an accuracy says nothing about the model's answers; None where it does."""

    @property
    def note(self) -> str:
        """Note on this number for the reader; empty where there is none."""
        return "" if self.doubt is None else MARK_NOTES[self.doubt]

    @property
    def key(self) -> tuple[str, str]:
        """(task, metric): scores of different runs with equal keys belong in one row."""
        return self.task, self.metric


@dataclass(frozen=True)
class Evaluations:
    """The scores of a run's evaluations."""

    scores: tuple[TaskScore, ...] | None
    """The scores; None where the run was not evaluated."""
    folders: Mapping[str, Path]
    """Task → the folder of the evaluation that its scores are from; none for those made during training."""
    notes: tuple[str, ...]
    """Notes for the reader: tasks that were evaluated more than once, numbers that are not finite."""


def read_evaluations(
    run: Path, during: Iterable[Mapping[str, Any]], record_of: FileRecord = file_record
) -> Evaluations:
    """The scores in the folders of `run` that hold a results.json, merged by task; the newest one counts.

    `during`: records of evaluations.jsonl; the last one gives tasks that no folder has. `record_of` gives the
    content of a model's file.
    Raises `UserError` for a results.json of another kind.
    """
    files = [path for path in run.glob(f"*/{run_files.RESULTS}") if _SET_ASIDE not in path.parent.name]
    files += run.glob(f"evaluations/*/{run_files.RESULTS}")
    files.sort(key=lambda path: (path.stat().st_mtime_ns, str(path)), reverse=True)
    by_task: dict[str, list[TaskScore]] = {}
    folders: dict[str, Path] = {}
    notes: list[str] = []
    weights = run / "model"
    now = folder_record(weights, record_of) if files and weights.is_dir() else {"files": []}
    for path in files:
        origin = str(path.parent.relative_to(run))
        tasks, identity = _read(path)
        if other := other_files(identity, weights, now) if weights.is_dir() else []:
            notes.append(
                f"the evaluation in {origin} is of a model with other content ({', '.join(other)}), and is "
                "not shown; evaluate the run's model, into another folder"
            )
            continue
        for task, record in tasks.items():
            if task in folders:
                notes.append(
                    f"{task} was evaluated again: shown from {folders[task].name}, not from {origin}"
                )
                continue
            folders[task] = path.parent
            by_task[task] = _scores(task, record)
            notes += _not_finite(task, record) + _constant(task, record) + _truncated(task, record)
    last = next(reversed(list(during)), None)
    for task, record in (last or {}).get("tasks", {}).items():
        if task not in by_task and isinstance(record, Mapping):
            by_task[task] = _scores(task, record, int(last["step"]) if last else None)
            notes += _not_finite(task, record) + _constant(task, record) + _truncated(task, record)
    scores = tuple(score for found in by_task.values() for score in found)
    return Evaluations(scores if files or last else None, folders, tuple(notes))


def _read(path: Path) -> tuple[dict[str, Mapping[str, Any]], Mapping[str, Any] | None]:
    """The records of the tasks in a results.json, and of its model's content."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError.of(str(path), f"is not valid JSON ({error})", "evaluate the model again") from None
    tasks = content.get("tasks") if isinstance(content, Mapping) else None
    if not isinstance(tasks, Mapping):
        problem = "is not a results.json of the evaluator (it has no tasks)"
        raise UserError.of(str(path), problem, "evaluate the model again")
    found = {str(name): task for name, task in tasks.items() if isinstance(task, Mapping)}
    identity = content.get("identity")
    return found, identity if isinstance(identity, Mapping) else None


def _scores(task: str, record: Mapping[str, Any], step: int | None = None) -> list[TaskScore]:
    metrics = record.get("metrics")
    if not isinstance(metrics, Mapping):
        return []
    found = (_score(task, str(metric), value, record, step) for metric, value in metrics.items())
    return [score for score in found if score is not None]


def _not_finite(task: str, record: Mapping[str, Any]) -> list[str]:
    """A sentence on metrics of a task without a finite value, which are in no table."""
    metrics = record.get("metrics")
    found = metrics if isinstance(metrics, Mapping) else {}
    missing = [
        str(name)
        for name, value in found.items()
        if not isinstance(value, Mapping) or finite(value.get("value")) is None
    ]
    if not missing:
        return []
    bad = record.get("not_finite")
    bad = bad.get("count") if isinstance(bad, Mapping) else bad  # during training: the number alone
    count = f" ({bad} of {record.get('count')} examples)" if bad else ""
    return [f"{task} has no finite {', '.join(missing)}{count}; left out"]


def _truncated(task: str, record: Mapping[str, Any]) -> list[str]:
    """A sentence on prompts that were cut to the model's positions."""
    cut = truncated_count(record)
    return (
        [f"{task}: {cut} of {record.get('count')} prompts were cut to the model's positions"] if cut else []
    )


def truncated_count(record: Mapping[str, Any]) -> int:
    """Examples of a task's record whose prompts were cut; 0 where that is not recorded."""
    found = record.get("truncated")
    return int(found.get("count", 0)) if isinstance(found, Mapping) else 0


def _score(
    task: str, metric: str, value: Any, record: Mapping[str, Any], step: int | None
) -> TaskScore | None:
    fields = value if isinstance(value, Mapping) else {}
    number, count = finite(fields.get("value")), finite(record.get("count"))
    if number is None:
        return None
    return TaskScore(
        task,
        metric,
        number,
        finite(fields.get("low")),
        finite(fields.get("high")),
        None if count is None else int(count),
        BETTER.get(metric),
        finite(record.get("chance")) if metric in ACCURACIES else None,
        step,
        None if record.get("content") is None else str(record["content"]),
        _doubts(record).get(metric, {}).get("reason"),
    )


def _doubts(record: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Metric → reason and sentence of the accuracies that say nothing."""
    found = record.get("uninformative")
    return found if isinstance(found, Mapping) else {}


def _constant(task: str, record: Mapping[str, Any]) -> list[str]:
    """A sentence on constant answers to a task; accuracies with the same reason together."""
    constant = [(metric, one) for metric, one in _doubts(record).items() if one.get("reason") == "constant"]
    return [
        f"{task}: {', '.join(names)} (‡) measures the data, not the model, since {why}"
        for why, names in grouped((str(one.get("why")), metric) for metric, one in constant).items()
    ]
