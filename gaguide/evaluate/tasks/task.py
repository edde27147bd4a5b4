"""Task files: what is asked of a model, as YAML, and where the data are.

The prize's eleven sets and the synthetic ones ship with this package; a task of your own needs a name, a kind
and a data file:

    name: my-quiz
    kind: classification
    file: my-quiz.jsonl
    columns: {prompt: question, classes: choices, answer_index: label}
    delimiter: " "
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gaguide.data.format.manifest import MANIFEST_FILE
from gaguide.errors import Fault, UserError, suggestion

Kind = Literal["classification", "sequence_prob", "logodds", "absolute_logodds", "numeric", "perplexity"]

DATA_SUFFIXES = (".jsonl", ".csv")
TASK_SUFFIXES = (".yaml", ".yml")


class Fewshot(BaseModel):
    """Demonstrations put before every prompt of a task: the same ones, drawn once by `seed`.

    They come from `file` (relative to the task file); without one they are drawn from the task's own
    examples, which are then not asked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=1)
    seed: int = 0
    file: str | None = None
    separator: str = "\n\n"


class Task(BaseModel):
    """One task. `kind` None: told by the columns of the data. Texts are used as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    kind: Kind | None = None
    group: str | None = None
    description: str = ""
    # Where the data are: a file (relative to the task file), a data set of the hub, or a generator of ours.
    file: str | None = None
    sha256: str | None = None
    hub: str | None = None
    hub_file: str | None = None
    split: str | None = None  # train of a hub data set, validation of shards
    generator: str | None = None
    count: int = 0
    seed: int = 0
    # Of kind perplexity: a folder or address of shards, and what is measured of it (see `gaguide data`).
    shards: str | None = None
    block_length: int | None = Field(default=None, ge=2)
    blocks: int = Field(default=256, ge=1)
    isolate_documents: bool = False
    # How the data are read: our name → the file's column, with dots into nested columns.
    columns: Mapping[str, str] = {}
    delimiter: str = ""
    fewshot: Fewshot | None = None
    new_tokens: int = Field(default=8, ge=1)  # that a numeric task's answer may take
    # What others call it and got.
    lm_eval: str | None = None
    paper: Mapping[str, Mapping[str, float]] = {}


@dataclass(frozen=True)
class LocatedTask:
    """A task and the file that holds its data; `path` is None for hub and generated data and for shards.

    folder: what other paths in the task file are relative to.
    """

    task: Task
    path: Path | None = None
    folder: Path = Path()


@cache
def built_in_tasks() -> dict[str, Task]:
    """The tasks of this package by name."""
    with as_file(files("gaguide.evaluate.tasks")) as folder:
        return {task.name: task for task in map(read_task_file, sorted(folder.glob("*.yaml")))}


def groups() -> dict[str, list[str]]:
    """The built-in tasks' names by group."""
    named: dict[str, list[str]] = {}
    for task in built_in_tasks().values():
        if task.group is not None:
            named.setdefault(task.group, []).append(task.name)
    return named


def read_task_file(path: Path) -> Task:
    """The task that a YAML file describes; every unknown or ill-typed key is a fault."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(Fault(str(path), f"is not YAML ({reason})", "mend the file")) from None
    if not isinstance(content, dict):
        raise UserError(Fault(str(path), "is not a task", "give keys: name, kind, file"))
    try:
        return Task(**{str(key): value for key, value in content.items()})
    except ValidationError as error:
        raise UserError([_task_fault(path, found) for found in error.errors()]) from None


def locate_tasks(names: Sequence[str], data_folder: Path | None) -> tuple[list[LocatedTask], list[Fault]]:
    """The tasks that `--tasks` names (folders, files, built-in names, groups), and the faults of names.

    `data_folder`, where given, holds the data files of built-in tasks under the names of the release.
    """
    found: dict[str, LocatedTask] = {}
    faults: list[Fault] = []
    for name in names:
        try:
            located = _locate(name, data_folder)
        except UserError as error:
            faults.extend(error.faults)
            continue
        for entry in located:
            other = found.setdefault(entry.task.name, entry)
            if other != entry:
                problem = f"stands for two: {other.path or 'built-in'} and {entry.path or 'built-in'}"
                faults.append(Fault(f"task {entry.task.name}", problem, "rename one of them"))
    if not names:
        faults.append(Fault("--tasks", "names no task", f"known groups: {', '.join(groups())}"))
    return list(found.values()), faults


def _locate(name: str, data_folder: Path | None) -> list[LocatedTask]:
    path = Path(name)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return [_file(path)]
    if name in groups():
        return _group(name, data_folder)
    if name in built_in_tasks():
        return [_built_in(built_in_tasks()[name], data_folder)]
    known = [*groups(), *built_in_tasks()]
    remedy = f"{suggestion(name, known)} Or give a folder, a .jsonl, .csv or .yaml file"
    raise UserError(Fault("--tasks", "is no file, folder, task or group", remedy, name))


def _folder(folder: Path) -> list[LocatedTask]:
    if (folder / MANIFEST_FILE).is_file():
        return [LocatedTask(Task(name=folder.name, kind="perplexity", shards=str(folder.resolve())))]
    described = [_file(path) for path in sorted(folder.iterdir()) if path.suffix in TASK_SUFFIXES]
    taken = {found.path for found in described}
    data = [path for path in sorted(folder.iterdir()) if path.suffix in DATA_SUFFIXES and path not in taken]
    if not described and not data:
        raise UserError(
            Fault(
                "--tasks", "folder without .jsonl, .csv or .yaml files", "give the data's folder", str(folder)
            )
        )
    return described + [_file(path) for path in data]


def _file(path: Path) -> LocatedTask:
    if path.suffix in TASK_SUFFIXES:
        task = read_task_file(path)
        if task.file is None:
            return LocatedTask(task, folder=path.parent)
        data = path.parent / task.file
        if not data.is_file():
            raise UserError(Fault(f"{path}: file", "does not exist", "give a path relative to it", str(data)))
        return LocatedTask(task, data, path.parent)
    if path.suffix not in DATA_SUFFIXES:
        raise UserError(Fault("--tasks", "unknown kind of file", "give .jsonl, .csv or .yaml", str(path)))
    for task in built_in_tasks().values():
        if path.name in (task.file, f"{task.name}.jsonl", f"{task.name}.csv"):
            return LocatedTask(task, path)
    # Prize entries are named <task>_<kind>.<suffix>.
    name, _, kind = path.stem.rpartition("_")
    kinds: dict[str, Kind] = {
        "classification": "classification",
        "sequence-probability": "sequence_prob",
        "sequence-prob": "sequence_prob",
        "logodds": "logodds",
        "absolute-logodds": "absolute_logodds",
        "numeric": "numeric",
    }
    if name and kind in kinds:
        return LocatedTask(Task(name=name, kind=kinds[kind]), path)
    return LocatedTask(Task(name=path.stem), path)


def _group(name: str, data_folder: Path | None) -> list[LocatedTask]:
    members = [built_in_tasks()[member] for member in groups()[name]]
    located = [_built_in(task, data_folder) for task in members]
    if data_folder is None:
        return located
    # With a folder given, the group is what the folder holds of it.
    found = [entry for entry in located if entry.path is not None or entry.task.generator is not None]
    if not found:
        wanted = ", ".join(str(task.file) for task in members)
        raise UserError(
            Fault("--data", f"holds no file of the group {name}", f"wanted: {wanted}", str(data_folder))
        )
    return found


def _built_in(task: Task, data_folder: Path | None) -> LocatedTask:
    if task.generator is not None or data_folder is None:
        return LocatedTask(task)
    for name in (task.file, f"{task.name}.jsonl", f"{task.name}.csv"):
        if name is not None and (data_folder / name).is_file():
            return LocatedTask(task, data_folder / name)
    return LocatedTask(task)


def _task_fault(path: Path, found: Any) -> Fault:
    key = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        return Fault(f"{path}: {key}", "unknown key", suggestion(key, Task.model_fields))
    return Fault(f"{path}: {key}", found["msg"], "mend the task file", found.get("input"))
