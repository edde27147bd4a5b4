"""Content of the files that a study names: identity is content, never a path, a size or a date.

Tasks are identified by the SHA-256 of their data and by everything in their definition that decides a score;
local models and lexicon files by the SHA-256 of their files. A hub id is trusted by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gaguide.data.format.manifest import is_complete, read_manifest
from gaguide.errors import Fault, FaultCollector
from gaguide.evaluate.tasks.harness.read import read_harness_task
from gaguide.evaluate.tasks.locate import LocatedTask, files_hash, locate_tasks, split_names
from gaguide.evaluate.tasks.options import DEFAULTS
from gaguide.files import hash_file, hash_json, read_object, write_json
from gaguide.model.content import file_record, folder_record, model_files

_WORDS_ONLY = {
    name: True
    for name in (
        "summary", "source", "license", "doi", "shows", "hides", "group", "lm_eval", "paper", "sha256",
        "spans",
    )
} | {"files": {"__all__": {"also": True, "sha256": True}}}  # fmt: skip
"""Fields of a task that no score depends on."""
_CACHE = ".content.json"


@dataclass(frozen=True)
class TaskContent:
    """The content of one task."""

    identity: str
    """Hash of the definition and all data."""
    data: str | None = None
    """SHA-256 of its data file, as the evaluation records it; None for data from elsewhere."""


@dataclass(frozen=True)
class StudyTasks:
    """The content of a study's tasks on this machine."""

    contents: Mapping[str, TaskContent]
    """Task → content, of the tasks whose data could be read."""
    faults: tuple[Fault, ...] = ()
    """Why others could not."""


def read_task_contents(names: Sequence[str], data_folder: Path | None) -> StudyTasks:
    """The content of the tasks that `names` mean; arguments as in the options --tasks and --data."""
    faults = FaultCollector()
    found = {}
    for located in locate_tasks(split_names(names), data_folder, faults):
        content = faults.attempt(_task_content, located)
        if content is not None:
            found[located.task.name] = content
    return StudyTasks(found, tuple(faults.faults))


def _task_content(located: LocatedTask) -> TaskContent:
    task = located.task
    if located.harness is not None:
        asked = read_harness_task(located.harness, None, None, DEFAULTS).examples
        keys = [example.key(str(task.kind)) for example in asked]
        return TaskContent(hash_json([str(located.harness.tree), keys], default=str))
    parts: list[Any] = [task.model_dump(mode="json", exclude=_WORDS_ONLY, exclude_defaults=True)]
    hashes = [hash_file(path) for path in located.paths]
    parts.append(hashes[0] if len(hashes) == 1 else hashes or None)
    data = files_hash(hashes)
    if task.fewshot is not None and task.fewshot.file is not None:
        pool = located.folder / task.fewshot.file
        parts.append(hash_file(pool) if pool.is_file() else None)
    if task.shards is not None and "://" not in task.shards:
        shards = located.folder / Path(task.shards).expanduser()
        parts.append(read_manifest(shards).fingerprint if is_complete(shards) else None)
    return TaskContent(hash_json(parts, default=str), data)


@dataclass
class ContentHashes:
    """SHA-256 of files, remembered in the study's folder under their path, size, date and inode.

    A file is read again when any of these differs, so the memory only saves time.
    """

    folder: Path
    """The study's folder, or a cell's; nothing is remembered while it does not exist."""
    _known: dict[str, list[Any]] = field(init=False)
    _changed: bool = False

    def __post_init__(self) -> None:
        self._known = read_object(self.folder / _CACHE)

    def file(self, path: Path) -> str:
        """SHA-256 of a file."""
        return str(self._remembered(path, str(path), hash_file))

    def record(self, folder: Path) -> dict[str, Any]:
        """The content of a model's folder, as its evaluations and ablations record it."""
        return folder_record(folder, lambda path: self._remembered(path, f"{path} (record)", file_record))

    def _remembered(self, path: Path, key: str, read: Callable[[Path], Any]) -> Any:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = self._known.get(key)
        if known is not None and known[:-1] == stamp:
            return known[-1]
        found = read(path)
        self._known[key] = [*stamp, found]
        self._changed = True
        return found

    def model(self, folder: Path) -> str:
        """Hash of a model folder's configuration, tokenizer and weights."""
        return hash_json({path.name: self.file(path) for path in model_files(folder)}, default=str)

    def save(self) -> None:
        """Write the hashes, where the study's folder exists and can be written."""
        if self._changed and self.folder.is_dir():
            with suppress(OSError):  # another user's study: only its status can be read
                write_json(self.folder / _CACHE, self._known)
            self._changed = False
