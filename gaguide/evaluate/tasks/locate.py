"""Resolves the names after --tasks: task files, data files, folders, built-in tasks and groups."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gaguide.data.format.manifest import MANIFEST_FILE
from gaguide.errors import Fault, FaultCollector, UserError, suggestion
from gaguide.evaluate.tasks.harness.config import HarnessTask
from gaguide.evaluate.tasks.harness.registry import Registry, is_harness_file
from gaguide.evaluate.tasks.options import DEFAULTS, TaskOptions
from gaguide.evaluate.tasks.task import DataFile, Kind, Task, built_in_tasks, groups, read_task_file

DATA_SUFFIXES = (".jsonl", ".csv", ".tsv")
TASK_SUFFIXES = (".yaml", ".yml")

_PRIZE_KINDS: dict[str, Kind] = {
    "classification": "classification",
    "sequence-probability": "sequence_prob",
    "sequence-prob": "sequence_prob",
    "logodds": "logodds",
    "absolute-logodds": "absolute_logodds",
    "numeric": "numeric",
}
"""Entries of the prize are files named NAME_KIND.SUFFIX."""


@dataclass(frozen=True)
class LocatedTask:
    """A task and where its data are."""

    task: Task
    path: Path | None = None
    """The data file; None for hub data, generated data and shards."""
    folder: Path = Path()
    """Folder that other paths in the task file are relative to."""
    harness: HarnessTask | None = None
    """A task of lm-evaluation-harness, which says itself where its data are."""
    rest: tuple[Path, ...] = ()
    """The other data files of a task with several, after `path`."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All data files, in the order of `Task.data_files`."""
        return () if self.path is None else (self.path, *self.rest)


def files_hash(hashes: Sequence[str]) -> str | None:
    """Identity of the data: the file's SHA-256, or that of several; None without files."""
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def split_names(arguments: Sequence[str]) -> list[str]:
    """The task names in command-line arguments, which may hold several with commas between them."""
    return [name for argument in arguments for name in argument.split(",") if name]


def locate_tasks(
    names: Sequence[str], data_folder: Path | None, faults: FaultCollector, options: TaskOptions = DEFAULTS
) -> list[LocatedTask]:
    """The tasks that `names` mean, each once; `faults` receives the faults of the other names.

    data_folder: holds the data files of built-in tasks, under the file names of the release.
    """
    found: dict[str, LocatedTask] = {}
    registry = faults.attempt(Registry, options.include_path, options.trust_remote_code)
    for name in names if registry is not None else ():
        assert registry is not None
        for entry in faults.attempt(_locate, name, data_folder, registry) or ():
            other = found.setdefault(entry.task.name, entry)
            if other != entry:
                problem = f"names two tasks: {_describe(other)} and {_describe(entry)}"
                remedy = "rename one of them"
                if _describe(other) == _describe(entry):
                    problem, remedy = "is named twice, through different groups", "name one of them"
                faults.add(Fault(f"task {entry.task.name}", problem, remedy))
    if not names:
        faults.add(Fault("--tasks", "must name a task", f"known groups: {', '.join(groups())}"))
    return list(found.values())


def _describe(entry: LocatedTask) -> str:
    path = entry.path if entry.harness is None else entry.harness.path
    return str(path or "built-in")


def _locate(name: str, data_folder: Path | None, registry: Registry) -> list[LocatedTask]:
    path = Path(name)
    if name in registry:
        return _of_harness(registry.find(name))
    if path.is_dir():
        return _in_folder(path, registry)
    if path.is_file():
        return _from_file(path, registry)
    if name in groups():
        return _in_group(name, data_folder)
    if name in built_in_tasks():
        return [_built_in(built_in_tasks()[name], data_folder)]
    known = [*groups(), *built_in_tasks(), *registry.names]
    remedy = suggestion(name, known, otherwise="give a folder, or a .jsonl, .csv or .yaml file")
    raise UserError.of("--tasks", "must be a file, folder, task or group", remedy, name)


def _in_folder(folder: Path, registry: Registry) -> list[LocatedTask]:
    if (folder / MANIFEST_FILE).is_file():
        return [LocatedTask(Task(name=folder.name, kind="perplexity", shards=str(folder.resolve())))]
    files = [path for path in sorted(folder.iterdir()) if path.suffix in TASK_SUFFIXES]
    described = [one for path in files for one in _from_file(path, registry, in_folder=True)]
    taken = {found.path for found in described}
    data = [path for path in sorted(folder.iterdir()) if path.suffix in DATA_SUFFIXES and path not in taken]
    if any(found.harness is not None for found in described):
        data = []  # whose files name their data themselves
    if not described and not data:
        problem = "is a folder without .jsonl, .csv or .yaml files"
        raise UserError.of("--tasks", problem, "give the folder of the data", str(folder))
    return described + [one for path in data for one in _from_file(path, registry)]


def _from_file(path: Path, registry: Registry, in_folder: bool = False) -> list[LocatedTask]:
    if path.suffix in TASK_SUFFIXES:
        if is_harness_file(path):
            return _of_harness(registry.read(path, in_folder=in_folder))
        task = read_task_file(path)
        data = [path.parent / file.file for file in task.data_files]
        with FaultCollector() as faults:
            for missing in (one for one in data if not one.is_file()):
                remedy = "give a path relative to the task file"
                faults.add(Fault(f"{path}: file", "does not exist", remedy, str(missing)))
        return [LocatedTask(task, data[0] if data else None, path.parent, rest=tuple(data[1:]))]
    if path.suffix not in DATA_SUFFIXES:
        expected = f"must be a {', '.join(DATA_SUFFIXES)} or .yaml file"
        raise UserError.of("--tasks", expected, "convert it", str(path))
    for task in built_in_tasks().values():
        if task.file is not None and path.name in _file_names(task):
            return [LocatedTask(task, path)]
    name, _, kind = path.stem.rpartition("_")
    if name and kind in _PRIZE_KINDS:
        return [LocatedTask(Task(name=name, kind=_PRIZE_KINDS[kind]), path)]
    return [LocatedTask(Task(name=path.stem), path)]


_KINDS: dict[str, Kind] = {
    "multiple_choice": "classification",
    "loglikelihood": "sequence_prob",
    "loglikelihood_rolling": "rolling",
}


def _of_harness(tasks: Sequence[HarnessTask]) -> list[LocatedTask]:
    return [
        LocatedTask(
            Task(name=one.name, kind=_KINDS[one.output_type], lm_eval=one.name),
            folder=one.path.parent,
            harness=one,
        )
        for one in tasks
    ]


def _in_group(name: str, data_folder: Path | None) -> list[LocatedTask]:
    members = [built_in_tasks()[member] for member in groups()[name]]
    located = [_built_in(task, data_folder) for task in members]
    if data_folder is None:
        return located
    # With a data folder, the group is reduced to what the folder holds.
    found = [entry for entry in located if entry.path is not None or entry.task.generator is not None]
    if not found:
        expected = ", ".join(file.file for task in members for file in task.data_files)
        problem = f"does not contain a file of the group {name}"
        raise UserError.of("--data", problem, f"expected files: {expected}", str(data_folder))
    return found


def _built_in(task: Task, data_folder: Path | None) -> LocatedTask:
    if task.generator is not None or data_folder is None:
        return LocatedTask(task)
    if not task.files:
        names = [data_folder / name for name in _file_names(task)]
        return LocatedTask(task, next((path for path in names if path.is_file()), None))
    found = [_in_data_folder(file, data_folder) for file in task.files]
    missing = [file.file for file, path in zip(task.files, found, strict=True) if path is None]
    paths = [path for path in found if path is not None]
    if missing and paths:
        problem = f"does not contain {', '.join(missing)} of task {task.name}"
        raise UserError.of("--data", problem, "add the files", str(data_folder))
    return LocatedTask(task, paths[0], rest=tuple(paths[1:])) if paths else LocatedTask(task)


def _file_names(task: Task) -> list[str]:
    """Names that the data file of a built-in task with one may have."""
    own = [] if task.file is None else [task.file]
    return [*own, f"{task.name}.jsonl", f"{task.name}.csv"]


def _in_data_folder(file: DataFile, data_folder: Path) -> Path | None:
    """The file under one of its names."""
    return next(
        (data_folder / name for name in (file.file, *file.also) if (data_folder / name).is_file()), None
    )
