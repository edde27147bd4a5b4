"""Earlier results in a folder: whether new ones may be added, and both merged.

A folder holds the results of one model, by content, with one set of settings; evaluations of other tasks are
added to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from gaguide.errors import Fault, FaultKind, UserError
from gaguide.evaluate.tasks.read import TaskData
from gaguide.files import hash_json
from gaguide.log import run_files
from gaguide.model.content import same_content

_LOCK = ".evaluation.lock"
_SETTINGS: Mapping[str, Any] = {
    "dtype": None, "limit": None, "shots": None, "on_overflow": None, "deepspeed": None,
    "apply_chat_template": False, "system_instruction": "", "fewshot_as_multiturn": True,
    "fewshot_seed": 1234,
}  # fmt: skip
"""Settings that results in one folder have in common, and their values before they could be chosen."""
_OF_ONE_EVALUATION = ("seconds", "tokens", "world_size", "resumed", "versions", "code")
_REMEDY = "give another folder with --output"


def task_content(data: TaskData) -> str:
    """SHA-256 of everything that a task asks, including demonstrations, ids, groups and parts."""
    asked = [
        (example.id, example.key(data.kind), example.group, *([] if example.part is None else [example.part]))
        for example in data.examples
    ]
    return hash_json(asked)


@contextmanager
def lock_outputs(outputs: Sequence[Path]) -> Iterator[None]:
    """Inside, no other evaluation may write into these folders. Raises `UserError` where one does."""
    locks: list[FileLock] = []
    try:
        for output in outputs:
            output.mkdir(parents=True, exist_ok=True)
            lock = FileLock(output / _LOCK)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                problem = "another evaluation writes into it now"
                remedy = "give another folder, or start this one when the other has ended"
                raise UserError.of("--output", problem, remedy, str(output), FaultKind.BUSY) from None
            locks.append(lock)
        yield
    finally:
        for lock in locks:
            lock.release()


def check_earlier(
    output: Path, identity: Mapping[str, Any], settings: Mapping[str, Any], data: Sequence[TaskData]
) -> None:
    """Raise `UserError` where `output` holds results to which new ones cannot be added.

    Those are results of another model, with other settings, or of the same task with other examples.
    """
    earlier = read_earlier(output)
    if earlier is None:
        return
    faults = []
    if not same_content(earlier.get("identity"), json.loads(json.dumps(identity))):
        problem = f"holds results of another model, or of another state of it ({earlier.get('model')})"
        faults.append(Fault("--output", problem, _REMEDY, str(output)))
    found: Any = earlier.get("settings", {})
    before = {name: found.get(name, value) for name, value in _SETTINGS.items()}
    other = [name for name in _SETTINGS if before[name] != settings.get(name, _SETTINGS[name])]
    if other:
        listed = ", ".join(f"{name} {before[name]} instead of {settings.get(name)}" for name in other)
        faults.append(
            Fault("--output", f"holds results with other settings ({listed})", _REMEDY, str(output))
        )
    for task in data:
        same = earlier["tasks"].get(task.task.name)
        if same is not None and same.get("content") != task_content(task):
            problem = f"holds results of task {task.task.name} on other examples ({same.get('source')})"
            faults.append(Fault("--output", problem, _REMEDY, str(output)))
    if faults:
        raise UserError(faults)


def read_earlier(output: Path) -> dict[str, Any] | None:
    """The content of results.json in `output`; None without it. Raises `UserError` for another file."""
    path = output / run_files.RESULTS
    if not path.is_file():
        return None
    try:
        found: Any = json.loads(path.read_text("utf-8"))
        if not isinstance(found["tasks"], dict):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        problem = f"holds a {run_files.RESULTS} that is not an evaluation's"
        raise UserError.of("--output", problem, _REMEDY, str(output)) from None
    return dict(found)


def merge_results(earlier: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """results.json with the tasks of both; fields of a single evaluation are listed per evaluation."""
    record = {"tasks": list(new["tasks"])} | {name: new[name] for name in _OF_ONE_EVALUATION}
    if earlier is None:
        return {**new, "evaluations": [record]}
    before = []
    for one in earlier.get("evaluations", ()):
        left = [name for name in one["tasks"] if name not in new["tasks"]]
        before += [one | {"tasks": left}] if left else []
    return {**new, "tasks": {**earlier["tasks"], **new["tasks"]}, "evaluations": [*before, record]}


def merge_harness(path: Path, new: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results_lm_eval.json with the tasks of the file at `path`, if there is one."""
    if not path.is_file():
        return dict(new)
    earlier = json.loads(path.read_text("utf-8"))
    by_task = (
        "results", "configs", "versions", "n-shot", "higher_is_better", "uninformative", "n-samples",
        "task_hashes", "group_subtasks", "groups",
    )  # fmt: skip
    kept = [name for name in by_task if name in earlier or name in new]
    return {**new} | {name: {**earlier.get(name, {}), **new.get(name, {})} for name in kept}


def merge_examples(path: Path, new: pa.Table, tasks: Sequence[str]) -> pa.Table:
    """The table at `path` without the rows of `tasks`, followed by `new`."""
    if not path.is_file():
        return new
    earlier = pq.read_table(path)
    kept = earlier.filter(pc.invert(pc.is_in(earlier["task"], pa.array(tasks, pa.string()))))
    return pa.concat_tables([kept, new], promote_options="default")
