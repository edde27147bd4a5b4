"""Paths on a command line → the evaluations in them: gaguide's folders, lm-evaluation-harness's samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gaguide.errors import FaultCollector, UserError
from gaguide.evaluate.compare.harness_samples import read_samples, samples_task
from gaguide.evaluate.results.metric_names import Doubt
from gaguide.evaluate.results.outcomes import TaskExamples, read_examples
from gaguide.log import run_files

_EXAMPLES = "examples.parquet"
_SCORING = ("dtype", "on_overflow")
_REMEDY = "give the --output folder of gaguide evaluate, or what lm-eval --log_samples wrote"


@dataclass(frozen=True)
class Evaluation:
    """The examples of one model on its tasks."""

    name: str
    """Short name in tables, different from those of the other evaluations."""
    path: Path
    """Where it was read from."""
    model: str
    """The model, as the evaluation names it."""
    tasks: Mapping[str, TaskExamples]
    """Task → its examples."""
    main_metrics: Mapping[str, str] = field(default_factory=dict)
    """Task → the metric that is listed first."""
    warnings: tuple[str, ...] = ()
    """The evaluation's own warnings."""
    doubts: Mapping[str, Mapping[str, Doubt]] = field(default_factory=dict)
    """Task → metric → why that accuracy says nothing about the model's answers."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Task → the settings that its scores depend on; without an entry where they are not known."""


def scoring_settings(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of results.json, the settings that change the scores of the same examples."""
    found = results.get("settings")
    return {name: found[name] for name in _SCORING if name in found} if isinstance(found, Mapping) else {}


def read_evaluations(paths: Sequence[Path], group: str | None = None) -> list[Evaluation]:
    """The evaluation at each path. Raises `UserError` with every fault.

    group: field of lm-evaluation-harness's documents that names their contrast set; gaguide's examples have
    theirs.
    """
    found = []
    with FaultCollector() as faults:
        names = _short_names(paths)
        for path, name in zip(paths, names, strict=True):
            one = faults.attempt(_read, path, name, group)
            found += [] if one is None else [one]
    return found


def _read(path: Path, name: str, group: str | None) -> Evaluation:
    if not path.exists():
        raise UserError.of("EVALUATION", "does not exist", _REMEDY, str(path))
    if path.is_dir() and (path / _EXAMPLES).is_file():
        return _ours(path, name)
    if path.name in (_EXAMPLES, run_files.RESULTS) and (path.parent / _EXAMPLES).is_file():
        return _ours(path.parent, name)
    return _harness(path, name, group)


def _ours(folder: Path, name: str) -> Evaluation:
    try:
        tasks = read_examples(folder)
        results: dict[str, Any] = json.loads((folder / run_files.RESULTS).read_text("utf-8"))
        main = {task: next(iter(record["metrics"])) for task, record in results["tasks"].items()}
        warnings = [text for record in results["tasks"].values() for text in record.get("warnings", ())]
        doubts = {
            task: {metric: one["reason"] for metric, one in record.get("uninformative", {}).items()}
            for task, record in results["tasks"].items()
        }
        settings = dict.fromkeys(tasks, scoring_settings(results))
        return Evaluation(name, folder, str(results["model"]), tasks, main, tuple(warnings), doubts, settings)
    except FileNotFoundError as error:
        problem = f"is not complete: it has no {Path(error.filename).name}"
        raise UserError.of("EVALUATION", problem, "evaluate the model again", str(folder)) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        problem = f"cannot be read ({reason})"
        raise UserError.of("EVALUATION", problem, "evaluate the model again", str(folder)) from None


def _harness(path: Path, name: str, group: str | None) -> Evaluation:
    files = {path} if path.is_file() else set(path.rglob("*.jsonl"))
    if path.is_file() and path.suffix == ".json":  # results_DATE.json: its samples lie next to it
        date = path.stem.removeprefix("results_")
        files = {file for file in path.parent.glob("samples_*.jsonl") if file.stem.endswith(f"_{date}")}
    named = sorted((*parts, file) for file in files if (parts := samples_task(file)) is not None)
    if not named:
        problem = f"contains neither {_EXAMPLES} nor samples_TASK_DATE.jsonl"
        raise UserError.of("EVALUATION", problem, _REMEDY, str(path))
    folders = sorted({str(file.parent) for *_, file in named})
    if len(folders) > 1:
        problem = f"contains evaluations of {len(folders)} models ({', '.join(folders)})"
        raise UserError.of("EVALUATION", problem, "give the folder of one model", str(path))
    # Later files of a task replace earlier ones.
    latest = {task: file for task, _, file in named}
    read = {task: read_samples(file, task, group) for task, file in latest.items()}
    tasks = {task: one.examples for task, one in read.items()}
    main = {task: _main_metric(examples) for task, examples in tasks.items() if examples.outcomes}
    older = [file.name for *_, file in named if file not in latest.values()]
    warnings = [f"older samples of the same tasks are not read: {', '.join(older)}"] if older else []
    warnings += [sentence for one in read.values() for sentence in one.warnings]
    doubts = {task: one.doubts for task, one in read.items()}
    return Evaluation(name, path, Path(folders[0]).name, tasks, main, tuple(warnings), doubts)


def _main_metric(examples: TaskExamples) -> str:
    """The first metric that is not a loss; the harness does not name a main one."""
    names = list(examples.outcomes)
    return next((name for name in names if name not in ("loss", "class_loss")), names[0])


def _short_names(paths: Sequence[Path]) -> list[str]:
    """For each path its last parts, as many as distinguish it. Raises `UserError` where two are the same."""
    parts = [path.expanduser().absolute().parts for path in paths]
    repeated = {str(path) for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1}
    if repeated:
        raise UserError.of("EVALUATION", f"is given twice ({', '.join(sorted(repeated))})", "give each once")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            break
    return names
