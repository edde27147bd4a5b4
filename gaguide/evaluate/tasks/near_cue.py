"""Tasks of kind near_cue: which lexicon's words are the cues; without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.task import Task
from gaguide.guidance.lexicon import Lexicon, get_lexicon, read_lexicons, shipped_lexicons


def with_cues(task: Task, folder: Path) -> Task:
    """The task with the path of its own lexicons, which may be relative to `folder`.

    Raises `UserError` where a task of kind near_cue lacks a known lexicon, or another kind has one.
    """
    given = [name for name in ("lexicon", "lexicons") if getattr(task, name) is not None]
    if task.lexicons is not None:
        task = task.model_copy(update={"lexicons": str(folder / task.lexicons)})
    with FaultCollector() as faults:
        if task.kind == "near_cue":
            faults.attempt(cue_lexicon, task)
            if task.fewshot is not None:
                problem = "does not apply to kind near_cue, which has no prompts"
                faults.add(Fault(f"task {task.name}: fewshot", problem, "leave it out"))
        elif given:
            problem, remedy = "applies to kind near_cue only", "set `kind: near_cue`"
            faults.add(Fault(f"task {task.name}: {given[0]}", problem, remedy, task.kind))
    return task


def cue_lexicon(task: Task) -> Lexicon:
    """The lexicon whose words are the cues."""
    own = {} if task.lexicons is None else read_lexicons(Path(task.lexicons))
    field = f"task {task.name}: lexicon"
    if task.lexicon is None:
        remedy = f"name a word set, such as {', '.join(list(shipped_lexicons() | own)[:3])}"
        raise UserError.of(field, "is required for kind near_cue", remedy)
    return get_lexicon(task.lexicon, own, field)


def mark_cues(task: Task, examples: Iterable[Example]) -> tuple[Example, ...]:
    """The examples of a near_cue task with the hash of their cues' lexicon."""
    content = cue_lexicon(task).content(task.cue_mode)
    return tuple(replace(example, cues=content) for example in examples)
