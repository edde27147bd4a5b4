"""Tasks, groups and tags of lm-evaluation-harness by name, and its task files by path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gaguide.errors import Fault, FaultCollector, UserError, suggestion
from gaguide.evaluate.tasks.harness.config import HarnessTask, parse_task
from gaguide.evaluate.tasks.harness.groups import parse_group
from gaguide.evaluate.tasks.harness.source import is_harness_tree, read_source, read_tree
from gaguide.grouping import grouped

_IGNORED_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}
_STRUCTURE = ("tag", "group", "task_list")
"""Keys that are not part of a task."""
_OF_GROUPS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata")
"""Keys of a group; its other keys override those of its tasks."""

Entry = tuple[Path, Mapping[str, Any]]
"""A file, and its keys and values."""


def is_harness_file(path: Path) -> bool:
    """Whether a YAML file is in the harness's form; a file that cannot be read is not."""
    try:
        return is_harness_tree(read_tree(path))
    except UserError:
        return False


class Registry:
    """The task files below some folders; later folders win.

    Raises `UserError` for a folder that does not exist. trust: whether Python functions may run.
    """

    def __init__(self, folders: Sequence[Path] = (), trust: bool = False) -> None:
        self._trust = trust
        self._cache: dict[Path, dict[str, Any]] = {}
        self._entries: dict[str, Entry] = {}
        with FaultCollector() as faults:
            for folder in folders:
                if not folder.is_dir():
                    remedy = "give a folder of task files of lm-evaluation-harness"
                    faults.add(
                        Fault("--include_path", "does not exist or is not a folder", remedy, str(folder))
                    )
                else:
                    self._entries |= self._index(folder)
        self._tags = self._index_tags()

    @property
    def names(self) -> list[str]:
        """All tasks, groups and tags."""
        return [*self._entries, *self._tags]

    def __contains__(self, name: str) -> bool:
        return name in self._entries or name in self._tags

    def find(self, name: str) -> list[HarnessTask]:
        """The tasks that a task, group or tag means. Raises `UserError` with the faults of all."""
        return self._member(name, {}, (), Path())

    def read(self, path: Path, in_folder: bool = False) -> list[HarnessTask]:
        """The tasks of a file: one, or those of a group.

        in_folder: whether all files of its folder are read. Then one that others include, which names no
        task, has none, and neither has a group, whose tasks have files of their own. Raises `UserError`.
        """
        tree = read_source(path, self._cache)
        if in_folder and ("task" not in tree or "group" in tree) and "class" not in tree:
            return []
        if "group" in tree and "class" not in tree:  # whose tasks may be in the same file
            self._entries = self._index(path.parent) | self._entries
            self._tags = self._index_tags()
        return self._tasks((path, tree), {}, ())

    def _index(self, folder: Path) -> dict[str, Entry]:
        """Tasks and groups by name; the first file of a name wins, and files that cannot be read are left
        out, as in the harness."""
        found: dict[str, Entry] = {}
        for path in sorted(folder.glob("**/*.yaml"), key=lambda path: path.as_posix()):
            if not _IGNORED_FOLDERS.isdisjoint(path.parts):
                continue
            try:
                tree = read_source(path, self._cache)
            except UserError:
                continue
            name = tree.get("group") if "group" in tree and "class" not in tree else tree.get("task")
            if isinstance(name, str):
                found.setdefault(name, (path, tree))
        return found

    def _index_tags(self) -> dict[str, list[str]]:
        entries = [(name, tree) for name, (_, tree) in sorted(self._entries.items()) if "group" not in tree]
        return grouped((tag, name) for name, tree in entries for tag in _tags(tree))

    def _member(
        self, member: Any, overrides: Mapping[str, Any], above: tuple[str, ...], path: Path
    ) -> list[HarnessTask]:
        """The tasks of a member of the group in `path`: a name, or keys that override those of a task or
        group, or a task or group that is defined there."""
        own = dict(member) if isinstance(member, Mapping) else {}
        if "group" in own:
            name = own.pop("group")
            if name not in self._entries:
                name = "::".join([*above[-1:], name])
                return self._tasks((path, {"group": name} | own), overrides, above)
            return self._tasks(self._entries[name], {**overrides, **own}, above)
        name = own.get("task", member if isinstance(member, str) else None)
        if name in self._tags and name not in self._entries:
            return [
                task
                for one in self._tags[name]
                for task in self._tasks(self._entries[one], {**overrides, **own, "task": one}, above)
            ]
        if name in self._entries:
            return self._tasks(self._entries[name], {**overrides, **own}, above)
        if len(own) > 1 and above:
            tree = {**overrides, **own, "task": f"{above[-1]}::{name}"}
            return self._tasks((path, tree), {}, above)
        where = f"group {above[-1]}: task" if above else "--tasks"
        problem = "must be a task, group or tag below --include_path"
        raise UserError.of(where, problem, suggestion(str(name), self.names), str(name))

    def _tasks(self, entry: Entry, overrides: Mapping[str, Any], above: tuple[str, ...]) -> list[HarnessTask]:
        path, tree = entry
        if "group" not in tree or "class" in tree:
            kept = {key: value for key, value in {**tree, **overrides}.items() if key not in _STRUCTURE}
            return [parse_task(kept, path, self._trust)]
        name = str(tree["group"])
        if name in above:
            raise UserError.of(f"group {name}", "contains itself", "remove it from its tasks", str(path))
        further = {key: value for key, value in tree.items() if key not in _OF_GROUPS and key != "tag"}
        members = tree.get("task")
        if not isinstance(members, list):
            members = [members] if isinstance(members, str) else []
        if not members:
            raise UserError.of(f"{path}: task", "lists no task", "list the group's tasks")
        tasks: list[HarnessTask] = []
        with FaultCollector() as faults:
            for member in members:
                inner = {**further, **overrides}
                tasks += faults.attempt(self._member, member, inner, (*above, name), path) or ()
        direct = dict.fromkeys(task.groups[0].name if task.groups else task.name for task in tasks)
        group = parse_group(name, tree, tuple(direct), path)
        return [replace(task, groups=(group, *task.groups)) for task in tasks]


def _tags(tree: Mapping[str, Any]) -> Iterator[str]:
    tag = tree.get("tag")
    yield from (tag if isinstance(tag, list) else [tag] if tag else [])
